//! A task's attempts: who gets them, what comes back, and when they count as lost.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::Reason;
use crate::pb;
use crate::pb::journal::{Checkpoint, Dispatched, NotStarted, record::Kind as Recorded};
use crate::pb::task_event::Kind;
use crate::task::doors::{Candidate, Want};
use crate::task::spec::Moment;

use super::kept::{UNCONFIRMED, ended};
use super::lanes::Lanes;
use super::machine::{ATTEMPTS_MAX, CANCEL_GRACE, Carrying, Effect, LOST_AFTER, Tasks, World};
use super::update::Taken;

/// Most lanes looked at in one go; the rest is looked at in the next.
const PUMP_LANES: usize = 64;
/// Most tasks of a lane that are given out, or passed over, in one go.
const PUMP_TASKS: usize = 128;
/// Pause before the rest is looked at, so that other work of the shard gets in between.
const PUMP_AGAIN: Duration = Duration::from_millis(10);

/// What a carrier reports about the attempt it carries.
#[derive(Debug)]
pub(super) enum Heard {
    /// The executor is there and knows the attempt.
    Alive,
    /// It took the attempt.
    Accepted,
    /// It did not start the attempt.
    Refused {
        reason: String,
        wait: Option<Duration>,
    },
    /// It could not be reached, or is somebody else: nothing was sent.
    NotSent,
    /// The attempt's next update.
    Update(pb::NumberedUpdate),
    /// It does not know the attempt.
    Unknown,
    /// The stream broke; the last word came at this time. The carrier tries on.
    Broken(Instant),
}

/// What became of a try to give a task out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    Sent,
    /// Who fits has no room.
    Busy,
    /// Nobody fits.
    Nobody,
}

impl Tasks {
    /// Gives a task out, or lets it wait for its turn.
    pub(super) fn place(&mut self, task: Uuid, first: bool, world: World<'_>) {
        if !self.lanes.is_empty() {
            // Whoever waits for the same goes first; the next tick looks at the lanes.
            self.wait(task);
            let fail_fast = first && self.entry_options(task).fail_fast;
            if !fail_fast || self.give(task, world) != Given::Nobody {
                self.pump_at = Some(world.at.now);
                return;
            }
            return self.end_no_route(task, world.at);
        }
        match self.give(task, world) {
            Given::Sent => {}
            Given::Nobody if first && self.entry_options(task).fail_fast => {
                self.end_no_route(task, world.at);
            }
            Given::Busy | Given::Nobody => {
                self.wait(task);
                self.pump_at = self.gates.opens(world.at.now);
            }
        }
    }

