//! The sidecar of one member: joins the mesh, shows its agent to it, and carries its tasks.
//!
//! Knows of the registry only its client, of tasks only the doors; owns the listeners and the way
//! between them.

mod around;
mod background;
mod balancer;
mod bundle;
mod carry;
mod config;
mod counted;
mod drain;
mod endpoints;
mod error;
mod health;
mod join;
mod judge;
mod keep;
mod metrics;
mod passage;
mod pools;
mod promises;
mod register;
mod route;
mod run;
mod shown;
mod sights;
mod standing;
mod told;
mod treatment;

pub use config::{
    AgentAt, CallbackConfig, Invitation, Journaling, Listening, Probing, SidecarConfig,
};
pub use error::SidecarError;
pub use run::run;
