//! Attempts that an executor did not start: for good, or for somebody else to take.

use std::time::Duration;

use uuid::Uuid;

use crate::domain::{InstanceId, Reason};
use crate::pb;
use crate::pb::task_event::Kind;
use crate::task::spec::Moment;

use super::machine::{Tasks, World};

/// Statuses with which every executor would turn this Start down before it runs anything.
pub(super) const PERMANENT: &[Reason] = &[
    Reason::PermissionDenied,
    Reason::IdentityMismatch,
    Reason::OperatorsOnly,
    Reason::Unauthenticated,
    Reason::InvalidField,
    Reason::PayloadTooLarge,
    Reason::InputInvalid,
    Reason::ProtocolViolation,
    Reason::DelegationLoop,
    Reason::OutOfScope,
    Reason::DeadlineExceeded,
];

/// Those with which this one does, and another one may not.
pub(super) const HERE: &[Reason] = &[
    Reason::NotOwnAgent,
    Reason::Unimplemented,
    Reason::SlotsFull,
    Reason::QueueFull,
    Reason::Draining,
];

impl Tasks {
    /// The executor said why, and perhaps when to ask it again.
    pub(super) fn refused(
        &mut self,
        task: Uuid,
        reason: &str,
        wait: Option<Duration>,
        world: World<'_>,
    ) {
        if let Some(reason) = PERMANENT.iter().find(|known| known.label() == reason) {
            let text = "the executor refused the task; another try would end the same";
            return self.end_failed(task, *reason, text, world.at);
        }
        if reason == Reason::AgentUnavailable.label() {
            return self.missed(task, world);
        }
        if let Some(instance) = self.not_started(task) {
            self.gates.refused(&instance, wait, world.at.now);
            self.taken_back(task, &instance, world.at);
        }
        self.look_again(world.at.now);
        self.again(task, world);
    }

    /// An executor that took the attempt found out later that its agent has not begun. After the
    /// record that it was not started: nothing was lost, and nothing counts as tried.
    pub(super) fn taken_back(&mut self, task: Uuid, instance: &InstanceId, at: Moment) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        if entry.kept.state() != pb::TaskState::Working || entry.kept.task.cancel_requested {
            return;
        }
        let change = pb::StateChanged {
            from: entry.kept.task.state,
            reason: Reason::AgentUnavailable.label().into(),
            executor_instance: instance.to_string(),
        };
        let state = pb::TaskState::Submitted;
        self.emit(task, Kind::StateChanged(change), state, 0, at);
    }
}
