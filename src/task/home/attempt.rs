//! A task's attempts: who gets them, what comes back, and when they count as lost.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::{InstanceId, Reason};
use crate::pb;
use crate::pb::handle_response::Update;
use crate::pb::journal::{Checkpoint, NotStarted, Returned, record::Kind as Recorded};
use crate::pb::task_event::Kind;
#[cfg(any(test, feature = "sabotage"))]
use crate::task::controls::{self, Control};
use crate::task::descendants::Wants;
use crate::task::spec::Moment;

use super::dialogue::asks;
use super::kept::{UNCONFIRMED, ended};
use super::machine::{CANCEL_GRACE, Carrying, Effect, Tasks, World};
use super::unfit::unfit;
use super::update::{Taken, is_last, is_loss, is_unavailable};

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
        /// How the task ends where it is refused for good, and the executor said more of it.
        failure: Option<Box<pb::Failure>>,
    },
    /// It could not be reached, or is somebody else: nothing was sent.
    NotSent,
    /// The attempt's next update.
    Update(pb::NumberedUpdate),
    /// It needs more tasks that may be made below it.
    Wanted(Wants),
    /// It does not know the attempt, and will never start it.
    Unknown {
        /// The run of its process that has never had it; `None`: it cannot say so.
        never_begun_in: Option<String>,
    },
    /// The stream broke; the last word came at this time. The carrier tries on.
    Broken(Instant),
    /// The Start went out, and no word came until this time: whether it came is not known. The
    /// carrier tries to find out.
    Silent(Instant),
}

impl Tasks {
    /// What the carrier of `attempt` heard.
    pub(super) fn heard(&mut self, task: Uuid, attempt: u32, heard: Heard, world: World<'_>) {
        let current = self.tasks.get_mut(&task).filter(|entry| {
            entry
                .kept
                .running
                .as_ref()
                .is_some_and(|running| in_force(running.attempt, attempt))
        });
        let Some(entry) = current else {
            // Fenced: the attempt ended here, whatever comes from it.
            self.release(task, attempt, None);
            return;
        };
        entry.lost_at = match &heard {
            Heard::Broken(since) | Heard::Silent(since) => {
                entry.lost_at.or(Some(*since + self.lost_after))
            }
            Heard::Alive
            | Heard::Accepted
            | Heard::Refused { .. }
            | Heard::NotSent
            | Heard::Update(_)
            | Heard::Wanted(_)
            | Heard::Unknown { .. } => None,
        };
        match heard {
            Heard::Alive | Heard::Broken(_) => {}
            Heard::Accepted => self.accepted(task, world.at),
            Heard::Refused {
                failure: Some(failure),
                ..
            } => self.end_with(task, *failure, world.at),
            Heard::Refused { reason, wait, .. } => self.refused(task, &reason, wait, world),
            Heard::NotSent => self.missed(task, world),
            Heard::Silent(_) if entry.gets_another() => {
                self.run_again(task, (Reason::AgentLost, true), world);
            }
            Heard::Silent(_) => {}
            Heard::Update(update) => self.update(task, update, world),
            Heard::Wanted(wants) => self.wanted(task, wants),
            Heard::Unknown { never_begun_in } => self.unknown(task, never_begun_in, world),
        }
        self.settle(task);
    }

    /// Goes on with an attempt after this home was away.
    pub(super) fn take_up(&mut self, task: Uuid, at: Moment) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(running) = entry.kept.running.clone() else {
            return;
        };
        entry.lost_at = Some(at.now + self.lost_after);
        let to = Carrying {
            task,
            task_id: entry.kept.task.id.clone(),
            attempt: running.attempt,
            instance: running.instance.clone(),
            deadline: entry.deadline,
        };
        self.gates.sent(&running.instance, at.now);
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

    /// The executor hears, once all so far is on disk, that its updates up to this one are.
    pub(super) fn acknowledge(&mut self, task: Uuid, attempt: u32, update: u64) {
        self.effects.push(Effect::Ack {
            task,
            attempt,
            update,
        });
    }

    /// The attempt is over here, whatever it still says; `abort`: it is told to stop, and why.
    pub(super) fn release(&mut self, task: Uuid, attempt: u32, abort: Option<String>) {
        self.effects.push(Effect::Release {
            task,
            attempt,
            abort,
        });
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
        self.look_again(now);
        let (attempt, abort) = (running.attempt, abort.map(str::to_owned));
        self.release(task, attempt, abort);
    }

