//! Tasks that are in memory only: how their ids tell it, what of them is kept, and what becomes of
//! one whose caller goes away.
//!
//! They have shards of their own, with a log without a disk: so their records say no more than has to
//! be known of them, and what has ended rests folded (`resting`). All else is the same.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use uuid::Uuid;

use crate::domain::{Fault, SpiffeId};
use crate::pb;
use crate::runtime::Nursery;

use super::effect::Limits;
use super::request::Request;
use super::watch::TaskUpdates;

/// How long one can be asked for after its end.
pub(super) const RETENTION: Duration = Duration::from_secs(60);
/// Tasks of a home that have not ended. Fewer than durable ones: they come beside those.
const LIVE: usize = 20_000;
/// Memory of those.
const LIVE_BYTES: usize = 256 << 20;
/// Finished ones that can be asked for.
const ENDED: usize = 20_000;
/// Memory of those.
const ENDED_BYTES: usize = 64 << 20;
/// Why a task is cancelled whose caller has gone.
const CALLER_GONE: &str = "CALLER_GONE";

/// What one of so many shards may hold.
pub(super) fn limits(shards: usize) -> Limits {
    Limits {
        live: LIVE / shards,
        live_bytes: LIVE_BYTES / shards,
        ended: ENDED / shards,
        ended_bytes: ENDED_BYTES / shards,
        retention: RETENTION,
    }
}

/// The same id for a task in memory only: version 8 of RFC 9562 in place of 7, as old as before.
pub(super) fn marked(task: Uuid) -> Uuid {
    let (high, low) = task.as_u64_pair();
    Uuid::from_u64_pair(high & !0xf000 | 0x8000, low)
}

/// Whether the id is one of a task in memory only.
pub(super) fn is_marked(task: Uuid) -> bool {
    task.get_version_num() == 8
}

/// Cancels its task when it is dropped, unless it is undone before.
pub(super) struct Tie {
    pub(super) task: Uuid,
    pub(super) viewer: Arc<SpiffeId>,
    pub(super) shard: mpsc::Sender<Request>,
    pub(super) nursery: Nursery,
    pub(super) holds: bool,
}

impl Tie {
    /// The task has ended, or is somebody else's.
    pub(super) fn undo(mut self) {
        self.holds = false;
    }
}

impl Drop for Tie {
    fn drop(&mut self) {
        if !self.holds {
            return;
        }
        // Nobody waits for the answer.
        let (answer, _) = oneshot::channel();
        let cancel = Request::Cancel {
            task: self.task,
            viewer: Arc::clone(&self.viewer),
            reason: CALLER_GONE.into(),
            answer,
        };
        match self.shard.try_send(cancel) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(cancel)) => {
                let shard = self.shard.clone();
                self.nursery.adopt("cancel", async move {
                    // A shard that has ended has no tasks either.
                    drop(shard.send(cancel).await);
                });
            }
        }
    }
}

/// What a call reads of its task, which goes when it goes.
pub(super) struct Tied {
    pub(super) updates: TaskUpdates,
    pub(super) tie: Option<Tie>,
}

impl Stream for Tied {
    type Item = Result<pb::TaskUpdate, Fault>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.updates.as_mut().poll_next(cx);
        // Over by itself, or told to come back by a watch.
        if let Poll::Ready(None | Some(Err(_))) = next
            && let Some(tie) = self.tie.take()
        {
            tie.undo();
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_where_its_task_is_and_how_old_it_is() {
        let task = Uuid::now_v7();
        let other = marked(task);
        assert!(is_marked(other) && !is_marked(task));
        assert_eq!(other.get_variant(), uuid::Variant::RFC4122);
        assert_eq!(other.as_u64_pair().1, task.as_u64_pair().1);
        assert_eq!(other.as_u64_pair().0 >> 16, task.as_u64_pair().0 >> 16);
    }
}
