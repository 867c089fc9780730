//! When what is still to be told is told, and what comes of it. Pure.
//!
//! A task that has ended and has something to tell is kept as one that has not: in memory, in the log
//! and in its bounds. One change at a time is on its way, the oldest; how far that got is on disk. Each
//! try has a number: what an older one comes to is not heard. Nothing is told while an earlier change
//! may still be under way to the same receiver.
//!
//! ```text
//!   owed --> Waits --its turn--> Queued --the courier begins--> Tried --+--> told, or given up: the next
//!              ^  (at its place)    ^                             |     '--> Given --its end--> as here
//!              '--- pause --- Rests '-------- looked after -------|------------'
//!                               ^----- failed for now ------------'
//! ```

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use uuid::Uuid;

use crate::pb;
use crate::pb::journal::{Anew, GaveUp, Owed, Told, record::Kind as Recorded};
use crate::task::callback::{Delivery, Outcome, RETENTION, TRY, Target, Tells, pause};
use crate::task::spec::Moment;
pub(super) use crate::telemetry::metrics::callbacks::GivenUp;
use crate::telemetry::metrics::callbacks::{Kind, Report, Told as Came};

use super::entry::Entry;
use super::machine::{Effect, Tasks, World};
use super::owed::TOO_MANY;

/// Most characters of a reason that is written down or shown.
const WHY_MAX: usize = 200;
/// Pause where the courier takes no more.
const BUSY: Duration = Duration::from_secs(1);
/// A ticket of which nothing was heard for so long is lost, and another one is made.
pub(super) const UNHEARD: Duration = Duration::from_secs(3600);
/// So is a try that the courier has begun: it takes [`TRY`] at most.
const TRIED: Duration = Duration::from_secs(TRY.as_secs() + 20);
/// How often it is looked after a task that tells an agent: it says itself that it has ended, but one
/// of an earlier version.
const LOOK: Duration = Duration::from_secs(300);
/// A task that tells an agent ends when the change is to be told no more, and may take so long.
const LINGER: Duration = Duration::from_secs(30);
/// Each change is tried for so long at least, however long the ones before it took.
const LEAST: Duration = Duration::from_secs(15);
/// After a restart everything is tried for so long at least: the clock may have been set meanwhile.
const AFTER_RESTART: Duration = Duration::from_secs(600);
/// Pause while the home is about to stop.
pub(super) const HELD: Duration = Duration::from_secs(1);
/// Why an event that nobody took was given up.
const EXPIRED: &str = "nobody took it within 24 h";
/// Why an event that goes to nowhere was given up.
const UNREADABLE: &str = "its callback names nobody";
/// What is said of a try that was lost.
const LOST: &str = "nothing was heard of the try";

/// Where the oldest change that is to be told stands. In memory only: a restart tries at once.
#[derive(Clone, Debug)]
pub(super) struct Telling {
    /// Number of its event.
    pub(super) seq: u64,
    /// Number of its last try.
    pub(super) number: u64,
    pub(super) way: Way,
    /// An agent has a task that tells it.
    given: bool,
    /// When something is to be done about it.
    pub(super) next: Instant,
    /// When it began.
    pub(super) since: Instant,
    /// It is given up then.
    until: Instant,
    pub(super) tries: u32,
    trouble: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Nothing happens until `next`.
    Rests,
    /// Others have their turn at its place.
    Waits,
    /// The courier has a ticket for it.
    Queued,
    /// The courier has begun.
    Tried,
    /// An agent has a task.
    Given,
}

impl Telling {
    /// Whether it takes one of the turns of its place.
    pub(super) fn is_out(&self) -> bool {
        matches!(self.way, Way::Queued | Way::Tried | Way::Given)
    }

    /// Whether the receiver may be told at any moment.
    fn is_under_way(&self) -> bool {
        self.given || self.way == Way::Tried
    }

