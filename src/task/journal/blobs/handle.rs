//! The public handle: who names what, and reading. It never waits for the disk on a caller's thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::task::journal::error::JournalError;
use crate::task::journal::queue::Queue;

use super::hash::{Blob, Hash};
use super::names::{Holder, Place};
use super::recent::Recent;
use super::store::{BlobError, Store};

/// Reads that may wait; who asks waits beyond it.
const QUEUE: usize = 64;

/// A content that is asked for, and where it goes; `None`: nobody asks any more.
type Question = Option<(Hash, oneshot::Sender<Result<Bytes, BlobError>>)>;

/// How contents are read.
#[derive(Debug)]
enum Reading {
    /// By a thread of their own.
    Thread(mpsc::Sender<Question>),
    /// At once, on the thread of who asks: for a disk that is in memory.
    Here,
    /// Not any more.
    Closed,
}

/// Plain counters, as of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlobStats {
    /// Contents that somebody names, each once.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of all packs: what it takes on disk.
    pub disk_bytes: u64,
    /// Contents that nobody named any more, since the start.
    pub collected: u64,
    /// Packs removed since the start.
    pub removed: u64,
    /// What did not check when it was read, since the start.
    pub damaged: u64,
    /// Bytes in memory of what was last used.
    pub recent_bytes: usize,
}

/// Handle of the contents beside a log; clones are the same.
#[derive(Clone)]
pub struct Blobs {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    queue: Arc<Queue>,
    reading: Mutex<Reading>,
    recent: Mutex<Recent>,
    /// Contents of more bytes than this stand here.
    large: usize,
    /// Number of the next reader.
    readers: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Keeps a content for somebody who reads it, until dropped.
pub struct Pin {
    blobs: Blobs,
    holder: Holder,
}

impl Blobs {
    pub(in crate::task::journal) fn new(
        store: Arc<Store>,
        queue: Arc<Queue>,
        large: usize,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                queue,
                reading: Mutex::new(Reading::Here),
                recent: Mutex::default(),
                large,
                readers: AtomicU64::default(),
                thread: Mutex::default(),
            }),
        }
    }

    /// From here on a thread reads.
    pub(in crate::task::journal) fn start(&self) -> Result<(), JournalError> {
        let (ask, mut asked) = mpsc::channel::<Question>(QUEUE);
        let store = self.inner.store.clone();
        let thread = thread::Builder::new().name("journal-reader".to_owned());
        let thread = thread.spawn(move || {
            while let Some(Some((hash, answer))) = asked.blocking_recv() {
                // Whoever asked may be gone: then nothing is read.
                if !answer.is_closed() {
                    drop(answer.send(store.read(hash)));
                }
            }
        });
        let thread = thread.map_err(JournalError::io("start the reader of", "the journal"))?;
        *self.inner.thread.lock() = Some(thread);
        *self.inner.reading.lock() = Reading::Thread(ask);
        Ok(())
    }

    /// Contents of more bytes than this stand here.
    #[must_use]
    pub fn large(&self) -> usize {
        self.inner.large
    }

    /// From here on `holder` names these: they are kept until it lets go. Must be said before the
    /// record that names them is appended.
    pub fn hold(&self, holder: Holder, hashes: impl IntoIterator<Item = Hash>) {
        let mut shelf = self.inner.store.shelf.lock();
        for hash in hashes {
            shelf.hold(holder, hash);
        }
    }

    /// `holder` names nothing any more, on disk either; what nobody does goes soon.
    pub fn let_go(&self, holder: Holder) {
        let gone = self.inner.store.shelf.lock().let_go(holder);
        self.collected(gone);
    }

    /// Whoever names something after a start has said so: what nobody does may go.
    pub fn settle(&self) {
        let gone = self.inner.store.shelf.lock().settle();
        self.collected(gone);
        // Also packs that hold nothing that is known.
        self.inner.queue.stir();
    }

    /// Keeps a content while it is read; `None`: nobody names it any more.
    #[must_use]
    pub fn pin(&self, hash: Hash) -> Option<Pin> {
        let mut shelf = self.inner.store.shelf.lock();
        if !shelf.named(hash) {
            return None;
        }
        let number = self.inner.readers.fetch_add(1, Ordering::Relaxed);
        let holder = Holder::Reader(number);
        shelf.hold(holder, hash);
        drop(shelf);
        let blobs = self.clone();
        Some(Pin { blobs, holder })
    }

    /// What a task has just had written: it is mostly read soon.
    pub fn keep_recent(&self, task: Uuid, blob: &Blob) {
        let mut recent = self.inner.recent.lock();
        recent.keep(task, blob.hash, blob.bytes.clone());
    }

    /// A content that `task` names, checked. Whether it does is for the caller to know.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub async fn load(&self, task: Uuid, hash: Hash) -> Result<Bytes, BlobError> {
        if let Some(found) = self.inner.recent.lock().find(task, hash) {
            return Ok(found);
        }
        let ask = match &*self.inner.reading.lock() {
            Reading::Closed => return Err(BlobError::Closed),
            Reading::Thread(ask) => Some(ask.clone()),
            Reading::Here => None,
        };
        let read = match ask {
            None => self.inner.store.read(hash)?,
            Some(ask) => {
                let (answer, answered) = oneshot::channel();
                let asked = ask.send(Some((hash, answer))).await;
                asked.map_err(|_| BlobError::Closed)?;
                drop(ask);
                answered.await.map_err(|_| BlobError::Closed)??
            }
        };
        let mut recent = self.inner.recent.lock();
        recent.keep(task, hash, read.clone());
        Ok(read)
    }

    /// Bytes that its files take on disk.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.inner.store.shelf.lock().disk()
    }

    /// Counters as of now.
    #[must_use]
    pub fn stats(&self) -> BlobStats {
        let store = &self.inner.store;
        let (blobs, bytes, disk_bytes) = store.shelf.lock().sums();
        BlobStats {
            blobs,
            bytes,
            disk_bytes,
            collected: store.collected.load(Ordering::Relaxed),
            removed: store.removed.load(Ordering::Relaxed),
            damaged: store.damaged.load(Ordering::Relaxed),
            recent_bytes: self.inner.recent.lock().bytes(),
        }
    }

    /// Reads nothing any more, ends the thread (waiting for it), and gives the directory free.
    pub(in crate::task::journal) fn close(&self) {
        let reading = std::mem::replace(&mut *self.inner.reading.lock(), Reading::Closed);
        if let Reading::Thread(ask) = reading {
            // Not by letting go of the channel: whoever waits for room in it, and is not polled any
            // more, holds on to it.
            while let Err(mpsc::error::TrySendError::Full(_)) = ask.try_send(None) {
                thread::yield_now();
            }
        }
        if let Some(thread) = self.inner.thread.lock().take() {
            // A panic has been told of where it was.
            drop(thread.join());
        }
        self.inner.store.close();
    }

    fn collected(&self, gone: usize) {
        if gone > 0 {
            let collected = &self.inner.store.collected;
            collected.fetch_add(gone as u64, Ordering::Relaxed);
            self.inner.queue.stir();
        }
    }
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blobs")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.blobs.let_go(self.holder);
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin of {:?}", self.holder)
    }
}

impl Holder {
    /// A task in memory and log.
    #[must_use]
    pub fn in_log(task: Uuid) -> Self {
        Self::Task(Place::Log, task)
    }

    /// A task in the archive.
    #[must_use]
    pub fn in_archive(task: Uuid) -> Self {
        Self::Task(Place::Archive, task)
    }
}
