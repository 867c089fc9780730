//! The writer: what came in during the last sync goes into the next one.
//!
//! It is a step function ([`Writer::step`]), driven by one thread of its own or by a simulation.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::Lsn;
use super::blobs::{Blob, Store};
use super::error::JournalError;
use super::log::Log;
use super::queue::{Phase, Queue, State, Synced};

/// Capacity that a buffer keeps between batches; a burst gives the rest back.
const KEPT_CAPACITY: usize = 4 << 20;
/// How long after a failed try the room of the next segment is asked for again.
const RESERVE_RETRY: Duration = Duration::from_secs(1);
/// How often the disk is asked what is free.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a [`Writer::step`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was written, reserved or deleted; there may be more.
    Worked,
    /// Nothing to do before the next append or release, or before this time.
    Idle {
        /// When the disk is to be looked at or asked for room again.
        until: Option<Instant>,
    },
    /// Closed and all written, or failed: no step does anything any more.
    Stopped,
}

/// Writes what is queued. Dropped before it stopped, it fails the journal.
#[derive(Debug)]
pub struct Writer {
    log: Log,
    /// Where the contents go that records name.
    store: Arc<Store>,
    queue: Arc<Queue>,
    /// Bytes that must be free on the disk, or the queue is told that space is low.
    reserve: u64,
    /// Swapped with `State::pending`.
    batch: Vec<u8>,
    /// Contents that the batch names and that are not on disk yet.
    blobs: Vec<Blob>,
    /// After a failed try: when to write those again.
    put_at: Option<Instant>,
    /// Records in `batch`. While the disk has no room for them they wait here.
    records: u64,
    /// After a failed try: when to reserve the next segment again.
    reserve_at: Option<Instant>,
    /// When to look at the disk again; `None`: not yet looked.
    look_at: Option<Instant>,
    /// What was free then.
    free: Option<u64>,
    /// The `State::release` that the last step saw.
    released: Lsn,
}

impl Writer {
    pub(super) fn new(log: Log, store: Arc<Store>, queue: Arc<Queue>, reserve: u64) -> Self {
        Self {
            log,
            store,
            queue,
            reserve,
            batch: Vec::new(),
            blobs: Vec::new(),
            put_at: None,
            records: 0,
            reserve_at: None,
            look_at: None,
            free: None,
            released: 0,
        }
    }

    /// Writes and syncs one batch, after the contents that it names; deletes at most one segment,
    /// or tidies up one pack of contents, and reserves the next segment. A batch
    /// that the disk has no room for waits: nothing of it was written, so nothing is lost.
    pub fn step(&mut self, now: Instant) -> Step {
        match self.try_step(now) {
            Ok(step) => step,
            Err(error) => {
                self.queue.fail(error.to_string());
                Step::Stopped
            }
        }
    }

    fn try_step(&mut self, now: Instant) -> Result<Step, JournalError> {
        let Some((release, closed)) = self.take() else {
            return Ok(Step::Stopped);
        };
        let wrote = self.records > 0 && self.write(now, closed)?;
        self.released = release;
        let released = self.log.release(release)?;
        if released {
            // What was deleted made room.
            self.reserve_at = None;
        }
        // What waits for a sync goes first.
        let tidied = !wrote && !released && self.store.tidy()?;
        let reserved = self.reserve(now)?;
        self.look(now);
        self.tell();
        Ok(match wrote || released || tidied || reserved {
            true => Step::Worked,
            false => Step::Idle {
                until: self
                    .reserve_at
                    .into_iter()
                    .chain(self.put_at)
                    .chain(self.look_at)
                    .min(),
            },
        })
    }

    /// Takes the next batch from the queue, and says what is to be released and whether the queue
    /// is closed; `None` when all is done.
    fn take(&mut self) -> Option<(Lsn, bool)> {
        let mut state = self.queue.state.lock();
        let closed = match state.phase {
            Phase::Failed { .. } => return None,
            Phase::Closed => true,
            Phase::Open => false,
        };
        state.stirred = false;
        if self.records == 0 {
            if closed && state.pending.is_empty() {
                return None;
            }
            std::mem::swap(&mut state.pending, &mut self.batch);
            self.blobs = std::mem::take(&mut state.blobs);
            let blobs = self.blobs.iter().map(|blob| blob.bytes.len());
            state.in_flight = self.batch.len() + blobs.sum::<usize>();
            if !self.batch.is_empty() {
                self.records = state.next - state.batch;
            }
        }
        Some((state.release, closed))
    }

    /// Whether the batch was written. When closing, there is no later to wait for.
    fn write(&mut self, now: Instant, closed: bool) -> Result<bool, JournalError> {
        if !self.put(now, closed)?
            || !self.log.fits(self.batch.len()) && !self.make_room(now, closed)?
        {
            return Ok(false);
        }
        let (bytes, records) = (self.batch.len(), self.records);
        let start = Instant::now();
        self.log.append(&mut self.batch, records)?;
        let took = start.elapsed();
        self.records = 0;
        self.batch.clear();
        self.batch.shrink_to(KEPT_CAPACITY);
        self.queue.timing.syncs.took(took);
        self.queue.timing.batches.count(records);
        let mut state = self.queue.state.lock();
        state.in_flight = 0;
        state.totals.count(records, bytes, took);
        drop(state);
        let lsn = self.log.next() - 1;
        self.queue
            .synced
            .send_replace(Synced { lsn, failed: false });
        self.log.mark()?;
        Ok(true)
    }

