//! What can be seen of a process from outside. Crosses every component and knows none of them.

pub mod call;
mod lines;
pub mod logging;
pub mod metrics;
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

impl metrics::Source for Telemetry {
    fn write(&self, sheet: &mut metrics::Sheet<'_>) {
        let spans = self.traces.sent();
        sheet.counter(&metrics::family::LOG_LINES, self.log.lines().rows());
        sheet.counter(&metrics::family::SPANS_SENT, [([], spans.sent as f64)]);
        let dropped = spans.dropped as f64;
        sheet.counter(&metrics::family::SPANS_DROPPED, [([], dropped)]);
    }
}
