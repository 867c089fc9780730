//! What an attempt holds of the executor: its slot with the parent token, and its entry in the book.
//! Dropped, they are given back.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tokio::time::Instant;

use crate::domain::TaskId;
use crate::runtime::watch;
use crate::task::descendants::{Given, Wants};

use super::engine::Shared;
use super::run::Guard;

/// A taken slot and a live parent token.
pub(super) struct Slot {
    shared: Arc<Shared>,
    token: String,
    began: Instant,
    asks: watch::Receiver<()>,
    /// Of what may be made below the attempt, when its token ended.
    used: AtomicU32,
}

impl Slot {
    /// A slot that was taken at `began`, with the token that was lent with it, which moves `asks`.
    pub(super) fn new(
        shared: Arc<Shared>,
        token: String,
        began: Instant,
        asks: watch::Receiver<()>,
    ) -> Self {
        Self {
            shared,
            token,
            began,
            asks,
            used: AtomicU32::new(0),
        }
    }
}

impl Guard for Slot {
    fn disown(&self) -> u32 {
        if let Some(used) = self.shared.tokens.end(&self.token) {
            self.used.store(used, Ordering::Relaxed);
        }
        self.used.load(Ordering::Relaxed)
    }

    fn has_children(&self) -> bool {
        self.shared
            .tokens
            .used(&self.token)
            .max(self.used.load(Ordering::Relaxed))
            > 0
    }

    fn asks(&self) -> watch::Receiver<()> {
        self.asks.clone()
    }

    fn wants(&self) -> Option<Wants> {
        self.shared.tokens.wants(&self.token)
    }

    fn given(&self, given: Given) {
        self.shared.tokens.given(&self.token, given);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.began);
        self.disown();
        let mut book = self.shared.book.lock();
        book.free_slot(took, now);
        book.deal(now);
        drop(book);
        self.shared.changed.send_replace(());
    }
}

/// An attempt that homes can find.
pub(super) struct Entry {
    pub(super) shared: Arc<Shared>,
    pub(super) task: TaskId,
    pub(super) attempt: u32,
    pub(super) settled: bool,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut book = self.shared.book.lock();
        book.forget(&self.task, self.attempt, self.settled);
        book.deal(Instant::now());
        drop(book);
        self.shared.changed.send_replace(());
    }
}
