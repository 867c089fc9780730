//! What a process lets be seen of it, as configuration files say it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::telemetry::otlp::OtlpConfig;

/// The table `[telemetry]` of a registry, a sidecar or a mesh.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// Where traces go by OTLP over gRPC: `http://host:port` of a collector; empty: nowhere.
    pub otlp: String,
    /// Share of the tasks that are traced, from 0 to 1, where their caller does not trace them
    /// already.
    pub sample: f64,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            otlp: String::new(),
            sample: 1.0,
        }
    }
}

/// Where OpenTelemetry's libraries look for a collector.
const ENDPOINT_ENV: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

impl TelemetrySettings {
    /// Lets an agent send its own spans to the same place, if it makes any and is told nothing else.
    pub fn tell_agent(&self, env: &mut BTreeMap<String, String>) {
        if !self.otlp.is_empty() {
            env.entry(ENDPOINT_ENV.to_owned())
                .or_insert_with(|| self.otlp.clone());
        }
    }

    /// What the exporter of a process is told; `None`: no traces.
    pub fn traces(&self, role: &'static str, service: Option<String>) -> Option<OtlpConfig> {
        (!self.otlp.is_empty()).then(|| OtlpConfig {
            endpoint: self.otlp.clone(),
            sample: self.sample,
            service,
            role,
        })
    }
}
