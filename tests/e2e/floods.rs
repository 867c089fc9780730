//! Attackers and slow peers at the listeners of a sidecar, and good clients beside them.

#![allow(
    clippy::print_stderr,
    reason = "figures for whoever runs it with --nocapture"
)]

use std::{process::Stdio, time::Duration};

use futures_util::future::join_all;
use tokio::{process::Command, time::Instant};

use crate::support::{
    floods::{
        Attack, Outcome, Victim,
        beside::{Beside, Fared},
        member,
    },
    hand::page,
    memory,
    mesh::{Site, Up, agent},
    passing::{ASK, AUTHORITY, ECHO, POUR, UNARY, echo, reached},
    tools::attache,
};

/// A method that every listener of a sidecar has.
const METHOD: &str = "/grpc.health.v1.Health/Check";
/// Frames after which an attacker has done enough to be sent away.
const FRAMES: u64 = 100_000;
/// How long each flood goes on, by attackers that come again.
const SIEGE: Duration = Duration::from_secs(1);
/// Bound of an attack that keeps the sidecar waiting.
const SLOW: Duration = Duration::from_secs(25);
/// By when the last of the calls has ended that nobody reads: a minute, and what the machine takes.
const UNREAD: Duration = Duration::from_secs(90);
/// What the machine may add to the worst call of a hundred, whatever the sidecar does: attackers,
/// clients and other tests are at work on its cores, too, and without optimization what came in one
/// piece of an attack takes a sidecar long. A thread that an attacker has for itself takes seconds.
const MACHINE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1500 } else { 50 });
/// What a sidecar may grow by in all floods, in KiB: attackers are many, and read little.
const FLOODED: u64 = 24 << 10;
/// The same with slow readers: what is parked for them all together, which the kernel is not given
/// back at once, as often as buffers double.
const PARKED: u64 = 160 << 10;

/// A mesh with a home, whose listeners are attacked, and an agent with a service of its own.
async fn site() -> (Site, Up, String) {
    let site = Site::new(&(agent("home", &["test.echo"], "") + &echo(1)));
    let up = site.up(&[]).await;
    let address = up.instance("default/home", 0).local.clone();
    reached(&address, ECHO).await;
    (site, up, address)
}

/// Calls that pass to another sidecar's agent.
fn passing(address: &str) -> Victim<'_> {
    Victim {
        authority: AUTHORITY,
        endless: Some((POUR, ASK)),
        ..Victim::of(address, UNARY)
    }
}

/// Attacks again and again; what became of the first, and how many there were.
async fn siege(attack: Attack, victim: Victim<'_>) -> (Outcome, u32) {
    let until = Instant::now() + SIEGE;
    let first = attack.run(victim, FRAMES, SLOW).await;
    let mut count = 1;
    while Instant::now() < until {
        attack.run(victim, FRAMES, SLOW).await;
        count += 1;
    }
    (first, count)
}

/// All of these floods, one after the other; what was wrong with any of them.
async fn floods(victim: Victim<'_>, beside: &Beside, floods: &[Attack]) -> Vec<String> {
    let mut wrong = Vec::new();
    for attack in floods.iter().copied() {
        let calm = beside.fared_for(SIEGE).await;
        let (first, count) = siege(attack, victim).await;
        let fared = beside.fared();
        eprintln!("{first:?}, {count} times\n  beside it {fared:?}\n  before {calm:?}");
        if first.closed.is_none() {
            wrong.push(format!("{attack:?} goes on"));
        }
        if !suffers_little(&calm, &fared) {
            wrong.push(format!(
                "{attack:?} harms others: {fared:?}, before {calm:?}"
            ));
        }
    }
    wrong
}

/// No call has failed, and they take less than twice as long as before, but for what the machine
/// itself does to them.
fn suffers_little(before: &Fared, meanwhile: &Fared) -> bool {
    meanwhile.failed.is_empty() && meanwhile.calls > 0 && meanwhile.p99 < 2 * before.p99 + MACHINE
}

/// Sidecars of the mesh, and what they have now.
fn sidecars(site: &Site) -> Vec<(u32, u64)> {
    let names = ["home-1", "echo-1"];
    let pids = names.map(|name| site.mark.process(&["sidecar", name]).pid);
    pids.map(|pid| {
        memory::forget_most(pid);
        (pid, memory::now(pid))
    })
    .into()
}

