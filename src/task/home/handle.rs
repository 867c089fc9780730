//! The handle of a home: starts its shards, and asks the right one.

use std::{fmt, sync::Arc};

use futures_util::future::join_all;
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_stream::Stream;
use uuid::Uuid;

use crate::domain::{Fault, InstanceId, Label, Reason, SpiffeId, TaskId};
use crate::pb;
use crate::runtime::{DataThreads, Nursery, Stop};
use crate::task::doors::{Connect, Parents, Route};
use crate::task::journal::{Journal, Lsn};
use crate::task::spec::{Asked, NewTask};

use super::kept::RecordError;
use super::machine::{Limits, Tasks};
use super::reads::Page;
use super::released::Released;
use super::shard::{INBOX, Request, Shard, moment};
use super::storage_failed;
use super::view::{ANSWER_MAX, ListQuery};
use super::watch::{TaskUpdates, Watcher};

/// Tasks of a home that have not ended. What every task costs is in `LIVE_BYTES`.
const LIVE: usize = 100_000;
/// Memory of a home's tasks that have not ended.
const LIVE_BYTES: usize = 1 << 30;
/// Finished tasks that a home can be asked for.
const ENDED: usize = 100_000;
/// Memory of a home's finished tasks.
const ENDED_BYTES: usize = 256 << 20;

/// Who a home is.
#[derive(Clone, Debug)]
pub struct HomeConfig {
    /// The sidecar's instance: the first part of its tasks' ids.
    pub instance: InstanceId,
    /// The sidecar's member: who calls on its local listener.
    pub own: SpiffeId,
}

/// What somebody wants done.
#[derive(Clone, Debug)]
pub struct Submission {
    /// As it came.
    pub spec: pb::TaskSpec,
    /// Who asks, by certificate or as the own agent. Authorized already.
    pub caller: SpiffeId,
}

/// Collects what a journal holds, before the home starts.
#[derive(Debug)]
pub struct Replay {
    shards: Vec<Tasks>,
    wrong: Option<RecordError>,
}

impl Replay {
    /// For a home of `instance` on so many threads; at least one.
    pub fn new(instance: &InstanceId, threads: usize) -> Self {
        let threads = threads.max(1);
        let limits = Limits {
            live: LIVE / threads,
            live_bytes: LIVE_BYTES / threads,
            ended: ENDED / threads,
            ended_bytes: ENDED_BYTES / threads,
        };
        let shard = || Tasks::new(instance.clone(), limits, Instant::now());
        Self {
            shards: (0..threads).map(|_| shard()).collect(),
            wrong: None,
        }
    }

    /// Takes the next record in: what [`Journal::open`] gives.
    pub fn record(&mut self, lsn: Lsn, record: &pb::journal::Record) {
        let replayed = match record.task_id.parse::<TaskId>() {
            Ok(id) => {
                let shard = shard_of(id.uuid, self.shards.len());
                self.shards[shard].replay(id.uuid, lsn, record)
            }
            Err(_) => Err(RecordError::Name(record.task_id.clone())),
        };
        if let Err(wrong) = replayed {
            self.wrong.get_or_insert(wrong);
        }
    }
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

    /// The same on nurseries of the caller's choice, one per shard of `replay`.
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
        for (place, (tasks, nursery)) in replay.shards.into_iter().zip(&nurseries).enumerate() {
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
    /// What is wrong with the spec, PARENT_TOKEN_INVALID, QUEUE_FULL, DRAINING, STORAGE_FAILED.
    pub async fn submit(&self, asked: Submission, thread: usize) -> Result<pb::Task, Fault> {
        let (shard, _, new) = self.check(asked, thread)?;
        self.ask(shard, |answer| Request::Submit {
            new: Box::new(new),
            answer,
        })
        .await
    }

    /// Takes a task in and follows it. Dropping the stream does not cancel the task.
    ///
    /// # Errors
    /// As [`Home::submit`].
    pub async fn run(&self, asked: Submission, thread: usize) -> Result<TaskUpdates, Fault> {
        let (shard, task, new) = self.check(asked, thread)?;
        let watching = self
            .ask(shard, |answer| Request::Run {
                new: Box::new(new),
                answer,
            })
            .await?;
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
    fn check(&self, asked: Submission, thread: usize) -> Result<(usize, Uuid, NewTask), Fault> {
        let (config, shards) = (&self.shared.config, self.shared.inboxes.len());
        let shard = thread % shards;
        let mut uuid = Uuid::now_v7();
        while shard_of(uuid, shards) != shard {
            uuid = Uuid::now_v7();
        }
        let parent = if asked.spec.parent_token.is_empty() {
            None
        } else {
            // The token is a secret of the own handler: nobody else can have it by right.
            let own = asked.caller == config.own;
            let found = own
                .then(|| self.shared.parents.parent(&asked.spec.parent_token))
                .flatten();
            Some(found.ok_or_else(|| {
                let text = "parent_token names no attempt that runs on this sidecar: it ends with its attempt";
                Fault { field: Some("spec.parent_token".into()), ..Fault::new(Reason::ParentTokenInvalid, text) }
            })?)
        };
        let namespace = asked
            .caller
            .member
            .namespace()
            .or(config.own.member.namespace());
        let asked = Asked {
            id: TaskId {
                home: config.instance.clone(),
                uuid,
            },
            namespace: namespace.cloned().unwrap_or_else(default_namespace),
            spec: asked.spec,
            caller: asked.caller,
            own: config.own.clone(),
            parent,
        };
        Ok((shard, uuid, NewTask::check(asked, &moment())?))
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

/// One page of the shards' pages, and whether more follow.
fn merge(pages: Vec<Page>, limit: usize) -> (Vec<pb::Task>, bool) {
    let (mut all, mut floor) = (Vec::new(), String::new());
    for mut page in pages {
        // Where one shard had to stop, older tasks of the others come on a later page.
        if let Some(last) = page.tasks.last().filter(|_| page.cut) {
            floor = floor.max(last.id.clone());
        }
        all.append(&mut page.tasks);
    }
    let found = all.len();
    all.retain(|task| task.id >= floor);
    // Ids of one home sort by age.
    all.sort_by(|one, other| other.id.cmp(&one.id));
    all.truncate(limit);
    let mut room = ANSWER_MAX;
    let fitting = all.iter().take_while(|task| {
        let size = task.encoded_len() + 8;
        let fits = room >= size;
        room = room.saturating_sub(size);
        fits
    });
    let fitting = fitting.count().max(1);
    all.truncate(fitting);
    let more = !floor.is_empty() || all.len() < found;
    (all, more)
}

/// Which of so many shards owns a task. The low bits of a version 7 UUID are random.
fn shard_of(task: Uuid, shards: usize) -> usize {
    let (_, low) = task.as_u64_pair();
    usize::try_from(low % shards as u64).expect("less than the number of shards")
}

fn default_namespace() -> Label {
    crate::domain::ids::DEFAULT_NAMESPACE
        .parse()
        .expect("the default namespace is a label")
}
