//! What is told of passing calls: lines, contexts, spans; and what it costs.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::time::Instant;
use tracing::{Level, subscriber::with_default};
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::{
    h2::grpc,
    identity::Peer,
    telemetry::{
        Traces,
        call::heard::{Lines, logged_from},
        logging::changeable,
        metrics::{Format, Metrics},
        otlp::OtlpConfig,
    },
};

const PATH: &str = "/pay.v1.Billing/Charge";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CORRELATION: &str = "0199c0de-0000-7000-8000-000000000001";

struct Bench {
    calls: PassingCalls,
    from: Arc<Connection>,
    agent: AgentName,
    instance: InstanceId,
    fields: Fields,
}

impl Bench {
    fn of(caller: Caller) -> Self {
        let connection = Connection {
            caller,
            remote: Some("127.0.0.1:4".parse().unwrap()),
            local: None,
            exporter: None,
        };
        Self {
            calls: PassingCalls::default(),
            from: Arc::new(connection),
            agent: "b".parse().unwrap(),
            instance: "i7".parse().unwrap(),
            fields: Fields::new(),
        }
    }

    fn outward() -> Self {
        Self::of(Caller::Local)
    }

    fn inward() -> Self {
        Self::of(Caller::Member(Arc::new(Peer {
            id: "spiffe://d/ns/default/agent/x".parse().unwrap(),
            instance: None,
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            serial: "1".into(),
            key: [0; 32],
        })))
    }

    fn open(&mut self, path: &str, more: &[(&str, &str)]) -> Account {
        self.fields.clear();
        self.fields.push(b":path", path.as_bytes());
        for (name, value) in more {
            self.fields.push(name.as_bytes(), value.as_bytes());
        }
        let to = To {
            agent: Some(&self.agent),
            exists: true,
        };
        Account::open(&self.calls, &self.from, to, &mut self.fields)
    }

    fn close(&self, account: &mut Account, end: End, code: u8) {
        let outcome = Outcome {
            end,
            code: Some(grpc::Code(code)),
            attempts: 2,
            sent: 5,
            received: 7,
            elapsed: Duration::from_micros(1500),
        };
        let went = Went {
            named: Some(&self.agent),
            own: Some(&self.agent),
            instance: Some(&self.instance),
        };
        account.close(went, &outcome);
    }

    /// A call that ends with the status; what it sent on is in the fields.
    fn call(&mut self, path: &str, more: &[(&str, &str)], code: u8) {
        let mut account = self.open(path, more);
        self.close(&mut account, End::Answered, code);
    }

    fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.fields.iter();
        let named = fields.filter(|field| field.name == name.as_bytes());
        named
            .map(|field| str::from_utf8(field.value).unwrap())
            .collect()
    }
}

fn levels(lines: &Lines) -> Vec<Value> {
    let lines = lines.json().into_iter();
    lines.map(|line| line["level"].clone()).collect()
}

#[test]
fn a_failed_call_has_a_line_with_all_there_is_to_know() {
    let more = [
        ("attache-correlation-id", CORRELATION),
        ("traceparent", PARENT),
    ];
    let mut bench = Bench::inward();
    let lines = logged_from(Level::INFO, true, || {
        bench.call(PATH, &more, 5);
        let mut account = bench.open(PATH, &more);
        let mut trailers = Fields::new();
        trailers.push(b"grpc-status", b"8");
        // google.rpc.Status with an ErrorInfo of reason NOT_YOURS.
        let details = "CAgaQAoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLkVycm9ySW5mbxIUCglOT1RfWU9VUlMSB2F0dGFjaGU";
        trailers.push(b"grpc-status-details-bin", details.as_bytes());
        account.told(&trailers);
        bench.close(&mut account, End::Failed, 8);
    });
    let lines = lines.json();
    assert_eq!(lines.len(), 2);
    let line = |line: usize, name: &str| lines[line]["fields"][name].clone();
    assert_eq!(lines[0]["target"], "attache::access");
    for (name, value) in [
        ("listener", Value::from("mtls")),
        ("caller", "spiffe://d/ns/default/agent/x".into()),
        ("remote", "127.0.0.1:4".into()),
        ("agent", "default/b".into()),
        ("instance", "i7".into()),
        ("attempts", 2.into()),
        ("ended_by", "answer".into()),
        ("service", "other".into()),
        ("method", "other".into()),
        ("path", PATH.into()),
        ("code", "NOT_FOUND".into()),
        ("reason", Value::Null),
        ("correlation", CORRELATION.into()),
        ("trace", TRACE.into()),
        ("duration_ms", 1.5.into()),
        ("received", 5.into()),
        ("sent", 7.into()),
    ] {
        assert_eq!(line(0, name), value, "{name}");
    }
    for (name, value) in [
        ("service", Value::from("pay.v1.Billing")),
        ("method", "Charge".into()),
        ("path", Value::Null),
        ("code", "RESOURCE_EXHAUSTED".into()),
        ("reason", "NOT_YOURS".into()),
        ("ended_by", "way".into()),
    ] {
        assert_eq!(line(1, name), value, "{name}");
    }
}

#[test]
fn what_went_well_and_what_probes_ask_is_for_who_looks_closely() {
    let calls = |bench: &mut Bench| {
        bench.call(PATH, &[], 0);
        bench.call("/grpc.health.v1.Health/Check", &[], 14);
        bench.call("/grpc.health.v1.Health/Check", &[], 0);
        bench.call("/grpc.health.v1.Health/Check", &[], 14);
        bench.call(PATH, &[], 14);
    };
    let lines = logged_from(Level::INFO, true, || calls(&mut Bench::outward()));
    assert_eq!(levels(&lines), ["INFO"]);
    assert_eq!(lines.json()[0]["fields"]["listener"], "local");
    let lines = logged_from(Level::DEBUG, true, || calls(&mut Bench::outward()));
    assert_eq!(levels(&lines), ["DEBUG", "DEBUG", "DEBUG", "DEBUG", "INFO"]);
    let lines = logged_from(Level::WARN, true, || calls(&mut Bench::outward()));
    assert_eq!(lines.text(), "");
}

