//! Starts that have a grant and come before their slot is free, and how many of those are wanted. Pure.
//!
//! From a grant to its Start, two ways through a network and a sync of the home's disk go by, in which
//! the slot is idle. Where tasks take less than that, slots are granted before they are free, so many
//! that their Starts come about when they are.

use std::{collections::VecDeque, time::Duration};

use tokio::{sync::oneshot, time::Instant};

/// Most slots that are granted before they are free.
const AHEAD_MAX: u32 = 64;
/// What is taken of how long a grant takes to come back: no home has more held for it by being slow.
const TRIP_MOST: Duration = Duration::from_millis(50);
/// Where no slot came free for so long, what runs is not short, whatever ran before.
const STALE: Duration = Duration::from_millis(50);
/// How long a Start waits for its slot; longer means that what runs takes longer than it did.
pub(super) const LINE_WAIT: Duration = Duration::from_millis(250);
/// Of a mean, the part that the last one makes.
const SHARE: f64 = 0.1;

/// Who stands in line.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: VecDeque<oneshot::Sender<()>>,
    /// Those whose turn has come, and who have not taken their slots yet.
    called: u32,
    /// Mean time of a task, and from a grant to its Start, in seconds.
    took: Option<f64>,
    trip: Option<f64>,
    freed_at: Option<Instant>,
}

impl Line {
    /// A task took so long, and its slot is free.
    pub(super) fn freed(&mut self, took: Duration, now: Instant) {
        mean(&mut self.took, took);
        self.freed_at = Some(now);
    }

    /// From a grant to its Start it took so long.
    pub(super) fn came(&mut self, trip: Duration) {
        mean(&mut self.trip, trip.min(TRIP_MOST));
    }

    /// How many slots are granted before they are free, of `slots`.
    pub(super) fn ahead(&self, slots: u32, now: Instant) -> u32 {
        let fresh = self.freed_at.is_some_and(|at| now < at + STALE);
        let (Some(took), Some(trip)) = (self.took, self.trip) else {
            return 0;
        };
        let ahead = f64::from(slots) * trip / took.max(1e-5);
        let whole = (0..AHEAD_MAX).take_while(|some| f64::from(some + 1) <= ahead);
        if fresh {
            u32::try_from(whole.count()).unwrap_or(0)
        } else {
            0
        }
    }

    /// A Start with a grant waits for its slot.
    pub(super) fn stand(&mut self) -> oneshot::Receiver<()> {
        let (call, called) = oneshot::channel();
        self.waiting.push_back(call);
        called
    }

    /// A slot is free: the first one may have it. Whether anybody is there.
    pub(super) fn call(&mut self) -> bool {
        while let Some(first) = self.waiting.pop_front() {
            if first.send(()).is_ok() {
                self.called += 1;
                return true;
            }
        }
        false
    }

    /// One that was called has taken its slot, or gives it up.
    pub(super) fn answered(&mut self) {
        self.called = self.called.saturating_sub(1);
    }

    /// Those whose slots are not free for others.
    pub(super) fn called(&self) -> u32 {
        self.called
    }

    /// Those who wait.
    pub(super) fn len(&self) -> u32 {
        let here = self.waiting.iter().filter(|one| !one.is_closed());
        u32::try_from(here.count()).unwrap_or(u32::MAX)
    }

    /// Sends all away.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

fn mean(of: &mut Option<f64>, last: Duration) {
    let last = last.as_secs_f64();
    *of = Some(of.map_or(last, |before| before + SHARE * (last - before)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_slots_are_granted_early_that_none_is_idle() {
        let now = Instant::now();
        let millis = Duration::from_millis;
        for (slots, took, trip, ahead) in [
            (4, 1, 5, 20),
            (4, 20, 2, 0),
            (4, 8, 2, 1),
            (32, 1, 5, AHEAD_MAX),
            (4, 100, 1000, 2),
            (4, 3_600_000, 1000, 0),
        ] {
            let mut line = Line::default();
            assert_eq!(line.ahead(slots, now), 0, "nothing is known");
            line.came(millis(trip));
            line.freed(millis(took), now);
            assert_eq!(line.ahead(slots, now), ahead, "{slots} {took} {trip}");
            assert_eq!(line.ahead(slots, now + STALE), 0, "nothing was freed");
        }
        let mut line = Line::default();
        line.came(millis(5));
        line.freed(millis(1), now);
        for _ in 0..10 {
            line.freed(millis(1000), now);
        }
        assert_eq!(line.ahead(4, now), 0, "they take long now");
    }

    #[tokio::test]
    async fn who_stands_in_line_is_called_in_turn() {
        let mut line = Line::default();
        let mut first = line.stand();
        drop(line.stand());
        let mut third = line.stand();
        assert_eq!(line.len(), 2);
        assert!(line.call() && first.try_recv().is_ok());
        assert!(third.try_recv().is_err());
        assert!(line.call() && third.try_recv().is_ok());
        assert!(!line.call());
        assert_eq!((line.called(), line.len()), (2, 0));
        line.answered();
        assert_eq!(line.called(), 1);
    }
}
