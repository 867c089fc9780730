//! The public handle, and the writer: what came in during the last sync goes into the next one.
//!
//! The writer is a step function ([`Writer::step`]), driven by one thread of its own or by a
//! simulation. Appending encodes straight into the buffer that the next write takes.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::pb::journal::Record;

use super::Lsn;
use super::disk::{Disk, RealDisk};
use super::error::JournalError;
use super::frame::{self, MAX_RECORD_BYTES};
use super::log::{Cut, Log};

/// Capacity that a buffer keeps between batches; a burst gives the rest back.
const KEPT_CAPACITY: usize = 4 << 20;
/// Smallest segment: below it, rotation would be all the work.
const MIN_SEGMENT_BYTES: u64 = 4 << 10;
/// Largest segment: one is read into memory at start.
const MAX_SEGMENT_BYTES: u64 = 256 << 20;
/// Most bytes that may wait: a batch has to fit into one segment file.
const MAX_PENDING_BYTES: usize = 256 << 20;
/// How long after a failed try the room of the next segment is asked for again.
const RESERVE_RETRY: Duration = Duration::from_secs(1);

/// Sizes of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalConfig {
    /// Length that a segment's file gets ahead of need, in bytes; 4 KiB to 256 MiB, 64 MiB by
    /// default. The directory takes two segments at least.
    pub segment_bytes: u64,
    /// Most bytes that may wait for a sync, in memory; 8 MiB (and a little) to 256 MiB, 64 MiB by
    /// default. Twice as much memory may be in use, since buffers grow by doubling.
    pub pending_bytes: usize,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            pending_bytes: 64 << 20,
        }
    }
}

/// How far the journal is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Synced {
    /// All records up to this one are on disk; 0: none.
    pub lsn: Lsn,
    /// A write or a sync failed: `lsn` will never move again, and the process must end.
    pub failed: bool,
}

