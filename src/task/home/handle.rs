//! The handle of a home: starts its shards, gives them tasks, and ends them.

use std::{fmt, sync::Arc};

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::domain::{Fault, Label, Reason, TaskId};
use crate::pb;
use crate::runtime::{DataThreads, Nursery, Stop};
use crate::task::archive::Archive;
use crate::task::doors::{Connect, Parent, Parents, Route};
use crate::task::journal::Journal;
use crate::task::spec::{Asked, NewTask};
use crate::telemetry::Work;
use crate::telemetry::metrics::tasks::{Standing, Tasks as TaskMetrics};

use super::archiving::Archiving;
use super::config::{HomeConfig, Submission};
use super::kept::RecordError;
use super::released::Released;
use super::replay::{Replay, shard_of};
use super::request::{Request, Watching};
use super::shard::{INBOX, Shard, moment};
use super::storage_failed;
use super::watch::{TaskUpdates, Watcher};

/// A submission that passed every check.
struct Taken {
    shard: usize,
    task: Uuid,
    new: NewTask,
    /// Ends when the submission is answered.
    work: Work,
}

/// A sidecar's tasks. Clones are the same home.
#[derive(Clone)]
pub struct Home {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) config: HomeConfig,
    pub(super) inboxes: Vec<mpsc::Sender<Request>>,
    nurseries: Vec<Nursery>,
    journal: Journal,
    pub(super) archive: Option<Archive>,
    metrics: Arc<TaskMetrics>,
    parents: Arc<dyn Parents>,
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
        let (shards, archive, stay) = replay.finish()?;
        let released = Arc::new(Released::new(shards.len()));
        let failed = Stop::new();
        let metrics = TaskMetrics::new(shards.len());
        let mut inboxes = Vec::new();
        for (place, (mut tasks, nursery)) in
            shards.into_iter().zip(nurseries.iter().cycle()).enumerate()
        {
            tasks.lost_after = config.lost_after;
            let (sender, inbox) = mpsc::channel(INBOX);
            inboxes.push(sender.clone());
            let shard = Shard {
                tasks,
                inbox,
                sender,
                journal: journal.clone(),
                released: released.clone(),
                archiving: Archiving::new(archive.clone(), stay),
                metrics: metrics.clone(),
                place,
                route: route.clone(),
                connect: connect.clone(),
                parents: parents.clone(),
                nursery: nursery.clone(),
                failed: failed.clone(),
            };
            nursery.start("task shard", |stop| shard.run(stop));
        }
        let drain = Stop::new();
        let shared = Shared {
            config,
            inboxes,
            nurseries,
            journal,
            archive,
            metrics,
            parents,
            drain,
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

    /// Takes a task in. It is on disk when this answers. `thread`: where the caller runs.
    ///
    /// # Errors
    /// What is wrong with the spec, PARENT_TOKEN_INVALID, QUEUE_FULL, DISK_FULL, DRAINING, STORAGE_FAILED.
    pub async fn submit(&self, asked: Submission, thread: usize) -> Result<pb::Task, Fault> {
        let taken = self.check(asked, thread, "SubmitTask")?;
        let (new, work) = (Box::new(taken.new), taken.work);
        let submitted = self.ask(taken.shard, |answer| Request::Submit { new, answer });
        submitted
            .await
            .inspect_err(|fault| work.fail(fault.reason.label()))
    }

    /// Takes a task in and follows it. Dropping the stream does not cancel the task.
    ///
    /// # Errors
    /// As [`Home::submit`].
    pub async fn run(&self, asked: Submission, thread: usize) -> Result<TaskUpdates, Fault> {
        let taken = self.check(asked, thread, "RunTask")?;
        let (shard, task) = (taken.shard, taken.task);
        let (new, work) = (Box::new(taken.new), taken.work);
        let running = self.ask(shard, |answer| Request::Run { new, answer });
        let watching = running
            .await
            .inspect_err(|fault| work.fail(fault.reason.label()))?;
        Ok(self.watcher(shard, task, watching, (0, true)).stream())
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

    /// Checks a submission, and chooses an id of the shard on `thread`.
    fn check(&self, asked: Submission, thread: usize, method: &str) -> Result<Taken, Fault> {
        let (config, shards) = (&self.shared.config, self.shared.inboxes.len());
        let shard = thread % shards;
        let mut task = Uuid::now_v7();
        while shard_of(task, shards) != shard {
            task = Uuid::now_v7();
        }
        let id = TaskId {
            home: config.instance.clone(),
            uuid: task,
        };
        let parent = self.parent_of(&asked);
        // A handler that brings no context of its own means the one that it was called with.
        let inherited = || parent.as_ref().ok()?.as_ref()?.trace.as_ref();
        let work = Work::submit(asked.trace.as_ref().or_else(inherited), method, &id);
        let namespace = asked
            .caller
            .member
            .namespace()
            .or_else(|| config.own.member.namespace())
            .cloned()
            .unwrap_or_else(default_namespace);
        let checked = parent.and_then(|parent| {
            let asked = Asked {
                id,
                namespace,
                spec: asked.spec,
                caller: asked.caller,
                own: config.own.clone(),
                parent,
            };
            NewTask::check(asked, &moment())
        });
        let mut new = checked.inspect_err(|fault| work.fail(fault.reason.label()))?;
        work.checked(&new.task.skill, &new.task.correlation_id, &new.task.caller);
        new.trace = work.context().cloned();
        Ok(Taken {
            shard,
            task,
            new,
            work,
        })
    }

    /// The attempt that a submission's token names. The token is a secret of the own handler: nobody
    /// else can have it by right.
    fn parent_of(&self, asked: &Submission) -> Result<Option<Parent>, Fault> {
        let token = &asked.spec.parent_token;
        if token.is_empty() {
            return Ok(None);
        }
        let own = asked.caller == self.shared.config.own;
        let found = own.then(|| self.shared.parents.parent(token)).flatten();
        found.map(Some).ok_or_else(|| {
            let text =
                "parent_token names no attempt that runs on this sidecar: it ends with its attempt";
            Fault {
                field: Some("spec.parent_token".into()),
                ..Fault::new(Reason::ParentTokenInvalid, text)
            }
        })
    }

    pub(super) fn shard(&self, id: &TaskId) -> Result<usize, Fault> {
        if id.home == self.shared.config.instance {
            return Ok(shard_of(id.uuid, self.shared.inboxes.len()));
        }
        let text = format!("the task's home is {}: ask there", id.home);
        Err(Fault::new(Reason::HomeElsewhere, text).with("home", id.home.to_string()))
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
            shard: self.shared.inboxes[shard].clone(),
            archive: self.shared.archive.clone(),
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

fn drained(answer: oneshot::Sender<Result<(), Fault>>) -> Request {
    Request::Drain { answer }
}

fn default_namespace() -> Label {
    crate::domain::ids::DEFAULT_NAMESPACE
        .parse()
        .expect("the default namespace is a label")
}
