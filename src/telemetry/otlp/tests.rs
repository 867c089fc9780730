//! The exporter against collectors that are there, away, silent and full.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use tracing::instrument::WithSubscriber;
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::telemetry::{
    TraceContext,
    span::{Subject, Work},
};

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn config(endpoint: &str) -> OtlpConfig {
    OtlpConfig {
        endpoint: endpoint.into(),
        sample: 1.0,
        service: None,
        role: "sidecar",
    }
}

/// Runs `work` where its spans are recorded, then ends the exporter; how long that took.
async fn exporting(config: &OtlpConfig, work: impl FnOnce(&Traces)) -> (Sent, Duration) {
    let (traces, export) = Traces::open(config).unwrap();
    traces.known_as(Identity::default());
    let subscriber =
        tracing_subscriber::registry().with(traces.layer().map(|one| vec![one]).unwrap());
    let stop = CancellationToken::new();
    let working = async {
        async { work(&traces) }.with_subscriber(subscriber).await;
        stop.cancel();
        Instant::now()
    };
    let (began, ()) = tokio::join!(working, export.run(stop.clone()));
    (traces.sent(), began.elapsed())
}

fn spans(count: usize) {
    for number in 0..count {
        drop(Work::submit(None, "SubmitTask", &number));
    }
}

#[tokio::test]
async fn what_is_left_at_the_end_arrives_under_the_name_of_the_process() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = Collector::default();
    let service = Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    let serving = service.serve_with_incoming(TcpListenerStream::new(listener));
    let named = OtlpConfig {
        service: Some("desk".into()),
        ..config(&endpoint)
    };
    let exported = exporting(&named, |traces| {
        let id = "spiffe://a/ns/n/agent/billing".parse().unwrap();
        traces.known_as(Identity::of(&id, "i1"));
        spans(1200);
    });
    let (sent, _) = tokio::select! {
        exported = exported => exported,
        served = serving => panic!("{served:?}"),
    };
    assert_eq!(
        sent,
        Sent {
            sent: 1200,
            dropped: 0
        }
    );
    let all = collector.0.lock().clone();
    let groups = all.iter().flat_map(|request| &request.resource_spans);
    let mut count = 0;
    for group in groups {
        let resource = group.resource.as_ref().unwrap();
        for (key, value) in [
            ("service.name", "desk"),
            ("service.namespace", "n"),
            ("service.instance.id", "i1"),
            ("attache.role", "sidecar"),
            ("service.version", env!("CARGO_PKG_VERSION")),
        ] {
            let found = resource.attributes.iter().find(|one| one.key == key);
            let found = found.and_then(|one| one.value.clone()?.value);
            assert_eq!(found, Some(Value::StringValue(value.into())), "{key}");
        }
        count += group
            .scope_spans
            .iter()
            .map(|scope| scope.spans.len())
            .sum::<usize>();
    }
    assert_eq!(count, 1200);
}

#[tokio::test]
async fn a_collector_that_is_away_costs_its_spans_and_nothing_else() {
    // Bound and let go: nobody listens there.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (sent, took) = exporting(&config(&endpoint), |_| spans(10)).await;
    assert_eq!((sent.sent, took < FLUSH), (0, true), "{sent:?} {took:?}");
    assert!(sent.dropped > 0);
}

#[tokio::test]
async fn a_silent_collector_holds_nobody_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let more = QUEUE + 100;
    let (sent, took) = exporting(&config(&endpoint), |_| {
        let began = Instant::now();
        spans(more);
        // Nothing waits for the queue: on a busy machine this is far below a second.
        assert!(began.elapsed() < EXPORT, "{:?}", began.elapsed());
    })
    .await;
    assert_eq!(sent.sent, 0);
    assert!(sent.dropped >= 100, "{sent:?}");
    assert!(took < FLUSH + Duration::from_secs(1), "{took:?}");
}

#[test]
fn what_cannot_be_sent_to_is_refused_with_a_way_out() {
    for good in [
        "http://127.0.0.1:4317",
        "http://[::1]:4317",
        "http://collector.example",
    ] {
        check(&config(good)).unwrap();
    }
    for (endpoint, told) in [
        ("https://collector.example:4317", "without TLS only"),
        ("127.0.0.1:4317", "http://host:port"),
        ("unix:/tmp/x", "http://host:port"),
        ("grpc://x:1", "http://host:port"),
        ("http://", "http://host:port"),
        ("http:// x", "http://host:port"),
        ("", "http://host:port"),
    ] {
        let error = check(&config(endpoint)).unwrap_err().to_string();
        assert!(error.contains(told), "{endpoint}: {error}");
    }
    for sample in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let wrong = OtlpConfig {
            sample,
            ..config("http://x:1")
        };
        assert!(
            matches!(check(&wrong), Err(OtlpError::Sample(_))),
            "{sample}"
        );
    }
}

#[tokio::test]
async fn who_is_recorded_is_decided_where_the_trace_begins() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let none = OtlpConfig {
        sample: 0.0,
        ..config(&format!("http://{}", listener.local_addr().unwrap()))
    };
    let (traces, _export) = Traces::open(&none).unwrap();
    let subscriber = tracing_subscriber::registry().with(vec![traces.layer().unwrap()]);
    let _here = tracing::subscriber::set_default(subscriber);
    let begun = Work::submit(None, "SubmitTask", &1);
    assert!(!begun.context().unwrap().is_sampled());
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let parent = TraceContext::parse(parent, "vendor=x").unwrap();
    let subject = Subject {
        task_id: "t",
        skill: "s",
        attempt: 1,
        correlation_id: "c",
    };
    let below = Work::execute(Some(&parent), subject, "i1");
    let context = below.context().unwrap();
    assert!(context.is_sampled());
    assert_eq!(
        (context.trace_id(), context.tracestate()),
        (parent.trace_id(), "vendor=x")
    );
    assert_ne!(context.span_id(), parent.span_id());
    drop((begun, below));
    assert_eq!(traces.sent(), Sent::default());
}
