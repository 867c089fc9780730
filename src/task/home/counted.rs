//! What is counted of a shard's tasks once it is on disk.

use std::time::Duration;

use uuid::Uuid;

use crate::pb;
use crate::telemetry::metrics::tasks::{Attempt, Standing, between};

use super::machine::{Entry, Tasks};
use super::shard::Running;

impl Running {
    /// An event of a task is on disk; its last one, or not.
    pub(super) fn count(&mut self, task: Uuid, ended: bool) {
        let Some(entry) = self.shard.tasks.tasks.get_mut(&task) else {
            return;
        };
        if let Some(after) = entry.first_start() {
            self.shard.counts.started(after);
        }
        if ended {
            self.shard.counts.finished(&entry.kept.task);
        }
    }

    /// An attempt goes out.
    pub(super) fn count_attempt(&self, attempt: u32, resumed: bool) {
        self.shard.counts.attempt(match attempt {
            _ if resumed => Attempt::Resumed,
            0 | 1 => Attempt::First,
            _ => Attempt::Again,
        });
    }

    /// Shows how the shard stands.
    pub(super) fn publish(&self) {
        let standing = self.shard.tasks.standing();
        self.shard.counts.stands(self.shard.place, standing);
    }
}

impl Entry {
    /// How long after its submission an agent took the task, the first time that this is asked
    /// after it did.
    fn first_start(&mut self) -> Option<Duration> {
        let task = &self.kept.task;
        if self.start_counted || task.attempt == 0 {
            return None;
        }
        let after = if self.kept.state() == pb::TaskState::Working {
            between(task.created_at, self.kept.working_since.map(Into::into))
        } else if self.kept.ended() && task.execution_ms > 0 {
            // It went on before its start was on disk.
            let worked = Duration::from_millis(task.execution_ms.unsigned_abs());
            between(task.created_at, task.ended_at).saturating_sub(worked)
        } else {
            return None;
        };
        self.start_counted = true;
        Some(after)
    }
}

impl Tasks {
    fn standing(&self) -> Standing {
        let ended = self.ended.len();
        Standing {
            live: self.tasks.len().saturating_sub(ended),
            working: self.working,
            waiting: self.lanes.waiting(),
            ended,
        }
    }
}
