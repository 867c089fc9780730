//! Whether a Start may run now, or in its turn.

use std::sync::Arc;

use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::book::Admission;
use super::door::Work;
use super::engine::{Executor, Shared};
use super::guests::GUEST_WAIT;
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
        let (_guest, told) = {
            let (mut book, now) = (self.shared.book.lock(), Instant::now());
            book.redeem((home, &share.0), &work.grant, now);
            let admission = book.admit(&work.task_id, attempt, to_owner.clone());
            // What it would have had may be free again.
            book.deal(now);
            if !work.grant.is_empty() || !is_full(&admission) {
                return admission;
            }
            let Some((who, told)) = book.wait_here(home, share.clone(), now) else {
                return admission;
            };
            (Guest::new(&self.shared, who), told)
        };
        let grant = timeout(GUEST_WAIT, told).await;
        let (mut book, now) = (self.shared.book.lock(), Instant::now());
        if let Ok(Ok(grant)) = grant {
            book.redeem((home, &share.0), &grant.id(), now);
        }
        book.admit(&work.task_id, attempt, to_owner)
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
