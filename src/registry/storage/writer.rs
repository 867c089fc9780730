//! One thread that writes: jobs queue up, and all that wait share one durable commit.
//!
//! A commit takes milliseconds and blocks, so it is kept from the async threads; what follows from
//! it runs in the order of the commits, so memory never runs ahead of the disk.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use redb::{Database, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::StoreError;

/// Jobs that may wait; each waits for its answer, so this is how many callers do.
const QUEUE: usize = 1_024;
/// Jobs of one commit: bounds how much is lost at once when the disk fails.
const BATCH: usize = 256;

/// A change of the store on its way to the disk.
trait Job: Send {
    /// Makes the change within the transaction.
    fn run(&mut self, tx: &WriteTransaction) -> Result<(), StoreError>;
    /// Told how the commit went.
    fn done(self: Box<Self>, outcome: Result<(), StoreError>);
}

/// The thread, and the way to it.
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<thread::JoinHandle<()>>,
    failing: Arc<AtomicBool>,
}

impl Writer {
    /// Starts the thread over an open database.
    pub(super) fn start(database: Arc<Database>) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::channel(QUEUE);
        let failing = Arc::new(AtomicBool::new(false));
        let last = Arc::clone(&failing);
        let thread = thread::Builder::new()
            .name("registry-store".to_owned())
            .spawn(move || write_all(&database, inbox, &last))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            failing,
        })
    }

    /// Whether the disk did not take the last commit.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Commits what `work` changes, then runs `then` on the thread, and answers what it returns.
    /// A caller that goes away meanwhile changes nothing of that.
    pub(super) async fn write<R, T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<R, StoreError> + Send + 'static,
        then: impl FnOnce(R) -> T + Send + 'static,
    ) -> Result<T, StoreError>
    where
        R: Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Typed {
            work: Some(work),
            result: None,
            then,
            reply,
        };
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(Box::new(job))
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Commits what `work` changes some time soon; nobody waits. Left out when too much waits.
    pub(super) fn write_later(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(), StoreError> + Send + 'static,
    ) {
        let (reply, _nobody) = oneshot::channel();
        let job = Typed {
            work: Some(work),
            result: None,
            then: |()| (),
            reply,
        };
        let sent = self.jobs.as_ref().map(|jobs| jobs.try_send(Box::new(job)));
        if !matches!(sent, Some(Ok(()))) {
            tracing::debug!("the store is busy; a change of health is not kept on disk");
        }
    }
}

/// Writes what is queued, then ends the thread: the file is free when this returns.
impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's thread ended in a panic");
        }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

fn write_all(database: &Database, mut inbox: mpsc::Receiver<Box<dyn Job>>, failing: &AtomicBool) {
    while let Some(first) = inbox.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match inbox.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        let outcome = commit(database, &mut batch);
        let failed = matches!(outcome, Err(StoreError::Failed(_)));
        failing.store(failed, Ordering::Relaxed);
        for job in batch {
            job.done(outcome.clone());
        }
    }
}

/// All of the batch or nothing of it.
fn commit(database: &Database, batch: &mut [Box<dyn Job>]) -> Result<(), StoreError> {
    let tx = database.begin_write()?;
    for job in batch {
        job.run(&tx)?;
    }
    Ok(tx.commit()?)
}

struct Typed<W, R, A, T> {
    work: Option<W>,
    result: Option<R>,
    then: A,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<W, R, A, T> Job for Typed<W, R, A, T>
where
    W: FnOnce(&WriteTransaction) -> Result<R, StoreError> + Send,
    A: FnOnce(R) -> T + Send,
    R: Send,
    T: Send,
{
    fn run(&mut self, tx: &WriteTransaction) -> Result<(), StoreError> {
        if let Some(work) = self.work.take() {
            self.result = Some(work(tx)?);
        }
        Ok(())
    }

    fn done(self: Box<Self>, outcome: Result<(), StoreError>) {
        let then = self.then;
        let result = self.result;
        let answer = outcome.and_then(|()| {
            let result = result.ok_or_else(|| StoreError::Failed("a job did not run".to_owned()));
            result.map(then)
        });
        // Whoever asked may have gone; what is done is done.
        drop(self.reply.send(answer));
    }
}
