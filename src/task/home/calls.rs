//! What a home can be asked about its tasks: its shards first, then the archive.
//!
//! In this order, since tasks go from memory to the archive and never back: what a shard no longer
//! has, the archive had before.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::{broadcast, watch};
use tokio_stream::Stream;

use crate::domain::{Fault, Reason, SpiffeId, TaskId};
use crate::pb;
use crate::task::archive::View;
use crate::task::journal::blobs::Hash;

use super::dialogue::{Response, withheld_from, withhold};
use super::finished;
use super::handle::Home;
use super::large::{content_stream, fill_whole};
use super::machine::not_found;
use super::reads::{self, merge};
use super::request::{Mark, Request, Watching};
use super::view::{ListPage, ListQuery};
use super::watch::TaskUpdates;

/// Looks at a list before an answer goes out without a task: each walks over thousands of them.
const LOOKS: usize = 16;

impl Home {
    /// A task as it is on disk; FULL also says whether something was left out.
    ///
    /// # Errors
    /// TASK_NOT_FOUND, also for what `viewer` may not see; HOME_ELSEWHERE, STORAGE_FAILED.
    pub async fn get(
        &self,
        id: &TaskId,
        viewer: &Arc<SpiffeId>,
        full: bool,
    ) -> Result<(pb::Task, bool), Fault> {
        let (shard, task, seer) = (self.shard(id)?, id.uuid, viewer.clone());
        let get = |answer| Request::Get {
            task,
            viewer: seer,
            full,
            answer,
        };
        let (viewer, reader) = (viewer.clone(), viewer.clone());
        let got = self.ask(shard, get).await;
        let look = move |view: &View| finished::get(view, task, &viewer, full);
        let mut whole = self.or_finished(got, look).await?;
        let agent = withheld_from(&reader, &whole.task);
        for message in &mut whole.task.messages {
            withhold(agent.as_deref(), message);
        }
        fill_whole(self.blobs(), id.uuid, &mut whole).await?;
        Ok((whole.task, whole.truncated))
    }

    /// A page of tasks, newest first, and where the next one begins. Ends early when the page is as
    /// large as an answer may be, or when many tasks were looked at for few.
    ///
    /// # Errors
    /// STORAGE_FAILED.
    pub async fn list(&self, mut query: ListQuery) -> Result<ListPage, Fault> {
        let limit = query.limit.max(1);
        query.limit = limit + 1;
        let mut page = ListPage::default();
        for _ in 0..LOOKS {
            page = self.look(Arc::new(query.clone()), limit).await?;
            if !page.tasks.is_empty() || page.next.is_none() {
                break;
            }
            query.before = page.next;
        }
        Ok(page)
    }

    async fn look(&self, query: Arc<ListQuery>, limit: usize) -> Result<ListPage, Fault> {
        let asked = (0..self.shared.inboxes.len()).map(|shard| {
            let query = query.clone();
            self.ask(shard, |answer| Request::List { query, answer })
        });
        let pages = join_all(asked).await.into_iter();
        let mut pages = pages.collect::<Result<Vec<_>, _>>()?;
        if let Some(archive) = &self.shared.archive {
            let page = move |view: &View| finished::page(view, &query);
            pages.push(archive.read(page).await?);
        }
        Ok(merge(pages, limit))
    }

    /// The task, then its events after `after_seq`, until its last one.
    ///
    /// # Errors
    /// TASK_NOT_FOUND, HOME_ELSEWHERE, SEQUENCE_AHEAD, SEQUENCE_GONE, STORAGE_FAILED.
    pub async fn watch(
        &self,
        id: &TaskId,
        viewer: &Arc<SpiffeId>,
        after_seq: u64,
        transients: bool,
    ) -> Result<TaskUpdates, Fault> {
        let (shard, task, seer) = (self.shard(id)?, id.uuid, viewer.clone());
        let watch = |answer| Request::Watch {
            task,
            viewer: seer,
            after_seq,
            answer,
        };
        let watched = self.ask(shard, watch).await;
        let (viewer, reader) = (viewer.clone(), viewer.clone());
        let archived =
            move |view: &View| Ok(over(finished::watch(view, task, &viewer, after_seq)?));
        let watching = self.or_finished(watched, archived).await?;
        let agent = withheld_from(&reader, &watching.task);
        let mut watcher = self.watcher(shard, task, watching, (after_seq, transients));
        watcher.agent = agent;
        Ok(watcher.stream())
    }

