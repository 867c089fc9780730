//! Who gets a task: at once where somebody has room, else in its turn.

use std::{cell::RefCell, collections::BTreeSet, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::{InstanceId, Reason};
use crate::pb::journal::{Dispatched, record::Kind as Recorded};
use crate::resilience::{RetrySettings, backoff};
use crate::task::doors::{Call, Candidate, Pick};
use crate::task::spec::Moment;
use crate::telemetry::{Subject, Work};

use super::dispatch::first_word_within;
use super::entry::{Again, Entry};
use super::lanes::Lanes;
use super::machine::{ATTEMPTS_MAX, Carrying, Effect, Tasks, World};
use super::pick::pick;
use super::snapshot::promise;
use super::supply::Supply;
use super::turns::Passed;

/// Most lanes looked at in one go; the rest is looked at in the next.
const PUMP_LANES: usize = 64;
/// Most tasks of a lane that are given out, or passed over, in one go.
const PUMP_TASKS: usize = 128;
/// Pause before the rest is looked at, so that other work of the shard gets in between.
const PUMP_AGAIN: Duration = Duration::from_millis(10);
/// The same pause where nobody could go: more than [`PUMP_TASKS`] tasks with a past of their own wait
/// at the front of a lane.
const PUMP_STUCK: Duration = Duration::from_millis(250);
/// Instances without room that a lane waits for: more would all grant slots for the same tasks.
const FULL_MAX: usize = 16;
/// Least time that a task rests: whoever asks again at once hears the same.
const REST_LEAST: Duration = Duration::from_millis(1);

/// What is left, after an executor has said nothing for as long as it may, to find out by a resume
/// whether it has the attempt.
const FIND_OUT: Duration = Duration::from_secs(10);

/// What became of a try to give a task out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    Sent,
    /// It waits on its own account: for its turn among second tries, or for the place that it failed
    /// at.
    Rests(Instant),
    /// Who fits has no room; when to look again, where that is known.
    Busy(Option<Instant>),
    /// Who fits has failed too often; when one of them is tried again, where that is known.
    Ejected(Option<Instant>),
    /// Nobody fits.
    Nobody,
}

impl Given {
    /// When to look again, where it is known.
    fn due(self) -> Option<Instant> {
        match self {
            Self::Busy(due) | Self::Ejected(due) => due,
            Self::Sent | Self::Rests(_) | Self::Nobody => None,
        }
    }
}

impl Tasks {
    /// Gives a task out, or lets it wait for its turn.
    pub(super) fn place(&mut self, task: Uuid, world: World<'_>) {
        let now = world.at.now;
        let hasty = self.fails_fast(task);
        if !self.lanes.is_empty() {
            // Whoever waits for the same goes first; the next tick looks at the lanes.
            self.wait(task);
            let given = hasty.then(|| self.give(task, world));
            match given {
                Some(no_route @ (Given::Ejected(_) | Given::Nobody)) => {
                    self.end_no_route(task, no_route, world.at);
                }
                Some(Given::Rests(until)) => self.rest(task, until),
                Some(Given::Sent | Given::Busy(_)) | None => {}
            }
            return self.look_again(now);
        }
        let given = self.give(task, world);
        match given {
            Given::Sent => {}
            Given::Rests(until) => self.rest(task, until),
            Given::Ejected(_) | Given::Nobody if hasty => self.end_no_route(task, given, world.at),
            Given::Busy(_) | Given::Ejected(_) | Given::Nobody => {
                self.wait(task);
                if let Some(lane) = self.tasks.get(&task).and_then(|entry| entry.lane.clone()) {
                    let full = std::mem::take(&mut self.full);
                    self.lanes.found_full(&lane, full);
                }
                self.pump_at = self.gates.opens(now).into_iter().chain(given.due()).min();
            }
        }
    }

