//! What each trouble does to callers, in numbers: before it, during it and after it.
//!
//! In `tests/run` one line of it, to see that it can be printed; `tests/soak/traffic` says for how
//! many seconds each part lasts by ATTACHE_TRAFFIC_SECONDS, and prints all of it.

use std::{fmt::Write, time::Duration};

use tokio::time::{Instant, sleep};

use super::seconds;
use crate::support::{
    callers::{Call, PASSING},
    scrape::{OPEN_METRICS, Page},
    traffic::{AGAIN, ALL, HOME, ONCE, Scene, Trouble, WORKERS},
};

const PACE: u32 = 90;
const WORK: Duration = Duration::from_millis(30);
const LOST_AFTER: &str = "6s";
/// The instance that is in trouble.
const ILL: usize = 3;

const KINDS: [(&str, &str); 3] = [
    (AGAIN, "task, may run twice"),
    (ONCE, "task"),
    (PASSING, "passing"),
];

const HEAD: &str = "\
| one of five is | breaker | call | errors, % | p50, ms | p99, ms | share, % | second tries |
|---|---|---|---|---|---|---|---|";

/// When the trouble began and ended.
#[derive(Clone, Copy)]
struct Trial {
    from: Instant,
    to: Instant,
}

impl Trial {
    /// Which part a call belongs to: one that was under way when the trouble began or ended had it.
    fn part(self, call: &Call) -> usize {
        match (call.ended() > self.from, call.due >= self.to) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        }
    }
}

/// Calls of one part.
struct Part {
    calls: usize,
    failed: usize,
    p50: Duration,
    p99: Duration,
    /// Attempts beyond the first.
    again: u32,
}

impl Part {
    fn of(calls: &[Call], skill: &str, (trial, part): (Trial, usize)) -> Self {
        let within = |call: &&Call| call.skill == skill && trial.part(call) == part;
        let calls: Vec<_> = calls.iter().filter(within).collect();
        let mut took: Vec<_> = calls.iter().map(|call| call.took).collect();
        took.sort_unstable();
        let at = |share: usize| {
            took.get(took.len() * share / 100)
                .copied()
                .unwrap_or_default()
        };
        Self {
            calls: calls.len(),
            failed: calls.iter().filter(|call| call.failed.is_some()).count(),
            p50: at(50),
            p99: at(99),
            again: calls.iter().map(|call| call.attempts.max(1) - 1).sum(),
        }
    }

    fn errors(&self) -> String {
        let percent = 100.0 * self.failed as f64 / self.calls.max(1) as f64;
        match self.failed {
            0 => "0".to_owned(),
            _ => format!("{percent:.1}"),
        }
    }
}

/// Calls that passed and were given to another instance, or again.
async fn passed_again(scene: &Scene) -> f64 {
    let page = Page::of(&scene.mesh.admin(HOME), OPEN_METRICS).await;
    page.sum("attache_passing_second_tries_total", &[])
}

/// The three parts, one after the other.
async fn parts(trouble: Trouble, breaker: bool, part: Duration) -> String {
    let scene = Scene::start(WORK, LOST_AFTER, 16).await;
    if !breaker {
        scene.breaker_off().await;
    }
    let callers = scene.callers_of(ALL, PACE, 4);
    sleep(part).await;
    let from = Instant::now();
    scene.strike(ILL, trouble).await;
    let runs = |scene: &Scene| {
        let all: Vec<usize> = (1..=WORKERS).map(|place| scene.runs(place).len()).collect();
        (all[ILL - 1], all.iter().sum::<usize>())
    };
    let before = (runs(&scene), passed_again(&scene).await);
    sleep(part).await;
    let after = (runs(&scene), passed_again(&scene).await);
    scene.heal(ILL).await;
    let to = Instant::now();
    sleep(part).await;
    let calls = callers.stop().await;
    let ((ill, all), (ill_before, all_before)) = (after.0, before.0);
    let share = 100.0 * (ill - ill_before) as f64 / (all - all_before).max(1) as f64;
    let mut table = String::new();
    for (skill, title) in KINDS {
        let three = [0, 1, 2].map(|part| Part::of(&calls, skill, (Trial { from, to }, part)));
        let each = |show: &dyn Fn(&Part) -> String| three.each_ref().map(show).join(" / ");
        let millis = |time: Duration| time.as_millis().to_string();
        writeln!(
            table,
            "| {} | {} | {title} | {} | {} | {} | {share:.1} | {} |",
            trouble.title(),
            if breaker { "on" } else { "off" },
            each(&Part::errors),
            each(&|part| millis(part.p50)),
            each(&|part| millis(part.p99)),
            match skill {
                PASSING => after.1 - before.1,
                _ => f64::from(three[1].again),
            },
        )
        .unwrap();
    }
    table
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "the table is what a soak is for")]
async fn one_of_five_in_trouble() {
    let (troubles, part) = match seconds() {
        Some(part) => (&Trouble::ALL[..], part),
        None => (&[Trouble::Unprocessed][..], Duration::from_secs(2)),
    };
    println!("\n{HEAD}");
    for trouble in troubles {
        for breaker in [true, false] {
            let rows = parts(*trouble, breaker, part).await;
            assert_eq!(rows.lines().count(), KINDS.len());
            print!("{rows}");
        }
    }
}