fn grew_little(sidecars: &[(u32, u64)], most: u64) {
    for (pid, before) in sidecars {
        let grown = memory::most(*pid).saturating_sub(*before);
        eprintln!("{pid} had {before} KiB and grew by {grown} KiB");
        assert!(grown < most, "{pid} grew by {grown} KiB");
    }
}

#[tokio::test]
async fn floods_are_ended_and_a_good_client_is_served_meanwhile() {
    let (site, _up, address) = site().await;
    let beside = Beside::start(&address, "localhost", METHOD).await;
    beside.fared_for(SIEGE).await;
    let before = sidecars(&site);
    let wrong = floods(Victim::of(&address, METHOD), &beside, &Attack::FLOODS).await;
    assert_eq!(wrong, Vec::<String>::new());
    grew_little(&before, FLOODED);
}

/// What a caller does to its own sidecar must not become the doing of the sidecar: all callers share
/// its connections to others.
#[tokio::test]
async fn an_abusive_caller_costs_nobody_else_the_way_to_another_agent() {
    let (site, up, address) = site().await;
    let beside = Beside::start(&address, AUTHORITY, UNARY).await;
    beside.fared_for(SIEGE).await;
    let admin = &up.instance("default/home", 0).admin;
    let broken = || async {
        let page = page(admin, "/metrics").await.unwrap();
        let lines = page.lines();
        let lines = lines.filter(|line| line.starts_with("attache_pool_closes_total"));
        let broken = lines.filter(|line| line.contains("reason=\"broken\""));
        broken.map(str::to_owned).collect::<Vec<_>>()
    };
    let (before, closed) = (sidecars(&site), broken().await);
    let wrong = floods(passing(&address), &beside, &Attack::FLOODS).await;
    assert_eq!(wrong, Vec::<String>::new());
    grew_little(&before, FLOODED);
    assert_eq!(broken().await, closed, "a connection to others broke");
}

#[tokio::test]
async fn floods_of_a_member_gone_bad_are_ended_and_calls_of_others_pass() {
    let (site, up, address) = site().await;
    let beside = Beside::start(&address, AUTHORITY, UNARY).await;
    beside.fared_for(SIEGE).await;
    let connector = member(&site.operator(""));
    let place = up.instance("default/echo", 0);
    let victim = Victim {
        tls: Some(("echo.default.agent.attache", &connector)),
        ..Victim::of(&place.mtls, METHOD)
    };
    let before = sidecars(&site);
    let wrong = floods(victim, &beside, &Attack::FLOODS).await;
    assert_eq!(wrong, Vec::<String>::new());
    grew_little(&before, FLOODED);
}

#[tokio::test]
async fn who_is_slow_is_let_go_and_a_good_client_is_served_meanwhile() {
    let (site, _up, address) = site().await;
    let beside = Beside::start(&address, AUTHORITY, UNARY).await;
    let calm = beside.fared_for(3 * SIEGE).await;
    let before = sidecars(&site);
    let attacks = Attack::SLOW.iter();
    let all = attacks.filter(|attack| **attack != Attack::SlowStreams);
    let all = all.map(|attack| attack.run(passing(&address), FRAMES, UNREAD));
    for outcome in join_all(all).await {
        eprintln!("{outcome:?}");
        let reads_nothing = outcome.attack == Attack::ZeroWindow;
        let bound = if reads_nothing { UNREAD } else { SLOW };
        let ended = outcome.closed.as_ref().is_some_and(|(at, _)| *at < bound);
        assert!(ended, "{outcome:?}");
    }
    let fared = beside.fared();
    eprintln!("beside them {fared:?}\n  before {calm:?}");
    assert!(suffers_little(&calm, &fared), "{fared:?}, before {calm:?}");
    grew_little(&before, PARKED);
}

/// 40 streams that nobody reads beside calls on another connection: at the bench's own end, and
/// through two sidecars.
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
    let (site, _up, address) = site().await;
    for place in [&socket, &address] {
        let beside = Beside::start(place, AUTHORITY, UNARY).await;
        let calm = beside.fared_for(SIEGE).await;
        let before = sidecars(&site);
        let outcome = Attack::SlowStreams.run(passing(place), FRAMES, 2 * SIEGE);
        let outcome = outcome.await;
        let fared = beside.fared();
        eprintln!("{outcome:?}\n  beside it {fared:?}\n  before {calm:?}");
        assert!(fared.calls > 10 && fared.failed.is_empty(), "{fared:?}");
        if *place == address {
            assert!(suffers_little(&calm, &fared), "{fared:?}, before {calm:?}");
            grew_little(&before, PARKED);
        }
    }
}
