//! A watcher's stream: the task, then its events from a cursor on, until the last one.
//!
//! It pulls: nothing is kept for a slow watcher but its cursor. Dropping it cancels nothing.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use futures_util::stream;
use tokio::{
    sync::{
        broadcast::error::{RecvError, TryRecvError},
        mpsc, oneshot,
    },
    time::{Instant, sleep_until},
};
use tokio_stream::Stream;
use uuid::Uuid;

use crate::domain::{Fault, Reason};
use crate::pb;
use crate::pb::task_event::Kind;
use crate::pb::task_update::Update;
use crate::runtime::Stop;
use crate::task::archive::{Archive, View};
use crate::task::journal::blobs::Blobs;
use crate::task::parts::of_event_mut;
use crate::telemetry::metrics::tasks::Watching as Counted;

use super::dialogue::withhold;
use super::finished;
use super::kept::ended;
use super::large::fill;
use super::request::{Request, Watching};
use super::storage_failed;

/// A stream that has nothing to say says so this often.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(15);

/// What a watcher sees, in order.
pub type TaskUpdates = Pin<Box<dyn Stream<Item = Result<pb::TaskUpdate, Fault>> + Send>>;

/// One watcher.
pub(super) struct Watcher {
    pub(super) task: Uuid,
    pub(super) watching: Watching,
    /// Last event that it has.
    pub(super) cursor: u64,
    pub(super) transients: bool,
    /// The agent from which answers to others are withheld.
    pub(super) agent: Option<String>,
    pub(super) shard: mpsc::Sender<Request>,
    /// Where the task is once it was moved.
    pub(super) archive: Option<Archive>,
    /// Where large content is.
    pub(super) blobs: Option<Blobs>,
    /// The sidecar is about to stop.
    pub(super) drain: Stop,
    /// Counted as long as it lives.
    pub(super) _counted: Counted,
}

/// What to do next.
enum Turn {
    /// The snapshot goes first.
    First,
    Follow,
    /// A keepalive with the cursor went out: end as DRAINING.
    Leave,
    Over,
}

/// What there is after the cursor.
enum Look {
    Ready(VecDeque<Arc<pb::TaskEvent>>),
    /// More than the mark carries.
    Fetch,
    /// Nothing yet.
    Wait,
    /// Nothing, for good.
    Over,
}

struct Stand {
    watcher: Watcher,
    turn: Turn,
    ready: VecDeque<Arc<pb::TaskEvent>>,
    quiet_since: Instant,
}

impl Watcher {
    /// The stream of this watcher.
    pub(super) fn stream(self) -> TaskUpdates {
        let stand = Stand {
            watcher: self,
            turn: Turn::First,
            ready: VecDeque::new(),
            quiet_since: Instant::now(),
        };
        Box::pin(stream::unfold(stand, |mut stand| async move {
            let update = stand.next().await?;
            stand.quiet_since = Instant::now();
            if update.is_err() {
                stand.turn = Turn::Over;
            }
            Some((
                update.map(|update| pb::TaskUpdate {
                    update: Some(update),
                }),
                stand,
            ))
        }))
    }

    /// The next events after the cursor that may be shown.
    async fn fetch(&self) -> Result<VecDeque<Arc<pb::TaskEvent>>, Fault> {
        let (answer, answered) = oneshot::channel();
        let (task, after_seq) = (self.task, self.cursor);
        let request = Request::Next {
            task,
            after_seq,
            answer,
        };
        self.shard
            .send(request)
            .await
            .map_err(|_| storage_failed())?;
        let batch = match (answered.await.map_err(|_| storage_failed())?, &self.archive) {
            // The archive had it before the shard let go.
            (Err(gone), Some(archive)) if gone.reason == Reason::TaskNotFound => {
                let next = move |view: &View| finished::next(view, task, after_seq);
                archive.read(next).await?
            }
            (batch, _) => batch?,
        };
        Ok(batch.events.into())
    }

    fn look(&self) -> Look {
        let mark = self.watching.marks.borrow();
        match mark.seq > self.cursor {
            true => mark.after(self.cursor).map_or(Look::Fetch, Look::Ready),
            false if mark.ended => Look::Over,
            false => Look::Wait,
        }
    }
}

