use std::{collections::HashMap, convert::Infallible, sync::Arc};

use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use serde_json::Value;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};
use tracing_subscriber::layer::SubscriberExt;

use super::{
    heard::{Lines, logged},
    *,
};
use crate::telemetry::metrics::{
    Format, Metrics,
    calls::{Listener, Served},
};

fn origin() -> Origin {
    Origin {
        listener: Listener::new("mtls"),
        caller: "spiffe://d/ns/default/agent/x".into(),
        remote: "127.0.0.1:4".into(),
    }
}

const GET: &str = "/attache.v1.Agent/GetTask";

type Frames = Vec<Frame<Bytes>>;

fn body(frames: Frames) -> BoxBody<Bytes, Infallible> {
    let frames = futures_util::stream::iter(frames.into_iter().map(Ok::<_, Infallible>));
    BodyExt::boxed(StreamBody::new(frames))
}

fn trailers(code: &'static str) -> Frame<Bytes> {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", code.parse().unwrap());
    Frame::trailers(headers)
}

/// The counted rows of `attache_calls_total` that are not zero, by code.
fn counted(origin: &Origin) -> Vec<(String, String)> {
    let metrics = Metrics::new("sidecar");
    metrics.add(vec![Served {
        counts: Arc::clone(&origin.listener),
        open: Box::new(|| 0),
    }]);
    let page = metrics.page(Format::Text);
    assert!(
        !page.contains("attache_calls_in_flight{") || page.contains("GetTask\"} 0"),
        "{page}"
    );
    let rows = page
        .lines()
        .filter(|line| line.starts_with("attache_calls_total{"));
    let rows = rows.filter_map(|row| {
        let (labels, count) = row.rsplit_once(' ')?;
        let code = labels.rsplit_once("code=\"")?.1.trim_end_matches("\"}");
        (!count.starts_with('0')).then(|| (code.to_owned(), count.to_owned()))
    });
    rows.collect()
}

fn one(code: &str) -> Vec<(String, String)> {
    vec![(code.to_owned(), "1".to_owned())]
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ends_with_trailers_is_told_by_them() {
    let origin = origin();
    let lines = Lines::default();
    let layer = tracing_subscriber::fmt::layer()
        .json()
        .with_writer(lines.clone());
    let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
    let call = Call::begin(&origin, GET, None);
    let notes = call.notes();
    let above = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    notes.traced(TraceContext::parse(above, ""));
    let asked = Received::new(Full::new(Bytes::from_static(b"abc")), call.notes());
    asked.collect().await.unwrap();
    notes.about(&pb::Task {
        id: "home.7".into(),
        skill: "echo".into(),
        correlation_id: "c1".into(),
        ..Default::default()
    });
    let answer = vec![Frame::data(Bytes::from_static(b"hello")), trailers("0")];
    let answered = call.answered(Response::new(body(answer)));
    assert_eq!(counted(&origin), vec![], "not before its end");
    tokio::time::advance(Duration::from_millis(1500)).await;
    answered.into_body().collect().await.unwrap();
    drop(guard);
    assert_eq!(counted(&origin), one("OK"));
    let lines = lines.json();
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["target"], "attache::access");
    let fields = &lines[0]["fields"];
    for (name, value) in [
        ("listener", Value::from("mtls")),
        ("caller", "spiffe://d/ns/default/agent/x".into()),
        ("remote", "127.0.0.1:4".into()),
        ("service", "attache.v1.Agent".into()),
        ("method", "GetTask".into()),
        ("code", "OK".into()),
        ("skill", "echo".into()),
        ("task", "home.7".into()),
        ("correlation", "c1".into()),
        ("trace", "0af7651916cd43dd8448eb211c80319c".into()),
        ("duration_ms", 1500.0.into()),
        ("received", 3.into()),
        ("sent", 5.into()),
        ("reason", Value::Null),
    ] {
        assert_eq!(fields[name], value, "{name}");
    }
}

