//! The public handle: open, append, follow, close. It never waits for the disk but to close.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::pb::journal::Record;
use crate::runtime::watch;
use crate::telemetry::metrics::Histogram;

use super::Lsn;
use super::blobs::{Blob, Blobs, Store};
use super::disk::{Disk, RealDisk};
use super::error::JournalError;
use super::log::{Cut, Log};
use super::queue::{JournalStats, Kind, Queue, Segments, Synced};
use super::writer::Writer;

/// Smallest segment: below it, rotation would be all the work.
pub(super) const MIN_SEGMENT_BYTES: u64 = 4 << 10;
/// Largest segment: one is read into memory at start.
pub(super) const MAX_SEGMENT_BYTES: u64 = 256 << 20;

/// Sizes of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalConfig {
    /// Length that a segment's file gets ahead of need, in bytes; 4 KiB to 256 MiB, 64 MiB by
    /// default. The directory takes two segments at least.
    pub segment_bytes: u64,
    /// Most bytes that may wait for a sync, in memory; 8 MiB (and a little) to 256 MiB, 64 MiB by
    /// default. Twice as much memory may be in use, since buffers grow by doubling.
    pub pending_bytes: usize,
    /// Bytes that must stay free on the disk; below it [`Journal::low_space`] says so. 0: never
    /// looked at; 256 MiB by default.
    pub disk_reserve: u64,
    /// Content of more bytes than this stands beside the log, once, and is named by its hash; 64 KiB
    /// by default.
    pub large_bytes: usize,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            pending_bytes: 64 << 20,
            disk_reserve: 256 << 20,
            large_bytes: 64 << 10,
        }
    }
}

/// Handle of the journal; clones are the same journal. The last one to go closes it.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

impl Journal {
    /// Opens or creates `dir`, gives every whole record in order to `replay`, and starts the
    /// writer's thread. After an error `replay` may have seen the first records.
    ///
    /// # Errors
    /// `Locked`, `NewerFormat`, `Damaged`, `Io`.
    pub fn open(
        dir: &Path,
        config: JournalConfig,
        replay: impl FnMut(Lsn, Record),
    ) -> Result<Self, JournalError> {
        let disk = Box::new(RealDisk::open(dir)?);
        let (journal, writer) = Self::on_disk(disk, config, replay)?;
        if let Some(Cut {
            file,
            offset,
            bytes,
        }) = journal.cut()
        {
            tracing::warn!(
                file,
                offset,
                bytes,
                "cut a torn tail that was never acknowledged"
            );
        }
        let thread = std::thread::Builder::new().name("journal".to_owned());
        let thread = thread.spawn(move || writer.run());
        let thread = thread.map_err(JournalError::io("start the writer of", "the journal"))?;
        if let Some(blobs) = journal.blobs() {
            blobs.start()?;
        }
        *journal.inner.thread.lock() = Some(thread);
        Ok(journal)
    }

