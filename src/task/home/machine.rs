//! What happens to the tasks of one shard, and in what order it must reach the disk.
//!
//! Pure: no channel, no clock, no disk. Each call leaves [`Records`](Record) to append and
//! [`Effect`]s that must wait until those are synced. Replaying the records gives the same tasks.
//!
//! ```text
//!   submit --> SUBMITTED (waits) --dispatch--> SUBMITTED (sent) --accepted--> WORKING --+
//!                  ^                               |                             |      |
//!                  +---- not started, or lost and idempotent ----<---------------+      |
//!                  +---- answer <---- INPUT_REQUIRED, AUTH_REQUIRED <---- question --+  |
//!                  +--> CANCELED, FAILED <---------+-- deadline, cancel, loss, update --+--> any end
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use crate::contract;
use crate::domain::{Fault, InstanceId, Reason};
use crate::pb;
use crate::pb::journal::{Record, record::Kind as Recorded};
use crate::pb::task_event::Kind;
use crate::task::spec::Moment;

use super::children::Children;
use super::compaction::{Compaction, Stash};
use super::config::LOST_AFTER;
use super::dialogue::{ANSWER_SCHEMAS, asks};
pub(super) use super::effect::{Carrying, Effect, Limits, World};
pub(super) use super::entry::Entry;
use super::gate::Gates;
use super::give::Round;
use super::granted::Slots;
use super::hold;
use super::kept::{Kept, UNCONFIRMED};
use super::keys::Keys;
use super::lanes::{Lane, Lanes};
use super::large::Waiting;
use super::places::Places;
use super::resting::Resting;
use super::room::Rooms;
use super::update::failure;

/// How long a cancelled handler may take to confirm.
pub(super) const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// Starts of a task whose skill may run twice.
pub(super) const ATTEMPTS_MAX: u32 = 3;

/// All tasks of a shard.
#[derive(Debug)]
pub(super) struct Tasks {
    pub(super) own: InstanceId,
    /// Stands for every deadline until the replay is over.
    pub(super) base: Instant,
    pub(super) limits: Limits,
    /// An executor is lost after this long without a word.
    pub(super) lost_after: Duration,
    /// Boxed: a tree moves its values when it grows and shrinks, and these are large.
    pub(super) tasks: BTreeMap<Uuid, Box<Entry>>,
    pub(super) lanes: Lanes,
    pub(super) gates: Gates,
    /// Who had no room when a task was last offered.
    pub(super) full: BTreeSet<InstanceId>,
    pub(super) slots: Slots,
    wakes: BTreeSet<(Instant, Uuid)>,
    /// When the lanes are worth a look.
    pub(super) pump_at: Option<Instant>,
    /// Where the last look ended.
    pub(super) pumped: Option<Lane>,
    /// The round of looks that is under way.
    pub(super) round: Option<Round>,
    /// Finished tasks, the longest finished first.
    pub(super) ended: VecDeque<Uuid>,
    pub(super) ended_bytes: usize,
    pub(super) live_bytes: usize,
    /// Tasks that an agent works on.
    pub(super) working: usize,
    /// Tasks whose agent waits for an answer.
    pub(super) asking: usize,
    /// What is taken of the room that not all tasks have.
    pub(super) rooms: Rooms,
    /// Tasks with anything that is to be told.
    pub(super) telling: usize,
    /// Tries to tell anything, so far.
    pub(super) tries: u64,
    /// Nothing is given up before this for its age.
    pub(super) tell_until: Instant,
    /// Where what is to be told goes.
    pub(super) places: Places,
    pub(super) draining: bool,
    /// What waits goes on waiting: nobody is given anything any more.
    pub(super) holding: bool,
    /// The disk is nearly full: what is under way goes on, nothing new is taken.
    pub(super) low_space: bool,
    /// It is full: what room is reserved is for the ends of what runs.
    pub(super) no_space: bool,
    /// There is more large content on disk than there should be: nothing new is taken.
    pub(super) stored_full: bool,
    /// An archive takes what has ended: it leaves memory that way, and never before it is there.
    pub(super) archived: bool,
    /// Its log keeps nothing: what its records say need not be kept for it.
    pub(super) in_memory: bool,
    /// Those of its finished tasks that are folded.
    pub(super) resting: Resting,
    /// What answers have to fit, compiled.
    pub(super) answers: contract::Known,
    /// Tasks that were submitted with a key.
    pub(super) keys: Keys,
    /// Tasks that end with the attempt that made them.
    pub(super) children: Children,
    pub(super) compaction: Compaction,
    /// Empty but during the replay.
    pub(super) stash: Stash,
    pub(super) records: Vec<Record>,
    /// Large contents that those name.
    pub(super) waiting: Waiting,
    pub(super) effects: Vec<Effect>,
}

