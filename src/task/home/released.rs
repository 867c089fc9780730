//! Up to where no shard needs the journal's records any more.

use std::sync::atomic::{AtomicU64, Ordering};

/// The first record that each shard needs; a shard that has not said yet needs all of them.
#[derive(Debug)]
pub(super) struct Released {
    first: Vec<AtomicU64>,
}

impl Released {
    pub(super) fn new(shards: usize) -> Self {
        Self {
            first: (0..shards).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Shard `place` needs records from `first` on. Gives what all of them need.
    ///
    /// A shard without tasks may say the number after the last synced one, read by itself: whatever
    /// it appends later has a higher number.
    pub(super) fn up_to(&self, place: usize, first: u64) -> u64 {
        self.first[place].store(first, Ordering::Release);
        let all = self.first.iter().map(|first| first.load(Ordering::Acquire));
        all.min().unwrap_or(0)
    }
}
