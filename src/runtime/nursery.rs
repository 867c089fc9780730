//! Tasks with an owner: started here, told to stop, waited for, and at last aborted.

use std::{fmt, future::Future, time::Duration};

use tokio::{runtime::Handle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Tells a task that its nursery closes.
pub type Stop = CancellationToken;

/// Owns every task started in it, on one runtime.
#[derive(Clone)]
pub struct Nursery {
    handle: Handle,
    tasks: TaskTracker,
    stop: Stop,
    cut: Stop,
}

impl Nursery {
    /// An empty nursery whose tasks run on `handle`'s runtime.
    pub fn on(handle: Handle) -> Self {
        Self {
            handle,
            tasks: TaskTracker::new(),
            stop: Stop::new(),
            cut: Stop::new(),
        }
    }

    /// An empty nursery on the runtime of the calling task.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn here() -> Self {
        Self::on(Handle::current())
    }

    /// Starts a task that ends by itself or soon after `stop`.
    pub fn start<F>(&self, name: &'static str, task: impl FnOnce(Stop) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.adopt(name, task(self.stop.clone()));
    }

    /// Starts a future that needs no word of the stop; cut at the end of the grace.
    pub fn adopt(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let cut = self.cut.clone();
        // A task's future is moved some five times on its way into the runtime and out of it, and
        // ours are large: boxed, only a pointer is.
        let task = Box::pin(task);
        // Dropping the handle detaches the task from its caller; the tracker still counts it.
        drop(self.tasks.spawn_on(
            async move {
                tokio::select! {
                    biased;
                    () = cut.cancelled() => tracing::debug!(task = name, "cut"),
                    () = task => {}
                }
            },
            &self.handle,
        ));
    }

    /// The token that tells this nursery's tasks to stop.
    pub fn stop_token(&self) -> Stop {
        self.stop.clone()
    }

    /// The runtime that the tasks run on.
    pub fn runtime(&self) -> &Handle {
        &self.handle
    }

    /// How many tasks run.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether no task runs.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Tells every task to stop, waits up to `grace`, then cuts what is left.
    pub async fn close(&self, grace: Duration) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(grace, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                left = self.tasks.len(),
                "tasks did not stop within their grace"
            );
            self.cut.cancel();
            self.tasks.wait().await;
        }
    }

    /// Cuts every task at its next await.
    pub async fn abort(&self) {
        self.close(Duration::ZERO).await;
    }
}

impl fmt::Debug for Nursery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nursery")
            .field("tasks", &self.tasks.len())
            .finish_non_exhaustive()
    }
}

/// hyper's HTTP/2 connections start their streams through it, so that they are owned too.
impl<F> hyper::rt::Executor<F> for Nursery
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        self.adopt("http2", async move {
            drop(task.await);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn polite_tasks_stop_and_the_others_are_cut() {
        let nursery = Nursery::here();
        nursery.start("polite", |stop| async move { stop.cancelled().await });
        nursery.adopt("stubborn", std::future::pending());
        assert_eq!(nursery.len(), 2);
        nursery.close(Duration::from_secs(1)).await;
        assert!(nursery.is_empty());
    }
}
