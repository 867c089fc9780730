//! Whether a Start may run now, or in its turn.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::book::{Admission, Book};
use super::door::Work;
use super::engine::{Executor, Shared};
use super::guests::GUEST_WAIT;
use super::line::LINE_WAIT;
use super::session::Command;
use super::shares::{Claimant, Key};
use crate::domain::{InstanceId, Reason};
use crate::pb;
use crate::task::spec::{PRIORITY, PRIORITY_MAX};

impl Executor {
    /// Takes a slot for the attempt, if it may have one. One whose home has not asked for any may
    /// wait for its turn here.
    pub(super) async fn admit(&self, work: &Work, to_owner: mpsc::Sender<Command>) -> Admission {
        let home = &work.task_id.home;
        let share: Key = (work.task.origin.as_str().into(), priority_of(&work.task));
        let attempt = work.request.attempt;
        let (mut granted, mut admission, guest) = {
            let (mut book, now) = (self.shared.book.lock(), Instant::now());
            let closed = book.is_closed_to(&work.task_id, attempt);
            if closed {
                book.give_back(home, &work.grant, now);
            }
            let granted = !closed && book.redeem((home, &share.0), &work.grant, now);
            let admission = book.admit(&work.task_id, attempt, to_owner.clone(), granted);
            // What it would have had may be free again.
            book.deal(now);
            let waits = work.grant.is_empty() && is_full(&admission);
            let waits = waits.then(|| book.wait_here(home, share.clone(), now));
            let guest = waits.flatten();
            let guest = guest.map(|(who, told)| (Guest::new(&self.shared, who), told));
            (granted, admission, guest)
        };
        if let Some((_guest, told)) = guest {
            let grant = timeout(GUEST_WAIT, told).await;
            let (mut book, now) = (self.shared.book.lock(), Instant::now());
            if let Ok(Ok(grant)) = grant {
                granted = book.redeem((home, &share.0), &grant.id(), now);
            }
            admission = book.admit(&work.task_id, attempt, to_owner.clone(), granted);
        }
        if granted && is_full(&admission) {
            return self.in_line(work, to_owner).await;
        }
        admission
    }

    /// It has a grant, and what has its slot has not ended.
    async fn in_line(&self, work: &Work, to_owner: mpsc::Sender<Command>) -> Admission {
        let mut place = {
            let mut book = self.shared.book.lock();
            Place {
                shared: Arc::clone(&self.shared),
                told: book.line.stand(),
                called: false,
            }
        };
        place.called = matches!(timeout(LINE_WAIT, &mut place.told).await, Ok(Ok(())));
        let mut book = self.shared.book.lock();
        place.answer(&mut book);
        book.admit(&work.task_id, work.request.attempt, to_owner, true)
    }

    /// A Start was turned down before it was asked whether there is room.
    pub(super) fn free_grant(&self, home: &InstanceId, grant: &str) {
        let mut book = self.shared.book.lock();
        book.give_back(home, grant, Instant::now());
    }
}

/// A Start that waits for its turn, until this is dropped.
struct Guest {
    shared: Arc<Shared>,
    who: Claimant,
}

impl Guest {
    fn new(shared: &Arc<Shared>, who: Claimant) -> Self {
        let shared = Arc::clone(shared);
        Self { shared, who }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut book = self.shared.book.lock();
        book.leave(self.who, None, Instant::now());
    }
}

/// A place in the line of those that have a grant, until this is dropped.
struct Place {
    shared: Arc<Shared>,
    told: oneshot::Receiver<()>,
    /// Its turn has come, and it has not answered.
    called: bool,
}

impl Place {
    /// It takes its slot now, or none any more.
    fn answer(&mut self, book: &mut Book) {
        self.told.close();
        if std::mem::take(&mut self.called) || self.told.try_recv().is_ok() {
            book.line.answered();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut book = shared.book.lock();
        self.answer(&mut book);
        book.deal(Instant::now());
    }
}

fn is_full(admission: &Admission) -> bool {
    let full = Reason::SlotsFull;
    matches!(admission, Admission::Refused { reason, .. } if *reason == full)
}

/// As its home would have claimed.
fn priority_of(task: &pb::Task) -> u32 {
    let options = task.options.as_ref();
    match options.map_or(0, |options| options.priority) {
        // One of an earlier version may say nothing.
        0 => PRIORITY,
        priority => priority.min(PRIORITY_MAX),
    }
}
