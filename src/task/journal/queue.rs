//! What the handles and the writer share: records that wait for the disk, and how far it is.
//!
//! A record is encoded straight into the buffer that the next write takes. Refused is what does
//! not fit, and everything after a failure or after closing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use prost::Message;

use crate::pb::journal::Record;
use crate::runtime::watch;
use crate::telemetry::metrics::Histogram;

use super::Lsn;
use super::blobs::Blob;
use super::error::JournalError;
use super::frame::{self, MAX_RECORD_BYTES};

/// Most bytes that may wait: a batch has to fit into one segment file.
const MAX_PENDING_BYTES: usize = 256 << 20;

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
    /// The disk has less free than its reserve, or no room for the next segment: what is in work
    /// is written on, new work should be refused until this clears, which it does by itself. If
    /// the last segment fills up first, records wait for room.
    pub low_space: bool,
    /// Bytes that the disk had free when it was last looked at, at most a second ago; `None`: it
    /// is not looked at.
    pub free_bytes: Option<u64>,
}

/// Where the log's segments begin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segments {
    /// First record of each, the oldest first; the last one is written to.
    pub firsts: Vec<Lsn>,
    /// Length that each takes on disk, about.
    pub bytes: u64,
}

/// What the handles and the writer share.
#[derive(Debug)]
pub(super) struct Queue {
    kind: Kind,
    /// Bound of `State::pending` and `State::in_flight` together.
    limit: usize,
    pub(super) state: Mutex<State>,
    pub(super) wake: Condvar,
    /// The same for a writer that is driven by a task.
    #[cfg(test)]
    pub(super) driven: tokio::sync::Notify,
    /// See [`JournalStats::low_space`].
    pub(super) low_space: AtomicBool,
    /// See [`Journal::no_space`](super::Journal::no_space).
    pub(super) no_space: AtomicBool,
    pub(super) synced: watch::Sender<Synced>,
    pub(super) timing: Timing,
}

/// How long syncs took, and how much each of them put on disk.
#[derive(Debug)]
pub(super) struct Timing {
    pub(super) syncs: Histogram,
    pub(super) batches: Histogram,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Disk,
    Memory,
}

#[derive(Debug)]
pub(super) enum Phase {
    Open,
    /// Takes nothing; what is pending is still written.
    Closed,
    Failed {
        cause: String,
    },
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// Frames of the next batch.
    pub(super) pending: Vec<u8>,
    /// Contents that its records name, to be written before it.
    pub(super) blobs: Vec<Blob>,
    /// Number of the first record in `pending`, where there is one.
    pub(super) batch: Lsn,
    /// Number of the next record.
    pub(super) next: Lsn,
    /// There may be something to tidy up.
    pub(super) stirred: bool,
    /// Bytes of the batch that is being written, and of its contents.
    pub(super) in_flight: usize,
    pub(super) release: Lsn,
    pub(super) segments: Segments,
    /// `mean_sync` holds the sum and the derived fields are unset; see `Queue::stats`.
    pub(super) totals: JournalStats,
}

impl Queue {
    pub(super) fn new(kind: Kind, pending_bytes: usize, next: Lsn) -> Self {
        // Every record of a legal size must fit, or its caller would try for ever.
        let limit = pending_bytes.clamp(frame::frame_len(MAX_RECORD_BYTES), MAX_PENDING_BYTES);
        let state = State {
            phase: Phase::Open,
            pending: Vec::new(),
            blobs: Vec::new(),
            batch: next,
            next,
            stirred: false,
            in_flight: 0,
            release: 0,
            segments: Segments::default(),
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
            #[cfg(test)]
            driven: tokio::sync::Notify::new(),
            low_space: AtomicBool::new(false),
            no_space: AtomicBool::new(false),
            synced,
            timing: Timing {
                syncs: Histogram::syncs(),
                batches: Histogram::batches(),
            },
        }
    }

    pub(super) fn append(&self, records: &[Record], blobs: &[Blob]) -> Result<Lsn, JournalError> {
        let bytes = self.measure(records, blobs)?;
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
        let waiting = state.waiting();
        if waiting + bytes > self.limit {
            return Err(JournalError::Full {
                pending: waiting,
                limit: self.limit,
            });
        }
        if self.kind == Kind::Disk {
            state.blobs.extend_from_slice(blobs);
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
        let last = *next + records.len() as u64 - 1;
        match self.kind {
            Kind::Disk => {
                for (lsn, record) in (*next..).zip(records) {
                    frame::push(pending, lsn, *batch, record);
                }
                *next = last + 1;
                drop(state);
                self.wake();
            }
            Kind::Memory => {
                *next = last + 1;
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

    /// There is something to do for the writer.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
        #[cfg(test)]
        self.driven.notify_one();
    }

    /// There may be something to tidy up.
    pub(super) fn stir(&self) {
        self.state.lock().stirred = true;
        self.wake();
    }

    /// Bytes of the records' frames, and of their contents.
    fn measure(&self, records: &[Record], blobs: &[Blob]) -> Result<usize, JournalError> {
        let mut sum = blobs.iter().map(|blob| blob.bytes.len()).sum();
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

    pub(super) fn release(&self, first_needed: Lsn) {
        let mut state = self.state.lock();
        if state.release < first_needed {
            state.release = first_needed;
            self.wake();
        }
    }

    /// Takes nothing from here on; what waits is still written.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Open) {
            state.phase = Phase::Closed;
        }
        drop(state);
        self.wake();
    }

    pub(super) fn stats(&self) -> JournalStats {
        let state = self.state.lock();
        let mut stats = state.totals;
        stats.pending_bytes = state.waiting();
        drop(state);
        stats.low_space = self.low_space.load(Ordering::Relaxed);
        if stats.syncs > 0 {
            stats.mean_sync = stats.mean_sync.div_f64(stats.syncs as f64);
            stats.mean_batch = stats.records as f64 / stats.syncs as f64;
        }
        stats
    }

    /// Acknowledges nothing from here on. The first cause stays.
    pub(super) fn fail(&self, cause: String) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Failed { .. }) {
            return;
        }
        tracing::error!(
            cause,
            "the journal failed, nothing is acknowledged any more"
        );
        state.phase = Phase::Failed { cause };
        (state.pending, state.blobs) = (Vec::new(), Vec::new());
        drop(state);
        self.synced.send_modify(|synced| synced.failed = true);
    }
}

impl State {
    /// Bytes that wait for a sync.
    fn waiting(&self) -> usize {
        let blobs = self.blobs.iter().map(|blob| blob.bytes.len());
        self.pending.len() + blobs.sum::<usize>() + self.in_flight
    }
}

impl JournalStats {
    pub(super) fn count(&mut self, records: u64, bytes: usize, took: Duration) {
        self.records += records;
        self.bytes += bytes as u64;
        self.syncs += 1;
        self.last_sync = took;
        self.mean_sync += took;
    }
}