    /// What is on disk of an artifact's content, without its first `offset` bytes, in pieces of at
    /// most 128 KiB. Pulls: one batch of pieces is in memory.
    ///
    /// # Errors
    /// TASK_NOT_FOUND, HOME_ELSEWHERE, ARTIFACT_NOT_FOUND, STORAGE_FAILED.
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
                let (seer, named) = (viewer.clone(), artifact.clone());
                let pieces = |answer| Request::Pieces {
                    task,
                    viewer: seer,
                    artifact: named,
                    from,
                    answer,
                };
                let got = home.ask(shard, pieces).await;
                home.or_finished(got, move |view| {
                    finished::pieces(view, (task, &viewer), &artifact, from)
                })
                .await
            }
        };
        let first = fetch(0).await?;
        let beside = (self.blobs().cloned(), task);
        Ok(super::view::artifact_stream(first, fetch, offset, beside))
    }

    /// A content that a task names, without its first `offset` bytes, in pieces of at most 128 KiB; a
    /// JSON value whole. It is kept until it is read, whatever becomes of the task.
    ///
    /// # Errors
    /// TASK_NOT_FOUND, HOME_ELSEWHERE, STORAGE_FAILED, CONTENT_DAMAGED; ARTIFACT_NOT_FOUND where the
    /// task does not name it, or only to others.
    pub async fn read_content(
        &self,
        id: &TaskId,
        viewer: &Arc<SpiffeId>,
        hash: Hash,
        offset: u64,
    ) -> Result<impl Stream<Item = Result<pb::Part, Fault>> + Send + use<>, Fault> {
        let (shard, task, seer) = (self.shard(id)?, id.uuid, viewer.clone());
        let naming = |answer| Request::Naming {
            task,
            viewer: seer,
            hash,
            answer,
        };
        let found = self.ask(shard, naming).await;
        let viewer = viewer.clone();
        let look = move |view: &View| finished::naming(view, (task, &viewer), hash);
        let part = self.or_finished(found, look).await?;
        let blobs = self.blobs().ok_or_else(reads::no_content)?;
        let pin = blobs.pin(hash).ok_or_else(not_found)?;
        Ok(content_stream((blobs.clone(), pin), task, part, offset))
    }

    /// Asks for a task's end. Idempotent; the task as it is after the request is on disk.
    ///
    /// # Errors
    /// TASK_NOT_FOUND, HOME_ELSEWHERE, TASK_NOT_CANCELABLE, STORAGE_FAILED.
    pub async fn cancel(
        &self,
        id: &TaskId,
        viewer: &Arc<SpiffeId>,
        reason: String,
    ) -> Result<pb::Task, Fault> {
        let (shard, task, seer) = (self.shard(id)?, id.uuid, viewer.clone());
        let cancel = |answer| Request::Cancel {
            task,
            viewer: seer,
            reason,
            answer,
        };
        let canceled = self.ask(shard, cancel).await;
        let viewer = viewer.clone();
        self.or_finished(canceled, move |view| finished::cancel(view, task, &viewer))
            .await
    }

    /// Answers the question of a task's agent; whether this answer was given before. Idempotent; the
    /// answer is on disk.
    ///
    /// # Errors
    /// As in the contract of `RespondTask`.
    pub async fn respond(
        &self,
        id: &TaskId,
        viewer: &Arc<SpiffeId>,
        response: Response,
    ) -> Result<(pb::Task, bool), Fault> {
        let (shard, task, seer) = (self.shard(id)?, id.uuid, viewer.clone());
        // Out of the way of the shard's other tasks.
        response.check()?;
        let again = response.clone();
        let respond = |answer| Request::Respond {
            task,
            viewer: seer,
            response,
            answer,
        };
        let responded = self.ask(shard, respond).await;
        let viewer = viewer.clone();
        self.or_finished(responded, move |view| {
            finished::respond(view, task, &viewer, &again)
        })
        .await
    }

    /// What the shard answered, or what the archive does where the shard has no such task.
    async fn or_finished<T: Send + 'static>(
        &self,
        answer: Result<T, Fault>,
        look: impl FnOnce(&View) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        match (answer, &self.shared.archive) {
            (Err(fault), Some(archive)) if fault.reason == Reason::TaskNotFound => {
                archive.read(look).await
            }
            (answer, _) => answer,
        }
    }
}

/// A watch of a task to which nothing happens any more.
pub(super) fn over(task: pb::Task) -> Watching {
    let seq = task.last_seq;
    let marks = watch::Sender::new(Mark::at(seq, true)).subscribe();
    let transients = broadcast::Sender::new(1).subscribe();
    Watching {
        task,
        marks,
        transients,
    }
}
