//! Attackers and slow peers at a sidecar's local listener, and a good client beside them.

#![allow(
    clippy::print_stderr,
    reason = "figures for whoever runs it with --nocapture"
)]

use std::{process::Stdio, time::Duration};

use futures_util::future::join_all;
use tokio::{process::Command, time::Instant};

use crate::support::{
    floods::{Attack, Outcome, Victim, beside::Beside},
    mesh::{Site, Up, agent},
    tools::attache,
};

/// A method that every listener of a sidecar has.
const METHOD: &str = "/grpc.health.v1.Health/Check";
/// Frames after which an attacker has done enough to be sent away.
const FRAMES: u64 = 100_000;
/// How long each flood goes on, by attackers that come again.
const SIEGE: Duration = Duration::from_secs(1);
/// Bound of a slow attack; those who are let go are so within it.
const SLOW: Duration = Duration::from_secs(20);

/// The floods whose attackers the local listener lets be. Has to become empty, and a test says when.
const FLOODS_YET: [Attack; 4] = [
    Attack::Ping,
    Attack::Settings,
    Attack::Priority,
    Attack::WindowUpdate,
];
/// The slow ones that it lets be; those of endless streams need one first.
const SLOW_YET: [Attack; 3] = [Attack::SlowHeaders, Attack::ByteByByte, Attack::ZeroWindow];

/// A mesh with a home, whose local listener is attacked.
async fn site() -> (Site, Up, String) {
    let site = Site::new(&agent("home", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let address = up.instance("default/home", 0).local.clone();
    (site, up, address)
}

fn victim(address: &str) -> Victim<'_> {
    Victim {
        address,
        known: METHOD,
        endless: None,
    }
}

/// Attacks again and again; what became of the first, and how many there were.
async fn siege(attack: Attack, address: &str) -> (Outcome, u32) {
    let until = Instant::now() + SIEGE;
    let first = attack.run(victim(address), FRAMES, SLOW).await;
    let mut count = 1;
    while Instant::now() < until {
        attack.run(victim(address), FRAMES, SLOW).await;
        count += 1;
    }
    (first, count)
}

#[tokio::test]
async fn floods_are_ended_and_a_good_client_is_served_meanwhile() {
    let (_site, _up, address) = site().await;
    let beside = Beside::start(&address, METHOD).await;
    for attack in Attack::FLOODS {
        let calm = beside.fared_for(SIEGE).await;
        let (first, count) = siege(attack, &address).await;
        let fared = beside.fared();
        eprintln!("{first:?}, {count} times\n  beside it {fared:?}\n  before {calm:?}");
        assert_eq!(fared.failed, Vec::<String>::new(), "{attack:?}");
        let yet = FLOODS_YET.contains(&attack);
        assert_eq!(first.closed.is_none(), yet, "as FLOODS_YET says: {first:?}");
    }
}

#[tokio::test]
async fn who_is_slow_is_let_go_and_a_good_client_is_served_meanwhile() {
    let (_site, _up, address) = site().await;
    let beside = Beside::start(&address, METHOD).await;
    let attacks = Attack::SLOW.iter();
    let all = attacks.filter(|attack| **attack != Attack::SlowStreams);
    let all = all.map(|attack| attack.run(victim(&address), FRAMES, SLOW));
    for outcome in join_all(all).await {
        eprintln!("{outcome:?}");
        let yet = SLOW_YET.contains(&outcome.attack);
        assert_eq!(
            outcome.closed.is_none(),
            yet,
            "as SLOW_YET says: {outcome:?}"
        );
    }
    let fared = beside.fared();
    assert_eq!(fared.failed, Vec::<String>::new());
    assert!(fared.calls > 0, "{fared:?}");
}

/// 40 streams that nobody reads beside calls on another connection, at the bench's own end.
#[tokio::test]
async fn forty_slow_streams_hold_up_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", dir.path().join("end.sock").display());
    let mut end = Command::new(attache());
    let end = end.args(["bench", "--serve", &socket]).kill_on_drop(true);
    let _end = end
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let unary = "/grpc.testing.BenchmarkService/UnaryCall";
    let beside = Beside::start(&socket, unary).await;
    let victim = Victim {
        address: &socket,
        known: unary,
        // A SimpleRequest for answers of 1000 bytes.
        endless: Some((
            "/grpc.testing.BenchmarkService/StreamingFromServer",
            &[0, 0, 0, 0, 3, 0x10, 0xe8, 0x07],
        )),
    };
    let outcome = Attack::SlowStreams.run(victim, FRAMES, 3 * SIEGE).await;
    let fared = beside.fared();
    eprintln!("{outcome:?}\n  beside it {fared:?}");
    assert!(fared.calls > 10 && fared.failed.is_empty(), "{fared:?}");
}