/// Plain counters since the journal was opened.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct JournalStats {
    /// Records on disk.
    pub records: u64,
    /// Their bytes with frames.
    pub bytes: u64,
    /// Batches, each written and synced once.
    pub syncs: u64,
    /// Write and sync of the last batch.
    pub last_sync: Duration,
    /// Mean over all batches.
    pub mean_sync: Duration,
    /// Records in a batch, mean over all.
    pub mean_batch: f64,
    /// Bytes that wait for a sync now.
    pub pending_bytes: usize,
    /// Segments on disk.
    pub segments: usize,
    /// The disk has no room for the next segment: what is in work may be written on, new work
    /// should be refused until this clears, which it does by itself.
    pub low_space: bool,
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
        let log = Log::open(disk, segment_bytes, &mut replay)?;
        let shared = Arc::new(Shared::new(Kind::Disk, config.pending_bytes, log.next()));
        let inner = Inner {
            shared: Arc::clone(&shared),
            cut: log.cut().cloned(),
            thread: Mutex::default(),
        };
        let writer = Writer {
            log,
            shared,
            batch: Vec::new(),
            reserve_at: None,
            released: 0,
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            writer,
        ))
    }

    /// A journal without a disk: it encodes, numbers, and acknowledges at once.
    #[must_use]
    pub fn memory() -> Self {
        let pending_bytes = JournalConfig::default().pending_bytes;
        let shared = Arc::new(Shared::new(Kind::Memory, pending_bytes, 1));
        Self {
            inner: Arc::new(Inner {
                shared,
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
    /// [`MAX_RECORD_BYTES`], or all together over `pending_bytes`. `Failed`, `Closed`.
    pub fn append(&self, records: &[Record]) -> Result<Lsn, JournalError> {
        self.inner.shared.append(records)
    }

    /// Up to where everything is on disk. Changes once per sync, and at a failure.
    #[must_use]
    pub fn synced(&self) -> watch::Receiver<Synced> {
        self.inner.shared.synced.subscribe()
    }

    /// Whether a write or a sync failed: the process must end.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.inner.shared.synced.borrow().failed
    }

    /// No record below `first_needed` is needed any more: segments with only such records are
    /// deleted soon. It never moves back.
    pub fn release(&self, first_needed: Lsn) {
        let mut state = self.inner.shared.state.lock();
        if state.release < first_needed {
            state.release = first_needed;
            self.inner.shared.wake.notify_one();
        }
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

    /// Counters as of now.
    #[must_use]
    pub fn stats(&self) -> JournalStats {
        self.inner.shared.stats()
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
    shared: Arc<Shared>,
    cut: Option<Cut>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Inner {
    fn close(&self) {
        let mut state = self.shared.state.lock();
        if matches!(state.phase, Phase::Open) {
            state.phase = Phase::Closed;
        }
        drop(state);
        self.shared.wake.notify_one();
        // Held while joining, so that a second caller returns after the sync too.
        if let Some(thread) = self.thread.lock().take() {
            // A panic of the writer has set `failed` already.
            drop(thread.join());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the handles and the writer share.
#[derive(Debug)]
struct Shared {
    kind: Kind,
    /// Bound of `State::pending` and `State::in_flight` together.
    limit: usize,
    state: Mutex<State>,
    wake: Condvar,
    synced: watch::Sender<Synced>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Disk,
    Memory,
}

#[derive(Debug)]
enum Phase {
    Open,
    /// Takes nothing; what is pending is still written.
    Closed,
    Failed {
        cause: String,
    },
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Frames of the next batch.
    pending: Vec<u8>,
    /// Number of the first record in `pending`, where there is one.
    batch: Lsn,
    /// Number of the next record.
    next: Lsn,
    /// Bytes of the batch that is being written.
    in_flight: usize,
    release: Lsn,
    /// `mean_sync` holds the sum and the derived fields are unset; see `Shared::stats`.
    totals: JournalStats,
}

impl Shared {
    fn new(kind: Kind, pending_bytes: usize, next: Lsn) -> Self {
        // Every record of a legal size must fit, or its caller would try for ever.
        let limit = pending_bytes.clamp(frame::frame_len(MAX_RECORD_BYTES), MAX_PENDING_BYTES);
        let state = State {
            phase: Phase::Open,
            pending: Vec::new(),
            batch: next,
            next,
            in_flight: 0,
            release: 0,
            totals: JournalStats::default(),
        };
        let synced = watch::Sender::new(Synced {
            lsn: next - 1,
            failed: false,
        });
        Self {
            kind,
            limit,
            state: Mutex::new(state),
            wake: Condvar::new(),
            synced,
        }
    }

    fn append(&self, records: &[Record]) -> Result<Lsn, JournalError> {
        let bytes = self.measure(records)?;
        let mut state = self.state.lock();
        match &state.phase {
            Phase::Open => {}
            Phase::Closed => return Err(JournalError::Closed),
            Phase::Failed { cause } => {
                return Err(JournalError::Failed {
                    cause: cause.clone(),
                });
            }
        }
        let waiting = state.pending.len() + state.in_flight;
        if waiting + bytes > self.limit {
            return Err(JournalError::Full {
                pending: waiting,
                limit: self.limit,
            });
        }
        let State {
            pending,
            batch,
            next,
            ..
        } = &mut *state;
        if pending.is_empty() {
            *batch = *next;
        }
        for record in records {
            frame::push(pending, *next, *batch, record);
            *next += 1;
        }
        let last = state.next - 1;
        match self.kind {
            Kind::Disk => {
                drop(state);
                self.wake.notify_one();
            }
            Kind::Memory => {
                state.pending.clear();
                state
                    .totals
                    .count(records.len() as u64, bytes, Duration::ZERO);
                // Still under the lock, so that the number only grows.
                self.synced.send_replace(Synced {
                    lsn: last,
                    failed: false,
                });
            }
        }
        Ok(last)
    }

    /// Bytes of the records' frames.
    fn measure(&self, records: &[Record]) -> Result<usize, JournalError> {
        let mut sum = 0;
        for record in records {
            let bytes = record.encoded_len();
            if bytes > MAX_RECORD_BYTES {
                return Err(JournalError::TooLarge {
                    bytes,
                    limit: MAX_RECORD_BYTES,
                });
            }
            sum += frame::frame_len(bytes);
        }
        if sum > self.limit {
            return Err(JournalError::TooLarge {
                bytes: sum,
                limit: self.limit,
            });
        }
        Ok(sum)
    }

    fn stats(&self) -> JournalStats {
        let state = self.state.lock();
        let mut stats = state.totals;
        stats.pending_bytes = state.pending.len() + state.in_flight;
        drop(state);
        if stats.syncs > 0 {
            stats.mean_sync = stats.mean_sync.div_f64(stats.syncs as f64);
            stats.mean_batch = stats.records as f64 / stats.syncs as f64;
        }
        stats
    }

    /// Acknowledges nothing from here on. The first cause stays.
    fn fail(&self, cause: String) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Failed { .. }) {
            return;
        }
        tracing::error!(
            cause,
            "the journal failed, nothing is acknowledged any more"
        );
        state.phase = Phase::Failed { cause };
        state.pending = Vec::new();
        drop(state);
        self.synced.send_modify(|synced| synced.failed = true);
    }
}

impl JournalStats {
    fn count(&mut self, records: u64, bytes: usize, took: Duration) {
        self.records += records;
        self.bytes += bytes as u64;
        self.syncs += 1;
        self.last_sync = took;
        self.mean_sync += took;
    }
}

/// What a [`Writer::step`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was written, reserved or deleted; there may be more.
    Worked,
    /// Nothing to do before the next append or release, or before this time.
    Idle {
        /// When the disk is to be asked for room again.
        until: Option<Instant>,
    },
    /// Closed and all written, or failed: no step does anything any more.
    Stopped,
}

/// Writes what is queued. Dropped before it stopped, it fails the journal.
#[derive(Debug)]
pub struct Writer {
    log: Log,
    shared: Arc<Shared>,
    /// Swapped with `State::pending`.
    batch: Vec<u8>,
    /// After a failed try: when to reserve the next segment again.
    reserve_at: Option<Instant>,
    /// The `State::release` that the last step saw.
    released: Lsn,
}

impl Writer {
    /// Writes and syncs one batch, deletes at most one segment, and reserves the next one.
    pub fn step(&mut self, now: Instant) -> Step {
        match self.try_step(now) {
            Ok(step) => step,
            Err(error) => {
                self.shared.fail(error.to_string());
                Step::Stopped
            }
        }
    }

    fn try_step(&mut self, now: Instant) -> Result<Step, JournalError> {
        let (records, release) = {
            let mut state = self.shared.state.lock();
            if matches!(state.phase, Phase::Failed { .. }) {
                return Ok(Step::Stopped);
            }
            if state.pending.is_empty() && matches!(state.phase, Phase::Closed) {
                return Ok(Step::Stopped);
            }
            std::mem::swap(&mut state.pending, &mut self.batch);
            state.in_flight = self.batch.len();
            let records = if self.batch.is_empty() {
                0
            } else {
                state.next - state.batch
            };
            (records, state.release)
        };
        if records > 0 {
            self.write(records)?;
        }
        self.released = release;
        let released = self.log.release(release)?;
        let reserved = self.reserve(now);
        let mut state = self.shared.state.lock();
        state.totals.segments = self.log.segments();
        state.totals.low_space = !self.log.reserved();
        Ok(match records > 0 || released || reserved {
            true => Step::Worked,
            false => Step::Idle {
                until: self.reserve_at,
            },
        })
    }

    fn write(&mut self, records: u64) -> Result<(), JournalError> {
        let bytes = self.batch.len();
        let start = Instant::now();
        self.log.append(&mut self.batch, records)?;
        let took = start.elapsed();
        self.batch.clear();
        self.batch.shrink_to(KEPT_CAPACITY);
        let mut state = self.shared.state.lock();
        state.in_flight = 0;
        state.totals.count(records, bytes, took);
        drop(state);
        let lsn = self.log.next() - 1;
        self.shared
            .synced
            .send_replace(Synced { lsn, failed: false });
        self.log.mark()
    }

    /// Whether the next segment was reserved. A full disk is no failure while the active segment
    /// has room.
    fn reserve(&mut self, now: Instant) -> bool {
        if self.log.reserved() || self.reserve_at.is_some_and(|at| now < at) {
            return false;
        }
        match self.log.reserve() {
            Ok(()) => self.reserve_at = None,
            Err(error) => {
                tracing::warn!(%error, "no room for the next segment of the journal");
                self.reserve_at = Some(now + RESERVE_RETRY);
            }
        }
        self.log.reserved()
    }

    /// Body of the writer's thread.
    fn run(mut self) {
        loop {
            match self.step(Instant::now()) {
                Step::Worked => {}
                Step::Idle { until } => self.wait(until),
                Step::Stopped => return,
            }
        }
    }

    fn wait(&self, until: Option<Instant>) {
        let mut state = self.shared.state.lock();
        let idle = |state: &mut State| {
            state.pending.is_empty()
                && matches!(state.phase, Phase::Open)
                && state.release == self.released
        };
        match until {
            Some(until) => {
                let limit = until.saturating_duration_since(Instant::now());
                self.shared.wake.wait_while_for(&mut state, idle, limit);
            }
            None => self.shared.wake.wait_while(&mut state, idle),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let state = self.shared.state.lock();
        let stopped = match state.phase {
            Phase::Open => false,
            Phase::Closed => state.pending.is_empty() && state.in_flight == 0,
            Phase::Failed { .. } => true,
        };
        drop(state);
        if !stopped {
            self.shared
                .fail("its writer ended before it was closed".to_owned());
        }
    }
}
