//! When calls come due, whatever became of those before.
//!
//! A caller that measures from when it got round to calling leaves out the wait that a stalled
//! server imposed on all the calls after the stalled one ("coordinated omission"). Here every call
//! has its time beforehand, and is measured from it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::runtime::{Metronome, metronome};

/// How late a turn of the last moment may be given: a busy machine wakes the thread late.
const LATE: Duration = Duration::from_secs(1);

/// Turns at even distances, for all callers together.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    /// Seconds.
    interval: f64,
    /// Turns that have come due and that nobody took.
    due: Arc<Semaphore>,
    taken: AtomicU64,
    _beats: Metronome,
}

impl Pace {
    /// `rate` turns per second from `began` on.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(began: Instant, rate: f64) -> io::Result<Self> {
        let due = Arc::new(Semaphore::new(0));
        let filled = Arc::clone(&due);
        let interval = 1.0 / rate;
        let beats = Metronome::start(began, interval, move |beats| {
            filled.add_permits(usize::try_from(beats).unwrap_or(1));
        });
        Ok(Self {
            began,
            interval,
            due,
            taken: AtomicU64::new(0),
            _beats: beats?,
        })
    }

    /// Waits for the next turn of anybody; when it came due. `None`: none comes due before `end`.
    pub(super) async fn turn(&self, end: Instant) -> Option<Instant> {
        match self.due.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => timeout_at(end + LATE, self.due.acquire())
                .await
                .ok()?
                .ok()?
                .forget(),
        }
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        let due = metronome::at(self.began, self.interval, number);
        (due < end).then_some(due)
    }

    /// How many turns came due between `begin` and `end` that nobody has taken.
    pub(super) fn untaken(&self, begin: Instant, end: Instant) -> u64 {
        let taken = self.taken.load(Ordering::Relaxed).max(self.before(begin));
        self.before(end).saturating_sub(taken)
    }

    /// How many turns come due before `end`.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and a rate of 1e8 for a century fits"
    )]
    fn before(&self, end: Instant) -> u64 {
        let span = end.saturating_duration_since(self.began).as_secs_f64();
        (span / self.interval).ceil() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_keep_their_time_however_late_they_are_taken() {
        let began = Instant::now();
        let pace = Pace::start(began, 1000.0).unwrap();
        let at = |millis| began + Duration::from_millis(millis);
        let end = at(20);
        for millis in 0..5 {
            assert_eq!(pace.turn(end).await, Some(at(millis)));
        }
        // Nobody takes one for a while: the next one is still the one that came due first.
        tokio::time::sleep_until(at(15)).await;
        assert_eq!(pace.turn(end).await, Some(at(5)));
        assert_eq!(pace.untaken(at(0), end), 14);
        assert_eq!(pace.untaken(at(10), end), 10);
        while pace.turn(end).await.is_some() {}
        assert_eq!(pace.untaken(at(0), end), 0);
    }
}
