//! What happens to the tasks of one shard, and in what order it must reach the disk.
//!
//! Pure: no channel, no clock, no disk. Each call leaves [`Records`](Record) to append and
//! [`Effect`]s that must wait until those are synced. Replaying the records gives the same tasks.
//!
//! ```text
//!   submit --> SUBMITTED (waits) --dispatch--> SUBMITTED (sent) --accepted--> WORKING --+
//!                  ^                               |                             |      |
//!                  +---- not started, or lost and idempotent ----<---------------+      |
//!                  +--> CANCELED, FAILED <---------+-- deadline, cancel, loss, update --+--> any end
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::{Fault, InstanceId, Reason};
use crate::pb;
use crate::pb::journal::{Forgotten, Record, Submitted, record::Kind as Recorded};
use crate::pb::task_event::Kind;
use crate::task::doors::Route;
use crate::task::spec::{Moment, NewTask};

use super::gate::Gates;
use super::kept::{Kept, RecordError, UNCONFIRMED};
use super::lanes::{Lane, Lanes};
use super::update::failure;

/// How long a cancelled handler may take to confirm.
pub(super) const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// An executor is lost after this long without a word.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(45);
/// Starts of a task whose skill may run twice.
pub(super) const ATTEMPTS_MAX: u32 = 3;
/// How long a finished task can be asked for.
pub(super) const RETENTION: Duration = Duration::from_secs(24 * 3600);
/// What a submitter is told to wait when there is no room.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Bounds of one shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Tasks that have not ended.
    pub(super) live: usize,
    /// Their bytes in memory.
    pub(super) live_bytes: usize,
    /// Tasks that ended and can still be asked for.
    pub(super) ended: usize,
    /// Their bytes in memory.
    pub(super) ended_bytes: usize,
}

/// What one call sees of the world.
#[derive(Clone, Copy)]
pub(super) struct World<'a> {
    pub(super) at: Moment,
    pub(super) route: &'a dyn Route,
}

/// What is to be done once the records before it are synced, in this order.
#[derive(Debug)]
pub(super) enum Effect {
    /// Events up to this one are on disk: whoever watches may see them.
    Shown { task: Uuid, seq: u64, ended: bool },
    /// Live watchers may see this.
    Transient {
        task: Uuid,
        transient: pb::Transient,
    },
    /// Send the attempt to its executor.
    Start { to: Carrying, start: Box<pb::Start> },
    /// Take an attempt up again after this home was away.
    Resume { to: Carrying, after_update: u64 },
    /// The executor may forget its updates up to this one.
    Ack {
        task: Uuid,
        attempt: u32,
        update: u64,
    },
    /// Ask the executor to stop; go on listening.
    Abort {
        task: Uuid,
        attempt: u32,
        reason: String,
    },
    /// The attempt is over here, whatever it still says; with a reason: tell it to stop.
    Release {
        task: Uuid,
        attempt: u32,
        abort: Option<String>,
    },
}

/// An attempt on its way.
#[derive(Clone, Debug)]
pub(super) struct Carrying {
    pub(super) task: Uuid,
    pub(super) task_id: String,
    pub(super) attempt: u32,
    pub(super) instance: InstanceId,
    pub(super) deadline: Instant,
}

/// A task with what is not on disk.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kept: Kept,
    pub(super) deadline: Instant,
    /// Where it waits, while it does.
    pub(super) lane: Option<Lane>,
    /// When the executor is lost, unless it is heard before.
    pub(super) lost_at: Option<Instant>,
    pub(super) cancel_by: Option<Instant>,
    /// The one entry of this task in `wakes`.
    wake: Option<Instant>,
    /// Record number of its submission; 0: not known yet.
    first_lsn: u64,
    /// Events up to this one are on disk.
    shown: u64,
    /// What of `kept.bytes` is in the shard's sums.
    counted: usize,
    /// It ended, and is counted so.
    filed: bool,
}

