//! The processes: the only place that knows every service.

pub mod settings;
pub mod up;
