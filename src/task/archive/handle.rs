//! The public handle: put, read, close. It never waits for the disk but to close.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::runtime::clock;
use crate::task::journal::blobs::Blobs;

use super::error::{ArchiveError, failed};
use super::reader::{self, Question, answer_all};
use super::row::Row;
use super::slot::{Opener, Slot};
use super::store;
use super::view::View;
use super::writer::{self, Names, Put, Write, Writer};

/// Most finished tasks in the archive, the oldest go first: a list that nobody narrows walks over
/// all of them, in seconds.
const MOST_TASKS: u64 = 1_000_000;
/// Most bytes of them: what a sidecar beside its agent may fill of the disk without being asked.
/// The file may be larger by half, since freed pages stay in it.
const MOST_BYTES: u64 = 2 << 30;

/// What is kept, and where.
#[derive(Clone, Debug)]
pub struct ArchiveConfig {
    /// The file; made where it is missing, readable for its owner only.
    pub path: PathBuf,
    /// How long a task is kept after its end.
    pub retention: Duration,
    /// Most tasks that are kept.
    pub most_tasks: u64,
    /// Most bytes that are kept, of tasks and events.
    pub most_bytes: u64,
}

impl ArchiveConfig {
    /// The archive in this file with the default bounds.
    pub fn new(path: PathBuf, retention: Duration) -> Self {
        Self {
            path,
            retention,
            most_tasks: MOST_TASKS,
            most_bytes: MOST_BYTES,
        }
    }

    pub(super) fn file(&self) -> String {
        self.path.display().to_string()
    }
}

/// Plain counters, as of now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveStats {
    /// Tasks in the archive.
    pub tasks: u64,
    /// Their bytes, with events; about what they take of the file.
    pub bytes: u64,
    /// Tasks taken in since the start.
    pub moved: u64,
    /// Tasks let go of since the start.
    pub retired: u64,
    /// Failed writes and openings since the start.
    pub failures: u64,
    /// Why the last one failed; `None` since an opening after it went well.
    pub last_error: Option<ArchiveError>,
}

/// Handle of the archive; clones are the same. The last one to go closes it.
#[derive(Clone)]
pub struct Archive {
    inner: Arc<Inner>,
}

impl Archive {
    /// Starts the threads; the file is opened by one of them. `home` is whose tasks they are.
    ///
    /// # Errors
    /// When a thread cannot be started. A file that cannot be opened is told by
    /// [`Archive::stats`], and tried again with each write.
    pub fn start(config: ArchiveConfig, home: &str) -> Result<Self, ArchiveError> {
        let (path, home) = (config.path.clone(), home.to_owned());
        Self::with(config, Box::new(move || store::open(&path, &home)))
    }

    pub(super) fn with(config: ArchiveConfig, opener: Opener) -> Result<Self, ArchiveError> {
        let stats = Arc::new(Mutex::new(ArchiveStats::default()));
        let slot = Arc::new(Slot::new());
        let (writes, inbox) = mpsc::channel(writer::QUEUE);
        let (questions, asked) = mpsc::channel(reader::QUEUE);
        let path = config.path.clone();
        let names = Arc::<Mutex<Names>>::default();
        let writer = Writer {
            opener,
            slot: Arc::clone(&slot),
            config,
            stats: Arc::clone(&stats),
            names: Arc::clone(&names),
            writes: inbox,
        };
        let writing = thread("archive", move || writer.run())?;
        let reading = thread("archive-reader", move || answer_all(&slot, asked))?;
        let inner = Inner {
            ways: Mutex::new(Some(Ways { writes, questions })),
            threads: Mutex::new(vec![reading, writing]),
            stats,
            names,
            path,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// From here on `blobs` is told what large contents its tasks name; what nobody does may go once it
    /// has heard of all that are there, which takes until the file is open. To be said before tasks
    /// are taken in.
    pub fn names(&self, blobs: &Blobs) {
        self.inner.names.lock().blobs = Some(blobs.clone());
        // Busy: the next write says it.
        drop(self.retire(clock::wall()));
    }

    /// Takes tasks in, as of `now`; `done` is called on the archive's thread once they are durable,
    /// or are not. Never waits.
    ///
    /// # Errors
    /// `Busy`, `Closed`: nothing was taken, and `done` is dropped.
    pub fn put(
        &self,
        rows: impl Iterator<Item = Row> + Send + 'static,
        now: SystemTime,
        done: impl FnOnce(Result<(), ArchiveError>) + Send + 'static,
    ) -> Result<(), ArchiveError> {
        let put = Put {
            rows: Box::new(rows),
            done: Box::new(done),
        };
        let rows = Some(put);
        self.write(Write { now, rows })
    }

    /// Lets go of what is too old at `now`, soon. Never waits.
    ///
    /// # Errors
    /// `Busy`, `Closed`.
    pub fn retire(&self, now: SystemTime) -> Result<(), ArchiveError> {
        self.write(Write { now, rows: None })
    }

    /// What `look` finds, on the archive's thread; it must read a bounded piece.
    ///
    /// # Errors
    /// Those of `look`; `Failed`, `Closed`.
    pub async fn read<T, E>(
        &self,
        look: impl FnOnce(&View) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<ArchiveError> + Send + 'static,
    {
        let questions = {
            let ways = self.inner.ways.lock();
            ways.as_ref().map(|ways| ways.questions.clone())
        };
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |view| {
            drop(answer.send(view.map_err(E::from).and_then(look)));
        });
        let asked = questions.ok_or(ArchiveError::Closed)?.send(question).await;
        asked.map_err(|_| ArchiveError::Closed)?;
        answered
            .await
            .map_err(|_| failed("a read gave up: the file is damaged"))?
    }

    /// Counters as of now.
    pub fn stats(&self) -> ArchiveStats {
        self.inner.stats.lock().clone()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Writes what was taken, ends the threads (waiting for them), and gives the file free. May be
    /// called again.
    pub fn close(&self) {
        self.inner.close();
    }

    fn write(&self, write: Write) -> Result<(), ArchiveError> {
        let ways = self.inner.ways.lock();
        let writes = ways.as_ref().map(|ways| &ways.writes);
        match writes.ok_or(ArchiveError::Closed)?.try_send(write) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(ArchiveError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(ArchiveError::Closed),
        }
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// What the handles own together.
struct Inner {
    ways: Mutex<Option<Ways>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stats: Arc<Mutex<ArchiveStats>>,
    names: Arc<Mutex<Names>>,
    path: PathBuf,
}

/// The ways to the threads; without them they end.
struct Ways {
    writes: mpsc::Sender<Write>,
    questions: mpsc::Sender<Question>,
}

impl Inner {
    fn close(&self) {
        drop(self.ways.lock().take());
        // Held while joining, so that a second caller returns after the end too.
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the archive ended in a panic");
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

fn thread(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, ArchiveError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| failed(format!("cannot start the thread {name}: {error}")))
}
