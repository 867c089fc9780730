//! Traces out of the process, by OTLP over gRPC. Off until it is opened.
//!
//! Never in anybody's way: spans that end go into a queue with a bound, and what does not fit is
//! counted and gone. One task takes them out, in batches, each with a bound in time. It says once
//! that a collector is away, not every time. Only our own spans come here, so that what the exporter
//! itself does makes no new ones.

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::Uri;
use opentelemetry::{Context, KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{RetryPolicy, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{Layer, Registry, filter::Targets};

use crate::domain::{Member, SpiffeId};
use crate::telemetry::span::TARGET;

/// Spans that wait to be sent: some seconds at a thousand tasks a second, and about 8 MiB.
const QUEUE: usize = 8192;
/// Spans that are sent together.
const BATCH: usize = 512;
/// How long the first of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long a collector may take for a batch.
const EXPORT: Duration = Duration::from_secs(5);
/// How long the last batches may take when the process ends.
pub const FLUSH: Duration = Duration::from_secs(2);
/// How often it is said that a collector is away, while it is.
const SAY_AGAIN: Duration = Duration::from_secs(300);

/// Where traces go, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct OtlpConfig {
    /// `http://host:port` of a collector's gRPC listener.
    pub endpoint: String,
    /// Share of the traces that begin here which are recorded, from 0 to 1. One that began elsewhere
    /// is recorded where it was there.
    pub sample: f64,
    /// Name of the service; `None`: made of the member's.
    pub service: Option<String>,
    /// `sidecar` or `registry`.
    pub role: &'static str,
}

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// Not an address.
    #[error(
        "{0:?} is not where a collector listens: write http://host:port, such as http://127.0.0.1:4317"
    )]
    Endpoint(String),
    /// TLS was asked for.
    #[error(
        "{0:?}: traces are sent without TLS only; run a collector on this machine and write http://127.0.0.1:4317, it can pass them on by https"
    )]
    Tls(String),
    /// No share.
    #[error("{0} is not a share of the traces: write a number from 0 (none) to 1 (all)")]
    Sample(f64),
    /// The environment asks the exporter for what it does not have.
    #[error("{0}; look at the OTEL_EXPORTER_OTLP_* variables of the environment")]
    Exporter(String),
}

/// Who a process is in its traces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Name of the member: the agent's, or the registry's.
    pub name: String,
    /// Its namespace, if it is in one.
    pub namespace: Option<String>,
    /// Which copy of it.
    pub instance: String,
}

impl Identity {
    /// What a member is called in traces; `instance` tells its copies apart.
    pub fn of(id: &SpiffeId, instance: &str) -> Self {
        let (name, namespace) = match &id.member {
            Member::Agent(name) | Member::Service(name) => {
                (name.name.to_string(), Some(name.namespace.to_string()))
            }
            Member::Registry(_) => ("registry".to_owned(), None),
            Member::Operator(name) => (name.to_string(), None),
        };
        Self {
            name,
            namespace,
            instance: instance.to_owned(),
        }
    }
}

/// The traces of this process. Clones are the same; the default is off.
#[derive(Clone, Default)]
pub struct Traces {
    open: Option<Arc<Open>>,
}

struct Open {
    endpoint: String,
    provider: SdkTracerProvider,
    counts: Arc<Counts>,
    identity: watch::Sender<Option<Identity>>,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
}

/// What became of the spans so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Taken by the collector.
    pub sent: u64,
    /// Lost: the queue was full, or the collector did not take them.
    pub dropped: u64,
}

/// What a subscriber is made of.
pub type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

impl Traces {
    /// Makes everything ready; nothing is sent before [`Export::run`] is. Inside of a tokio runtime.
    ///
    /// # Errors
    /// All of [`OtlpError`]. That a collector is away is none.
    pub fn open(config: &OtlpConfig) -> Result<(Self, Export), OtlpError> {
        check(config)?;
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&config.endpoint)
            .with_timeout(EXPORT)
            .with_retry_policy(RetryPolicy::disabled())
            .build()
            .map_err(|error| OtlpError::Exporter(error.to_string()))?;
        let (queue, spans) = mpsc::channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let sampler = Sampler::TraceIdRatioBased(config.sample);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_span_processor(Queue {
                queue,
                counts: Arc::clone(&counts),
            })
            .build();
        let (identity, known) = watch::channel(None);
        let export = Export {
            exporter,
            spans,
            counts: Arc::clone(&counts),
            identity: known,
            config: config.clone(),
        };
        let open = Open {
            endpoint: config.endpoint.clone(),
            provider,
            counts,
            identity,
        };
        let open = Some(Arc::new(open));
        Ok((Self { open }, export))
    }

    /// The layer that records spans of [`TARGET`]; `None` where nobody asked for traces.
    pub fn layer(&self) -> Option<BoxedLayer> {
        let open = self.open.as_ref()?;
        let tracer = open.provider.tracer("attache");
        let ours = Targets::new().with_target(TARGET, tracing::Level::INFO);
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false);
        Some(layer.with_filter(ours).boxed())
    }

    /// Who this process is. Spans wait for it.
    pub fn known_as(&self, identity: Identity) {
        if let Some(open) = &self.open {
            open.identity.send_replace(Some(identity));
        }
    }

    /// Where traces go, if they go anywhere.
    pub fn endpoint(&self) -> Option<&str> {
        self.open.as_ref().map(|open| open.endpoint.as_str())
    }

    /// What became of the spans so far.
    pub fn sent(&self) -> Sent {
        let counts = self.open.as_ref().map(|open| &open.counts);
        counts.map_or_else(Sent::default, |counts| counts.read())
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Traces").field(&self.endpoint()).finish()
    }
}

