//! All instances fail at twice the load that they can carry: second tries stay within their budget,
//! and all is as before soon after the backend is back.

use std::{collections::HashSet, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{more, seconds};
use crate::support::{
    callers::Call,
    scrape::{OPEN_METRICS, Page},
    traffic::{HOME, ONCE, Scene, WORKERS},
};

/// In `tests/run`; `tests/soak/traffic` makes it 30 s.
const BRIEFLY: Duration = Duration::from_secs(6);
const WORK: Duration = Duration::from_millis(400);
const SLOTS: u32 = 2;
/// What the instances can carry: tasks in a second, in ten slots.
const CAPACITY: u32 = 25;
/// Connections for all that may be open at a time.
const CONNECTIONS: usize = 40;
/// Before and after: half of it.
const USUAL: u32 = CAPACITY / 2;
/// Within this the former level is reached again; in `tests/run`, where the machine is busy, later.
const RECOVERS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(20));
/// What callers look back over to see their successes in a second.
const SECOND: Duration = Duration::from_secs(1);

/// First and second tries that the agents have seen by then.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    /// Also those that found no free slot, and so no agent: they count as first ones.
    first: f64,
    second: f64,
}

impl Sample {
    async fn now(scene: &Scene) -> Self {
        let at = Instant::now();
        let runs: Vec<_> = (1..=WORKERS).flat_map(|place| scene.runs(place)).collect();
        let tasks: HashSet<&str> = runs.iter().map(|run| run.task.as_str()).collect();
        let second = (runs.len() - tasks.len()) as f64;
        let page = Page::of(&scene.mesh.admin(HOME), OPEN_METRICS).await;
        let given = page.sum("attache_attempts_total", &[]);
        Self {
            at,
            first: given - second,
            second,
        }
    }
}

/// What second tries may come to by the settings' defaults: a fifth of the first ones of 10 s, and
/// three in a second.
fn over_budget(samples: &[Sample]) -> Option<String> {
    let before = |at: Instant| samples.iter().rev().find(|sample| sample.at <= at);
    samples.iter().find_map(|now| {
        // The budget forgets in steps of a second, and samples are taken a little late.
        let since = |seconds| before(now.at - Duration::from_secs(seconds)).unwrap_or(&samples[0]);
        let second = now.second - since(8).second;
        let first = now.first - since(11).first;
        let most = 30.0 + first / 5.0;
        (second > most).then(|| format!("{second} second tries in 8 s on {first}, at most {most}"))
    })
}

/// Successes in the second before `at`.
fn successes(calls: &[Call], at: Instant) -> usize {
    let fine = calls.iter().filter(|call| call.failed.is_none());
    fine.filter(|call| call.ended() <= at && call.ended() + SECOND > at)
        .count()
}

/// When the last second had nine tenths of the usual successes for the first time after `from`.
fn recovered(calls: &[Call], from: Instant, until: Instant) -> Option<Duration> {
    let usual = (USUAL * 9 / 10) as usize;
    let mut at = from + SECOND;
    while at <= until {
        if successes(calls, at) >= usual {
            return Some(at - from);
        }
        at += SECOND / 20;
    }
    None
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "the figures are what a soak is for")]
async fn second_tries_stay_within_their_budget_and_all_is_well_soon_after() {
    let soak = seconds().is_some();
    let (outage, recovers) = if soak {
        (Duration::from_secs(30), RECOVERS.0)
    } else {
        (BRIEFLY, RECOVERS.1)
    };
    let scene = Scene::start(WORK, "6s", SLOTS).await;
    let callers = scene.callers_of(&[ONCE], USUAL, CONNECTIONS);
    more(&callers, 3 * USUAL as usize).await;

    // It says that it has begun nothing, and that one may come again at once.
    for place in 1..=WORKERS {
        scene.infect(place, "unprocessed 1 0");
    }
    callers.pace(2 * CAPACITY);
    let (began, begun) = (Instant::now(), callers.count().0);
    let mut samples = vec![Sample::now(&scene).await];
    let look = Duration::from_millis(250);
    while began.elapsed() < outage {
        sleep_until(samples[samples.len() - 1].at + look).await;
        samples.push(Sample::now(&scene).await);
    }
    let taken = callers.count().0 - begun;
    callers.pace(USUAL);
    for place in 1..=WORKERS {
        scene.heal(place).await;
    }
    let back = Instant::now();
    loop {
        sleep_until(samples[samples.len() - 1].at + look).await;
        samples.push(Sample::now(&scene).await);
        let known = recovered(&callers.ended(), back, Instant::now()).is_some();
        if back.elapsed() > if known && !soak { SECOND } else { 2 * recovers } {
            break;
        }
    }

    let calls = callers.ended();
    let storm = |sample: &&Sample| sample.at <= back;
    let last = samples.iter().rfind(storm).unwrap();
    let (first, second) = (
        last.first - samples[0].first,
        last.second - samples[0].second,
    );
    let took = recovered(&calls, back, Instant::now());
    let outlived = calls
        .iter()
        .filter(|call| call.due >= began && call.ended() >= back);
    println!(
        "storm: {taken} calls in {outage:?}, {} in a second: {first} first tries and {second} second \
         ones; after the backend's return the usual successes in a second within {}; {} of \
         those calls ended in the {:.0?} after it",
        2 * CAPACITY,
        took.map_or_else(|| "no time".to_owned(), |took| format!("{took:.1?}")),
        outlived.filter(|call| call.due < back).count(),
        back.elapsed(),
    );
    assert_eq!(over_budget(&samples), None);
    assert!(
        first > 30.0,
        "hardly anything was tried: {first} of {taken}"
    );
    let failed: Vec<_> = calls.iter().filter(|call| call.failed.is_some()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(took.is_some_and(|took| took < recovers), "{took:?}");
}
