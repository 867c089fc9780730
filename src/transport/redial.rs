//! When a target is dialled again after its connections fail. Pure.
//!
//! ```text
//!   failed, or broke young: wait rand(0, min(0.5 s * 2^n, 5 s))
//!   held for 10 s:          n = 0; the next dial does not wait
//! ```

use std::time::Duration;

use tokio::time::Instant;

use crate::runtime::Backoff;

/// Full jitter from 0.5 s to 5 s, and not to the 30 s with which sidecars come back to a registry.
/// Those come as a herd and by themselves; here a dial is made only when a call wants it, one at a
/// time per thread and target, and an instance that is back has to have calls again within 5 s.
const WAITS: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
/// A connection that held this long ends the streak of failures.
pub(super) const HEALTHY: Duration = Duration::from_secs(10);

/// One target's streak of failures.
#[derive(Debug)]
pub(super) struct Redial {
    waits: Backoff,
    /// When the present connection was made.
    linked: Option<Instant>,
}

impl Redial {
    /// Nothing has failed.
    pub(super) fn new() -> Self {
        Self {
            waits: WAITS,
            linked: None,
        }
    }

    /// A dial has made a connection.
    pub(super) fn linked(&mut self, now: Instant) {
        self.left(now);
        self.linked = Some(now);
    }

    /// The connection ended as it should: told to go, idle, replaced. The next dial need not wait.
    pub(super) fn left(&mut self, now: Instant) {
        let held = self.linked.take().is_some_and(|at| now >= at + HEALTHY);
        if held {
            self.waits.reset();
        }
    }

    /// The connection broke or fell silent. How long not to dial: not at all after one that held; a
    /// peer that takes connections and breaks them at once is left in peace. `chance` from 0 to 1.
    pub(super) fn broke(&mut self, now: Instant, chance: f64) -> Option<Duration> {
        let held = self.linked.is_some_and(|at| now >= at + HEALTHY);
        self.left(now);
        (!held).then(|| self.waits.next(chance))
    }

    /// A dial failed. How long not to dial again; `chance` from 0 to 1.
    pub(super) fn failed(&mut self, now: Instant, chance: f64) -> Duration {
        self.left(now);
        self.waits.next(chance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: f64 = 1.0;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn waits_double_up_to_five_seconds_and_have_full_jitter() {
        let start = Instant::now();
        let mut redial = Redial::new();
        let waits: Vec<u128> = (0..7)
            .map(|_| redial.failed(start, MOST).as_millis())
            .collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 5000, 5000, 5000]);
        assert_eq!(redial.failed(start, 0.0), Duration::ZERO);
        assert_eq!(redial.failed(start, 0.5), Duration::from_millis(2500));
    }

    #[test]
    fn only_a_connection_that_held_ends_the_streak() {
        let start = Instant::now();
        for (held, expected) in [(0, 2000), (9, 2000), (10, 500), (3600, 500)] {
            let mut redial = Redial::new();
            redial.failed(start, MOST);
            redial.failed(start, MOST);
            redial.linked(start);
            let wait = redial.failed(at(start, held), MOST);
            assert_eq!(wait.as_millis(), expected, "after {held} s");
        }
    }

    #[test]
    fn one_that_is_replaced_has_held_as_well() {
        let start = Instant::now();
        let mut redial = Redial::new();
        redial.failed(start, MOST);
        redial.linked(start);
        redial.linked(at(start, 60));
        let wait = redial.failed(at(start, 61), MOST);
        assert_eq!(wait.as_millis(), 500);
    }

    #[test]
    fn peers_that_break_connections_young_are_waited_for_and_those_that_say_goodbye_are_not() {
        let start = Instant::now();
        let mut redial = Redial::new();
        let mut waits = Vec::new();
        for _ in 0..3 {
            redial.linked(start);
            waits.push(redial.broke(at(start, 1), MOST).unwrap().as_millis());
        }
        assert_eq!(waits, [500, 1000, 2000]);
        redial.linked(start);
        assert_eq!(redial.broke(at(start, 10), MOST), None);
        // Told to go while young: neither a failure nor a recovery.
        redial.failed(start, MOST);
        redial.linked(start);
        redial.left(at(start, 1));
        assert_eq!(redial.failed(at(start, 1), MOST).as_millis(), 1000);
    }
}
