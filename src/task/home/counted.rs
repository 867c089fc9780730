//! What is counted of a shard's tasks once it is on disk.

use std::{sync::Arc, time::Duration};

use uuid::Uuid;

use crate::pb;
use crate::telemetry::metrics::tasks::{Attempt, Standing, between};

use super::entry::Entry;
use super::machine::Tasks;
use super::shard::Running;

impl Running {
    /// An event of a task is on disk; its last one, or not.
    pub(super) fn count(&mut self, task: Uuid, ended: bool) {
        let Some(entry) = self.shard.tasks.tasks.get_mut(&task) else {
            return;
        };
        if let Some(after) = entry.first_start() {
            self.shard.metrics.started(after);
        }
        if ended {
            self.shard.metrics.finished(&entry.kept.task);
        }
    }

    /// An attempt goes out.
    pub(super) fn count_attempt(&self, task: Uuid, attempt: u32, resumed: bool) {
        let entry = self.shard.tasks.tasks.get(&task);
        let answered = || entry.is_some_and(|entry| entry.kept.asked_in(attempt - 1));
        self.shard.metrics.attempt(match attempt {
            _ if resumed => Attempt::Resumed,
            2.. if answered() => Attempt::Answered,
            0 | 1 => Attempt::First,
            _ => Attempt::Again,
        });
    }

    /// Shows how the shard stands.
    pub(super) fn publish(&self) {
        let standing = self.shard.tasks.standing();
        self.shard.metrics.stands(self.shard.place, standing);
    }
}

impl Entry {
    /// How long after its submission an agent took the task, the first time that this is asked
    /// after it did.
    fn first_start(&mut self) -> Option<Duration> {
        if self.start_counted {
            return None;
        }
        let works = |event: &&Arc<pb::TaskEvent>| event.state() == pb::TaskState::Working;
        let taken = self.kept.events.iter().find(works)?;
        let after = between(self.kept.task.created_at, taken.at);
        self.start_counted = true;
        Some(after)
    }
}

impl Tasks {
    fn standing(&self) -> Standing {
        let (ended, untold) = (self.ended.len(), self.rooms.untold());
        Standing {
            live: self.here().saturating_sub(ended + untold),
            working: self.working,
            asking: self.asking,
            waiting: self.lanes.waiting(),
            ended: ended + untold,
            telling: self.telling,
        }
    }
}
