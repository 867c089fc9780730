//! A shard's beginning and end of memory: what a journal gives back, and what may be forgotten.

use uuid::Uuid;

use crate::pb::journal::{Record, record::Kind as Recorded};
use crate::task::spec::Moment;

use super::dialogue::asks;
use super::kept::{Kept, RecordError};
use super::machine::{Entry, Tasks, World};

/// Why the children of an attempt that ended are cancelled.
const PARENT_ENDED: &str = "PARENT_ENDED";

impl Tasks {
    /// The first record that is still needed; `None`: none is.
    pub(super) fn first_needed(&self) -> Option<u64> {
        self.tasks.values().map(|entry| entry.first_lsn).min()
    }

    /// Takes a record of an earlier life in.
    pub(super) fn replay(
        &mut self,
        task: Uuid,
        lsn: u64,
        record: &Record,
    ) -> Result<(), RecordError> {
        match &record.kind {
            Some(Recorded::Submitted(submitted)) => {
                let kept = Kept::submitted(submitted.clone(), &record.task_id)?;
                self.insert(Entry::new(kept, lsn, self.base));
            }
            Some(Recorded::Forgotten(_)) => {
                self.stash.forget(task);
                self.let_go_of(task, None);
            }
            _ => {
                let Some(entry) = self.tasks.get_mut(&task) else {
                    return self.replay_unknown(task, lsn, record);
                };
                entry.logged(lsn, record);
                let was = entry.kept.over();
                entry.apply(record)?;
                entry.shown = entry.kept.task.last_seq;
                if entry.kept.over() && !was {
                    self.ended.push_back(task);
                }
            }
        }
        Ok(())
    }

    /// After the last replayed record: counts, arms timers, and goes on where the home stopped.
    pub(super) fn recovered(&mut self, world: World<'_>) {
        self.tell_again(world.at);
        let all: Vec<Uuid> = self.tasks.keys().copied().collect();
        for task in all {
            let Some(entry) = self.tasks.get_mut(&task) else {
                continue;
            };
            entry.deadline = entry.kept.deadline(&world.at);
            entry.counted = entry.kept.bytes;
            // An earlier life has counted that.
            entry.start_counted = entry.kept.started > 0;
            if entry.kept.over() {
                entry.filed = true;
                self.ended_bytes += entry.counted;
                continue;
            }
            self.live_bytes += entry.counted;
            self.made_by(task, None);
            // What was still to be told is.
            self.begin_telling(task, world.at);
            self.recover(task, world);
        }
        self.pump(world);
    }

    /// Goes on with one task.
    fn recover(&mut self, task: Uuid, world: World<'_>) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        if entry.kept.ended() {
            return self.settle(task);
        }
        if entry.kept.running.is_some() {
            // Where they are not at hand yet they are fetched: its result is held against them.
            if let Some(promise) = entry.kept.asked_promise() {
                drop(world.route.promised(&promise));
            }
            self.take_up(task, world.at);
        } else if entry.kept.task.cancel_requested {
            self.end_canceled(task, "CANCELED", world.at);
        } else if !asks(entry.kept.state()) {
            self.wait(task);
        }
        self.settle(task);
        // The attempt that made it ran on this sidecar, and ended with it.
        if self
            .tasks
            .get(&task)
            .is_some_and(|entry| entry.kept.ends_with_parent())
        {
            self.cancel_orphan(task, world.at);
        }
    }

    /// Cancels the tasks of an attempt that is over.
    pub(super) fn cancel_children(&mut self, token: &str, at: Moment) {
        for task in self.children.take(token) {
            self.cancel_orphan(task, at);
        }
    }

    /// Cancels the tasks whose parent's attempt is over, as `lives` knows by the attempt's token.
    pub(super) fn cancel_orphans(&mut self, lives: impl Fn(&str) -> bool, at: Moment) {
        for task in self.children.orphans(lives) {
            self.cancel_orphan(task, at);
        }
    }

    fn cancel_orphan(&mut self, task: Uuid, at: Moment) {
        let live = self.tasks.get(&task).filter(|entry| !entry.kept.ended());
        let Some(entry) = live else { return };
        let by = entry.kept.parties.caller.to_string();
        let canceled = self.cancel(task, &by, PARENT_ENDED, at);
        debug_assert_eq!(
            canceled,
            Ok(()),
            "a task that has not ended can be cancelled"
        );
    }

    /// The journal let go of the task's first records: a snapshot follows, or it was forgotten.
    fn replay_unknown(&mut self, task: Uuid, lsn: u64, record: &Record) -> Result<(), RecordError> {
        match &record.kind {
            Some(Recorded::Event(event)) => {
                self.stash.keep(task, event, None);
                Ok(())
            }
            Some(Recorded::Copied(event)) => {
                self.stash.keep(task, event, Some(lsn));
                Ok(())
            }
            Some(Recorded::Snapshot(snapshot)) => self.replay_snapshot(task, lsn, snapshot),
            // A snapshot has what these say.
            _ => Ok(()),
        }
    }
}
