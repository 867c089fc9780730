//! One of five instances gets into trouble, and whoever calls should not notice.
//!
//! What is asserted here is counted: calls, attempts, runs of the agents. What it does to latency is
//! in the table that `tests/soak/traffic` prints.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{
    callers::{Call, Callers},
    traffic::{ONCE, Scene, Trouble},
    wait::eventually,
};

mod faults;
mod storm;
mod table;

/// A time in which an instance was in trouble.
struct Spell {
    trouble: Trouble,
    from: Instant,
    to: Instant,
    /// Calls that came to its agent meanwhile, the first quarter left out: so soon nobody knows.
    runs: usize,
}

impl Spell {
    /// Lets so many calls at least go out while the instance is in trouble, until the trouble has
    /// come to it, and heals it. Returns when they have ended and it is given work again.
    async fn of(
        scene: &Scene,
        callers: &Callers,
        place: usize,
        trouble: Trouble,
        calls: usize,
    ) -> Self {
        scene.strike(place, trouble).await;
        let from = Instant::now();
        more(callers, calls / 4).await;
        let before = scene.runs(place).len();
        more(callers, calls - calls / 4).await;
        scene.has_struck(place, trouble).await;
        let (to, after) = (Instant::now(), scene.runs(place).len());
        scene.heal(place).await;
        scene.is_back(place).await;
        callers.settle().await;
        Self {
            trouble,
            from,
            to,
            runs: after - before,
        }
    }

    /// Calls of that time.
    fn calls<'a>(&self, all: &'a [Call]) -> Vec<&'a Call> {
        let within = |call: &&Call| (self.from..self.to).contains(&call.due);
        all.iter().filter(within).collect()
    }

    /// Those of them that failed, or had to go elsewhere.
    fn caught<'a>(&self, all: &'a [Call]) -> Vec<&'a Call> {
        let elsewhere = self.calls(all).into_iter();
        let elsewhere = elsewhere.filter(|call| call.failed.is_none() && call.attempts > 1);
        self.failed(all).into_iter().chain(elsewhere).collect()
    }

    /// Those of them that failed. What may run twice never does.
    fn failed<'a>(&self, all: &'a [Call]) -> Vec<&'a Call> {
        let calls = self.calls(all).into_iter();
        let failed: Vec<_> = calls.filter(|call| call.failed.is_some()).collect();
        let once = failed.iter().all(|call| call.skill == ONCE);
        assert!(once, "{:?}: {failed:#?}", self.trouble);
        failed
    }
}

/// Waits until so many more calls have gone out.
async fn more(callers: &Callers, calls: usize) {
    let (before, _) = callers.count();
    eventually("calls go out", || async {
        let gone = callers.count().0 - before;
        (gone >= calls)
            .then_some(())
            .ok_or_else(|| gone.to_string())
    })
    .await;
}

/// How long each part of a soak lasts; `None`: this is none.
fn seconds() -> Option<Duration> {
    let seconds = std::env::var("ATTACHE_TRAFFIC_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().unwrap()))
}
