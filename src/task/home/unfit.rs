//! Results that do not fit what their agent has promised: they end the task, and are not shown.
//!
//! The executor has looked at them before; a home believes nobody.

use std::sync::Arc;

use uuid::Uuid;

use crate::contract::{Side, Violation};
use crate::pb;
use crate::pb::handle_response::Update;
use crate::pb::task_event::Kind;
use crate::task::doors::Route;
use crate::task::spec::Moment;
use crate::wire::status;

use super::kept::Kept;
use super::machine::Tasks;

/// How a result breaks the schema that was in force when the task was given out, as far as this home
/// has that at hand.
pub(super) fn unfit(
    kept: &Kept,
    said: Option<&Update>,
    route: &dyn Route,
) -> Option<Box<Violation>> {
    let Some(Update::Result(result)) = said else {
        return None;
    };
    let at_hand = route.promised(&kept.asked_promise()?);
    // After a restart, and where the first agent is gone: as it was written down.
    let contract = at_hand.or_else(|| kept.kept_promise().map(Arc::new))?;
    contract.check(Side::Output, &result.parts, &[]).err()
}

/// How a task fails because of it.
pub(super) fn failure_of(broken: &Violation, skill: &str) -> pb::Failure {
    let reason = broken.reason();
    pb::Failure {
        reason: reason.label().into(),
        message: broken.sentence(skill),
        code: status::code(reason).into(),
        retryable: false,
        details: Some(broken.details(skill)),
    }
}

impl Tasks {
    /// Ends a task whose agent broke its promise.
    pub(super) fn end_unfit(&mut self, task: Uuid, broken: &Violation, at: Moment) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let skill = &entry.kept.task.skill;
        let failure = failure_of(broken, skill);
        self.end_with(task, failure, at);
    }

    /// Ends a task by this failure, whatever its executor still does.
    pub(super) fn end_with(&mut self, task: Uuid, failure: pb::Failure, at: Moment) {
        self.let_go(task, Some(&failure.reason), at.now);
        self.emit(task, Kind::Failure(failure), pb::TaskState::Failed, 0, at);
    }
}
