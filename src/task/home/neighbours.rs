//! The shards of a home, by the tasks that they own: what one asks of another goes this way.

use std::sync::OnceLock;

use tokio::sync::mpsc;
use uuid::Uuid;

use super::ephemeral;
use super::replay::shard_of;
use super::request::{Asker, Drawn, Maker, Request, SupplyWord};
use super::shard::Running;

/// All shards of a home: as many with a disk as without one, in this order.
pub(super) struct Neighbours {
    durable: usize,
    inboxes: OnceLock<Vec<mpsc::Sender<Request>>>,
}

impl Neighbours {
    /// For so many shards with a disk; they are not there yet.
    pub(super) fn new(durable: usize) -> Self {
        Self {
            durable,
            inboxes: OnceLock::new(),
        }
    }

    /// They are there.
    pub(super) fn are(&self, inboxes: Vec<mpsc::Sender<Request>>) {
        drop(self.inboxes.set(inboxes));
    }

    /// Place of the shard that owns a task of this home.
    pub(super) fn place(&self, task: Uuid) -> usize {
        let in_memory = ephemeral::is_marked(task);
        let behind = if in_memory { self.durable } else { 0 };
        behind + shard_of(task, self.durable)
    }

    /// The shard that owns a task of this home; `None`: it is not there yet.
    pub(super) fn of(&self, task: Uuid) -> Option<&mpsc::Sender<Request>> {
        self.inboxes.get()?.get(self.place(task))
    }
}

impl Running {
    /// What was given and not needed goes back.
    pub(super) fn give_back(&self, to: Maker, count: u32) {
        match to {
            Maker::Attempt(token) => self.shard.parents.give_back(&token, count),
            Maker::Task(task) => {
                self.pass_on(task, Request::Supply(task, SupplyWord::GiveBack { count }));
            }
        }
    }

    /// Asks whoever made the task for more.
    pub(super) fn draw(&self, by: Asker, from: Maker, count: u32) {
        let token = match from {
            Maker::Attempt(token) => token,
            Maker::Task(task) => {
                return self.pass_on(task, Request::Supply(task, SupplyWord::Draw { by, count }));
            }
        };
        let (parents, neighbours) = (self.shard.parents.clone(), self.shard.neighbours.clone());
        self.shard.nursery.start("draw", |stop| async move {
            let got = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                got = parents.draw(&token, count, None) => got.unwrap_or(0),
            };
            let left = parents.left(&token);
            let from = Maker::Attempt(token);
            let drawn = by.drawn(Drawn { from, got, left });
            if let Some(shard) = neighbours.of(by.task) {
                // A shard that is gone takes what it was given with it.
                drop(shard.send(drawn).await);
            }
        });
    }

    /// Asks the shard of a task, which may be this one, and does not wait for it.
    pub(super) fn pass_on(&self, task: Uuid, request: Request) {
        let neighbours = self.shard.neighbours.clone();
        self.shard.nursery.start("pass on", |stop| async move {
            let Some(shard) = neighbours.of(task) else {
                return;
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                // Whose shard is gone needs nothing more.
                sent = shard.send(request) => drop(sent),
            }
        });
    }
}
