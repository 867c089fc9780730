//! What is to be told leaves the home here, and what became of it comes back.

use tokio::sync::mpsc;

use crate::domain::Fault;
use crate::pb;
use crate::task::callback::{Delivery, Outcome, Tells, Ticket};

use super::config::Submission;
use super::handle::Home;
use super::request::{CourierWord, Request};
use super::shard::Running;
use super::submit::{Below, Submitted};

/// Tickets between the shards and the courier; more wait at their shards.
pub(super) const TICKETS: usize = 1024;

impl Home {
    /// Tickets for what is to be told, for the one who carries it; `None`: somebody has them already.
    pub fn tickets(&self) -> Option<mpsc::Receiver<Ticket>> {
        self.shared.tickets.lock().take()
    }

    /// Begins with a try: what is to be told; `None`: it is not to be made any more.
    pub async fn delivery(&self, ticket: &Ticket) -> Option<Delivery> {
        let shard = self.shard(&ticket.id).ok()?;
        let ticket = ticket.clone();
        let begins = |answer| Request::Courier(CourierWord::Begins { ticket, answer });
        let asked = self.ask(shard, begins);
        asked.await.ok().flatten()
    }

    /// What became of a try. A home that has ended hears nothing.
    pub async fn told(&self, ticket: Ticket, outcome: Outcome) {
        let Ok(shard) = self.shard(&ticket.id) else {
            return;
        };
        let told = CourierWord::Told { ticket, outcome };
        drop(
            self.shared.inboxes[shard]
                .send(Request::Courier(told))
                .await,
        );
    }

    /// What became of the task that told an agent of a change: on disk when this answers, also where
    /// nobody waits for it any more.
    ///
    /// # Errors
    /// HOME_ELSEWHERE, STORAGE_FAILED.
    pub async fn answered(&self, tells: &Tells, outcome: Outcome) -> Result<(), Fault> {
        let (shard, tells) = (self.shard(&tells.task)?, tells.clone());
        let answered = |answer| {
            Request::Courier(CourierWord::Answered {
                tells,
                outcome,
                answer,
            })
        };
        self.ask(shard, answered).await
    }

    /// Takes a detached task in below another one, as if that had asked for it.
    ///
    /// # Errors
    /// As [`Home::submit`].
    pub async fn submit_below(
        &self,
        asked: Submission,
        below: Below,
        thread: usize,
    ) -> Result<Submitted<pb::Task>, Fault> {
        Box::pin(self.submit_for(asked.into(), Some(below), thread)).await
    }
}

impl Running {
    /// Gives the courier a ticket.
    pub(super) fn tell(&mut self, ticket: Ticket) {
        if let Err(back) = self.shard.tickets.try_send(ticket) {
            self.heard_back(&back.into_inner(), Outcome::Busy);
        }
    }

    /// Hears the courier, and answers it.
    pub(super) fn courier(&mut self, word: CourierWord) {
        match word {
            CourierWord::Begins { ticket, answer } => {
                let tried = (ticket.seq, ticket.number);
                let task = ticket.id.uuid;
                let due = self.world(|tasks, world| tasks.try_telling(task, tried, world.at));
                // A ticket is given out when its event is on disk. Whoever asked may be gone.
                drop(answer.send(Ok(due)));
            }
            CourierWord::Told { ticket, outcome } => self.heard_back(&ticket, outcome),
            CourierWord::Answered {
                tells,
                outcome,
                answer,
            } => {
                let task = tells.task.uuid;
                self.world(|tasks, world| tasks.answered(task, &tells, outcome, world));
                self.answer(answer, Ok(()));
            }
        }
    }

    fn heard_back(&mut self, ticket: &Ticket, outcome: Outcome) {
        let tried = (ticket.seq, ticket.number);
        self.world(|tasks, world| tasks.told(ticket.id.uuid, tried, outcome, world));
    }
}
