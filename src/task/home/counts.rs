//! How many tasks a shard has, for whoever looks from outside.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::machine::Tasks;

/// Gauges of one shard, as of its last turn.
#[derive(Debug, Default)]
pub(super) struct Counts {
    live: AtomicUsize,
    ended: AtomicUsize,
}

/// Tasks of one shard that are in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskCounts {
    /// Those that have not ended.
    pub live: usize,
    /// Those that have, and are not in the archive only.
    pub ended: usize,
}

impl Counts {
    pub(super) fn set(&self, tasks: &Tasks) {
        let ended = tasks.ended.len();
        self.ended.store(ended, Ordering::Relaxed);
        let live = tasks.tasks.len().saturating_sub(ended);
        self.live.store(live, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> TaskCounts {
        TaskCounts {
            live: self.live.load(Ordering::Relaxed),
            ended: self.ended.load(Ordering::Relaxed),
        }
    }
}
