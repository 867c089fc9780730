//! Finished tasks leave memory and log: for the archive, or for good where there is none. Pure.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use crate::pb::journal::{Forgotten, record::Kind as Recorded};
use crate::task::spec::Moment;

use super::kept::Kept;
use super::machine::{Effect, Entry, Tasks};

/// A finished task stays in memory at most this long: it holds segments of the log.
const STAYS: Duration = Duration::from_secs(60);
/// Tasks that are moved together, at most: a commit of the archive takes milliseconds for them.
const BATCH: usize = 1024;
/// Bytes that are moved together, unless one task is larger.
const BATCH_BYTES: usize = 8 << 20;
/// Tasks beyond their bound that are worth a commit, unless the bound is lower still.
const WORTH: usize = 512;
/// Bytes beyond their bound that are worth a commit.
const WORTH_BYTES: usize = 1 << 20;

/// What of a shard's finished tasks stays in memory while the archive takes the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stay {
    pub(super) tasks: usize,
    pub(super) bytes: usize,
}

impl Tasks {
    /// Whether enough has gathered to be moved.
    pub(super) fn worth_moving(&self, stay: Stay) -> bool {
        self.ended.len() > stay.tasks + stay.tasks.min(WORTH)
            || self.ended_bytes > stay.bytes + WORTH_BYTES
    }

    /// What is to be moved now: those that ended first, while they are too many, too large or
    /// finished long ago. Only what is on disk: the log must not know less than the archive.
    pub(super) fn to_move(&self, stay: Stay, at: Moment) -> Vec<(Uuid, Arc<Kept>)> {
        let old = at.wall.checked_sub(STAYS);
        let (mut left, mut left_bytes) = (self.ended.len(), self.ended_bytes);
        let (mut chosen, mut bytes) = (Vec::new(), 0);
        for task in &self.ended {
            let Some(entry) = self.tasks.get(task) else {
                continue;
            };
            let much = left > stay.tasks || left_bytes > stay.bytes;
            let due = much || entry.kept.ended_before(old);
            let full = chosen.len() >= BATCH || bytes + entry.counted > BATCH_BYTES;
            let durable = entry.shown() == entry.kept.task.last_seq;
            if !due || !durable || (full && !chosen.is_empty()) {
                break;
            }
            (left, left_bytes) = (left - 1, left_bytes - entry.counted);
            bytes += entry.counted;
            chosen.push((*task, entry.kept.clone()));
        }
        chosen
    }

    /// The archive has them as of `archived`, or they are kept nowhere any more: memory and log let go.
    pub(super) fn moved(&mut self, tasks: &[Uuid], archived: Option<Instant>) {
        for task in tasks {
            if let Some(entry) = self.let_go_of(*task, archived) {
                let id = entry.kept.task.id.clone();
                self.log(id, Recorded::Forgotten(Forgotten {}), 0);
                if self.waiting.large.is_some() {
                    self.effects.push(Effect::LetGo { task: *task });
                }
            }
        }
    }

    /// Forgets finished tasks that are too old, and those that are too many or too large for memory
    /// where no archive takes them.
    pub(super) fn forget_old(&mut self, at: Moment) {
        self.fold();
        while let Some(task) = self.ended.front().copied() {
            let full =
                self.ended.len() > self.limits.ended || self.ended_bytes > self.limits.ended_bytes;
            let retention = self.limits.retention;
            let (old, seen) = match (self.tasks.get(&task), self.folded_since(task)) {
                (Some(entry), _) => (
                    entry.outlived(retention, at),
                    entry.shown() == entry.kept.task.last_seq,
                ),
                (None, Some(since)) => (at.now.saturating_duration_since(since) > retention, true),
                (None, None) => {
                    self.ended.pop_front();
                    continue;
                }
            };
            let due = (full && !self.archived) || old;
            // Nobody may have seen its end yet where that is not on disk.
            if !due || !seen {
                return;
            }
            self.moved(&[task], None);
        }
    }

    /// Takes a finished task out of memory.
    pub(super) fn let_go_of(
        &mut self,
        task: Uuid,
        archived: Option<Instant>,
    ) -> Option<Box<Entry>> {
        let entry = self.tasks.remove(&task);
        if entry.is_none() && !self.forget_folded(task) {
            return None;
        }
        self.keys.leave(task, archived);
        // They go in the order in which they ended, so the front is nearly always the one.
        if self.ended.front() == Some(&task) {
            self.ended.pop_front();
        } else {
            self.ended.retain(|ended| *ended != task);
        }
        let entry = entry?;
        if entry.filed {
            self.ended_bytes -= entry.counted;
        }
        Some(entry)
    }
}
