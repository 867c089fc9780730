//! The handle of a home: starts its shards, and asks the right one.

use std::{fmt, sync::Arc};

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use uuid::Uuid;

use crate::domain::{Fault, Label, Reason, SpiffeId, TaskId};
use crate::pb;
use crate::runtime::{DataThreads, Nursery, Stop};
use crate::task::doors::{Connect, Parent, Parents, Route};
use crate::task::journal::Journal;
use crate::task::spec::{Asked, NewTask};
use crate::telemetry::Work;

use super::config::{HomeConfig, Submission};
use super::kept::RecordError;
use super::reads::merge;
use super::released::Released;
use super::replay::{Replay, shard_of};
use super::request::Request;
use super::shard::{INBOX, Shard, moment};
use super::storage_failed;
use super::view::ListQuery;
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
    shared: Arc<Shared>,
}

struct Shared {
    config: HomeConfig,
    inboxes: Vec<mpsc::Sender<Request>>,
    nurseries: Vec<Nursery>,
    journal: Journal,
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
        if let Some(wrong) = replay.wrong {
            return Err(wrong);
        }
        let released = Arc::new(Released::new(replay.shards.len()));
        let failed = Stop::new();
        let mut inboxes = Vec::new();
        for (place, (tasks, nursery)) in replay
            .shards
            .into_iter()
            .zip(nurseries.iter().cycle())
            .enumerate()
        {
            let (sender, inbox) = mpsc::channel(INBOX);
            inboxes.push(sender.clone());
            let shard = Shard {
                tasks,
                inbox,
                sender,
                journal: journal.clone(),
                released: released.clone(),
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
        Ok(Watcher {
            task,
            watching,
            cursor: 0,
            transients: true,
            shard: self.shared.inboxes[shard].clone(),
            drain: self.shared.drain.clone(),
        }
        .stream())
    }

    /// A task as it is on disk; FULL also says whether something was left out.
    ///
    /// # Errors
    /// TASK_NOT_FOUND, also for what `viewer` may not see; HOME_ELSEWHERE.
    pub async fn get(
        &self,
        id: &TaskId,
        viewer: &Arc<SpiffeId>,
        full: bool,
    ) -> Result<(pb::Task, bool), Fault> {
        let (shard, task, viewer) = (self.shard(id)?, id.uuid, viewer.clone());
        self.ask(shard, |answer| Request::Get {
            task,
            viewer,
            full,
            answer,
        })
        .await
    }

    /// A page of tasks, newest first, and whether more follow. Ends early when the page is as large
    /// as an answer may be.
    ///
    /// # Errors
    /// STORAGE_FAILED.
    pub async fn list(&self, mut query: ListQuery) -> Result<(Vec<pb::Task>, bool), Fault> {
        let limit = query.limit.max(1);
        query.limit = limit + 1;
        let query = Arc::new(query);
        let asked = (0..self.shared.inboxes.len()).map(|shard| {
            let query = query.clone();
            self.ask(shard, |answer| Request::List { query, answer })
        });
        let pages = join_all(asked).await;
        Ok(merge(pages.into_iter().collect::<Result<_, _>>()?, limit))
    }

    /// The task, then its events after `after_seq`, until its last one.
    ///
    /// # Errors
    /// TASK_NOT_FOUND, HOME_ELSEWHERE, SEQUENCE_AHEAD, SEQUENCE_GONE.
    pub async fn watch(
        &self,
        id: &TaskId,
        viewer: &Arc<SpiffeId>,
        after_seq: u64,
        transients: bool,
    ) -> Result<TaskUpdates, Fault> {
        let (shard, task, viewer) = (self.shard(id)?, id.uuid, viewer.clone());
        let watch = |answer| Request::Watch {
            task,
            viewer,
            after_seq,
            answer,
        };
        let watching = self.ask(shard, watch).await?;
        Ok(Watcher {
            task,
            watching,
            cursor: after_seq,
            transients,
            shard: self.shared.inboxes[shard].clone(),
            drain: self.shared.drain.clone(),
        }
        .stream())
    }

    /// What is on disk of an artifact's content, without its first `offset` bytes, in pieces of at
    /// most 128 KiB. Pulls: one batch of pieces is in memory.
    ///
    /// # Errors
    /// TASK_NOT_FOUND, HOME_ELSEWHERE, ARTIFACT_NOT_FOUND.
    pub async fn read_artifact(
        &self,
        id: &TaskId,
        viewer: &Arc<SpiffeId>,
        artifact: &str,
        offset: u64,
    ) -> Result<impl Stream<Item = Result<pb::Part, Fault>> + Send + use<>, Fault> {
        let (shard, task) = (self.shard(id)?, id.uuid);
        let (home, viewer, artifact) = (self.clone(), viewer.clone(), artifact.to_owned());
        let fetch = move |from: usize| {
            let (home, viewer, artifact) = (home.clone(), viewer.clone(), artifact.clone());
            async move {
                let pieces = |answer| Request::Pieces {
                    task,
                    viewer,
                    artifact,
                    from,
                    answer,
                };
                home.ask(shard, pieces).await
            }
        };
        let first = fetch(0).await?;
        Ok(super::view::artifact_stream(first, fetch, offset))
    }

    /// Asks for a task's end. Idempotent; the task as it is after the request is on disk.
    ///
    /// # Errors
    /// TASK_NOT_FOUND, HOME_ELSEWHERE, TASK_NOT_CANCELABLE.
    pub async fn cancel(
        &self,
        id: &TaskId,
        viewer: &Arc<SpiffeId>,
        reason: String,
    ) -> Result<pb::Task, Fault> {
        let (shard, task, viewer) = (self.shard(id)?, id.uuid, viewer.clone());
        self.ask(shard, |answer| Request::Cancel {
            task,
            viewer,
            reason,
            answer,
        })
        .await
    }

    /// Takes no new tasks, ends every watcher's stream with its cursor, and returns when all that
    /// was acknowledged is on disk. Tasks under way go on, here or after a restart.
    pub async fn drain(&self) {
        self.shared.drain.cancel();
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

    fn shard(&self, id: &TaskId) -> Result<usize, Fault> {
        if id.home == self.shared.config.instance {
            return Ok(shard_of(id.uuid, self.shared.inboxes.len()));
        }
        let text = format!("the task's home is {}: ask there", id.home);
        Err(Fault::new(Reason::HomeElsewhere, text).with("home", id.home.to_string()))
    }

    async fn ask<T>(
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
