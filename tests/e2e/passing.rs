//! Calls and streams that pass two sidecars to another agent's service: what they cost, and what
//! becomes of them when either sidecar goes.

#![allow(
    clippy::print_stderr,
    reason = "figures for whoever runs it with --nocapture"
)]

use std::{env, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Code;

use crate::support::{
    hand::{ByHand, page},
    memory,
    mesh::{Site, agent},
    passing::{ECHO, POUR, Passing, TALK, Talk, echo, reached},
    wait::{eventually, within},
};

/// What a slow reader takes in all, in MiB; `tests/soak/stream` has it take more.
const TAKEN: u32 = 16;
/// Bytes that it takes in a second.
const RATE: u32 = 1 << 20;
/// What each sidecar may grow by meanwhile, in KiB: a window of a stream, and what stands in buffers.
const GROWTH: u32 = 4 << 10;
/// What a sidecar is given to drain, and what the kernel and a busy machine may add.
const DRAIN: Duration = Duration::from_secs(6);
const SLACK: Duration = Duration::from_secs(3);

fn number(name: &str, usual: u32) -> u32 {
    env::var(name).map_or(usual, |text| text.parse().unwrap())
}

#[tokio::test]
async fn a_stream_that_is_read_slowly_costs_its_sidecars_little() {
    let taken = number("ATTACHE_SLOW_MIB", TAKEN) << 20;
    let growth = number("ATTACHE_SLOW_GROWTH_KIB", GROWTH).into();
    let site = Site::new(&(agent("home", &["test.home"], "") + &echo(1)));
    let up = site.up(&[]).await;
    let local = &up.instance("default/home", 0).local;
    reached(local, ECHO).await;
    // Whatever is made once is made by now, and a fast reader has filled all buffers.
    let mut fast = Talk::open(local, POUR, 1 << 20).await;
    let mut bytes = 0;
    while bytes < 8 << 20 {
        assert!(within("bytes come", fast.more()).await.unwrap());
        bytes += fast.taken();
    }
    drop(fast);
    let sidecars = ["home-1", "echo-1"].map(|name| site.mark.process(&["sidecar", name]).pid);
    let before = sidecars.map(|pid| {
        memory::forget_most(pid);
        memory::now(pid)
    });

    let mut slow = Talk::open(local, POUR, 65_535).await;
    let (began, mut bytes) = (Instant::now(), 0);
    while bytes < taken {
        assert!(within("bytes come", slow.more()).await.unwrap());
        bytes += slow.taken();
        sleep_until(began + Duration::from_secs(1) * (bytes >> 10) / (RATE >> 10)).await;
    }
    let took = began.elapsed();
    for (pid, before) in sidecars.into_iter().zip(before) {
        let grown = memory::most(pid).saturating_sub(before);
        eprintln!("{pid} had {before} KiB and grew by {grown} KiB in {took:?}");
        assert!(grown < growth, "{pid} grew by {grown} KiB");
    }
}

/// While a sidecar drains, what passes it goes on: streams end in their own time if that is in its
/// time, and are cut if not. New calls go to the other instance.
#[tokio::test]
async fn streams_that_pass_a_sidecar_that_drains_end_in_peace_or_in_time() {
    let mut mesh = ByHand::made(&(agent("home", &["test.home"], "") + &echo(2))).await;
    for name in ["home-1", "echo-1", "echo-2"] {
        mesh.set(name, "drain", format!("{}s", DRAIN.as_secs()));
    }
    mesh.start_all().await;
    let local = mesh.local_address("home-1");
    let calls = Passing::start(&local, 2);
    for (name, endless) in [
        ("echo-1", true),
        ("echo-2", false),
        ("home-1", false),
        ("home-1", true),
    ] {
        calls.goes_on(20).await;
        // Some of them at each of the two agents.
        let mut talks = Vec::new();
        for _ in 0..6 {
            talks.push(Talk::open(&local, TALK, 65_535).await);
        }
        let mut pours = Vec::new();
        for _ in 0..if endless { 6 } else { 0 } {
            pours.push(Talk::open(&local, POUR, 65_535).await);
        }
        mesh.term(name);
        let began = Instant::now();
        let admin = mesh.admin(name);
        eventually("it drains", || async {
            let said = page(&admin, "/readyz").await?;
            said.contains("draining").then_some(()).ok_or(said)
        })
        .await;
        for talk in &mut talks {
            talk.answered().await;
            talk.ask();
            talk.answered().await;
        }
        for talk in talks {
            assert_eq!(talk.close().await.as_deref(), Some("0"), "{name}");
        }
        if name != "home-1" {
            // The way to the other instance is open.
            calls.goes_on(20).await;
        }
        let (took, cut) = tokio::join!(ends(&mut mesh, name, began), rests(pours, name));
        eprintln!("{name}: {took:?}, {cut} streams cut");
        assert!(took < DRAIN + SLACK, "{took:?}");
        assert_eq!(cut > 0, endless, "{name}");
        mesh.start(name);
        mesh.ready(name).await;
    }
    calls.goes_on(20).await;
    let (passed, failed) = calls.stop().await;
    assert_eq!(failed, Vec::<String>::new(), "{passed} passed");
}

async fn ends(mesh: &mut ByHand, name: &str, began: Instant) -> Duration {
    let status = mesh.ended(name).await;
    assert!(status.success(), "{name}: {status}\n{}", mesh.site.logs());
    began.elapsed()
}

/// Reads endless streams until those that pass `name` have ended; how many did. Those that pass the
/// other agent's sidecar go on for ever.
async fn rests(pours: Vec<Talk>, name: &str) -> usize {
    let ends = pours
        .into_iter()
        .map(|pour| timeout(DRAIN + SLACK, pour.rest()));
    let mut cut = 0;
    for (bytes, status) in join_all(ends).await.into_iter().flatten() {
        assert!(bytes > 0, "nothing came of an endless stream");
        // Their own sidecar is gone, and can say nothing; of the other it says that it is.
        let told = (name != "home-1").then_some(Code::Unavailable);
        assert_eq!(status, told, "{name}");
        cut += 1;
    }
    cut
}