impl Tasks {
    pub(super) fn new(own: InstanceId, limits: Limits, base: Instant) -> Self {
        Self {
            own,
            base,
            limits,
            lost_after: LOST_AFTER,
            tasks: BTreeMap::new(),
            lanes: Lanes::default(),
            gates: Gates::default(),
            full: BTreeSet::new(),
            slots: Slots::default(),
            wakes: BTreeSet::new(),
            pump_at: None,
            pumped: None,
            round: None,
            ended: VecDeque::new(),
            ended_bytes: 0,
            live_bytes: 0,
            working: 0,
            asking: 0,
            rooms: Rooms::default(),
            telling: 0,
            tries: 0,
            tell_until: base,
            places: Places::default(),
            draining: false,
            holding: false,
            low_space: false,
            no_space: false,
            stored_full: false,
            archived: false,
            in_memory: false,
            resting: Resting::default(),
            answers: contract::Known::of(ANSWER_SCHEMAS),
            keys: Keys::default(),
            children: Children::default(),
            compaction: Compaction::default(),
            stash: Stash::default(),
            records: Vec::new(),
            waiting: Waiting::default(),
            effects: Vec::new(),
        }
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
        if entry.kept.ended() {
            return cancel_ended(state);
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
            self.pump_on(world);
        }
        self.lanes.moved |= self.slots.wake(now);
        if self.compaction.at.is_some_and(|due| due <= now) {
            self.compact_on(now);
        }
        self.shed(world.at);
        self.forget_old(world.at);
    }

    /// When [`Tasks::tick`] has something to do next.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let first = self.wakes.first().map(|(due, _)| *due);
        let others = self.pump_at.into_iter().chain(self.compaction.at);
        let others = others.chain(self.slots.next_wake());
        first.into_iter().chain(others).min()
    }

    /// Events of `task` up to `seq` are on disk.
    pub(super) fn shown(&mut self, task: Uuid, seq: u64) {
        if let Some(entry) = self.tasks.get_mut(&task) {
            entry.shown = entry.shown.max(seq);
        }
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
        let given_up = entry.kept.given_up();
        self.log(id, Recorded::Event(event), after_update);
        self.follow(task);
        self.told_too_late(task, given_up);
        let ended = super::kept::ended(state);
        if let Some(entry) = self.tasks.get_mut(&task).filter(|_| ended) {
            entry.ended_at = Some(at.now);
        }
        self.effects.push(Effect::Shown { task, seq, ended });
        self.begin_telling(task, at);
    }

    /// Adds a record to what is to be appended.
    pub(super) fn log(&mut self, task_id: String, mut kind: Recorded, after_update: u64) {
        let blobs = self.cut(&mut kind);
        self.log_with(task_id, kind, after_update, blobs);
    }

    /// Takes the record that was just added into the task.
    pub(super) fn follow(&mut self, task: Uuid) {
        if let (Some(entry), Some(record)) = (self.tasks.get_mut(&task), self.records.last_mut()) {
            // An acceptance still tells what may wait for what follows it.
            let applied = if self.in_memory && !hold::is_acceptance(record) {
                entry.take(std::mem::take(record))
            } else {
                entry.apply(record)
            };
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
        let working = entry.kept.state() == pb::TaskState::Working;
        self.working += usize::from(working && !entry.working);
        self.working -= usize::from(entry.working && !working);
        entry.working = working;
        let asking = asks(entry.kept.state());
        self.asking += usize::from(asking && !entry.asking);
        self.asking -= usize::from(entry.asking && !asking);
        entry.asking = asking;
        let over = entry.kept.over();
        let wake = entry.next_due().filter(|_| !over);
        if wake != entry.wake {
            if let Some(armed) = entry.wake.take() {
                self.wakes.remove(&(armed, task));
            }
            entry.wake = wake;
            self.wakes.extend(wake.map(|due| (due, task)));
        }
        let was = std::mem::replace(&mut entry.counted, entry.kept.bytes);
        if ended {
            if let Some(lane) = entry.lane.take() {
                self.lanes.remove(&lane, task, false);
            }
            if entry.rests_until.take().is_some() {
                self.lanes.wake(task);
            }
            self.children.remove(task);
            entry.leave_maker(&mut self.effects);
        }
        let counted = entry.counted;
        entry.filed = over;
        if over {
            self.live_bytes -= was;
            self.ended_bytes += counted;
            self.ended.push_back(task);
            self.will_rest(task);
        } else {
            self.live_bytes = self.live_bytes + counted - was;
        }
        self.count_room(task);
    }

    /// Takes a new task in.
    pub(super) fn enter(&mut self, kept: Kept, deadline: Instant) {
        let mut entry = Entry::new(kept, 0, deadline);
        entry.counted = entry.kept.bytes;
        self.live_bytes += entry.counted;
        self.insert(entry);
    }

    /// From here on the task is found, by its id and by its key.
    pub(super) fn insert(&mut self, entry: Entry) {
        let task = entry.kept.id.uuid;
        if entry.kept.key.is_some() {
            self.keys.enter(task);
        }
        self.tasks.insert(task, Box::new(entry));
    }

    pub(super) fn due(&mut self, task: Uuid, world: World<'_>) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let (at, now) = (world.at, world.at.now);
        if entry.kept.ended() {
            return self.telling_due(task, world);
        }
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
        } else if entry.rests_until.is_some_and(|due| due <= now) {
            self.rested(task, world);
        }
        self.telling_due(task, world);
    }
}

/// The one answer for a task that is not there and for one that the caller may not see.
pub(super) fn not_found() -> Fault {
    Fault::new(
        Reason::TaskNotFound,
        "no such task, or none that you may see: check its id",
    )
}

/// The answer to a cancellation that comes after the end.
pub(super) fn cancel_ended(state: pb::TaskState) -> Result<(), Fault> {
    if state == pb::TaskState::Canceled {
        return Ok(());
    }
    let state = state.as_str_name().trim_start_matches("TASK_STATE_");
    let text = format!("the task has ended already, {}", state.to_lowercase());
    Err(Fault::new(Reason::TaskNotCancelable, text))
}