    /// Puts a task into its lane.
    pub(super) fn wait(&mut self, task: Uuid) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let selector = entry.kept.spec.selector.as_ref();
        let lane = Lanes::name(&entry.kept.task.namespace, selector.unwrap_or(&EMPTY));
        entry.lane = Some(lane.clone());
        self.lanes.insert(lane, task);
    }

    /// Looks whether somebody has room for those who wait.
    pub(super) fn pump(&mut self, world: World<'_>) {
        let now = world.at.now;
        self.pump_at = None;
        let lanes = self.lanes.round(self.pumped.as_ref(), PUMP_LANES);
        let mut more = lanes.len() == PUMP_LANES;
        for lane in &lanes {
            let mut passed = None;
            for turn in 0..=PUMP_TASKS {
                let Some(task) = self.lanes.first(lane, passed) else {
                    break;
                };
                if turn == PUMP_TASKS {
                    more = true;
                    break;
                }
                let tried = self
                    .tasks
                    .get(&task)
                    .is_some_and(|entry| !entry.kept.tried.is_empty());
                match self.give(task, world) {
                    Given::Sent => self.settle(task),
                    // It may be its own past that nobody fits.
                    Given::Busy | Given::Nobody if tried => passed = Some(task),
                    Given::Busy | Given::Nobody => break,
                }
            }
        }
        self.pumped = lanes.last().cloned();
        if !self.lanes.is_empty() {
            self.pump_at = if more {
                Some(now + PUMP_AGAIN)
            } else {
                self.gates.opens(now)
            };
        }
    }

    /// What the carrier of `attempt` heard.
    pub(super) fn heard(&mut self, task: Uuid, attempt: u32, heard: Heard, world: World<'_>) {
        let current = self.tasks.get_mut(&task).filter(|entry| {
            entry
                .kept
                .running
                .as_ref()
                .is_some_and(|running| running.attempt == attempt)
        });
        let Some(entry) = current else {
            // Fenced: the attempt ended here, whatever comes from it.
            self.effects.push(Effect::Release {
                task,
                attempt,
                abort: None,
            });
            return;
        };
        entry.lost_at = match &heard {
            Heard::Broken(since) => entry.lost_at.or(Some(*since + LOST_AFTER)),
            _ => None,
        };
        match heard {
            Heard::Alive | Heard::Broken(_) => {}
            Heard::Accepted => self.accepted(task, world.at),
            Heard::Refused { reason, wait } => self.refused(task, &reason, wait, world),
            Heard::NotSent => {
                if let Some(instance) = self.not_started(task) {
                    self.gates.away(&instance, world.at.now);
                }
                self.again(task, world);
            }
            Heard::Update(update) => self.update(task, update, world),
            Heard::Unknown => self.lost(task, world),
        }
        self.settle(task);
    }

    /// The attempt is lost: again where that is allowed, else the end.
    pub(super) fn lost(&mut self, task: Uuid, world: World<'_>) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(running) = entry.kept.running.clone() else {
            return;
        };
        entry.lost_at = None;
        let from = entry.kept.task.state;
        let fail = entry.kept.on_agent_loss() == pb::OnAgentLoss::Fail || !running.idempotent;
        if entry.kept.task.cancel_requested {
            return self.end_canceled(task, UNCONFIRMED, world.at);
        }
        if fail {
            let text = format!(
                "{} was lost while it worked; submit again if the work may be done twice",
                running.instance
            );
            return self.end_failed(task, Reason::AgentLost, &text, world.at);
        }
        if entry.kept.started >= ATTEMPTS_MAX {
            let text = format!("{ATTEMPTS_MAX} executors were lost while they worked");
            return self.end_failed(task, Reason::RetriesExhausted, &text, world.at);
        }
        self.let_go(task, None, world.at.now);
        let change = pb::StateChanged {
            from,
            reason: Reason::AgentLost.label().into(),
            executor_instance: running.instance.to_string(),
        };
        self.emit(
            task,
            Kind::StateChanged(change),
            pb::TaskState::Submitted,
            0,
            world.at,
        );
        self.again(task, world);
    }

    /// Goes on with an attempt after this home was away.
    pub(super) fn take_up(&mut self, task: Uuid, at: Moment) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(running) = entry.kept.running.clone() else {
            return;
        };
        entry.lost_at = Some(at.now + LOST_AFTER);
        let to = Carrying {
            task,
            task_id: entry.kept.task.id.clone(),
            attempt: running.attempt,
            instance: running.instance.clone(),
            deadline: entry.deadline,
        };
        self.gates.sent(&running.instance);
        self.effects.push(Effect::Resume {
            to,
            after_update: running.after_update,
        });
        if entry.kept.task.cancel_requested {
            entry.cancel_by = Some(at.now + CANCEL_GRACE);
            let (attempt, reason) = (running.attempt, "cancelled".to_owned());
            self.effects.push(Effect::Abort {
                task,
                attempt,
                reason,
            });
        }
    }

    /// The running attempt, if there is one, is over as far as this home is concerned.
    pub(super) fn let_go(&mut self, task: Uuid, abort: Option<&str>, now: Instant) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(running) = entry.kept.running.clone() else {
            return;
        };
        entry.lost_at = None;
        entry.cancel_by = None;
        self.gates.ended(&running.instance, now);
        if !self.lanes.is_empty() {
            self.pump_at = Some(now);
        }
        let (attempt, abort) = (running.attempt, abort.map(str::to_owned));
        self.effects.push(Effect::Release {
            task,
            attempt,
            abort,
        });
    }

    fn entry_options(&self, task: Uuid) -> pb::TaskOptions {
        let entry = self.tasks.get(&task);
        entry
            .and_then(|entry| entry.kept.task.options.clone())
            .unwrap_or_default()
    }

    fn end_no_route(&mut self, task: Uuid, at: Moment) {
        let text = "no live agent offers what was asked for, and fail_fast was set";
        self.end_failed(task, Reason::NoRoute, text, at);
    }

    /// Sends the task to whoever fits best and has room.
    fn give(&mut self, task: Uuid, world: World<'_>) -> Given {
        let Some(entry) = self.tasks.get(&task) else {
            return Given::Nobody;
        };
        let want = Want {
            namespace: match entry.kept.task.namespace.parse() {
                Ok(namespace) => namespace,
                Err(_) => return Given::Nobody,
            },
            selector: entry.kept.spec.selector.clone().unwrap_or_default(),
            exclude: entry.kept.tried.clone(),
        };
        let fitting = world.route.candidates(&want);
        if fitting.is_empty() {
            return Given::Nobody;
        }
        let now = world.at.now;
        let open = |candidate: &Candidate| {
            !want.exclude.contains(&candidate.instance)
                && self.gates.allows(&candidate.instance, now)
        };
        let Some(chosen) = fitting.into_iter().find(open) else {
            return Given::Busy;
        };
        self.send(task, chosen, world.at);
        Given::Sent
    }

    fn send(&mut self, task: Uuid, to: Candidate, at: Moment) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        if let Some(lane) = entry.lane.take() {
            self.lanes.remove(&lane, task);
        }
        entry.lost_at = Some(at.now + LOST_AFTER);
        let dispatched = Dispatched {
            attempt: entry.kept.task.attempt + 1,
            instance: to.instance.to_string(),
            agent: to.agent.to_string(),
            at: Some(at.wall.into()),
            idempotent: to.idempotent,
        };
        let task_id = entry.kept.task.id.clone();
        self.gates.sent(&to.instance);
        self.log(task_id.clone(), Recorded::Dispatched(dispatched), 0);
        self.follow(task);
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let start = Box::new(entry.kept.start(&self.own));
        let to = Carrying {
            task,
            task_id,
            attempt: entry.kept.task.attempt,
            instance: to.instance,
            deadline: entry.deadline,
        };
        self.effects.push(Effect::Start { to, start });
    }

    fn accepted(&mut self, task: Uuid, at: Moment) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let Some(running) = &entry.kept.running else {
            return;
        };
        if entry.kept.state() != pb::TaskState::Submitted {
            return;
        }
        self.gates.accepted(&running.instance);
        let change = pb::StateChanged {
            from: entry.kept.task.state,
            reason: "ACCEPTED".into(),
            executor_instance: running.instance.to_string(),
        };
        self.emit(
            task,
            Kind::StateChanged(change),
            pb::TaskState::Working,
            0,
            at,
        );
    }

    fn refused(&mut self, task: Uuid, reason: &str, wait: Option<Duration>, world: World<'_>) {
        if let Some(reason) = PERMANENT.iter().find(|known| known.label() == reason) {
            let text = "the executor refused the task; another try would end the same";
            return self.end_failed(task, *reason, text, world.at);
        }
        if let Some(instance) = self.not_started(task) {
            self.gates.refused(&instance, wait, world.at.now);
        }
        self.again(task, world);
    }

    /// Notes that the running attempt never ran. Gives its instance.
    fn not_started(&mut self, task: Uuid) -> Option<crate::domain::InstanceId> {
        let entry = self.tasks.get_mut(&task)?;
        entry.cancel_by = None;
        let running = entry.kept.running.clone()?;
        let (id, attempt) = (entry.kept.task.id.clone(), running.attempt);
        self.log(id, Recorded::NotStarted(NotStarted { attempt }), 0);
        self.follow(task);
        self.effects.push(Effect::Release {
            task,
            attempt,
            abort: None,
        });
        Some(running.instance)
    }

    /// A task without an attempt gets the next one, or ends if that was asked for.
    fn again(&mut self, task: Uuid, world: World<'_>) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        if entry.kept.task.cancel_requested {
            return self.end_canceled(task, "CANCELED", world.at);
        }
        self.place(task, false, world);
    }

    fn update(&mut self, task: Uuid, update: pb::NumberedUpdate, world: World<'_>) {
        self.accepted(task, world.at);
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(running) = &entry.kept.running else {
            return;
        };
        let (attempt, last) = (running.attempt, running.after_update);
        let number = update.number;
        let said = update.update.and_then(|said| said.update);
        if number == 0 {
            if let Taken::Transient(part) = Taken::from_update(&entry.kept, said) {
                let transient = pb::Transient {
                    attempt,
                    part: Some(part),
                };
                self.effects.push(Effect::Transient { task, transient });
            }
            return;
        }
        if number != last + 1 {
            // Said before: acknowledged again. A gap is the carrier's to close, by a resume.
            self.effects.push(Effect::Ack {
                task,
                attempt,
                update: last.min(number),
            });
            return;
        }
        match Taken::from_update(&entry.kept, said) {
            Taken::Event(kind, state) => {
                self.take_event(task, (attempt, number), (kind, state), world.at);
            }
            Taken::Checkpoint(data) => {
                let id = entry.kept.task.id.clone();
                self.log(
                    id,
                    Recorded::Checkpoint(Checkpoint { attempt, data }),
                    number,
                );
                self.follow(task);
            }
            Taken::Transient(_) => {
                // A transient is not numbered: taken as seen, so that the numbers go on.
                let usage = Kind::Usage(pb::Usage::default());
                self.emit(task, usage, pb::TaskState::Working, number, world.at);
            }
        }
        self.effects.push(Effect::Ack {
            task,
            attempt,
            update: number,
        });
    }

    fn take_event(
        &mut self,
        task: Uuid,
        (attempt, number): (u32, u64),
        (kind, state): (Kind, pb::TaskState),
        at: Moment,
    ) {
        if ended(state) {
            // The last word needs no abort, unless it is our verdict on a breach.
            let instance = self
                .tasks
                .get(&task)
                .and_then(|entry| entry.kept.running.clone());
            if let Some(running) = instance {
                self.gates.ended(&running.instance, at.now);
            }
            if !self.lanes.is_empty() {
                self.pump_at = Some(at.now);
            }
        }
        self.emit(task, kind, state, number, at);
        if ended(state) {
            self.effects.push(Effect::Ack {
                task,
                attempt,
                update: number,
            });
            self.effects.push(Effect::Release {
                task,
                attempt,
                abort: None,
            });
        }
    }
}

/// Refusals that every executor would give.
const PERMANENT: &[Reason] = &[
    Reason::PermissionDenied,
    Reason::IdentityMismatch,
    Reason::OperatorsOnly,
    Reason::Unauthenticated,
    Reason::InvalidField,
    Reason::PayloadTooLarge,
    Reason::ProtocolViolation,
    Reason::DeadlineExceeded,
];

static EMPTY: std::sync::LazyLock<pb::Selector> = std::sync::LazyLock::new(pb::Selector::default);
