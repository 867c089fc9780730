//! What `mesh.toml` says of its registry and of all its sidecars.

use serde::Deserialize;

use crate::{
    app::settings::{
        CallbackSettings,
        lifetimes::{
            AGENT_LOST_AFTER, Bounds, CERTIFICATE_LIFE, CONNECTION_AGE, DRAIN, LEASE, RETENTION,
        },
    },
    config::Span,
    task::home::IN_MEMORY,
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
    /// How long it may take to end.
    pub drain: Span,
}

/// What all sidecars of the mesh are told, as in [`crate::app::settings::SidecarSettings`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshSidecars {
    /// Age of their members' connections.
    pub connection_age: Span,
    /// How long each may take to end.
    pub drain: Span,
    /// How long an attempt elsewhere may be out of reach.
    pub agent_lost_after: Span,
    /// How long finished tasks can be asked for.
    pub retention: Span,
    /// Most finished tasks that stay in memory.
    pub finished_in_memory: usize,
    /// Whom they may call back outside of the mesh.
    pub callbacks: CallbackSettings,
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
            drain: DRAIN.default,
        }
    }
}

impl Default for MeshSidecars {
    fn default() -> Self {
        Self {
            connection_age: CONNECTION_AGE.default,
            drain: DRAIN.default,
            agent_lost_after: AGENT_LOST_AFTER.default,
            retention: RETENTION.default,
            finished_in_memory: IN_MEMORY,
            callbacks: CallbackSettings::default(),
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
    let spans: [(&str, Bounds, Span); 8] = [
        ("registry", CERTIFICATE_LIFE, registry.certificate_life),
        ("registry", CONNECTION_AGE, registry.connection_age),
        ("registry", LEASE, registry.lease),
        ("registry", DRAIN, registry.drain),
        ("sidecars", CONNECTION_AGE, sidecars.connection_age),
        ("sidecars", DRAIN, sidecars.drain),
        ("sidecars", AGENT_LOST_AFTER, sidecars.agent_lost_after),
        ("sidecars", RETENTION, sidecars.retention),
    ];
    for (table, bounds, span) in spans {
        bounds
            .check(span)
            .map_err(|text| (format!("{table}.{}", bounds.key), text))?;
    }
    sidecars
        .callbacks
        .config()
        .map(drop)
        .map_err(|(key, text)| (format!("sidecars.{key}"), text))
}
