//! What homes claim and cannot use: for how long it does not count. Pure.
//!
//! Kept by home, not by stream: who opens another one is not forgotten.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use super::grants::GRANT_LIFE;
use super::shares::Key;
use crate::domain::InstanceId;

/// How long a claim rests whose grants came back: at first, and at most. They double as long as none
/// is used, so a home that has nothing for them is asked ever more slowly.
const RETURNED: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// One that comes back so long after a rest is the first of its row.
const APART: Duration = Duration::from_secs(1);
/// Claims whose grants became void one after the other: then the home has none at all for a while,
/// and one at a time after that until it uses one. Fewer may be an accident of a few tasks.
const ROW: u32 = 3;
/// How long such a home rests at first, and at most.
const VOID: (Duration, Duration) = (GRANT_LIFE, Duration::from_secs(30));
/// After so long without a fault nothing is held against anybody.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Homes that something is held against. Those beyond them had to prove who they are as well.
const HOMES_MAX: usize = 1024;
/// Claims of a home that rest on their own; with more, all of it does.
const KEYS_MAX: usize = 256;

/// What is held against whom.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    homes: HashMap<InstanceId, Home>,
    /// The first end of a rest.
    due: Option<Instant>,
}

#[derive(Debug)]
struct Home {
    /// Grants that became void since one was used, those of one moment together.
    row: u32,
    /// All of it rests.
    until: Option<Instant>,
    keys: BTreeMap<Key, Rest>,
    /// When the row grew last.
    voided_at: Option<Instant>,
    /// Its last fault.
    last: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Instant,
    /// Grants that came back since one was used.
    returned: u32,
}

impl Pauses {
    /// The home let a grant become void. The claim does not count for a while.
    pub(super) fn voided(&mut self, home: &InstanceId, key: &Key, now: Instant) {
        let Some(home) = self.home(home, now) else {
            return;
        };
        home.last = now;
        // Of its own: what is given back meanwhile makes nothing better.
        if home.voided_at.is_none_or(|at| at + GRANT_LIFE <= now) {
            home.row += 1;
            home.voided_at = Some(now);
        }
        if home.row >= ROW {
            home.until = Some(now + doubled(VOID, home.row - ROW));
        }
        let returned = home.keys.get(key).map_or(0, |rest| rest.returned);
        let until = home.until.unwrap_or(now + GRANT_LIFE);
        home.rest(key, now + GRANT_LIFE, returned);
        self.ends_at(until.min(now + GRANT_LIFE));
    }

    /// The home gave a grant back.
    pub(super) fn returned(&mut self, home: &InstanceId, key: &Key, now: Instant) {
        let Some(home) = self.home(home, now) else {
            return;
        };
        let rest = home.keys.get(key);
        let rest = rest.filter(|rest| now < rest.until + APART);
        let before = rest.map_or(0, |rest| rest.returned);
        let until = now + doubled(RETURNED, before);
        home.last = now;
        home.rest(key, until, before + 1);
        self.ends_at(until);
    }

    /// The home used one.
    pub(super) fn used(&mut self, home: &InstanceId, key: &Key) {
        if let Some(found) = self.homes.get_mut(home) {
            found.row = 0;
            found.voided_at = None;
            found.until = None;
            found.keys.remove(key);
            if found.keys.is_empty() {
                self.homes.remove(home);
            }
        }
    }

    /// Whether the claim does not count now.
    pub(super) fn rests(&self, home: &InstanceId, key: &Key, now: Instant) -> bool {
        self.homes.get(home).is_some_and(|home| {
            let rest = home.keys.get(key).map(|rest| rest.until);
            let mut until = rest.into_iter().chain(home.until);
            until.any(|until| until > now)
        })
    }

    /// Whether all its last grants became void: it has to use one before it has several.
    pub(super) fn on_trial(&self, home: &InstanceId) -> bool {
        self.homes.get(home).is_some_and(|home| home.row >= ROW)
    }

    /// Whether any rest has ended since this was asked last.
    pub(super) fn ended(&mut self, now: Instant) -> bool {
        let ended = self.due.is_some_and(|due| due <= now);
        if ended {
            self.look_at(now);
        }
        ended
    }