/// All tasks of a shard.
#[derive(Debug)]
pub(super) struct Tasks {
    pub(super) own: InstanceId,
    /// Stands for every deadline until the replay is over.
    base: Instant,
    limits: Limits,
    pub(super) tasks: BTreeMap<Uuid, Entry>,
    pub(super) lanes: Lanes,
    pub(super) gates: Gates,
    wakes: BTreeSet<(Instant, Uuid)>,
    /// When the lanes are worth a look.
    pub(super) pump_at: Option<Instant>,
    /// Where the last look ended.
    pub(super) pumped: Option<Lane>,
    /// Finished tasks, the longest finished first.
    ended: VecDeque<Uuid>,
    ended_bytes: usize,
    live_bytes: usize,
    pub(super) draining: bool,
    pub(super) records: Vec<Record>,
    pub(super) effects: Vec<Effect>,
}

impl Tasks {
    pub(super) fn new(own: InstanceId, limits: Limits, base: Instant) -> Self {
        Self {
            own,
            base,
            limits,
            tasks: BTreeMap::new(),
            lanes: Lanes::default(),
            gates: Gates::default(),
            wakes: BTreeSet::new(),
            pump_at: None,
            pumped: None,
            ended: VecDeque::new(),
            ended_bytes: 0,
            live_bytes: 0,
            draining: false,
            records: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// Takes a checked task in, and gives it out at once where somebody has room.
    pub(super) fn submit(&mut self, new: NewTask, world: World<'_>) -> Result<Uuid, Fault> {
        if self.draining {
            let text = "this sidecar is about to stop: submit to it again in a moment";
            return Err(Fault::new(Reason::Draining, text).retry_after(FULL_RETRY));
        }
        let live = self.tasks.len() - self.ended.len();
        if live >= self.limits.live || self.live_bytes >= self.limits.live_bytes {
            let text = format!("{live} tasks are under way on this thread: try again later");
            return Err(Fault::new(Reason::QueueFull, text).retry_after(FULL_RETRY));
        }
        let id = new.task.id.clone();
        let submitted = Submitted {
            task: Some(new.task),
            spec: Some(new.spec),
        };
        let kept = Kept::submitted(&submitted, &id)
            .map_err(|wrong| Fault::new(Reason::Internal, wrong.to_string()))?;
        let task = kept.id.uuid;
        self.log(id, Recorded::Submitted(submitted), 0);
        self.enter(kept, world.at);
        self.place(task, true, world);
        self.settle(task);
        Ok(task)
    }

    /// Asks for the end of a task. Idempotent.
    pub(super) fn cancel(
        &mut self,
        task: Uuid,
        by: &str,
        reason: &str,
        at: Moment,
    ) -> Result<(), Fault> {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return Err(not_found());
        };
        let state = entry.kept.state();
        if state == pb::TaskState::Canceled {
            return Ok(());
        }
        if entry.kept.ended() {
            let text = format!("the task has ended already: {}", state.as_str_name());
            return Err(Fault::new(Reason::TaskNotCancelable, text));
        }
        if entry.kept.task.cancel_requested {
            return Ok(());
        }
        let asked = pb::CancelRequested {
            by: by.into(),
            reason: reason.into(),
        };
        let running = entry.kept.running.as_ref().map(|running| running.attempt);
        if running.is_some() {
            entry.cancel_by = Some(at.now + CANCEL_GRACE);
        }
        self.emit(task, Kind::CancelRequested(asked), state, 0, at);
        match running {
            Some(attempt) => {
                let reason = reason.to_owned();
                self.effects.push(Effect::Abort {
                    task,
                    attempt,
                    reason,
                });
            }
            None => self.end_canceled(task, "CANCELED", at),
        }
        self.settle(task);
        Ok(())
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, world: World<'_>) {
        let now = world.at.now;
        while let Some((due, task)) = self.wakes.first().copied()
            && due <= now
        {
            self.wakes.remove(&(due, task));
            if let Some(entry) = self.tasks.get_mut(&task) {
                entry.wake = None;
                self.due(task, world);
            }
            self.settle(task);
        }
        if self.pump_at.is_some_and(|due| due <= now) {
            self.pump(world);
        }
        self.forget_old(world.at);
    }

    /// When [`Tasks::tick`] has something to do next.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let first = self.wakes.first().map(|(due, _)| *due);
        first.into_iter().chain(self.pump_at).min()
    }

