//! The handle of a home: starts its shards, asks them, and ends them.

use std::{fmt, sync::Arc};

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::{Fault, Reason, TaskId};
use crate::runtime::{DataThreads, Nursery, Stop};
use crate::task::archive::Archive;
use crate::task::callback::Ticket;
use crate::task::doors::{Connect, Parents, Route};
use crate::task::journal::Journal;
use crate::task::journal::blobs::Blobs;
use crate::telemetry::metrics::tasks::{Standing, Tasks as TaskMetrics};

use super::archiving::Archiving;
use super::config::HomeConfig;
use super::deliver::TICKETS;
use super::ephemeral;
use super::kept::RecordError;
use super::large;
use super::machine::Tasks;
use super::neighbours::Neighbours;
use super::released::Released;
use super::replay::Replay;
use super::request::{Request, Watching};
use super::shard::{INBOX, Shard};
use super::slots::{Board, Desk};
use super::storage_failed;
use super::watch::Watcher;

/// A sidecar's tasks. Clones are the same home.
#[derive(Clone)]
pub struct Home {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) config: HomeConfig,
    /// How many of the shards have a disk: they come first, then as many that have none.
    pub(super) durable: usize,
    pub(super) inboxes: Vec<mpsc::Sender<Request>>,
    pub(super) nurseries: Vec<Nursery>,
    journal: Journal,
    pub(super) archive: Option<Archive>,
    metrics: Arc<TaskMetrics>,
    /// Until somebody carries it.
    pub(super) tickets: Mutex<Option<mpsc::Receiver<Ticket>>>,
    pub(super) parents: Arc<dyn Parents>,
    neighbours: Arc<Neighbours>,
    drain: Stop,
    failed: Stop,
}

impl Home {
    /// Starts a shard on every thread, and goes on with what the journal held.
    ///
    /// # Errors
    /// When the replayed records do not follow each other: the journal is another program's.
    pub fn start(
        config: HomeConfig,
        (journal, replay): (Journal, Replay),
        route: &Arc<dyn Route>,
        connect: &Arc<dyn Connect>,
        parents: Arc<dyn Parents>,
        threads: &DataThreads,
    ) -> Result<Self, RecordError> {
        let nurseries = threads
            .handles()
            .map(|handle| Nursery::on(handle.clone()))
            .collect();
        Self::on(
            config,
            (journal, replay),
            route,
            connect,
            parents,
            nurseries,
        )
    }

