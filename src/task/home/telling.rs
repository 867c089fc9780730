//! What of a task's changes is still to be told to whoever asked to be called back. Pure.
//!
//! A task that has ended and has something to tell is kept as one that has not: in memory, in the log
//! and in its bounds. One change at a time is on its way, the oldest; how far that got is on disk.

use std::{sync::Arc, time::Duration, time::SystemTime};

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::{Fault, Reason};
use crate::pb;
use crate::pb::journal::{GaveUp, Owed, Told, record::Kind as Recorded};
use crate::task::callback::{Delivery, Outcome, RETENTION, Target, pause, tells};
use crate::task::spec::Moment;

use super::entry::Entry;
use super::kept::Kept;
use super::machine::{Effect, Tasks, World};

/// Most changes of one task that wait to be told; of more the oldest are given up.
const OWED_MAX: usize = 256;
/// What one of them takes in memory, about.
const OWED_BYTES: usize = 64;
/// Most characters of a reason that is written down or shown.
const WHY_MAX: usize = 200;
/// Pause where too much is on its way already.
const BUSY: Duration = Duration::from_secs(5);
/// A delivery of which nothing was heard for so long is lost, and made again. Those that wait for
/// their turn count, too.
const UNHEARD: Duration = Duration::from_secs(3600);
/// Pause while the home is about to stop.
const HELD: Duration = Duration::from_secs(1);
/// Of the tasks that may be under way, those that may have ended and wait to be told of: a receiver
/// that is away leaves room for others' work.
const UNTOLD_SHARE: usize = 4;
/// Why an event that nobody took was given up.
const EXPIRED: &str = "nobody took it within 24 h";
/// Why the oldest of too many was given up.
const TOO_MANY: &str = "256 later changes wait";
/// What a submitter is told to wait while too much is untold.
const UNTOLD_RETRY: Duration = Duration::from_secs(30);

/// Where the oldest change that is to be told stands. In memory only: a restart tries at once.
#[derive(Clone, Debug)]
pub(super) struct Telling {
    /// Number of its event.
    seq: u64,
    /// On its way: tried again when nothing is heard. Else: when it is tried.
    pub(super) next: Instant,
    /// It is given up then.
    until: Instant,
    tries: u32,
    trouble: String,
    away: bool,
}

impl Kept {
    /// Whether nothing can happen to it and nothing is to be told.
    pub(super) fn over(&self) -> bool {
        self.ended() && self.owed.is_empty()
    }

    /// Takes in that an event changed the state.
    pub(super) fn owe(&mut self, from: pb::TaskState, event: &pb::TaskEvent) {
        let callback = self.task.options.as_ref().and_then(|o| o.callback.as_ref());
        let told = |callback| from != event.state() && tells(callback, event.state());
        if !callback.is_some_and(told) {
            return;
        }
        self.owed.push_back(Owed {
            seq: event.seq,
            attempt: event.attempt,
            state: event.state,
            at: event.at,
        });
        self.bytes += OWED_BYTES;
        if self.owed.len() > OWED_MAX
            && let Some(oldest) = self.owed.front().map(|owed| owed.seq)
        {
            self.gave_up(oldest, TOO_MANY);
        }
        self.waits();
    }

    /// The receiver has taken in what happened up to this event.
    pub(super) fn told(&mut self, told: &Told) {
        self.settled(told.seq);
        let progress = self.task.callback.get_or_insert_default();
        progress.delivered_seq = progress.delivered_seq.max(told.seq);
        progress.delivered_at = told.at;
        self.waits();
    }

    /// Events up to this one are not told any more.
    pub(super) fn gave_up(&mut self, seq: u64, why: &str) {
        self.settled(seq);
        let progress = self.task.callback.get_or_insert_default();
        progress.given_up_seq = progress.given_up_seq.max(seq);
        progress.given_up = why.to_owned();
        self.waits();
    }

    fn settled(&mut self, seq: u64) {
        while self.owed.front().is_some_and(|owed| owed.seq <= seq) {
            self.owed.pop_front();
            self.bytes -= OWED_BYTES;
        }
    }

    /// Says in the task what is still to be told.
    fn waits(&mut self) {
        let progress = self.task.callback.get_or_insert_default();
        progress.waiting = u32::try_from(self.owed.len()).unwrap_or(u32::MAX);
        progress.waiting_since = self.owed.front().and_then(|owed| owed.at);
    }

    /// The oldest change that is to be told, on its way.
    fn delivery(&self) -> Option<Delivery> {
        let owed = self.owed.front()?;
        let callback = self.task.options.as_ref()?.callback.as_ref()?;
        let first = self.first_seq();
        let place = owed.seq.checked_sub(first);
        let place = place.and_then(|place| usize::try_from(place).ok());
        let event = place.and_then(|place| self.events.get(place).cloned());
        let bare = || {
            Arc::new(pb::TaskEvent {
                task_id: self.task.id.clone(),
                seq: owed.seq,
                attempt: owed.attempt,
                at: owed.at,
                state: owed.state,
                kind: None,
            })
        };
        Some(Delivery {
            id: self.id.clone(),
            event: event.unwrap_or_else(bare),
            target: Target::of(callback, &self.callback_url)?,
            until: until(owed),
            task: Box::new(self.task.clone()),
            caller: self.parties.caller.clone(),
        })
    }
}

