//! What all instances share: whether anything changed, who waits for that, and what has happened.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::watch;

use super::tally::{Counts, Tally};

/// Moves on whenever a breaker opens or closes anywhere: sets look again at who may be called.
#[derive(Clone, Debug, Default)]
pub struct Epoch(Arc<Count>);

#[derive(Debug, Default)]
struct Count {
    now: AtomicU64,
    /// A breaker closed by time, and nobody was told.
    risen: AtomicBool,
    tally: Tally,
    /// For those who wait until a call may go.
    bell: watch::Sender<()>,
}

impl Epoch {
    /// Where it stands.
    pub fn now(&self) -> u64 {
        self.0.now.load(Ordering::Acquire)
    }

    /// Rings after every move.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.bell.subscribe()
    }

    /// What has happened so far to all instances that share it.
    pub fn counts(&self) -> Counts {
        self.0.tally.read()
    }

    /// Whether a breaker closed by time since this was last asked: by
    /// [`Endpoint::take_risen`](super::Endpoint::take_risen) it is found.
    pub fn take_risen(&self) -> bool {
        self.0.risen.swap(false, Ordering::AcqRel)
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.0.tally
    }

    /// A breaker closed by time.
    pub(super) fn rise(&self) {
        self.0.risen.store(true, Ordering::Release);
        self.ring();
    }

    /// Something changed.
    pub(super) fn advance(&self) {
        self.0.now.fetch_add(1, Ordering::AcqRel);
        self.ring();
    }

    /// A call may go that could not: no breaker turned.
    pub(super) fn ring(&self) {
        self.0.bell.send_replace(());
    }
}