    /// Whether the contents that the batch names are on disk: only then may it be written.
    fn put(&mut self, now: Instant, closed: bool) -> Result<bool, JournalError> {
        if self.blobs.is_empty() {
            return Ok(true);
        }
        if self.put_at.is_some_and(|at| now < at) && !closed {
            return Ok(false);
        }
        let bytes: usize = self.blobs.iter().map(|blob| blob.bytes.len()).sum();
        match self.store.put(&self.blobs) {
            Err(error) if error.no_room() && !closed => {
                if self.put_at.is_none() {
                    tracing::warn!(%error, "no room for large content");
                }
                self.put_at = Some(now + RESERVE_RETRY);
                return Ok(false);
            }
            put => put?,
        }
        (self.blobs, self.put_at) = (Vec::new(), None);
        let mut state = self.queue.state.lock();
        state.in_flight = state.in_flight.saturating_sub(bytes);
        Ok(true)
    }

    /// Whether the batch has room in the next segment.
    fn make_room(&mut self, now: Instant, closed: bool) -> Result<bool, JournalError> {
        if self.reserve_at.is_some_and(|at| now < at) && !closed {
            return Ok(false);
        }
        match self.log.make_room(self.batch.len()) {
            Err(error) if error.no_room() && !closed => {
                self.full(&error, now);
                Ok(false)
            }
            made => made.map(|()| true),
        }
    }

    /// Whether the next segment was reserved. A full disk is no failure while the active segment
    /// has room; any other error is one, though nothing is lost yet: called full, a broken disk
    /// would have its home wait for room for ever.
    fn reserve(&mut self, now: Instant) -> Result<bool, JournalError> {
        if self.log.reserved() || self.reserve_at.is_some_and(|at| now < at) {
            return Ok(false);
        }
        match self.log.reserve() {
            Ok(()) => self.reserve_at = None,
            Err(error) if error.no_room() => self.full(&error, now),
            Err(error) => return Err(error),
        }
        Ok(self.log.reserved())
    }

    fn full(&mut self, error: &JournalError, now: Instant) {
        if self.reserve_at.is_none() {
            tracing::warn!(%error, "no room for the next segment of the journal");
        }
        self.reserve_at = Some(now + RESERVE_RETRY);
    }

    fn look(&mut self, now: Instant) {
        if self.reserve > 0 && self.look_at.is_none_or(|at| now >= at) {
            self.free = self.log.free();
            self.look_at = Some(now + LOOK_EVERY);
        }
    }

    /// Says how the disk is.
    fn tell(&self) {
        let below = self.free.is_some_and(|free| free < self.reserve);
        let full = !self.log.reserved() || self.records > 0;
        let low = below || full;
        self.queue.no_space.store(full, Ordering::Relaxed);
        let was = self.queue.low_space.swap(low, Ordering::Relaxed);
        if low && !was {
            let (free, reserve) = (self.free, self.reserve);
            tracing::warn!(
                free,
                reserve,
                "the disk is nearly full: no new task is taken"
            );
        } else if was && !low {
            tracing::info!("the disk has room again: new tasks are taken");
        }
        let mut state = self.queue.state.lock();
        if !self.log.begins(&state.segments.firsts) {
            state.segments = self.log.begin();
        }
        state.totals.segments = self.log.segments();
        state.totals.free_bytes = self.free;
    }

    /// Body of the writer's thread.
    pub(in crate::task) fn run(mut self) {
        loop {
            match self.step(Instant::now()) {
                Step::Worked => {}
                Step::Idle { until } => self.wait(until),
                Step::Stopped => return,
            }
        }
    }

    /// For whoever drives it by a task: until there is something to do again.
    #[cfg(test)]
    pub(in crate::task) fn due(&self, until: Option<Instant>) -> impl Future<Output = ()> + use<> {
        let queue = Arc::clone(&self.queue);
        async move {
            match until {
                Some(until) => drop(tokio::time::timeout_at(until, queue.driven.notified()).await),
                None => queue.driven.notified().await,
            }
        }
    }

    fn wait(&self, until: Option<Instant>) {
        let mut state = self.queue.state.lock();
        let held = self.records > 0;
        let idle = |state: &mut State| {
            (held || state.pending.is_empty())
                && matches!(state.phase, Phase::Open)
                && state.release == self.released
                && !state.stirred
        };
        match until {
            Some(until) => {
                let limit = until.saturating_duration_since(Instant::now());
                self.queue.wake.wait_while_for(&mut state, idle, limit);
            }
            None => self.queue.wake.wait_while(&mut state, idle),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let state = self.queue.state.lock();
        let stopped = match state.phase {
            Phase::Open => false,
            Phase::Closed => state.pending.is_empty() && state.in_flight == 0 && self.records == 0,
            Phase::Failed { .. } => true,
        };
        drop(state);
        if !stopped {
            self.queue
                .fail("its writer ended before it was closed".to_owned());
        }
    }
}