    /// Events of `task` up to `seq` are on disk.
    pub(super) fn shown(&mut self, task: Uuid, seq: u64) {
        if let Some(entry) = self.tasks.get_mut(&task) {
            entry.shown = entry.shown.max(seq);
        }
    }

    /// The submission of `task` is record `lsn`.
    pub(super) fn logged(&mut self, task: Uuid, lsn: u64) {
        if let Some(entry) = self.tasks.get_mut(&task) {
            entry.first_lsn = lsn;
        }
    }

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
                let kept = Kept::submitted(submitted, &record.task_id)?;
                self.tasks.insert(task, Entry::new(kept, lsn, self.base));
            }
            Some(Recorded::Forgotten(_)) => {
                self.tasks.remove(&task);
                // The oldest are forgotten first, so the front is nearly always the one.
                if self.ended.front() == Some(&task) {
                    self.ended.pop_front();
                } else {
                    self.ended.retain(|ended| *ended != task);
                }
            }
            _ => {
                // The journal let go of a forgotten task's first records: the rest says nothing.
                let Some(entry) = self.tasks.get_mut(&task) else {
                    return Ok(());
                };
                entry.kept.apply(record)?;
                entry.shown = entry.kept.task.last_seq;
                if entry.kept.ended() {
                    self.ended.push_back(task);
                }
            }
        }
        Ok(())
    }

    /// After the last replayed record: counts, arms timers, and goes on where the home stopped.
    pub(super) fn recovered(&mut self, world: World<'_>) {
        let all: Vec<Uuid> = self.tasks.keys().copied().collect();
        for task in all {
            let Some(entry) = self.tasks.get_mut(&task) else {
                continue;
            };
            entry.deadline = entry.kept.deadline(&world.at);
            entry.counted = entry.kept.bytes;
            if entry.kept.ended() {
                entry.filed = true;
                self.ended_bytes += entry.counted;
                continue;
            }
            self.live_bytes += entry.counted;
            if entry.kept.running.is_some() {
                self.take_up(task, world.at);
            } else if entry.kept.task.cancel_requested {
                self.end_canceled(task, "CANCELED", world.at);
            } else {
                self.wait(task);
            }
            self.settle(task);
        }
        self.pump(world);
    }

    /// Appends an event, and follows it.
    pub(super) fn emit(
        &mut self,
        task: Uuid,
        kind: Kind,
        state: pb::TaskState,
        after_update: u64,
        at: Moment,
    ) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let summary = &entry.kept.task;
        let event = pb::TaskEvent {
            task_id: summary.id.clone(),
            seq: summary.last_seq + 1,
            attempt: summary.attempt,
            at: Some(at.wall.into()),
            state: state.into(),
            kind: Some(kind),
        };
        let (id, seq) = (summary.id.clone(), event.seq);
        self.log(id, Recorded::Event(event), after_update);
        self.follow(task);
        let ended = super::kept::ended(state);
        self.effects.push(Effect::Shown { task, seq, ended });
    }

    /// Adds a record to what is to be appended.
    pub(super) fn log(&mut self, task_id: String, kind: Recorded, after_update: u64) {
        self.records.push(Record {
            task_id,
            kind: Some(kind),
            after_update,
        });
    }

    /// Takes the record that was just added into the task.
    pub(super) fn follow(&mut self, task: Uuid) {
        if let (Some(entry), Some(record)) = (self.tasks.get_mut(&task), self.records.last()) {
            let applied = entry.kept.apply(record);
            debug_assert_eq!(applied, Ok(()), "a record of our own making follows");
        }
    }

    /// Ends a task by a failure that the home decided on.
    pub(super) fn end_failed(&mut self, task: Uuid, reason: Reason, text: &str, at: Moment) {
        let retryable = matches!(reason, Reason::AgentLost | Reason::NoRoute);
        self.let_go(task, Some(reason.label()), at.now);
        let kind = Kind::Failure(failure(reason, text, retryable));
        self.emit(task, kind, pb::TaskState::Failed, 0, at);
    }

    /// Ends a task because it was asked to.
    pub(super) fn end_canceled(&mut self, task: Uuid, reason: &str, at: Moment) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let change = pb::StateChanged {
            from: entry.kept.task.state,
            reason: reason.into(),
            executor_instance: String::new(),
        };
        let abort = (reason == UNCONFIRMED).then_some("cancelled");
        self.let_go(task, abort, at.now);
        self.emit(
            task,
            Kind::StateChanged(change),
            pb::TaskState::Canceled,
            0,
            at,
        );
    }

    /// Brings sums, timers and lanes in line with the task after anything happened to it.
    pub(super) fn settle(&mut self, task: Uuid) {
        let Some(entry) = self.tasks.get_mut(&task).filter(|entry| !entry.filed) else {
            return;
        };
        let ended = entry.kept.ended();
        let wake = if ended { None } else { Some(entry.next_due()) };
        if wake != entry.wake {
            if let Some(armed) = entry.wake.take() {
                self.wakes.remove(&(armed, task));
            }
            entry.wake = wake;
            self.wakes.extend(wake.map(|due| (due, task)));
        }
        let was = std::mem::replace(&mut entry.counted, entry.kept.bytes);
        if !ended {
            self.live_bytes = self.live_bytes + entry.counted - was;
            return;
        }
        if let Some(lane) = entry.lane.take() {
            self.lanes.remove(&lane, task);
        }
        entry.filed = true;
        self.live_bytes -= was;
        self.ended_bytes += entry.counted;
        self.ended.push_back(task);
    }

    fn enter(&mut self, kept: Kept, at: Moment) {
        let task = kept.id.uuid;
        let deadline = kept.deadline(&at);
        let mut entry = Entry::new(kept, 0, deadline);
        entry.counted = entry.kept.bytes;
        self.live_bytes += entry.counted;
        self.tasks.insert(task, entry);
    }

    fn due(&mut self, task: Uuid, world: World<'_>) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let (at, now) = (world.at, world.at.now);
        if entry.deadline <= now {
            self.end_failed(
                task,
                Reason::DeadlineExceeded,
                "the task's deadline has passed",
                at,
            );
        } else if entry.cancel_by.is_some_and(|due| due <= now) {
            self.end_canceled(task, UNCONFIRMED, at);
        } else if entry.lost_at.is_some_and(|due| due <= now) {
            self.lost(task, world);
        }
    }

    fn forget_old(&mut self, at: Moment) {
        while let Some(task) = self.ended.front().copied() {
            let Some(entry) = self.tasks.get(&task) else {
                self.ended.pop_front();
                continue;
            };
            let full =
                self.ended.len() > self.limits.ended || self.ended_bytes > self.limits.ended_bytes;
            if !full && !entry.kept.ended_before(at.wall.checked_sub(RETENTION)) {
                return;
            }
            self.ended_bytes -= entry.counted;
            let id = entry.kept.task.id.clone();
            self.log(id, Recorded::Forgotten(Forgotten {}), 0);
            self.tasks.remove(&task);
            self.ended.pop_front();
        }
    }
}

impl Entry {
    fn new(kept: Kept, first_lsn: u64, deadline: Instant) -> Self {
        Self {
            kept,
            deadline,
            lane: None,
            lost_at: None,
            cancel_by: None,
            wake: None,
            first_lsn,
            shown: 0,
            counted: 0,
            filed: false,
        }
    }

    /// Number of the last event that may be seen.
    pub(super) fn shown(&self) -> u64 {
        self.shown
    }

    fn next_due(&self) -> Instant {
        let others = self.lost_at.into_iter().chain(self.cancel_by);
        others.fold(self.deadline, Instant::min)
    }
}

/// The one answer for a task that is not there and for one that the caller may not see.
pub(super) fn not_found() -> Fault {
    Fault::new(
        Reason::TaskNotFound,
        "no such task, or none that you may see: check its id",
    )
}