    /// The same on any [`Disk`], and without the thread: the caller drives the writer.
    ///
    /// # Errors
    /// `NewerFormat`, `Damaged`, `Io`.
    pub fn on_disk(
        disk: Box<dyn Disk>,
        config: JournalConfig,
        mut replay: impl FnMut(Lsn, Record),
    ) -> Result<(Self, Writer), JournalError> {
        let segment_bytes = config
            .segment_bytes
            .clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES);
        let disk: Arc<dyn Disk> = disk.into();
        let log = Log::open(disk.clone(), segment_bytes, &mut replay)?;
        let worth = 4 * config.large_bytes as u64;
        let store = Arc::new(Store::open(disk, worth)?);
        let queue = Arc::new(Queue::new(Kind::Disk, config.pending_bytes, log.next()));
        let inner = Inner {
            queue: Arc::clone(&queue),
            blobs: Some(Blobs::new(store.clone(), queue.clone(), config.large_bytes)),
            cut: log.cut().cloned(),
            thread: Mutex::default(),
        };
        let writer = Writer::new(log, store, queue, config.disk_reserve);
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            writer,
        ))
    }

    /// A journal without a disk: it numbers what it gets, keeps nothing, and acknowledges at once.
    #[must_use]
    pub fn memory() -> Self {
        let pending_bytes = JournalConfig::default().pending_bytes;
        let queue = Arc::new(Queue::new(Kind::Memory, pending_bytes, 1));
        Self {
            inner: Arc::new(Inner {
                queue,
                blobs: None,
                cut: None,
                thread: Mutex::default(),
            }),
        }
    }

    /// Encodes and queues `records` in one piece; the number of the last one (of the last one
    /// before, if there are none). Never waits for the disk. After a crash a first part of them
    /// may be there without the rest.
    ///
    /// # Errors
    /// Nothing was taken then. `Full`: too many bytes wait. `TooLarge`: a record is over
    /// [`MAX_RECORD_BYTES`](super::MAX_RECORD_BYTES), or all together over `pending_bytes`. `Failed`, `Closed`.
    pub fn append(&self, records: &[Record]) -> Result<Lsn, JournalError> {
        self.inner.queue.append(records, &[])
    }

    /// The same for records that name these contents by their hashes: those are on disk before the
    /// first of the records is. They count among the bytes that wait.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn append_with(&self, records: &[Record], blobs: &[Blob]) -> Result<Lsn, JournalError> {
        self.inner.queue.append(records, blobs)
    }

    /// The large contents beside it; `None`: it has no disk.
    #[must_use]
    pub fn blobs(&self) -> Option<&Blobs> {
        self.inner.blobs.as_ref()
    }

    /// Up to where everything is on disk. Changes once per sync, and at a failure.
    #[must_use]
    pub fn synced(&self) -> watch::Receiver<Synced> {
        self.inner.queue.synced.subscribe()
    }

    /// Whether a write or a sync failed: the process must end.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.inner.queue.synced.borrow().failed
    }

    /// No record below `first_needed` is needed any more: segments with only such records are
    /// deleted soon. It never moves back.
    pub fn release(&self, first_needed: Lsn) {
        self.inner.queue.release(first_needed);
    }

    /// Syncs what is queued, ends the thread (waiting for it), and gives the directory free.
    /// Nothing is taken any more. May be called again.
    pub fn close(&self) {
        self.inner.close();
    }

    /// The torn tail that opening cut off, if there was one.
    #[must_use]
    pub fn cut(&self) -> Option<&Cut> {
        self.inner.cut.as_ref()
    }

    /// How long its syncs took, and how many records each of them put on disk.
    #[must_use]
    pub fn timing(&self) -> (&Histogram, &Histogram) {
        let timing = &self.inner.queue.timing;
        (&timing.syncs, &timing.batches)
    }

    /// Whether the disk is nearly full, as of the last second: see [`JournalStats::low_space`].
    /// One atomic load.
    #[must_use]
    pub fn low_space(&self) -> bool {
        self.inner.queue.low_space.load(Ordering::Relaxed)
    }

    /// Whether the next segment could not be reserved, or records wait for room: the room that is
    /// left is for the ends of what runs. Never without [`low_space`](Self::low_space). One atomic
    /// load.
    #[must_use]
    pub fn no_space(&self) -> bool {
        self.inner.queue.no_space.load(Ordering::Relaxed)
    }

    /// Where its segments begin, as of the writer's last step; none without a disk.
    #[must_use]
    pub fn segments(&self) -> Segments {
        self.inner.queue.state.lock().segments.clone()
    }

    /// Counters as of now.
    #[must_use]
    pub fn stats(&self) -> JournalStats {
        self.inner.queue.stats()
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// What the handles own together.
struct Inner {
    queue: Arc<Queue>,
    blobs: Option<Blobs>,
    cut: Option<Cut>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Inner {
    fn close(&self) {
        self.queue.close();
        // Held while joining, so that a second caller returns after the sync too.
        if let Some(thread) = self.thread.lock().take() {
            // A panic of the writer has set `failed` already.
            drop(thread.join());
            if let Some(blobs) = &self.blobs {
                blobs.close();
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}