    fn accepted(&mut self, task: Uuid, at: Moment) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(running) = &entry.kept.running else {
            return;
        };
        if entry.kept.state() != pb::TaskState::Submitted {
            return;
        }
        entry.again = None;
        let opens = self.gates.accepted(&running.instance);
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
        if opens {
            self.look_again(at.now);
        }
    }

    /// The attempt did not reach an agent: it was not started, and goes elsewhere.
    pub(super) fn missed(&mut self, task: Uuid, world: World<'_>) {
        if let Some(instance) = self.not_started(task) {
            self.gates.missed(&instance);
            self.taken_back(task, &instance, world.at);
            self.failed_once(task, instance, world);
        }
        self.look_again(world.at.now);
        self.again(task, world);
    }

    /// Notes that the running attempt never ran. Gives its instance.
    pub(super) fn not_started(&mut self, task: Uuid) -> Option<InstanceId> {
        let entry = self.tasks.get_mut(&task)?;
        entry.cancel_by = None;
        let running = entry.kept.running.clone()?;
        let (id, attempt) = (entry.kept.task.id.clone(), running.attempt);
        let count = std::mem::take(&mut entry.supply).lent;
        if let Some(to) = entry.maker.clone().filter(|_| count > 0) {
            self.effects.push(Effect::GiveBack { to, count });
        }
        self.log(id, Recorded::NotStarted(NotStarted { attempt }), 0);
        self.follow(task);
        self.release(task, attempt, None);
        Some(running.instance)
    }

    /// A task without an attempt gets the next one, or ends if that was asked for.
    pub(super) fn again(&mut self, task: Uuid, world: World<'_>) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        if entry.kept.task.cancel_requested {
            return self.end_canceled(task, "CANCELED", world.at);
        }
        self.place(task, world);
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
        let (number, used) = (update.number, update.descendants_used);
        let said = update.update.and_then(|said| said.update);
        let first = !std::mem::replace(&mut entry.heard, true) && last == 0;
        if number == 0 {
            let taken = Taken::from_update(&entry.kept, said);
            return self.show_transient(task, attempt, taken);
        }
        if number != last + 1 {
            // Said before: acknowledged again. A gap is the carrier's to close, by a resume.
            self.acknowledge(task, attempt, last.min(number));
            return;
        }
        if said.as_ref().is_some_and(is_last) {
            let had = running.descendants + entry.supply.lent;
            // Who says nothing either made none, or does not count, and its children's homes do not.
            entry.unused = had.saturating_sub(used.unwrap_or_default());
        }
        let unavailable = first && is_unavailable(said.as_ref()) && entry.gets_another();
        if unavailable || is_loss(said.as_ref()) {
            self.acknowledge(task, attempt, number);
            self.returned(task);
            if unavailable {
                self.run_again(task, (Reason::AgentUnavailable, true), world);
            } else {
                self.lost(task, world);
            }
            return;
        }
        if matches!(said, Some(Update::Question(_))) {
            self.returned(task);
        }
        self.take_update(task, (attempt, update.cut, number), said, world);
    }

    /// The attempt is over, the task is not: what it has not had made below it is for the next one.
    pub(super) fn returned(&mut self, task: Uuid) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let descendants = std::mem::take(&mut entry.unused);
        if descendants > 0 {
            let id = entry.kept.task.id.clone();
            self.log(id, Recorded::Returned(Returned { descendants }), 0);
            self.follow(task);
        }
    }

    /// What the attempt's next update says, with its number; `cut`: its handler was.
    fn take_update(
        &mut self,
        task: Uuid,
        (attempt, cut, number): (u32, bool, u64),
        said: Option<Update>,
        world: World<'_>,
    ) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        if let Some(broken) = unfit(&entry.kept, said.as_ref(), world.route) {
            return self.end_unfit(task, &broken, world.at);
        }
        let canceled = entry.kept.task.cancel_requested;
        match Taken::from_update(&entry.kept, said) {
            // It has stopped, and nobody would answer.
            Taken::Event(Kind::Question(_), state) if canceled => {
                let change = pb::StateChanged {
                    from: entry.kept.task.state,
                    reason: if cut { UNCONFIRMED } else { "CANCELED" }.into(),
                    executor_instance: String::new(),
                };
                debug_assert!(asks(state));
                let event = (Kind::StateChanged(change), pb::TaskState::Canceled);
                self.take_event(task, (attempt, number), event, world.at);
            }
            Taken::Event(Kind::StateChanged(mut change), state) if cut => {
                change.reason = UNCONFIRMED.into();
                let event = (Kind::StateChanged(change), state);
                self.take_event(task, (attempt, number), event, world.at);
            }
            Taken::Event(kind, state) => {
                self.take_event(task, (attempt, number), (kind, state), world.at);
            }
            Taken::Checkpoint(data) => {
                let id = entry.kept.task.id.clone();
                let saved = Recorded::Checkpoint(Checkpoint { attempt, data });
                self.log(id, saved, number);
                self.follow(task);
            }
            Taken::HandOver(to) => return self.hand_over(task, (attempt, number), to, world),
            Taken::Transient(_) => {
                let text = "the executor numbered a transient";
                return self.end_failed(task, Reason::ProtocolViolation, text, world.at);
            }
            // Tells the executor to stop: the handler may still work.
            Taken::Breach(breach) => {
                return self.end_failed(task, breach.reason(), &breach.to_string(), world.at);
            }
        }
        self.acknowledge(task, attempt, number);
    }

    /// Live watchers see it, nobody else.
    fn show_transient(&mut self, task: Uuid, attempt: u32, taken: Taken) {
        if let Taken::Transient(part) = taken {
            let part = Some(part);
            let transient = pb::Transient { attempt, part };
            self.effects.push(Effect::Transient { task, transient });
        }
    }

    pub(super) fn take_event(
        &mut self,
        task: Uuid,
        (attempt, number): (u32, u64),
        (kind, state): (Kind, pb::TaskState),
        at: Moment,
    ) {
        let over = ended(state) || asks(state);
        if over {
            let instance = self
                .tasks
                .get(&task)
                .and_then(|entry| entry.kept.running.clone());
            if let Some(running) = instance {
                self.gates.ended(&running.instance, at.now);
            }
            self.look_again(at.now);
        }
        self.emit(task, kind, state, number, at);
        if over {
            self.acknowledge(task, attempt, number);
            self.release(task, attempt, None);
        }
    }
}

/// The control that an attempt that is over changes nothing.
fn in_force(running: u32, attempt: u32) -> bool {
    #[cfg(any(test, feature = "sabotage"))]
    if controls::removed(Control::Fence) {
        return true;
    }
    running == attempt
}