impl Entry {
    /// BASIC view, with what is known of the callback and not written down.
    pub(super) fn basic(&self) -> pb::Task {
        self.shows(self.kept.basic())
    }

    /// The same for a view that was made already.
    pub(super) fn shows(&self, mut task: pb::Task) -> pb::Task {
        if let (Some(telling), Some(progress)) = (&self.telling, &mut task.callback) {
            progress.tries = telling.tries;
            progress.trouble.clone_from(&telling.trouble);
        }
        task
    }
}

impl Tasks {
    /// Whether there is room for one more task with a callback.
    pub(super) fn callback_room(&self, task: &pb::Task) -> Result<(), Fault> {
        let callback = task.options.as_ref().and_then(|o| o.callback.as_ref());
        if callback.is_none() || self.untold < (self.limits.live / UNTOLD_SHARE).max(1) {
            return Ok(());
        }
        let text = format!(
            "{} tasks have ended and could not be told of yet: submit without a callback, or try again later",
            self.untold
        );
        Err(Fault::new(Reason::QueueFull, text).retry_after(UNTOLD_RETRY))
    }

    /// Sends the oldest change on its way, once its event is on disk, if none is under way.
    pub(super) fn begin_telling(&mut self, task: Uuid, at: Moment) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(owed) = entry.kept.owed.front() else {
            self.telling -= usize::from(entry.telling.take().is_some());
            return;
        };
        let same = |telling: &Telling| telling.seq == owed.seq;
        if entry.telling.as_ref().is_some_and(same) {
            return;
        }
        self.telling += usize::from(entry.telling.is_none());
        entry.telling = Some(Telling {
            seq: owed.seq,
            next: at.now + UNHEARD,
            until: at.instant_of(until(owed)),
            tries: 0,
            trouble: String::new(),
            away: true,
        });
        self.effects.push(Effect::Tell { task });
    }

    /// The delivery that is to be made now; `None`: it is not to be made any more.
    pub(super) fn delivery(&self, task: Uuid) -> Option<Delivery> {
        self.tasks.get(&task)?.kept.delivery()
    }

    /// What became of telling event `seq`.
    pub(super) fn told(&mut self, task: Uuid, seq: u64, outcome: Outcome, world: World<'_>) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let current = |telling: &&mut Telling| telling.seq == seq;
        // Of an earlier life, or of a try that was taken for lost.
        let Some(telling) = entry.telling.as_mut().filter(current) else {
            return;
        };
        let now = world.at.now;
        match outcome {
            Outcome::Delivered => {
                let told = Told {
                    seq,
                    at: Some(world.at.wall.into()),
                };
                self.tell_next(task, Recorded::Told(told), world.at);
            }
            Outcome::Refused(why) => self.give_up(task, seq, &why, world.at),
            Outcome::Later { why, wait } => {
                telling.tries = telling.tries.saturating_add(1);
                telling.trouble = cut(&why);
                telling.away = false;
                let next = now + pause(telling.tries, wait, world.chance);
                telling.next = next.min(telling.until);
            }
            Outcome::Busy => {
                telling.away = false;
                telling.next = now + BUSY.mul_f64(0.5 + world.chance);
            }
        }
        self.settle(task);
    }

    /// It is time to tell again, or to give up.
    pub(super) fn telling_due(&mut self, task: Uuid, at: Moment) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(telling) = entry.telling.as_mut().filter(|one| one.next <= at.now) else {
            return;
        };
        if telling.until <= at.now {
            let seq = telling.seq;
            self.give_up(task, seq, EXPIRED, at);
        } else if self.holding {
            telling.next = at.now + HELD;
        } else {
            telling.away = true;
            telling.next = at.now + UNHEARD;
            self.effects.push(Effect::Tell { task });
        }
    }

    fn give_up(&mut self, task: Uuid, seq: u64, why: &str, at: Moment) {
        let why = cut(why);
        let gave_up = GaveUp { seq, why };
        self.tell_next(task, Recorded::GaveUp(gave_up), at);
    }

    /// Writes down how far the telling got, and goes on with the next change.
    fn tell_next(&mut self, task: Uuid, kind: Recorded, at: Moment) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let id = entry.kept.task.id.clone();
        self.log(id, kind, 0);
        self.follow(task);
        self.begin_telling(task, at);
    }
}

/// When a change is told no more.
fn until(owed: &Owed) -> SystemTime {
    let at = owed.at.and_then(|at| SystemTime::try_from(at).ok());
    at.unwrap_or(SystemTime::UNIX_EPOCH) + RETENTION
}

fn cut(why: &str) -> String {
    let shown = why.chars().filter(|c| !c.is_control());
    shown.take(WHY_MAX).collect()
}