    /// When it is given up, whatever happens.
    pub(super) fn ends(&self) -> Instant {
        let lingers = if self.given { LINGER } else { Duration::ZERO };
        self.until + lingers
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

    /// What is to be told next, and to where; `None`: nothing is.
    fn report(&self, seq: u64, came: Came, why: &str) -> Option<Effect> {
        let kind = match self.kept.told_to()? {
            Target::Agent { .. } => Kind::Agent,
            Target::Url(_) => Kind::Url,
            Target::Task(_) => return None,
        };
        Some(Effect::Told(Box::new(Report {
            kind,
            came,
            task: self.kept.task.id.clone(),
            seq,
            place: self.place.clone().unwrap_or_default(),
            why: cut(why),
        })))
    }
}

impl Tasks {
    /// Sees to it that the oldest change is told, once its event is on disk, unless it or an earlier
    /// one is under way.
    pub(super) fn begin_telling(&mut self, task: Uuid, at: Moment) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let Some(owed) = entry.kept.owed.front().map(|first| first.owed) else {
            return self.end_telling(task, at);
        };
        let going = |telling: &Telling| telling.seq == owed.seq || telling.is_under_way();
        if entry.telling.as_ref().is_some_and(going) {
            return;
        }
        if entry.place.is_none() {
            return self.give_up(task, owed.seq, (GivenUp::Refused, UNREADABLE), at);
        }
        self.end_telling(task, at);
        let until = at.instant_of(until(&owed)).max(at.now + LEAST);
        let until = until.max(self.tell_until);
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        entry.telling = Some(Telling {
            seq: owed.seq,
            number: 0,
            way: Way::Rests,
            given: false,
            next: at.now,
            since: at.now,
            until,
            tries: 0,
            trouble: String::new(),
        });
        self.telling += 1;
        self.ask_turn(task, at);
    }

    /// After a restart: whatever the clock says now, everything is tried for a while.
    pub(super) fn tell_again(&mut self, at: Moment) {
        self.tell_until = at.now + AFTER_RESTART;
    }

