//! What `mesh.toml` says of its registry and of all its sidecars.

use serde::Deserialize;

use crate::{
    app::settings::lifetimes::{Bounds, CERTIFICATE_LIFE, CONNECTION_AGE, LEASE},
    config::Span,
};

/// The registry of the mesh. Ports that are 0 are free ones, remembered; the rest as in
/// [`crate::app::settings::RegistrySettings`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshRegistry {
    /// Port for mutual TLS.
    pub mtls: u16,
    /// Port for enrolment.
    pub enrollment: u16,
    /// Port for admin.
    pub admin: u16,
    /// Life of sidecars' certificates.
    pub certificate_life: Span,
    /// Age of its connections.
    pub connection_age: Span,
    /// How long an unheard instance stays.
    pub lease: Span,
}

/// What all sidecars of the mesh are told, as in [`crate::app::settings::SidecarSettings`].
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshSidecars {
    /// Age of their members' connections.
    pub connection_age: Span,
}

impl Default for MeshRegistry {
    fn default() -> Self {
        Self {
            mtls: 0,
            enrollment: 0,
            admin: 0,
            certificate_life: CERTIFICATE_LIFE.default,
            connection_age: CONNECTION_AGE.default,
            lease: LEASE.default,
        }
    }
}

impl Default for MeshSidecars {
    fn default() -> Self {
        Self {
            connection_age: CONNECTION_AGE.default,
        }
    }
}

/// Whether all lengths of time are within their bounds.
///
/// # Errors
/// With the key of one that is not, and the bounds.
pub(super) fn check(
    registry: &MeshRegistry,
    sidecars: &MeshSidecars,
) -> Result<(), (String, String)> {
    let spans: [(&str, Bounds, Span); 4] = [
        ("registry", CERTIFICATE_LIFE, registry.certificate_life),
        ("registry", CONNECTION_AGE, registry.connection_age),
        ("registry", LEASE, registry.lease),
        ("sidecars", CONNECTION_AGE, sidecars.connection_age),
    ];
    for (table, bounds, span) in spans {
        bounds
            .check(span)
            .map_err(|text| (format!("{table}.{}", bounds.key), text))?;
    }
    Ok(())
}
