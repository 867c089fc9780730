//! How much a listener takes from whom: numbers, and the counters that hold them.

use std::{
    collections::HashMap, fmt::Debug, hash::Hash, sync::Arc, thread::available_parallelism,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::InstanceId;
use crate::domain::SpiffeId;
use crate::identity::Peer;

/// Age of a connection where nobody says another.
pub(super) const CONNECTION_AGE: Duration = Duration::from_mins(30);

/// Bounds of one listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
    /// Connections of one remote address; loopback is exempt.
    pub per_address: usize,
    /// Connections of one member, which all its replicas share.
    pub per_member: usize,
    /// Connections of one instance; one that was told to go no longer counts, here and above: its
    /// streams may take days to end.
    pub per_instance: usize,
    /// Handshakes at a time; more wait within their own time limit.
    pub handshakes: usize,
    /// Handshakes begun in a second, after as many at once as may be under way; more wait likewise.
    pub handshake_rate: u32,
    /// Time for TLS, and again for the first bytes of HTTP/2.
    pub handshake_time: Duration,
    /// Streams at a time on a member's connection.
    pub member_streams: u32,
    /// Streams at a time on any other connection.
    pub other_streams: u32,
    /// Age (give or take a tenth) at which a connection is told to go; its streams are never cut.
    pub connection_age: Duration,
}

impl Limits {
    /// An age that no connection reaches.
    pub const AGELESS: Duration = Duration::from_hours(10 * 365 * 24);
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            per_address: 256,
            per_member: 1024,
            // A pool holds one per core, and twice that while it replaces them.
            per_instance: (4 * available_parallelism().map_or(1, usize::from)).max(64),
            // Bounds what strangers can make us compute at once.
            handshakes: 64,
            handshake_rate: 500,
            handshake_time: Duration::from_secs(5),
            member_streams: 1024,
            other_streams: 100,
            connection_age: CONNECTION_AGE,
        }
    }
}

/// A member's places among those of its name and of its instance, until dropped.
#[derive(Debug)]
pub(super) struct Seats {
    _member: Counted<SpiffeId>,
    _instance: Option<Counted<InstanceId>>,
}

/// The seats of a listener.
#[derive(Debug)]
pub(super) struct Seating {
    members: Arc<Tally<SpiffeId>>,
    instances: Arc<Tally<InstanceId>>,
}

impl Seating {
    pub(super) fn new() -> Self {
        Self {
            members: Tally::new(),
            instances: Tally::new(),
        }
    }

    /// Takes the seats of one more connection; none where there are too many.
    pub(super) fn enter(&self, peer: &Peer, limits: &Limits) -> Option<Seats> {
        let instance = match &peer.instance {
            None => None,
            Some(id) => Some(self.instances.enter(id.clone(), limits.per_instance)?),
        };
        Some(Seats {
            _member: self.members.enter(peer.id.clone(), limits.per_member)?,
            _instance: instance,
        })
    }
}

/// Turns at a steady rate, after a burst (GCRA). Pure.
#[derive(Debug)]
pub(super) struct Pace {
    every: Duration,
    burst: Duration,
    /// When the turns that were given are worked off.
    full: Instant,
}

impl Pace {
    /// `rate` turns a second, at least 1, and `burst` at once after a pause.
    pub(super) fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let every = Duration::from_secs(1) / rate.max(1);
        Self {
            every,
            burst: every * burst,
            full: now,
        }
    }

    /// Takes the next turn: when it is.
    pub(super) fn turn(&mut self, now: Instant) -> Instant {
        let at = self.full.max(now);
        self.full = at + self.every;
        now.max(self.full.checked_sub(self.burst).unwrap_or(now))
    }
}

/// How many of each kind are there; gone kinds take no room.
#[derive(Debug)]
pub(super) struct Tally<K: Eq + Hash> {
    counts: Mutex<HashMap<K, usize>>,
}

/// One that is counted, until dropped.
#[derive(Debug)]
pub(super) struct Counted<K: Eq + Hash> {
    tally: Arc<Tally<K>>,
    kind: Option<K>,
}

impl<K: Eq + Hash + Clone> Tally<K> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            counts: Mutex::new(HashMap::new()),
        })
    }

    /// Counts one more of its kind, unless there are `most` already.
    pub(super) fn enter(self: &Arc<Self>, kind: K, most: usize) -> Option<Counted<K>> {
        let mut counts = self.counts.lock();
        let count = counts.entry(kind.clone()).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted {
            tally: Arc::clone(self),
            kind: Some(kind),
        })
    }

    /// How many of a kind there are.
    pub(super) fn count(&self, kind: &K) -> usize {
        self.counts.lock().get(kind).copied().unwrap_or(0)
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let Some(kind) = self.kind.take() else { return };
        let mut counts = self.tally.counts.lock();
        if let Some(count) = counts.get_mut(&kind) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_at_once_up_to_the_burst_and_at_the_rate_after_it() {
        let start = Instant::now();
        let milli = Duration::from_millis(1);
        let mut pace = Pace::new(100, 3, start);
        let waits = |pace: &mut Pace, now: Instant, count: usize| -> Vec<u128> {
            let turns = (0..count).map(|_| (pace.turn(now) - now).as_millis());
            turns.collect()
        };
        assert_eq!(waits(&mut pace, start, 6), [0, 0, 0, 10, 20, 30]);
        assert_eq!(waits(&mut pace, start + 60 * milli, 3), [0, 0, 0]);
        // Worked off after a pause, and no more than a burst is saved up.
        let later = start + Duration::from_secs(9);
        assert_eq!(waits(&mut pace, later, 5), [0, 0, 0, 10, 20]);
    }

    #[test]
    fn counts_up_to_the_most_and_forgets_what_is_gone() {
        let tally = Tally::new();
        let first = tally.enter("a", 2).unwrap();
        let second = tally.enter("a", 2).unwrap();
        assert!(tally.enter("a", 2).is_none());
        assert!(tally.enter("b", 2).is_some());
        drop(first);
        assert_eq!(tally.count(&"a"), 1);
        drop(second);
        assert!(tally.counts.lock().is_empty());
    }
}