/// The last word of a stream whose sidecar is about to stop: where its reader stands.
pub(in crate::task) fn sent_away(last_seq: u64) -> Fault {
    let text = "this sidecar is about to stop: watch again from the last number";
    Fault::new(Reason::Draining, text)
        .with("last_seq", last_seq.to_string())
        .retry_after(Duration::from_secs(1))
}

impl Stand {
    async fn next(&mut self) -> Option<Result<Update, Fault>> {
        match self.turn {
            Turn::First => {
                self.turn = Turn::Follow;
                let task = std::mem::take(&mut self.watcher.watching.task);
                return Some(Ok(Update::Task(Box::new(task))));
            }
            Turn::Follow => {}
            Turn::Leave => {
                self.turn = Turn::Over;
                return Some(Err(sent_away(self.watcher.cursor)));
            }
            Turn::Over => return None,
        }
        loop {
            // Also where events come faster than they are read, and before those that are fetched: who
            // reads slowly would be cut without a cursor, and who resumes gets the rest.
            if self.watcher.drain.is_cancelled() {
                self.turn = Turn::Leave;
                let last_seq = self.watcher.cursor;
                return Some(Ok(Update::Keepalive(pb::Keepalive { last_seq })));
            }
            if let Some(event) = self.ready.pop_front() {
                return Some(self.show(&event).await);
            }
            if let Some(transient) = self.transient() {
                return Some(Ok(transient));
            }
            match self.watcher.look() {
                Look::Ready(events) => {
                    self.ready = events;
                    continue;
                }
                Look::Fetch => {
                    match self.watcher.fetch().await {
                        Ok(events) => self.ready = events,
                        Err(fault) => return Some(Err(fault)),
                    }
                    if !self.ready.is_empty() {
                        continue;
                    }
                }
                Look::Wait => {}
                Look::Over => return None,
            }
            if let Some(update) = self.wait().await {
                return Some(update);
            }
        }
    }

    /// A transient that came before the events that are not fetched yet.
    fn transient(&mut self) -> Option<Update> {
        while self.watcher.transients {
            match self.watcher.watching.transients.try_recv() {
                Ok(transient) => return Some(Update::Transient(pb::Transient::clone(&transient))),
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
        None
    }

    async fn show(&mut self, event: &Arc<pb::TaskEvent>) -> Result<Update, Fault> {
        let mut event = pb::TaskEvent::clone(event);
        if let Some(Kind::Answer(answer)) = &mut event.kind {
            withhold(self.watcher.agent.as_deref(), answer);
        }
        let parts = of_event_mut(&mut event);
        fill(self.watcher.blobs.as_ref(), self.watcher.task, parts).await?;
        self.watcher.cursor = event.seq;
        if ended(event.state()) {
            self.turn = Turn::Over;
        }
        Ok(Update::Event(event))
    }

    /// Waits for anything; `None`: look again.
    async fn wait(&mut self) -> Option<Result<Update, Fault>> {
        let cursor = self.watcher.cursor;
        let keepalive = Update::Keepalive(pb::Keepalive { last_seq: cursor });
        let watching = &mut self.watcher.watching;
        tokio::select! {
            biased;
            changed = watching.marks.changed() => match changed {
                Ok(()) => None,
                // The shard lets go of its end after the last mark, or when it fails.
                Err(_) if watching.marks.borrow().ended => None,
                Err(_) => Some(Err(storage_failed())),
            },
            transient = watching.transients.recv(), if self.watcher.transients => match transient {
                Ok(transient) => Some(Ok(Update::Transient(pb::Transient::clone(&transient)))),
                Err(RecvError::Lagged(_)) => None,
                Err(RecvError::Closed) => {
                    self.watcher.transients = false;
                    None
                }
            },
            () = self.watcher.drain.cancelled() => {
                self.turn = Turn::Leave;
                Some(Ok(keepalive))
            }
            () = sleep_until(self.quiet_since + KEEPALIVE) => Some(Ok(keepalive)),
        }
    }
}
