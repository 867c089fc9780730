//! How much a listener takes from whom: numbers, and the counters that hold them.

use std::{collections::HashMap, fmt::Debug, hash::Hash, sync::Arc, time::Duration};

use parking_lot::Mutex;

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
    /// Handshakes at a time; more wait within their own time limit.
    pub handshakes: usize,
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
            // Bounds what strangers can make us compute at once.
            handshakes: 64,
            handshake_time: Duration::from_secs(5),
            member_streams: 1024,
            other_streams: 100,
            connection_age: CONNECTION_AGE,
        }
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
