//! How a process is seen from its start to its end: its log, and its traces where they are wanted.

use super::{error::StartError, settings::TelemetrySettings};
use crate::{
    runtime::Nursery,
    telemetry::{
        LogFormat, Telemetry, Traces, logging,
        otlp::{FLUSH, OtlpError},
    },
};

/// What a process is told about how it is seen.
#[derive(Clone, Debug, Default)]
pub struct Observing {
    /// What is logged.
    pub filter: String,
    /// How.
    pub format: LogFormat,
    /// Where traces go.
    pub settings: TelemetrySettings,
    /// Name of the service in traces; `None`: made of the member's.
    pub service: Option<String>,
    /// `registry` or `sidecar`.
    pub role: &'static str,
}

/// A process that is seen.
#[derive(Debug)]
pub struct Observed {
    telemetry: Telemetry,
    exporting: Nursery,
}

impl Observed {
    /// Starts logging, for the whole process, and sending traces.
    ///
    /// # Errors
    /// With the key of what is wrong.
    pub fn start(told: Observing) -> Result<Self, StartError> {
        let exporting = Nursery::here();
        let traces = match told.settings.traces(told.role, told.service) {
            Some(config) => {
                let (traces, export) = Traces::open(&config).map_err(|error| {
                    let key = match error {
                        OtlpError::Sample(_) => "telemetry.sample",
                        OtlpError::Endpoint(_) | OtlpError::Tls(_) | OtlpError::Exporter(_) => {
                            "telemetry.otlp"
                        }
                    };
                    StartError::value(key, error)
                })?;
                exporting.start("traces", |stop| export.run(stop));
                traces
            }
            None => Traces::default(),
        };
        let log = logging::start(&told.filter, told.format, &traces)
            .map_err(|error| StartError::value("log", error))?;
        if let Some(collector) = traces.endpoint() {
            tracing::info!(collector, sample = told.settings.sample, "traces are sent");
        }
        let telemetry = Telemetry { log, traces };
        Ok(Self {
            telemetry,
            exporting,
        })
    }

    /// What the process' parts need of it.
    pub fn telemetry(&self) -> Telemetry {
        self.telemetry.clone()
    }

    /// Sends what is left, for a bounded time.
    pub async fn end(self) {
        self.exporting.close(FLUSH * 2).await;
    }
}