#[test]
fn whatever_a_caller_writes_one_call_is_one_short_line() {
    let text = "/a\u{1b}[2J\u{2028}\"/x".repeat(1000);
    let more = [
        ("attache-correlation-id", text.as_str()),
        ("traceparent", text.as_str()),
        ("grpc-status-details-bin", text.as_str()),
    ];
    for json in [true, false] {
        let mut bench = Bench::inward();
        let lines = logged_from(Level::INFO, json, || {
            let mut account = bench.open(&text, &more);
            account.told(&bench.fields);
            bench.close(&mut account, End::Answered, 0);
            bench.call(&text, &more, 12);
        });
        let line = lines.text();
        assert!(line.len() < 2048 && line.ends_with('\n'), "{}", line.len());
        let control = |letter: char| letter.is_ascii_control();
        assert!(!line.trim_end().contains(control), "{line:?}");
    }
}

#[test]
fn a_context_passes_as_it_came_where_nobody_records() {
    let mut bench = Bench::outward();
    let both = [("traceparent", PARENT), ("tracestate", "a=1")];
    bench.call(PATH, &both, 0);
    assert_eq!(bench.values("traceparent"), [PARENT]);
    assert_eq!(bench.values("tracestate"), ["a=1"]);
    bench.call(PATH, &[("traceparent", "what")], 0);
    assert_eq!(bench.values("traceparent"), ["what"]);
    bench.call(PATH, &[], 0);
    assert_eq!(bench.values("traceparent"), [""; 0], "none is made up");
}

/// Has spans of `act` recorded as an exporter wants them.
fn recording(sample: f64, act: impl FnOnce()) {
    let config = OtlpConfig {
        endpoint: "http://127.0.0.1:1".into(),
        sample,
        service: None,
        role: "sidecar",
    };
    let (traces, _export) = Traces::open(&config).unwrap();
    let all = tracing_subscriber::registry().with(vec![traces.layer().unwrap()]);
    with_default(all, act);
    // None of them was sampled, or all wait in its queue, which has room.
    assert_eq!(traces.sent().dropped, 0);
}

#[tokio::test]
async fn what_goes_on_names_the_span_that_is_recorded() {
    for mut bench in [Bench::outward(), Bench::inward()] {
        recording(0.0, || {
            let both = [("tracestate", "a=1"), ("traceparent", PARENT)];
            bench.call(PATH, &both, 0);
            let on = bench.values("traceparent").concat();
            assert!(on.contains(TRACE) && on.ends_with("-01"), "{on}");
            assert_ne!(on, PARENT, "a span of our own");
            assert_eq!(bench.values("tracestate"), ["a=1"]);
            // Whoever begins it has decided.
            bench.call(PATH, &[("traceparent", UNSAMPLED)], 0);
            assert_eq!(bench.values("traceparent"), [UNSAMPLED]);
            // It begins here, and this one is not recorded: those below are told.
            bench.call(PATH, &[], 0);
            assert!(bench.values("traceparent").concat().ends_with("-00"));
        });
        recording(1.0, || {
            for twice in [vec![], vec![("traceparent", PARENT); 2]] {
                bench.call(PATH, &twice, 14);
                let on = bench.values("traceparent").concat();
                assert!(on.ends_with("-01") && !on.contains(TRACE), "{on}");
            }
        });
    }
}

#[test]
fn a_call_that_goes_well_allocates_nothing() {
    for mut bench in [Bench::outward(), Bench::inward()] {
        let more = [
            ("attache-correlation-id", CORRELATION),
            ("traceparent", PARENT),
        ];
        let mut trailers = Fields::new();
        trailers.push(b"grpc-status", b"0");
        let mut hundred = || {
            for _ in 0..100 {
                let mut account = bench.open(PATH, &more);
                account.told(&trailers);
                bench.close(&mut account, End::Answered, 0);
            }
        };
        hundred();
        let spent = allocation_counter::measure(&mut hundred);
        assert_eq!(spent.count_total, 0, "without a log");
        let (layer, _control) = changeable("info");
        let all = tracing_subscriber::registry().with(vec![layer]);
        with_default(all, || {
            hundred();
            // Another test's subscriber, while it lives, makes this one look wanted to all callsites.
            let until = Instant::now() + Duration::from_secs(20);
            loop {
                let spent = allocation_counter::measure(&mut hundred).count_total;
                if spent == 0 {
                    break;
                }
                assert!(
                    Instant::now() < until,
                    "{spent} with one that wants failures"
                );
                std::thread::yield_now();
            }
        });
    }
}

#[test]
fn calls_that_never_end_are_under_way_no_more() {
    let mut bench = Bench::inward();
    drop(bench.open(PATH, &[]));
    let mut account = bench.open(PATH, &[]);
    let metrics = Metrics::new("sidecar");
    metrics.add(bench.calls.clone());
    let shown = |count: u8| {
        let row = "attache_passing_in_flight{direction=\"inward\",agent=\"default/b\",\
                   service=\"other\",method=\"other\"}";
        let page = metrics.page(Format::Text);
        assert!(page.contains(&format!("{row} {count}")), "{page}");
    };
    shown(1);
    bench.close(&mut account, End::GivenUp, 1);
    shown(0);
    bench.close(&mut account, End::GivenUp, 1);
    shown(0);
}
