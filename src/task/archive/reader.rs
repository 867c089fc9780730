//! The thread that reads: one question at a time, each as of the moment when its turn comes.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::error::ArchiveError;
use super::slot::{Slot, caught};
use super::view::View;

/// Questions that may wait; who asks waits beyond it.
pub(super) const QUEUE: usize = 64;

/// A question; it answers by itself.
pub(super) type Question = Box<dyn FnOnce(Result<&View, ArchiveError>) + Send>;

/// Answers until nobody can ask any more.
pub(super) fn answer_all(slot: &Slot, mut questions: mpsc::Receiver<Question>) {
    while let Some(question) = questions.blocking_recv() {
        let viewed = caught(|| {
            let database: Arc<_> = slot.database()?;
            View::of(&database)
        });
        // A panic of the question drops its answer's sender: whoever asked hears that it failed.
        drop(caught(move || {
            question(viewed.as_ref().map_err(Clone::clone));
            Ok(())
        }));
    }
}