    /// The same on nurseries of the caller's choice, at least one; best one per shard of `replay`.
    ///
    /// # Errors
    /// See [`Home::start`].
    pub fn on(
        config: HomeConfig,
        (journal, replay): (Journal, Replay),
        route: &Arc<dyn Route>,
        connect: &Arc<dyn Connect>,
        parents: Arc<dyn Parents>,
        nurseries: Vec<Nursery>,
    ) -> Result<Self, RecordError> {
        let (mut shards, archive, stay) = replay.finish()?;
        large::begin(journal.blobs(), &mut shards, archive.as_ref());
        let durable = shards.len();
        let released = Arc::new(Released::new(durable));
        let failed = Stop::new();
        let metrics = TaskMetrics::new(2 * durable);
        let mut inboxes = Vec::new();
        let board = Arc::new(Board::new(2 * durable));
        let neighbours = Arc::new(Neighbours::new(durable));
        let (tell, tickets) = mpsc::channel(TICKETS);
        let all = shards.into_iter().chain(fleeting(&config, durable));
        let on = nurseries.iter().cycle().take(durable).cycle();
        for (place, (mut tasks, nursery)) in all.zip(on).enumerate() {
            tasks.lost_after = config.lost_after;
            let (sender, inbox) = mpsc::channel(INBOX);
            inboxes.push(sender.clone());
            let in_memory = tasks.in_memory;
            let shard = Shard {
                tasks,
                inbox,
                sender,
                journal: Some(journal.clone())
                    .filter(|_| !in_memory)
                    .unwrap_or_else(Journal::memory),
                released: (!in_memory).then(|| released.clone()),
                archiving: Archiving::new(archive.clone().filter(|_| !in_memory), stay),
                metrics: metrics.clone(),
                place,
                route: route.clone(),
                connect: connect.clone(),
                parents: parents.clone(),
                tickets: tell.clone(),
                nursery: nursery.clone(),
                board: board.clone(),
                neighbours: neighbours.clone(),
                failed: failed.clone(),
            };
            nursery.start("task shard", |stop| shard.run(stop));
        }
        neighbours.are(inboxes.clone());
        Desk::start(board, &inboxes, connect, &nurseries[0]);
        let shared = Shared {
            config,
            durable,
            inboxes,
            nurseries,
            journal,
            archive,
            metrics,
            tickets: Mutex::new(Some(tickets)),
            parents,
            drain: Stop::new(),
            neighbours,
            failed,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Who this home is.
    pub fn config(&self) -> &HomeConfig {
        &self.shared.config
    }

    /// What it counts, for the process' metrics.
    pub fn metrics(&self) -> &Arc<TaskMetrics> {
        &self.shared.metrics
    }

    /// Cancelled when the journal failed: the process must end, a restart replays what is on disk.
    pub fn failed(&self) -> Stop {
        self.shared.failed.clone()
    }

    /// Cancelled when the home drains: whoever passes on streams of other homes ends them then too.
    pub fn drains(&self) -> Stop {
        self.shared.drain.clone()
    }

    /// Gives nothing more out, and returns when no attempt is under way anywhere: its executors may
    /// be about to stop as well, and want everything acknowledged. New tasks are taken, and wait.
    pub async fn settle(&self) {
        let all = (0..self.shared.inboxes.len())
            .map(|shard| self.ask(shard, |answer| Request::Settle { answer }));
        for settled in join_all(all).await {
            if let Err(fault) = settled {
                tracing::error!(%fault, "a shard could not be settled");
            }
        }
    }

    /// Ends every watcher's stream with its cursor, new ones at their first chance. Tasks are still
    /// taken: who submits one while its connection is told to go need not hear of this.
    pub fn send_away(&self) {
        self.shared.drain.cancel();
    }

    /// Takes no new tasks, ends every watcher's stream with its cursor, and returns when all that
    /// was acknowledged is on disk. Tasks under way go on, here or after a restart.
    pub async fn drain(&self) {
        self.send_away();
        let all = (0..self.shared.inboxes.len()).map(|shard| self.ask(shard, drained));
        for drained in join_all(all).await {
            if let Err(fault) = drained {
                tracing::error!(%fault, "a shard could not be drained");
            }
        }
    }

    /// Stops the shards and closes the journal. What is under way goes on after a restart.
    pub async fn close(&self, grace: std::time::Duration) {
        join_all(
            self.shared
                .nurseries
                .iter()
                .map(|nursery| nursery.close(grace)),
        )
        .await;
        self.shared.journal.close();
        if let Some(archive) = &self.shared.archive {
            archive.close();
        }
    }

    /// Tasks in memory, per shard, as of its last turn.
    pub fn counts(&self) -> Vec<Standing> {
        self.shared.metrics.standings()
    }

    /// Where finished tasks are moved; `None`: they stay in memory.
    pub fn archive(&self) -> Option<&Archive> {
        self.shared.archive.as_ref()
    }

    /// Large content of its tasks; `None`: there is no disk.
    pub fn blobs(&self) -> Option<&Blobs> {
        self.shared.journal.blobs()
    }

    pub(super) fn shard(&self, id: &TaskId) -> Result<usize, Fault> {
        if id.home == self.shared.config.instance {
            return Ok(self.shard_with(id.uuid));
        }
        let text = format!("the task's home is {}: ask there", id.home);
        Err(Fault::new(Reason::HomeElsewhere, text).with("home", id.home.to_string()))
    }

    /// The shard of a task of this home.
    pub(super) fn shard_with(&self, task: Uuid) -> usize {
        self.shared.neighbours.place(task)
    }

    pub(super) fn watcher(
        &self,
        shard: usize,
        task: Uuid,
        watching: Watching,
        (cursor, transients): (u64, bool),
    ) -> Watcher {
        Watcher {
            task,
            watching,
            cursor,
            transients,
            agent: None,
            shard: self.shared.inboxes[shard].clone(),
            archive: self.shared.archive.clone(),
            blobs: self.blobs().cloned(),
            drain: self.shared.drain.clone(),
            _counted: self.shared.metrics.watching(),
        }
    }

    pub(super) async fn ask<T>(
        &self,
        shard: usize,
        request: impl FnOnce(oneshot::Sender<Result<T, Fault>>) -> Request,
    ) -> Result<T, Fault> {
        let (answer, answered) = oneshot::channel();
        let inbox = &self.shared.inboxes[shard];
        inbox
            .send(request(answer))
            .await
            .map_err(|_| storage_failed())?;
        answered.await.map_err(|_| storage_failed())?
    }
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Home")
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

/// The shards that have no disk: as many as have one.
fn fleeting(config: &HomeConfig, durable: usize) -> impl Iterator<Item = Tasks> {
    let instance = config.instance.clone();
    (0..durable).map(move |_| {
        let limits = ephemeral::limits(durable);
        let mut tasks = Tasks::new(instance.clone(), limits, Instant::now());
        tasks.in_memory = true;
        tasks
    })
}

fn drained(answer: oneshot::Sender<Result<(), Fault>>) -> Request {
    Request::Drain { answer }
}
