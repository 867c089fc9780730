//! What can be seen of a process from outside. Crosses every component and knows none of them.

pub mod logging;
pub mod otlp;
pub mod span;
pub mod trace;

pub use logging::{LogControl, LogFormat};
pub use otlp::Traces;
pub use span::{Subject, Work};
pub use trace::TraceContext;

/// How a running process is looked at and listened to. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    /// What is logged.
    pub log: LogControl,
    /// What is traced.
    pub traces: Traces,
}