impl Counts {
    fn read(&self) -> Sent {
        Sent {
            sent: self.sent.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    fn drop_spans(&self, spans: usize) {
        self.dropped.fetch_add(spans as u64, Ordering::Relaxed);
    }
}

/// Takes spans that ended, on whatever thread that was. Says nothing: a log line from here could
/// be the one that the span ended in.
#[derive(Debug)]
struct Queue {
    queue: mpsc::Sender<SpanData>,
    counts: Arc<Counts>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.queue.try_send(span).is_err() {
            self.counts.drop_spans(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task that sends.
pub struct Export {
    exporter: opentelemetry_otlp::SpanExporter,
    spans: mpsc::Receiver<SpanData>,
    counts: Arc<Counts>,
    identity: watch::Receiver<Option<Identity>>,
    config: OtlpConfig,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Export {
    /// Sends until `stop`, then what is left, for [`FLUSH`] at most.
    pub async fn run(mut self, stop: CancellationToken) {
        let ended = async {
            stop.cancelled().await;
            sleep(FLUSH).await;
        };
        let collector = self.config.endpoint.clone();
        tokio::select! {
            () = self.carry(&stop) => {}
            () = ended => tracing::warn!(collector, "the last traces were not taken in time"),
        }
    }

    async fn carry(&mut self, stop: &CancellationToken) {
        let identity = tokio::select! {
            biased;
            known = self.identity.wait_for(Option::is_some) => known.ok().and_then(|known| known.clone()),
            () = stop.cancelled() => None,
        };
        let resource = resource(&self.config, &identity.unwrap_or_default());
        self.exporter.set_resource(&resource);
        let mut said = Said::default();
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = gather(&mut self.spans, &mut batch) => {}
            }
            self.send(std::mem::take(&mut batch), &mut said).await;
        }
        self.spans.close();
        while !batch.is_empty() || self.spans.recv_many(&mut batch, BATCH).await > 0 {
            if !self.send(std::mem::take(&mut batch), &mut said).await {
                return;
            }
        }
    }

    /// Whether the collector took them.
    async fn send(&self, batch: Vec<SpanData>, said: &mut Said) -> bool {
        let count = batch.len();
        let lost = Lost {
            counts: &self.counts,
            count,
        };
        let outcome = match timeout(EXPORT, self.exporter.export(batch)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Cow::Owned(error.to_string())),
            Err(_) => Err(Cow::Borrowed("no answer within 5 s")),
        };
        if outcome.is_ok() {
            std::mem::forget(lost);
            self.counts.sent.fetch_add(count as u64, Ordering::Relaxed);
        } else {
            drop(lost);
        }
        said.tell(&self.config.endpoint, &outcome, self.counts.read());
        outcome.is_ok()
    }
}

/// A batch that has not arrived: dropped on the way, its spans are counted as lost.
struct Lost<'a> {
    counts: &'a Counts,
    count: usize,
}

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        self.counts.drop_spans(self.count);
    }
}

/// What was said about a collector that does not take what it gets.
#[derive(Default)]
struct Said {
    away: Option<Instant>,
}

impl Said {
    fn tell(&mut self, collector: &str, outcome: &Result<(), Cow<'_, str>>, counts: Sent) {
        let now = Instant::now();
        match (outcome, self.away) {
            (Ok(()), Some(_)) => {
                self.away = None;
                tracing::info!(
                    collector,
                    dropped = counts.dropped,
                    "the collector takes traces again"
                );
            }
            (Err(error), away) if away.is_none_or(|said| now >= said + SAY_AGAIN) => {
                self.away = Some(now);
                tracing::warn!(
                    collector, dropped = counts.dropped, %error,
                    "the collector does not take traces: they are dropped, all else goes on"
                );
            }
            _ => {}
        }
    }
}

/// Fills a batch: with the first span that comes, and those that follow it closely.
async fn gather(spans: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if spans.recv_many(batch, BATCH).await == 0 {
        return std::future::pending().await;
    }
    let until = Instant::now() + LINGER;
    while batch.len() < BATCH {
        let room = BATCH - batch.len();
        tokio::select! {
            () = sleep_until(until) => return,
            more = spans.recv_many(batch, room) => if more == 0 {
                return;
            }
        }
    }
}

fn check(config: &OtlpConfig) -> Result<(), OtlpError> {
    let wrong = || OtlpError::Endpoint(config.endpoint.clone());
    let uri: Uri = config.endpoint.parse().map_err(|_| wrong())?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(OtlpError::Tls(config.endpoint.clone())),
        _ => return Err(wrong()),
    }
    if uri
        .authority()
        .is_none_or(|authority| authority.host().is_empty())
    {
        return Err(wrong());
    }
    if !(0.0..=1.0).contains(&config.sample) {
        return Err(OtlpError::Sample(config.sample));
    }
    Ok(())
}

/// Who sends, by OpenTelemetry's names; `OTEL_RESOURCE_ATTRIBUTES` adds to it.
fn resource(config: &OtlpConfig, identity: &Identity) -> Resource {
    let named = match identity.name.as_str() {
        "" => format!("attache-{}", config.role),
        name => format!("attache-{name}"),
    };
    let service = config.service.clone().unwrap_or(named);
    let mut attributes = vec![
        KeyValue::new("service.name", service),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("attache.role", config.role),
    ];
    if !identity.instance.is_empty() {
        attributes.push(KeyValue::new(
            "service.instance.id",
            identity.instance.clone(),
        ));
    }
    if let Some(namespace) = &identity.namespace {
        attributes.push(KeyValue::new("service.namespace", namespace.clone()));
    }
    Resource::builder().with_attributes(attributes).build()
}

#[cfg(test)]
mod tests;
