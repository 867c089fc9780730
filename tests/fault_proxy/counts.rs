//! What a route has done, counted by all its connections.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{
    faults::Kind,
    lane::Tally,
    protocol::{Counters, Direction},
};

/// The counters of one route. Each stands for itself: nobody reads one to know about another.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: AtomicU64,
    pub(crate) open: AtomicU64,
    pub(crate) unreached: AtomicU64,
    pub(crate) over: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    applied: [AtomicU64; Kind::ALL.len()],
}

impl Counts {
    pub(crate) fn applied(&self, kind: Kind, times: u64) {
        self.applied[kind as usize].fetch_add(times, Relaxed);
    }

    pub(crate) fn tally(&self, tally: Tally) {
        for (kind, times) in tally.done() {
            self.applied(kind, times);
        }
    }

    /// Bytes that were delivered in one direction.
    pub(crate) fn bytes(&self, direction: Direction, bytes: u64) {
        let counter = match direction {
            Direction::Down => &self.bytes_down,
            Direction::Up | Direction::Both => &self.bytes_up,
        };
        counter.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn shown(&self) -> Counters {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let applied = Kind::ALL.into_iter().zip(self.applied.iter().map(of));
        let applied: BTreeMap<String, u64> = applied
            .filter(|(_, times)| *times > 0)
            .map(|(kind, times)| (kind.label().to_owned(), times))
            .collect();
        Counters {
            connections: of(&self.connections),
            open: of(&self.open),
            unreached: of(&self.unreached),
            over: of(&self.over),
            bytes_up: of(&self.bytes_up),
            bytes_down: of(&self.bytes_down),
            applied,
        }
    }
}
