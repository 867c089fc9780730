//! What is counted of passing calls, under which names, and what counting costs.

use std::{collections::HashSet, thread, time::Duration};

use tonic::Code;

use super::*;
use crate::telemetry::metrics::{Format, Metrics};

const PATH: &str = "/pay.v1.Billing/Charge";

fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

fn called<'a>(direction: Direction, agent: &'a AgentName, path: &'a str) -> Called<'a> {
    Called {
        direction,
        agent: Some(agent),
        exists: true,
        path,
    }
}

fn ended(code: Code) -> Ended {
    Ended {
        by: EndedBy::Answer,
        code,
        attempts: 1,
        took: Duration::from_millis(2),
        received: 5,
        sent: 7,
    }
}

/// A call from its begin to its end.
fn call(calls: &PassingCalls, called: &Called<'_>, code: Code) {
    calls.begin(called).ended(&ended(code));
}

/// Rows of a family, without its name.
fn rows(calls: &PassingCalls, family: &str) -> Vec<String> {
    let metrics = Metrics::new("sidecar");
    metrics.add(calls.clone());
    let page = metrics.page(Format::Text);
    let all = page.lines().filter_map(|line| {
        let row = line.strip_prefix(family)?.strip_prefix('{')?;
        Some(row.to_owned())
    });
    all.collect()
}

fn methods(calls: &PassingCalls) -> HashSet<String> {
    let all = calls.called().into_iter();
    all.map(|counts| counts.labels.row()[1..].join(" "))
        .collect()
}

#[test]
fn a_method_has_a_name_from_its_first_answer_on() {
    let calls = PassingCalls::default();
    let b = agent("b");
    let billing = called(Direction::Outward, &b, PATH);
    let first = calls.begin(&billing);
    assert_eq!((first.service(), first.method()), ("other", "other"));
    assert_eq!(first.path(), Some(PATH));
    let labels = |method: &str| format!("direction=\"outward\",agent=\"default/b\",{method}}}");
    let other = labels("service=\"other\",method=\"other\"");
    let named = labels("service=\"pay.v1.Billing\",method=\"Charge\"");
    let running = rows(&calls, "attache_passing_in_flight");
    assert_eq!(running, [format!("{other} 1")]);
    first.ended(&ended(Code::NotFound));
    let second = calls.begin(&billing);
    assert_eq!(
        (second.service(), second.method()),
        ("pay.v1.Billing", "Charge")
    );
    assert_eq!(second.path(), None);
    let again = Ended {
        by: EndedBy::Way,
        attempts: 3,
        ..ended(Code::Unavailable)
    };
    second.ended(&again);
    drop(calls.begin(&billing));
    let open = named.trim_end_matches('}');
    let expected = [("OK", 0), ("NOT_FOUND", 1), ("UNAVAILABLE", 1)];
    let expected = expected.map(|(code, count)| format!("{open},code=\"{code}\"}} {count}"));
    assert_eq!(rows(&calls, "attache_passing_calls_total"), expected);
    for (family, count) in [
        ("attache_passing_in_flight", 0),
        ("attache_passing_received_bytes_total", 10),
        ("attache_passing_sent_bytes_total", 14),
        ("attache_passing_second_tries_total", 2),
        ("attache_passing_duration_seconds_count", 2),
    ] {
        assert_eq!(
            rows(&calls, family),
            [format!("{named} {count}")],
            "{family}"
        );
    }
    let ends = rows(&calls, "attache_passing_ended_total");
    let counts: Vec<_> = ends
        .iter()
        .filter_map(|row| row.split("by=").nth(1))
        .collect();
    let expected = [
        "\"answer\"} 1",
        "\"sidecar\"} 0",
        "\"caller\"} 0",
        "\"way\"} 1",
    ];
    assert_eq!(counts, expected);
}

#[test]
fn what_strangers_write_is_never_a_label() {
    let calls = PassingCalls::default();
    let (own, nobody) = (agent("own"), agent("nobody"));
    // Nobody has it, or whoever is there does not look at what it is.
    for code in [
        Code::Unimplemented,
        Code::Unavailable,
        Code::PermissionDenied,
        Code::Unauthenticated,
        Code::ResourceExhausted,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::Unknown,
        Code::Internal,
    ] {
        call(&calls, &called(Direction::Inward, &own, PATH), code);
    }
    // Not the agent's word.
    for by in [EndedBy::Sidecar, EndedBy::Caller, EndedBy::Way] {
        let call = calls.begin(&called(Direction::Inward, &own, PATH));
        call.ended(&Ended {
            by,
            ..ended(Code::Ok)
        });
    }
    // No label, even if somebody answers it.
    let long = format!("/{}/x", "a".repeat(200));
    for path in [
        "",
        "/",
        "/a",
        "/a/",
        "//a",
        "a/b",
        "/a/b/c",
        "/a b/c",
        "/a\"/c",
        "/a\n/c",
        "/\u{e9}/c",
        &long,
    ] {
        call(&calls, &called(Direction::Inward, &own, path), Code::Ok);
    }
    // An agent that nobody knows.
    let unknown = Called {
        exists: false,
        ..called(Direction::Outward, &nobody, PATH)
    };
    call(&calls, &unknown, Code::Ok);
    call(&calls, &unknown, Code::Ok);
    let none = Called {
        agent: None,
        ..unknown
    };
    call(&calls, &none, Code::Ok);
    let expected = ["default/own other other", "other other other"];
    assert_eq!(methods(&calls), expected.map(str::to_owned).into());
    assert_eq!(rows(&calls, "attache_passing_in_flight").len(), 2);
}

#[test]
fn names_are_bounded() {
    let calls = PassingCalls::default();
    let own = agent("own");
    for number in 0..2000 {
        let path = format!("/s.S/M{number}");
        call(&calls, &called(Direction::Inward, &own, &path), Code::Ok);
        let name = agent(&format!("a{number}"));
        call(&calls, &called(Direction::Outward, &name, PATH), Code::Ok);
    }
    let names = methods(&calls);
    let agents: HashSet<_> = names
        .iter()
        .filter_map(|row| row.split(' ').next())
        .collect();
    // 256 outward, the own one inward, and all others.
    assert_eq!(agents.len(), 256 + 1 + 1);
    let named = names.iter().filter(|row| !row.ends_with("other other"));
    assert_eq!(named.count(), 512);
    let all: u64 = calls.called().iter().map(|one| one.duration.len()).sum();
    assert_eq!(all, 4000);
    // Those with a name keep it.
    assert_eq!(
        calls
            .begin(&called(Direction::Inward, &own, "/s.S/M0"))
            .method(),
        "M0"
    );
}

#[test]
fn all_threads_count_the_same_calls() {
    const THREADS: u64 = 3 * TABLES as u64;
    let calls = PassingCalls::default();
    let b = agent("b");
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..100 {
                    call(&calls, &called(Direction::Outward, &b, PATH), Code::Ok);
                }
            });
        }
    });
    let all = calls.called();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0].duration.len(), THREADS * 100);
    assert_eq!(all[0].in_flight.load(Relaxed), 0);
}

#[test]
fn a_call_of_a_known_method_allocates_nothing() {
    let calls = PassingCalls::default();
    let b = agent("b");
    let warm = || call(&calls, &called(Direction::Outward, &b, PATH), Code::Ok);
    warm();
    warm();
    let spent = allocation_counter::measure(|| (0..100).for_each(|_| warm()));
    assert_eq!(spent.count_total, 0);
}
