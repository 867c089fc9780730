//! A home's stream of one attempt, and what is said to the attempt's owner about it.

use std::time::Duration;

use tokio::sync::mpsc;

use super::course::Said;
use super::spans::Spans;
use super::{Answer, refused};
use crate::domain::{Fault, Reason};
use crate::pb;
use crate::task::doors::Steps;

/// To an attempt's owner.
#[derive(Debug)]
pub(super) enum Command {
    /// The home has another stream for it, which replaces the one before.
    Attach(Box<Session>),
    /// A newer attempt of the task began.
    Fence,
}

/// A home's stream of one attempt.
pub(super) struct Session {
    /// Sent up to this number; `None`: from the first that is not acknowledged.
    pub(super) cursor: Option<u64>,
    /// From the home; `None` once it has ended.
    pub(super) steps: Option<Steps>,
    /// To the home.
    pub(super) out: mpsc::Sender<Answer>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Ends it with `fault`. A stream that is full ends without: its reader is slow or gone.
    pub(super) fn end(self, fault: Fault) {
        if self.out.try_send(Box::new(Err(fault.into()))).is_err() {
            tracing::debug!("the home's stream was full at its end");
        }
    }

    /// Tells the home that nothing was begun, as the handler `said`. A stream that is full ends
    /// without: a resume finds out.
    pub(super) fn refuse(self, task: &str, said: &Said, wait: Duration, spans: &Spans) {
        if let Said::Failed(why) = said {
            tracing::warn!(task, ?wait, "not started: {why}");
        }
        spans.fail(Reason::AgentUnavailable.label());
        let refusal = refused(Reason::AgentUnavailable, Some(wait));
        if self.out.try_send(Box::new(Ok(refusal))).is_err() {
            tracing::debug!(task, "the home left before it was refused");
        }
    }
}

/// Hands a stream to the owner of its attempt.
pub(super) async fn attach(owner: &mpsc::Sender<Command>, session: Session) {
    if let Err(mpsc::error::SendError(Command::Attach(session))) =
        owner.send(Command::Attach(Box::new(session))).await
    {
        // It ended between the look-up and now, so its home has everything, or it was cut.
        session.end(Fault::new(
            Reason::AttemptStale,
            "the attempt has just ended here",
        ));
    }
}

/// The only answer on this stream.
pub(super) fn give_up(session: Session, answer: pb::ExecuteResponse) {
    if session.out.try_send(Box::new(Ok(answer))).is_err() {
        tracing::debug!("the home left before it was answered");
    }
}
