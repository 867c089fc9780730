//! Whether a submission makes a task: it may come again, come too late, or find no room. Pure.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::{Fault, Reason};
use crate::pb;
use crate::pb::journal::record::Kind as Recorded;
use crate::task::key::IdempotencyKey;
use crate::task::spec::{Moment, NewTask};

use super::kept::Kept;
use super::keys::Known;
use super::machine::{Tasks, World};
use super::snapshot::{submitted, tells};

/// How far the clocks of those who make keys may be ahead of ours.
const SKEW: Duration = Duration::from_secs(60);
/// What a submitter is told to wait when there is no room.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// What a submitter is told to wait while the disk is full.
const LOW_SPACE_RETRY: Duration = Duration::from_secs(30);

impl Tasks {
    /// Takes a checked task in, and gives it out at once where somebody has room. One with a key
    /// must not be [there](Tasks::known) already.
    pub(super) fn submit(&mut self, new: NewTask, world: World<'_>) -> Result<Uuid, Fault> {
        if new.due <= world.at.now {
            return Err(expired());
        }
        if !self.archived {
            // Nobody else makes room before the next tick.
            self.forget_old(world.at);
        }
        self.room(&new)?;
        if let Some(unfit) = new.unfit {
            return Err(*unfit);
        }
        let id = new.task.id.clone();
        let mut submitted = submitted(new.task, new.spec, new.trace.as_ref(), new.key.as_ref());
        submitted.descendants = Some(new.descendants);
        submitted.callback_url = new.callback_url;
        submitted.tells = new.tells.as_ref().map(tells);
        let mut recorded = Recorded::Submitted(submitted);
        let blobs = self.cut(&mut recorded);
        let Recorded::Submitted(submitted) = recorded else {
            unreachable!("nothing but its contents was taken out")
        };
        let written = match self.in_memory {
            true => pb::journal::Submitted::default(),
            false => submitted.clone(),
        };
        let kept = Kept::submitted(submitted, &id)
            .map_err(|wrong| Fault::new(Reason::Internal, wrong.to_string()))?;
        let task = kept.id.uuid;
        if self.tasks.contains_key(&task) || self.resting.get(task).is_some() {
            // Two keys with the same 62 bits, in the same millisecond.
            let text = "the id of the new task is taken: submit it again";
            return Err(Fault::new(Reason::QueueFull, text).retry_after(FULL_RETRY));
        }
        self.log_with(id, Recorded::Submitted(written), 0, blobs);
        self.enter(kept, new.due);
        self.made_by(task, new.maker.clone());
        if let Some(token) = new.maker.filter(|_| new.ends_with_maker) {
            self.children.add(task, token);
        }
        self.place(task, world);
        self.settle(task);
        Ok(task)
    }

    /// What is known of the key, for somebody who looked into the archive at `looked`. A key that is
    /// younger than all that memory has let go of need not be looked for.
    ///
    /// # Errors
    /// IDEMPOTENCY_KEY_REUSED.
    pub(super) fn known(
        &mut self,
        key: &IdempotencyKey,
        looked: Option<Instant>,
        at: Moment,
    ) -> Result<Known, Fault> {
        let born = key.born.and_then(|born| {
            let age = at.wall.duration_since(born).unwrap_or_default();
            at.now.checked_sub(age + SKEW)
        });
        let looked = looked.max(born.filter(|born| *born > self.base));
        let found = self.keys.find(key.place(), looked);
        let Known::Here(task) = found else {
            return Ok(found);
        };
        self.wake(task);
        let entry = self.tasks.get(&task);
        let known = entry.and_then(|entry| entry.kept.key);
        let same = known.map(|known| key.same(&known)).transpose()?;
        Ok(if same.unwrap_or_default() {
            found
        } else {
            Known::Unknown
        })
    }

    /// Whether there is room for a new task.
    fn room(&self, new: &NewTask) -> Result<(), Fault> {
        if self.draining {
            let text = "this sidecar is about to stop: submit to it again in a moment";
            return Err(Fault::new(Reason::Draining, text).retry_after(FULL_RETRY));
        }
        // What tells of a task that is here already is under way, and while it waits that task takes
        // the room that everybody waits for.
        let tells = new.tells.is_some();
        if self.no_space || self.low_space && !tells {
            let text = "the disk of this task's home is nearly full: make room on it (or lower its disk_reserve), then submit again; what is under way goes on";
            return Err(Fault::new(Reason::DiskFull, text).retry_after(LOW_SPACE_RETRY));
        }
        if self.stored_full && !tells {
            let text = "the tasks of this home have more than 16 GiB of large content on its disk: try again when some have ended";
            return Err(Fault::new(Reason::QueueFull, text).retry_after(FULL_RETRY));
        }
        self.room_for(new)
    }
}

/// The answer to a submission that comes too late.
fn expired() -> Fault {
    Fault::new(
        Reason::DeadlineExceeded,
        "the deadline has passed already; if the clocks differ, send a timeout instead",
    )
}
