//! The writer: what came in during the last sync goes into the next one.
//!
//! It is a step function ([`Writer::step`]), driven by one thread of its own or by a simulation.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Lsn;
use super::error::JournalError;
use super::log::Log;
use super::queue::{Phase, Queue, State, Synced};

/// Capacity that a buffer keeps between batches; a burst gives the rest back.
const KEPT_CAPACITY: usize = 4 << 20;
/// How long after a failed try the room of the next segment is asked for again.
const RESERVE_RETRY: Duration = Duration::from_secs(1);

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
    queue: Arc<Queue>,
    /// Swapped with `State::pending`.
    batch: Vec<u8>,
    /// After a failed try: when to reserve the next segment again.
    reserve_at: Option<Instant>,
    /// The `State::release` that the last step saw.
    released: Lsn,
}

impl Writer {
    pub(super) fn new(log: Log, queue: Arc<Queue>) -> Self {
        Self {
            log,
            queue,
            batch: Vec::new(),
            reserve_at: None,
            released: 0,
        }
    }

    /// Writes and syncs one batch, deletes at most one segment, and reserves the next one.
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
        let (records, release) = {
            let mut state = self.queue.state.lock();
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
        let mut state = self.queue.state.lock();
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
    pub(super) fn run(mut self) {
        loop {
            match self.step(Instant::now()) {
                Step::Worked => {}
                Step::Idle { until } => self.wait(until),
                Step::Stopped => return,
            }
        }
    }

    fn wait(&self, until: Option<Instant>) {
        let mut state = self.queue.state.lock();
        let idle = |state: &mut State| {
            state.pending.is_empty()
                && matches!(state.phase, Phase::Open)
                && state.release == self.released
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
            Phase::Closed => state.pending.is_empty() && state.in_flight == 0,
            Phase::Failed { .. } => true,
        };
        drop(state);
        if !stopped {
            self.queue
                .fail("its writer ended before it was closed".to_owned());
        }
    }
}
