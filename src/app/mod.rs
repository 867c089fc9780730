//! The processes: the only place that knows every service.

mod error;
pub mod observe;
pub mod registry;
pub mod settings;
pub mod shutdown;
pub mod sidecar;
pub mod up;

pub use error::StartError;