    /// Puts a task into its lane.
    pub(super) fn wait(&mut self, task: Uuid) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let selector = entry.kept.selector();
        let hasty = entry.kept.fails_fast();
        let namespace = &entry.kept.task.namespace;
        let bounds = entry.kept.bounds();
        let lane = Lanes::name(namespace, &selector, &bounds, hasty);
        entry.lane = Some(lane.clone());
        let flow = entry.kept.flow();
        self.slots.waits(&flow.origin);
        entry.turn = Some(self.lanes.insert(lane, task, flow, entry.turn));
    }

    /// Takes a task out of its lane until then: those behind it need not wait for it.
    fn rest(&mut self, task: Uuid, until: Instant) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        entry.rests_until = Some(until);
        if let Some(lane) = entry.lane.take() {
            self.lanes.remove(&lane, task, false);
        }
        self.lanes.rest(task);
    }

    /// It has rested.
    pub(super) fn rested(&mut self, task: Uuid, world: World<'_>) {
        if let Some(entry) = self.tasks.get_mut(&task) {
            entry.rests_until = None;
            self.lanes.wake(task);
            self.place(task, world);
        }
    }

    /// Something has changed: the next tick looks at all lanes, if any task waits.
    pub(super) fn look_again(&mut self, now: Instant) {
        if !self.lanes.is_empty() {
            self.pump_at = Some(now);
            self.round = None;
        }
    }

    /// Looks whether somebody has room for those who wait.
    pub(super) fn pump(&mut self, world: World<'_>) {
        self.round = None;
        self.pump_on(world);
    }

    /// Goes on with a round of looks over all lanes, or begins one.
    pub(super) fn pump_on(&mut self, world: World<'_>) {
        let now = world.at.now;
        self.pump_at = None;
        let lanes = self.lanes.round(self.pumped.as_ref(), PUMP_LANES);
        let whole = lanes.len() == self.lanes.len();
        let begun = || Round::begun(self.lanes.len(), now);
        let mut round = self.round.take().unwrap_or_else(begun);
        round.left = round.left.saturating_sub(lanes.len());
        let mut more = round.left > 0;
        // Lanes that this round has not come to are looked at soon.
        let mut moved = more;
        let mut served = None;
        for lane in &lanes {
            let mut passed = Passed::default();
            let mut full = BTreeSet::new();
            for turn in 0..=PUMP_TASKS {
                let Some(task) = self.lanes.first(lane, &passed) else {
                    break;
                };
                if turn == PUMP_TASKS {
                    more = true;
                    break;
                }
                // It may be its own past that nobody fits.
                let tried = self.tasks.get(&task).is_some_and(|entry| entry.has_past());
                let given = self.give(task, world);
                full.append(&mut self.full);
                round.due = round.due.into_iter().chain(given.due()).min();
                match given {
                    Given::Sent => {
                        moved = true;
                        served = Some(lane.clone());
                    }
                    Given::Rests(until) => self.rest(task, until),
                    Given::Ejected(_) | Given::Nobody if self.fails_fast(task) => {
                        self.end_no_route(task, given, world.at);
                    }
                    Given::Busy(_) | Given::Ejected(_) | Given::Nobody if tried => {
                        self.lanes.pass(lane, task, &mut passed);
                        continue;
                    }
                    Given::Busy(_) | Given::Ejected(_) | Given::Nobody => break,
                }
                self.settle(task);
            }
            full = full.into_iter().take(FULL_MAX).collect();
            self.lanes.found_full(lane, full);
        }
        // Where all lanes are looked at, whoever was served is looked at last the next time.
        self.pumped = served.filter(|_| whole).or_else(|| lanes.last().cloned());
        if !self.lanes.is_empty() {
            self.pump_at = if more {
                self.round = (round.left > 0).then_some(round);
                Some(now + if moved { PUMP_AGAIN } else { PUMP_STUCK })
            } else {
                // A gate that opened during the round may be for a lane that was passed before.
                let opens = self.gates.opens(round.began);
                opens.into_iter().chain(round.due).min()
            };
        }
    }

    fn fails_fast(&self, task: Uuid) -> bool {
        let entry = self.tasks.get(&task);
        entry.is_some_and(|entry| entry.kept.fails_fast())
    }

    fn end_no_route(&mut self, task: Uuid, given: Given, at: Moment) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let skill = entry.kept.skill();
        let text = match given {
            Given::Ejected(until) => {
                let when = until.map_or_else(
                    || "while one of them is tried".to_owned(),
                    |until| {
                        let left = until.saturating_duration_since(at.now).as_secs_f64();
                        format!("for another {left:.1} s")
                    },
                );
                format!(
                    "every live agent that offers {skill} as asked for has failed too often of late and gets no work {when}, and fail_fast was set: submit it again then"
                )
            }
            Given::Sent | Given::Rests(_) | Given::Busy(_) | Given::Nobody => {
                let but = entry.kept.bounds().told();
                format!("no live agent offers {skill} as asked for{but}, and fail_fast was set")
            }
        };
        self.end_failed(task, Reason::NoRoute, &text, at);
    }

    /// Sends the task to whoever fits best and has room.
    fn give(&mut self, task: Uuid, world: World<'_>) -> Given {
        // Of the last one that was offered.
        self.full.clear();
        if self.holding {
            return Given::Busy(None);
        }
        let Some(entry) = self.tasks.get(&task) else {
            return Given::Nobody;
        };
        let now = world.at.now;
        let not_yet = entry.again.as_ref().filter(|again| again.not_before > now);
        if let Some(again) = not_yet.filter(|again| again.anywhere) {
            return Given::Rests(again.not_before.max(now + REST_LEAST));
        }
        let full = RefCell::new(BTreeSet::new());
        let allows = |instance: &InstanceId| {
            if not_yet.is_some_and(|again| again.instance == *instance) {
                return false;
            }
            // Whoever waits for what is granted there goes first.
            let in_turn = self.gates.grants(instance) && self.lanes.waits_for(instance);
            let allows = !in_turn && self.gates.allows(instance, now);
            if !allows && self.gates.is_full(instance) && full.borrow().len() < FULL_MAX {
                full.borrow_mut().insert(instance.clone());
            }
            allows
        };
        let picked = pick(entry, &allows, world);
        self.full = full.into_inner();
        match picked {
            Pick::Go(to, call) => {
                self.send(task, &to, call, "", world.at);
                Given::Sent
            }
            Pick::OverBudget(until) => Given::Rests(until.max(now + REST_LEAST)),
            Pick::Busy(due) | Pick::Ejected(due) if not_yet.is_some() => {
                let until = not_yet.map(|again| again.not_before);
                let until = until.into_iter().chain(due).min();
                Given::Rests(until.map_or(now, |until| until).max(now + REST_LEAST))
            }
            Pick::Busy(due) => Given::Busy(due),
            Pick::Ejected(due) => Given::Ejected(due),
            Pick::Nobody => Given::Nobody,
        }
    }

    /// The try that was made failed, and the task is to be given out once more.
    pub(super) fn failed_once(&mut self, task: Uuid, instance: InstanceId, world: World<'_>) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let settings = entry.settings.as_ref();
        let retry = settings.map_or_else(RetrySettings::default, |all| all.retry.clone());
        let failed = entry.again.take().map_or(0, |again| again.failed) + 1;
        let wait = backoff(&retry, failed, world.chance);
        entry.again = Some(Again {
            instance,
            failed,
            not_before: world.at.now + wait,
            charged: true,
            anywhere: failed >= retry.attempts.clamp(1, RetrySettings::ATTEMPTS_MAX),
        });
    }

    /// `grant`: of the slot that it gets there; empty: it has to find one.
    pub(super) fn send(
        &mut self,
        task: Uuid,
        to: &Candidate,
        call: Box<Call>,
        grant: &str,
        at: Moment,
    ) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        if let Some(lane) = entry.lane.take() {
            self.lanes.remove(&lane, task, true);
        }
        // Nothing is lost before it was sent: see `Tasks::sent`.
        entry.lost_at = None;
        entry.heard = false;
        entry.supply = Supply::default();
        entry.settings = call.permit.settings().cloned();
        entry.lost_after = lost_after(self.lost_after, &call);
        let kept = &entry.kept;
        let again = kept.may_run_twice(to.idempotent) && kept.tries() + 1 < ATTEMPTS_MAX;
        let dispatched = Dispatched {
            attempt: entry.kept.task.attempt + 1,
            instance: to.instance.to_string(),
            agent: to.agent.to_string(),
            at: Some(at.wall.into()),
            idempotent: to.idempotent,
            boot_id: to.boot_id.clone(),
            contract: Some(promise(&to.contract)),
            descendants: kept.first_supply(again, to.wants_descendants),
        };
        let task_id = entry.kept.task.id.clone();
        if grant.is_empty() {
            self.gates.sent(&to.instance, at.now);
        } else {
            self.gates.sent_with_grant(&to.instance);
        }
        self.log(task_id.clone(), Recorded::Dispatched(dispatched), 0);
        self.follow(task);
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let mut start = Box::new(entry.kept.start(&self.own));
        grant.clone_into(&mut start.grant_id);
        let to = Carrying {
            task,
            task_id,
            attempt: entry.kept.task.attempt,
            instance: to.instance.clone(),
            deadline: entry.deadline,
        };
        self.effects.push(Effect::Start { to, start, call });
    }

    /// The attempt's Start goes out now: from here on its executor may be lost.
    pub(super) fn sent(&mut self, task: Uuid, attempt: u32, now: Instant) {
        let running = self.tasks.get_mut(&task).filter(|entry| {
            let running = entry.kept.running.as_ref();
            running.is_some_and(|running| running.attempt == attempt)
        });
        if let Some(entry) = running {
            let lost_at = now + entry.lost_after;
            entry.lost_at.get_or_insert(lost_at);
            self.settle(task);
        }
    }

    /// The span of an attempt, below the submission: a restart and another attempt go on there.
    pub(super) fn work(&self, to: &Carrying, again: bool) -> Work {
        let Some(entry) = self.tasks.get(&to.task) else {
            return Work::none();
        };
        let task = &entry.kept.task;
        let subject = Subject {
            task_id: &to.task_id,
            skill: entry.kept.skill(),
            attempt: to.attempt,
            correlation_id: &task.correlation_id,
        };
        let agent = task
            .executor
            .as_ref()
            .map_or("", |executor| &executor.agent);
        let executor = (agent, to.instance.as_str());
        Work::attempt(entry.kept.trace.as_ref(), subject, executor, again)
    }
}

/// A round of looks over all lanes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    /// Lanes that it has not come to.
    left: usize,
    began: Instant,
    /// When somebody that was asked for may have room.
    due: Option<Instant>,
}

impl Round {
    fn begun(lanes: usize, now: Instant) -> Self {
        Self {
            left: lanes,
            began: now,
            due: None,
        }
    }
}

impl Entry {
    /// Whether it has been anywhere, and so may fit fewer than those behind it.
    fn has_past(&self) -> bool {
        self.again.is_some() || !self.kept.tried.is_empty() || self.kept.contract.is_some()
    }
}

/// How long an executor may say nothing at all before it is lost: a rule may give it longer than is
/// usual, and what is held up on purpose has not even been sent.
fn lost_after(usual: Duration, call: &Call) -> Duration {
    let found_out = |_| first_word_within(call) + FIND_OUT;
    let usual = usual + call.injected.delay.unwrap_or_default();
    call.patience.map_or(Duration::ZERO, found_out).max(usual)
}
