//! Attempts that are lost, or got nowhere: whether the task gets another one, and when. Pure.

use uuid::Uuid;

use crate::domain::{InstanceId, Reason};
use crate::pb;
use crate::pb::task_event::Kind;
use crate::task::spec::Moment;

use super::entry::Entry;
use super::kept::{Kept, UNCONFIRMED};
use super::machine::{ATTEMPTS_MAX, Tasks, World};

impl Tasks {
    /// The executor does not know the attempt. That its Start never came is proved only by the run
    /// of the process that was there when the attempt was given out, and still is: an earlier or
    /// later one may have begun it.
    pub(super) fn unknown(&mut self, task: Uuid, never_begun_in: Option<String>, world: World<'_>) {
        let entry = self.tasks.get(&task);
        let running = entry.and_then(|entry| entry.kept.running.as_ref());
        let proved = running
            .zip(never_begun_in)
            .is_some_and(|(running, run)| !run.is_empty() && run == running.boot_id);
        if !proved {
            return self.lost(task, world);
        }
        if let Some(instance) = self.not_started(task) {
            self.gates.ended(&instance, world.at.now);
            self.taken_back(task, &instance, world.at);
            self.look_again(world.at.now);
        }
        self.again(task, world);
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
        if entry.kept.task.cancel_requested {
            return self.end_canceled(task, UNCONFIRMED, world.at);
        }
        if !entry.kept.may_run_again() {
            let text = format!(
                "{} was lost while it worked; submit again if the work may be done twice",
                running.instance
            );
            return self.end_failed(task, Reason::AgentLost, &text, world.at);
        }
        if entry.kept.tries() >= ATTEMPTS_MAX {
            let text = format!("{ATTEMPTS_MAX} executors were lost while they worked");
            return self.end_failed(task, Reason::RetriesExhausted, &text, world.at);
        }
        self.run_again(task, (Reason::AgentLost, false), world);
    }

    /// A started attempt got nowhere, and the task gets another one: a second try like any other,
    /// with its pause. One that is lost is not taken out of the budget: whoever is gone is not asked
    /// again, so nobody is asked more than before; and who is left has slots, and a breaker.
    pub(super) fn run_again(
        &mut self,
        task: Uuid,
        (why, charged): (Reason, bool),
        world: World<'_>,
    ) {
        let Some(instance) = self.take_back(task, why, world.at) else {
            return;
        };
        self.failed_once(task, instance, world);
        let entry = self.tasks.get_mut(&task);
        if let Some(again) = entry.and_then(|entry| entry.again.as_mut()) {
            again.charged = charged;
        }
        self.again(task, world);
    }

    /// The task waits again; where its attempt was.
    fn take_back(&mut self, task: Uuid, why: Reason, at: Moment) -> Option<InstanceId> {
        let kept = &self.tasks.get(&task)?.kept;
        let instance = kept.running.as_ref()?.instance.clone();
        let change = pb::StateChanged {
            from: kept.task.state,
            reason: why.label().into(),
            executor_instance: instance.to_string(),
        };
        self.let_go(task, None, at.now);
        let state = pb::TaskState::Submitted;
        self.emit(task, Kind::StateChanged(change), state, 0, at);
        Some(instance)
    }
}

impl Entry {
    /// Whether it may be started once more.
    pub(super) fn gets_another(&self) -> bool {
        let kept = &self.kept;
        let wanted = !kept.task.cancel_requested;
        wanted && kept.may_run_again() && kept.tries() < ATTEMPTS_MAX
    }
}

impl Kept {
    /// Whether the attempt that runs may be made once more.
    pub(super) fn may_run_again(&self) -> bool {
        let running = self.running.as_ref();
        self.may_run_twice(running.is_some_and(|running| running.idempotent))
    }

    /// Whether an attempt may be made once more where the skill says this about it.
    pub(super) fn may_run_twice(&self, idempotent: bool) -> bool {
        let options = self.task.options.as_ref();
        match options.map_or_else(Default::default, pb::TaskOptions::on_agent_loss) {
            pb::OnAgentLoss::Fail => false,
            pb::OnAgentLoss::Restart => true,
            pb::OnAgentLoss::Unspecified => idempotent,
        }
    }
}
