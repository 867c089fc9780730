//! One attempt of a task: runs the work inside the stream of updates that it feeds.
//!
//! No task is spawned. The sidecar polls the stream, the stream polls the work; when the sidecar
//! resets the stream (cancelled, deadline passed), the work is dropped with it at its next await.

use std::future::{Future, ready};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Code, Response};

use crate::pb::handle_response::Update;
use crate::pb::{Failure, HandleResponse, Part, Progress, TaskResult};

/// Updates waiting for the sidecar; when it reads slower than this, the work waits.
const BACKLOG: usize = 16;

/// What `Handler.Handle` answers with.
pub type Updates = BoxStream<HandleResponse>;

/// Where the work says how far it is.
#[derive(Debug, Clone)]
pub struct Outbox(mpsc::Sender<Update>);

impl Outbox {
    /// Says how far the work is: `fraction` from 0 to 1, a word for the stage, a sentence.
    pub async fn progress(&self, fraction: f64, stage: &str, message: impl Into<String>) {
        self.send(Update::Progress(Progress {
            fraction: Some(fraction),
            message: message.into(),
            stage: stage.to_owned(),
        }))
        .await;
    }

    async fn send(&self, update: Update) {
        // Nobody reads any more: the work is about to be dropped, and there is no one to tell.
        drop(self.0.send(update).await);
    }
}

/// Answers `Handle` with the updates of `work`, the last of which is what `work` returns.
pub fn run<F>(work: impl FnOnce(Outbox) -> F) -> Response<Updates>
where
    F: Future<Output = Update> + Send + 'static,
{
    let (sender, updates) = mpsc::channel(BACKLOG);
    let outbox = Outbox(sender);
    let work = work(outbox.clone());
    // The last update goes through the same queue as the others, so it cannot overtake them.
    let driver = async move { outbox.send(work.await).await };
    let silent = driver.into_stream().filter_map(|()| ready(None));
    let spoken = ReceiverStream::new(updates).map(|update| {
        Ok(HandleResponse {
            update: Some(update),
        })
    });
    Response::new(Box::pin(stream::select(spoken, silent)))
}

/// The work came to this.
#[must_use]
pub fn result(parts: Vec<Part>) -> Update {
    Update::Result(TaskResult {
        parts,
        artifact_ids: Vec::new(),
    })
}

/// The work could not be done. `reason` is a stable UPPER_SNAKE word, `message` says what to do.
#[must_use]
pub fn failure(reason: &str, code: Code, message: impl Into<String>) -> Update {
    Update::Failure(described(reason, code, message))
}

/// The request is not one this agent takes: nothing was started, and a retry will not help.
#[must_use]
pub fn rejection(reason: &str, message: impl Into<String>) -> Update {
    Update::Rejection(described(reason, Code::InvalidArgument, message))
}

fn described(reason: &str, code: Code, message: impl Into<String>) -> Failure {
    Failure {
        reason: reason.to_owned(),
        message: message.into(),
        code: i32::from(code),
        retryable: false,
        details: None,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn the_last_update_comes_after_all_others_however_many() {
        let updates = run(|outbox| async move {
            for step in 0..BACKLOG * 3 {
                outbox.progress(0.5, "counting", step.to_string()).await;
            }
            result(vec![])
        });
        let all: Vec<_> = updates.into_inner().collect().await;
        assert_eq!(all.len(), BACKLOG * 3 + 1);
        for (step, update) in all[..BACKLOG * 3].iter().enumerate() {
            let Some(Update::Progress(progress)) = &update.as_ref().unwrap().update else {
                panic!("update {step} is no progress: {update:?}");
            };
            assert_eq!(progress.message, step.to_string());
        }
        let last = all.last().unwrap().as_ref().unwrap();
        assert!(matches!(last.update, Some(Update::Result(_))), "{last:?}");
    }

    #[tokio::test]
    async fn dropping_the_stream_drops_the_work() {
        let (alive, mut gone) = mpsc::channel::<()>(1);
        let mut updates = run(move |outbox| async move {
            let _alive = alive;
            outbox.progress(0.1, "hanging", "").await;
            pending::<Update>().await
        })
        .into_inner();
        updates.next().await.unwrap().unwrap();
        drop(updates);
        assert_eq!(gone.recv().await, None, "the work still holds its end");
    }
}