#[test]
fn a_status_among_the_headers_is_the_calls_with_its_reason() {
    let origin = origin();
    let lines = logged(true, || {
        let mut details = ErrorDetails::new();
        details.set_error_info("NOT_YOURS", "attache", HashMap::new());
        let code = Code::PermissionDenied;
        let status = Status::with_error_details(code, "no", details);
        let response = status.into_http::<BoxBody<Bytes, Infallible>>();
        drop(Call::begin(&origin, GET, None).answered(response));
    });
    assert_eq!(counted(&origin), one("PERMISSION_DENIED"));
    assert_eq!(lines.json()[0]["fields"]["reason"], "NOT_YOURS");
}

#[test]
fn details_that_are_no_details_are_no_reason() {
    for details in ["%%%", "", "AAAA", "////"] {
        let origin = origin();
        let lines = logged(true, || {
            let mut response = Response::new(body(Vec::new()));
            let headers = response.headers_mut();
            headers.insert("grpc-status", "5".parse().unwrap());
            headers.insert("grpc-status-details-bin", details.parse().unwrap());
            drop(Call::begin(&origin, GET, None).answered(response));
        });
        assert_eq!(counted(&origin), one("NOT_FOUND"));
        assert_eq!(
            lines.json()[0]["fields"]["reason"],
            Value::Null,
            "{details}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_is_counted_too() {
    let given_up = origin();
    drop(Call::begin(&given_up, GET, None));
    assert_eq!(counted(&given_up), one("CANCELLED"));

    let streaming = origin();
    let frames = vec![Frame::data(Bytes::from_static(b"1")), trailers("0")];
    let answered = Call::begin(&streaming, GET, None).answered(Response::new(body(frames)));
    let mut answer = answered.into_body();
    answer.frame().await.unwrap().unwrap();
    drop(answer);
    assert_eq!(counted(&streaming), one("CANCELLED"));

    let late = origin();
    let call = Call::begin(&late, GET, Some(Duration::from_secs(1)));
    tokio::time::advance(Duration::from_secs(1)).await;
    drop(call);
    assert_eq!(counted(&late), one("DEADLINE_EXCEEDED"));

    let cut = origin();
    let answered = Call::begin(&cut, GET, None).answered(Response::new(body(Vec::new())));
    answered.into_body().collect().await.unwrap();
    assert_eq!(counted(&cut), one("UNKNOWN"));
}

#[test]
fn whatever_a_caller_writes_one_call_is_one_line() {
    let hostile = [
        "a\r\nlevel=ERROR caller=operator",
        "\u{1b}[2J\u{1b}]0;owned\u{7}",
        "\"}\n{\"level\":\"ERROR\"",
        "\u{9b}31m\u{2028}\u{0}",
        &"x\n".repeat(100_000),
    ];
    for json in [true, false] {
        for text in hostile {
            let lines = logged(json, || {
                let call = Call::begin(&origin(), &format!("/{text}/x"), None);
                let notes = call.notes();
                notes.skill(text);
                notes.task(text);
                notes.correlation(text);
            });
            let written = lines.text();
            assert!(
                written.ends_with('\n') && written.len() < 4096,
                "{}",
                written.len()
            );
            let line = written.trim_end_matches('\n');
            let control = |letter: char| letter.is_control() || letter == '\u{2028}';
            let found = line.find(control);
            if json {
                // JSON lets these two stand; they end no line and start no escape for a parser.
                let found = line.find(|letter| control(letter) && u32::from(letter) < 0x80);
                assert_eq!(found, None, "{line:?}");
                let fields = &lines.json()[0]["fields"];
                assert!(text.starts_with(fields["skill"].as_str().unwrap()));
                assert_eq!(fields["method"], "other");
            } else {
                assert_eq!(found, None, "{line:?}");
            }
        }
    }
}

#[test]
fn probes_are_for_who_looks_closely() {
    let lines = logged(true, || {
        drop(Call::begin(&origin(), "/grpc.health.v1.Health/Check", None));
        drop(Call::begin(&origin(), GET, None));
    });
    let levels: Vec<_> = lines
        .json()
        .iter()
        .map(|line| line["level"].clone())
        .collect();
    assert_eq!(levels, ["DEBUG", "INFO"]);
}
