//! What the processes are told: the shapes of their configuration files.

pub mod callbacks;
pub mod card;
pub mod lifetimes;
pub mod registry;
pub mod sidecar;
pub mod telemetry;

pub use callbacks::CallbackSettings;
pub use card::{CardSettings, SkillSettings};
pub use registry::RegistrySettings;
pub use sidecar::SidecarSettings;
pub use telemetry::TelemetrySettings;
