//! The two spans of an attempt at its executor: all of it, and the part that the agent works.

use super::door::{HomePeer, Work as Wanted};
use crate::pb;
use crate::pb::handle_response::Update;
use crate::telemetry::{Subject, TraceContext, Work};

/// The spans of one attempt; what is left of them ends when this is dropped.
#[derive(Debug)]
pub(super) struct Spans {
    execute: Work,
    /// `None` once the handler has ended.
    handle: Option<Work>,
}

impl Spans {
    /// Begins both: the context that the handler is called with has to be known before it runs.
    pub(super) fn begin(trace: Option<&TraceContext>, wanted: &Wanted, home: &HomePeer) -> Self {
        let subject = Subject {
            task_id: &wanted.task.id,
            skill: &wanted.task.skill,
            attempt: wanted.request.attempt,
            correlation_id: &wanted.task.correlation_id,
        };
        let execute = Work::execute(trace, subject, home.instance.as_str());
        let handle = Some(Work::handle(execute.context(), subject));
        Self { execute, handle }
    }

    /// What the handler is called with, and what its children go below.
    pub(super) fn below(&self) -> Option<TraceContext> {
        self.handle.as_ref()?.context().cloned()
    }

    /// The handler has ended, or was cut.
    pub(super) fn handled(&mut self) {
        self.handle = None;
    }

    /// It failed, for this reason.
    pub(super) fn fail(&self, reason: &str) {
        self.execute.fail(reason);
        if let Some(handle) = &self.handle {
            handle.fail(reason);
        }
    }

    /// Takes in how the attempt ended.
    pub(super) fn judge(&self, last: &pb::HandleResponse) {
        if let Some(Update::Failure(failure)) = &last.update {
            self.fail(&failure.reason);
        }
    }
}