    /// An event was taken in: of too many changes that wait the oldest are gone.
    pub(super) fn told_too_late(&mut self, task: Uuid, before: u64) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let seq = entry.kept.given_up();
        if seq > before {
            let came = Came::GivenUp(GivenUp::TooMany);
            self.effects.extend(entry.report(seq, came, TOO_MANY));
        }
    }

    /// The courier begins with a try: what is to be told; `None`: it is not to be made any more.
    pub(super) fn try_telling(
        &mut self,
        task: Uuid,
        (seq, number): (u64, u64),
        at: Moment,
    ) -> Option<Delivery> {
        let entry = self.tasks.get_mut(&task)?;
        let telling = entry.telling.as_mut()?;
        let due = telling.way == Way::Queued && (telling.seq, telling.number) == (seq, number);
        if !due || telling.until <= at.now {
            return None;
        }
        telling.way = Way::Tried;
        telling.next = at.now + TRIED;
        let until = telling.until;
        let target = entry.kept.told_to()?;
        let above = match target {
            Target::Agent { .. } => entry.kept.above().map(Box::new),
            Target::Url(_) | Target::Task(_) => None,
        };
        let delivery = Delivery {
            event: entry.kept.first_owed()?,
            target,
            until,
            above,
        };
        self.settle(task);
        Some(delivery)
    }

    /// What became of a try.
    pub(super) fn told(
        &mut self,
        task: Uuid,
        (seq, number): (u64, u64),
        outcome: Outcome,
        world: World<'_>,
    ) {
        let telling = self
            .tasks
            .get(&task)
            .and_then(|entry| entry.telling.as_ref());
        let current = |telling: &Telling| {
            (telling.seq, telling.number) == (seq, number)
                && matches!(telling.way, Way::Queued | Way::Tried)
        };
        // Of an earlier life, or of a try that was taken for lost.
        if telling.is_some_and(current) {
            self.came_of(task, outcome, world);
        }
    }

    /// What became of the task that told an agent of a change.
    pub(super) fn answered(
        &mut self,
        task: Uuid,
        tells: &Tells,
        outcome: Outcome,
        world: World<'_>,
    ) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let first = entry.kept.owed.front().map(|first| first.owed);
        let telling = entry.telling.as_ref();
        let anew = first.is_some_and(|owed| owed.seq == tells.seq && owed.round != tells.round);
        if telling.is_some_and(|telling| telling.seq == tells.seq) && !anew {
            self.came_of(task, outcome, world);
        }
    }

    /// It is time to tell again, to look what has become of it, or to give up.
    pub(super) fn telling_due(&mut self, task: Uuid, world: World<'_>) {
        let at = world.at;
        let telling = self
            .tasks
            .get(&task)
            .and_then(|entry| entry.telling.as_ref());
        let Some(telling) = telling.filter(|one| one.next <= at.now) else {
            return;
        };
        let (seq, over) = (telling.seq, telling.ends() <= at.now);
        match telling.way {
            Way::Tried => {
                let why = LOST.to_owned();
                self.came_of(task, Outcome::Later { why, wait: None }, world);
            }
            _ if over => self.give_up(task, seq, (GivenUp::Expired, EXPIRED), at),
            Way::Rests | Way::Waits => self.ask_turn(task, at),
            // The agent's task is asked for once more, or the ticket was lost.
            Way::Queued | Way::Given => self.queue(task, at),
        }
    }

    /// Tells nothing more up to this event.
    pub(super) fn give_up(
        &mut self,
        task: Uuid,
        seq: u64,
        (reason, why): (GivenUp, &str),
        at: Moment,
    ) {
        let why = cut(why);
        if let Some(entry) = self.tasks.get(&task) {
            let report = entry.report(seq, Came::GivenUp(reason), &why);
            self.effects.extend(report);
        }
        self.tell_next(task, Recorded::GaveUp(GaveUp { seq, why }), at);
    }

    /// Goes on from what a try, or an agent's task, came to.
    fn came_of(&mut self, task: Uuid, outcome: Outcome, world: World<'_>) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(telling) = entry.telling.as_mut() else {
            return;
        };
        let seq = telling.seq;
        let first = entry.kept.owed.front().map(|first| first.owed.seq);
        let given = matches!(outcome, Outcome::Given(_));
        if first != Some(seq) && !given {
            // It was given up meanwhile: the next one need not wait any longer.
            self.end_telling(task, world.at);
            self.begin_telling(task, world.at);
            return self.settle(task);
        }
        match outcome {
            Outcome::Delivered => {
                let told = Told {
                    seq,
                    at: Some(world.at.wall.into()),
                };
                let report = entry.report(seq, Came::Delivered, "");
                self.effects.extend(report);
                self.tell_next(task, Recorded::Told(told), world.at);
            }
            Outcome::Refused(why) => {
                self.give_up(task, seq, (GivenUp::Refused, &why), world.at);
            }
            Outcome::Given(id) => {
                telling.way = Way::Given;
                telling.given = true;
                telling.trouble = cut(&format!("its task there has not ended yet: {id}"));
                telling.next = (world.at.now + LOOK).min(telling.ends());
            }
            Outcome::Anew(why) => {
                telling.given = false;
                let id = entry.kept.task.id.clone();
                self.log(id, Recorded::Anew(Anew { seq }), 0);
                self.follow(task);
                self.failed_for_now(task, (&why, None), world);
            }
            Outcome::Later { why, wait } => self.failed_for_now(task, (&why, wait), world),
            Outcome::Busy => {
                let next = world.at.now + BUSY.mul_f64(0.5 + world.chance);
                self.put_off(task, next, world.at);
            }
        }
        self.settle(task);
    }

    fn failed_for_now(
        &mut self,
        task: Uuid,
        (why, wait): (&str, Option<Duration>),
        world: World<'_>,
    ) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(telling) = &mut entry.telling else {
            return;
        };
        telling.tries = telling.tries.saturating_add(1);
        telling.trouble = cut(why);
        let next = world.at.now + pause(telling.tries, wait, world.chance);
        let seq = telling.seq;
        let report = entry.report(seq, Came::Failed, why);
        self.effects.extend(report);
        self.put_off(task, next, world.at);
    }

    /// Writes down how far the telling got, and goes on with the next change.
    fn tell_next(&mut self, task: Uuid, kind: Recorded, at: Moment) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let id = entry.kept.task.id.clone();
        self.log(id, kind, 0);
        self.follow(task);
        self.end_telling(task, at);
        self.begin_telling(task, at);
    }
}

/// When a change is told no more.
fn until(owed: &Owed) -> SystemTime {
    let at = owed.at.and_then(|at| SystemTime::try_from(at).ok());
    at.unwrap_or(SystemTime::UNIX_EPOCH) + RETENTION
}

/// What others say is neither long nor more than one line.
fn cut(why: &str) -> String {
    let shown = why.chars().filter(|c| !c.is_control());
    shown.take(WHY_MAX).collect()
}
