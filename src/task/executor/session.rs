//! A home's stream of one attempt, and what is said to the attempt's owner about it.

use std::{future::pending, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;

use super::attempt::Attempt;
use super::course::Said;
use super::spans::Spans;
use super::{Answer, answer, refused};
use crate::domain::{Fault, Reason};
use crate::pb;
use crate::pb::execute_response::Step as Reply;
use crate::task::descendants::Wants;
use crate::task::doors::Steps;

/// What a home has not been sent on its stream.
pub(super) enum Unsent<'a> {
    Wants(Wants),
    Update(&'a pb::NumberedUpdate),
}

/// What was sent.
pub(super) enum Sent {
    /// The asking of this number.
    Asked(u64),
    /// The update of this number.
    Update(u64),
}

/// Waits for room on the stream, and sends it.
pub(super) async fn send(out: Option<&mpsc::Sender<Answer>>, unsent: Option<Unsent<'_>>) -> Sent {
    let (Some(out), Some(unsent)) = (out, unsent) else {
        return pending().await;
    };
    let Ok(room) = out.reserve().await else {
        // The home left: the owner sees it as well.
        return pending().await;
    };
    let (said, sent) = match unsent {
        Unsent::Wants(Wants { turn, total }) => {
            let wanted = pb::DescendantsWanted { turn, total };
            (Reply::DescendantsWanted(wanted), Sent::Asked(turn))
        }
        Unsent::Update(update) => (Reply::Update(update.clone()), Sent::Update(update.number)),
    };
    room.send(Box::new(Ok(answer(said))));
    sent
}

/// The next step that comes on the stream.
pub(super) async fn step(steps: Option<&mut Steps>) -> Option<pb::ExecuteRequest> {
    match steps {
        Some(steps) => steps.next().await,
        None => pending().await,
    }
}

/// The home leaves.
pub(super) async fn gone(out: Option<&mpsc::Sender<Answer>>) {
    match out {
        Some(out) => out.closed().await,
        None => pending().await,
    }
}

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
    /// Number of the last asking for tasks that may be made that was sent; 0: none.
    pub(super) asked: u64,
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
    /// What is to be sent next: what the attempt `wants`, then its updates.
    pub(super) fn unsent<'a>(
        &self,
        attempt: &'a Attempt,
        wants: Option<Wants>,
    ) -> Option<Unsent<'a>> {
        let new = wants.filter(|wants| wants.turn > self.asked);
        let update = || attempt.after(self.cursor?).map(Unsent::Update);
        new.map(Unsent::Wants).or_else(update)
    }

    /// That was sent.
    pub(super) fn sent(&mut self, sent: Sent) {
        match sent {
            Sent::Asked(turn) => self.asked = turn,
            Sent::Update(number) => self.cursor = Some(number),
        }
    }

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