    /// When that may be.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn home(&mut self, home: &InstanceId, now: Instant) -> Option<&mut Home> {
        if self.homes.len() >= HOMES_MAX && !self.homes.contains_key(home) {
            self.homes.retain(|_, home| home.last + FORGOTTEN > now);
            if self.homes.len() >= HOMES_MAX {
                return None;
            }
        }
        let new = || Home {
            row: 0,
            voided_at: None,
            until: None,
            keys: BTreeMap::new(),
            last: now,
        };
        Some(self.homes.entry(home.clone()).or_insert_with(new))
    }

    fn ends_at(&mut self, until: Instant) {
        self.due = Some(self.due.map_or(until, |due| due.min(until)));
    }

    /// Notes when the next rest ends, and lets go of what is over for long.
    fn look_at(&mut self, now: Instant) {
        let mut due = None;
        self.homes.retain(|_, home| {
            home.keys.retain(|_, rest| rest.until + APART > now);
            let keys = home.keys.values().map(|rest| rest.until);
            let ends = keys.chain(home.until).filter(|until| *until > now);
            due = ends.chain(due).min();
            !home.keys.is_empty() || home.last + FORGOTTEN > now
        });
        self.due = due;
    }
}

impl Home {
    fn rest(&mut self, key: &Key, until: Instant, returned: u32) {
        if self.keys.len() >= KEYS_MAX && !self.keys.contains_key(key) {
            let longest = self.until.map_or(until, |before| before.max(until));
            self.until = Some(longest);
        } else {
            self.keys.insert(key.clone(), Rest { until, returned });
        }
    }
}

fn doubled((first, most): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(name: &str) -> InstanceId {
        name.parse().unwrap()
    }

    fn key(origin: &str) -> Key {
        (origin.into(), 5)
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_back_again_and_again_is_asked_for_ever_more_slowly() {
        let (mut pauses, mut now) = (Pauses::default(), Instant::now());
        let mut rests = Vec::new();
        for _ in 0..10 {
            pauses.returned(&home("h1"), &key("a"), now);
            assert!(pauses.rests(&home("h1"), &key("a"), now));
            assert!(!pauses.rests(&home("h1"), &key("b"), now), "nobody else");
            assert!(!pauses.rests(&home("h2"), &key("a"), now), "nobody else");
            let due = pauses.due.unwrap();
            rests.push((due - now).as_millis());
            now = due;
            assert!(pauses.ended(now) && !pauses.ended(now));
            assert!(!pauses.rests(&home("h1"), &key("a"), now));
        }
        assert_eq!(rests, [10, 20, 40, 80, 160, 250, 250, 250, 250, 250]);
        pauses.used(&home("h1"), &key("a"));
        pauses.returned(&home("h1"), &key("a"), now);
        assert_eq!(pauses.due, Some(now + RETURNED.0));
        // And one long after is no row.
        pauses.returned(&home("h1"), &key("a"), now);
        now += FORGOTTEN;
        assert!(pauses.ended(now));
        pauses.returned(&home("h1"), &key("a"), now);
        assert_eq!(pauses.due, Some(now + RETURNED.0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_grant_that_became_void_is_held_against_one_claim_and_several_against_the_home() {
        let (mut pauses, mut now) = (Pauses::default(), Instant::now());
        let mut rest = Duration::ZERO;
        for row in 1..=12 {
            for origin in ["a", "b"] {
                pauses.voided(&home("h1"), &key(origin), now);
            }
            let all = pauses.rests(&home("h1"), &key("c"), now);
            assert_eq!((all, pauses.on_trial(&home("h1"))), (row >= 3, row >= 3));
            let until = pauses.homes[&home("h1")].until.unwrap_or(now + GRANT_LIFE);
            rest = until - now;
            now = until + GRANT_LIFE;
        }
        assert_eq!(rest, VOID.1);
        pauses.used(&home("h1"), &key("a"));
        assert!(!pauses.on_trial(&home("h1")) && !pauses.rests(&home("h1"), &key("c"), now));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_against_homes_is_bounded_and_forgotten() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        for number in 0..2 * HOMES_MAX {
            pauses.voided(&home(&format!("h{number}")), &key("a"), now);
        }
        assert_eq!(pauses.homes.len(), HOMES_MAX);
        let later = now + FORGOTTEN;
        for number in 0..2 * KEYS_MAX {
            pauses.returned(&home("new"), &key(&number.to_string()), later);
        }
        assert_eq!(pauses.homes.len(), 1);
        assert_eq!(pauses.homes[&home("new")].keys.len(), KEYS_MAX);
        let last = key(&(2 * KEYS_MAX - 1).to_string());
        assert!(pauses.rests(&home("new"), &last, later), "all of it");
    }
}
