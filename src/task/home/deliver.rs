//! What is to be told leaves the home here, and what became of it comes back.

use tokio::sync::mpsc;
use uuid::Uuid;

use crate::domain::{Fault, TaskId};
use crate::task::callback::{Delivery, Outcome, Target};
use crate::telemetry::metrics::callbacks::{Kind, Told};

use super::config::Submission;
use super::handle::Home;
use super::request::Request;
use super::shard::Running;
use super::submit::{Below, Submitted};
use super::watch::TaskUpdates;

/// Deliveries between the shards and the courier; more wait at their shards.
pub(super) const DELIVERIES: usize = 1024;

impl Home {
    /// What is to be told, for the one who carries it; `None`: somebody has it already.
    pub fn deliveries(&self) -> Option<mpsc::Receiver<Delivery>> {
        self.shared.deliveries.lock().take()
    }

    /// What became of telling event `seq` of a task. A home that has ended hears nothing.
    pub async fn told(&self, id: &TaskId, seq: u64, outcome: Outcome) {
        let Ok(shard) = self.shard(id) else { return };
        let told = Request::Told {
            task: id.uuid,
            seq,
            outcome,
        };
        drop(self.shared.inboxes[shard].send(told).await);
    }

    /// Takes a detached task in below another one, as if that had asked for it, and follows it.
    ///
    /// # Errors
    /// As [`Home::run`].
    pub async fn run_below(
        &self,
        asked: Submission,
        below: Below,
        thread: usize,
    ) -> Result<Submitted<TaskUpdates>, Fault> {
        Box::pin(self.run_for(asked.into(), Some(below), thread)).await
    }
}

impl Running {
    /// Hands the oldest change of a task that is to be told to the courier.
    pub(super) fn tell(&mut self, task: Uuid) {
        let Some(delivery) = self.shard.tasks.delivery(task) else {
            return;
        };
        let seq = delivery.event.seq;
        if self.shard.deliveries.try_send(delivery).is_err() {
            self.world(|tasks, world| tasks.told(task, seq, Outcome::Busy, world));
        }
    }

    /// What became of it.
    pub(super) fn heard_back(&mut self, task: Uuid, seq: u64, outcome: Outcome) {
        if let Some(delivery) = self.shard.tasks.delivery(task)
            && delivery.event.seq == seq
        {
            self.count_telling(&delivery, &outcome);
        }
        self.world(|tasks, world| tasks.told(task, seq, outcome, world));
    }

    fn count_telling(&self, delivery: &Delivery, outcome: &Outcome) {
        let kind = match &delivery.target {
            Target::Agent { .. } => Kind::Agent,
            Target::Url(_) => Kind::Url,
        };
        let (told, why) = match outcome {
            Outcome::Delivered => (Told::Delivered, None),
            Outcome::Later { why, .. } => (Told::Failed, Some(why.as_str())),
            Outcome::Refused(why) => (Told::GivenUp, Some(why.as_str())),
            Outcome::Busy => return,
        };
        let task = delivery.task.id.as_str();
        let place = delivery.target.place();
        self.shard
            .metrics
            .callbacks
            .told(kind, told, (task, delivery.event.seq), &place, why);
    }
}
