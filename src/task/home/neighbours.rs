//! The shards of a home, by the tasks that they own: what one asks of another goes this way.

use std::sync::OnceLock;

use tokio::sync::mpsc;
use uuid::Uuid;

use super::ephemeral;
use super::replay::shard_of;
use super::request::Request;

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
