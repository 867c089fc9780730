//! Configuration of a registry: file, environment, flags, in rising order.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::lifetimes::{CERTIFICATE_LIFE, CONNECTION_AGE, DRAIN, LEASE};
use super::telemetry::TelemetrySettings;
use crate::config::Span;

/// Port of the registry's mutual TLS listener.
pub const REGISTRY_PORT: u16 = 7443;
/// Port of the enrolment listener.
pub const ENROLLMENT_PORT: u16 = 7444;
/// Port of the registry's admin listener, on loopback.
pub const REGISTRY_ADMIN_PORT: u16 = 7480;

/// What a registry needs to run. Every key has a default.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySettings {
    /// Name in its SPIFFE id; a DNS label.
    pub name: String,
    /// Directory of the root and issuing CA, as `attache ca init` made it.
    pub ca: PathBuf,
    /// Directory of the catalog's database.
    pub state: PathBuf,
    /// Mutual TLS listener: members.
    pub listen: String,
    /// Enrolment listener: whoever holds a join token.
    pub enrollment: String,
    /// HTTP admin listener; loopback only.
    pub admin: String,
    /// Data threads; 0: one per core.
    pub threads: usize,
    /// Life of the certificates of sidecars and of its own; see [`CERTIFICATE_LIFE`].
    pub certificate_life: Span,
    /// Age at which a connection is told to go, give or take a tenth; see [`CONNECTION_AGE`].
    pub connection_age: Span,
    /// How long an instance stays in the catalog unheard; see [`LEASE`].
    pub lease: Span,
    /// How long it may take to end; see [`DRAIN`].
    pub drain: Span,
    /// Where its traces go.
    pub telemetry: TelemetrySettings,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            name: "main".into(),
            ca: "attache/ca".into(),
            state: "attache/registry".into(),
            listen: format!("[::]:{REGISTRY_PORT}"),
            enrollment: format!("[::]:{ENROLLMENT_PORT}"),
            admin: format!("127.0.0.1:{REGISTRY_ADMIN_PORT}"),
            threads: 0,
            certificate_life: CERTIFICATE_LIFE.default,
            connection_age: CONNECTION_AGE.default,
            lease: LEASE.default,
            drain: DRAIN.default,
            telemetry: TelemetrySettings::default(),
        }
    }
}
