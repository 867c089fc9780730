//! A histogram that costs a few relaxed additions: no lock, no allocation.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// Bounds of calls: half a millisecond to a minute.
pub(super) const CALL_BOUNDS: &[u64] = &[
    SECOND / 2000,
    SECOND / 1000,
    SECOND / 400,
    SECOND / 200,
    SECOND / 100,
    SECOND / 40,
    SECOND / 20,
    SECOND / 10,
    SECOND / 4,
    SECOND / 2,
    SECOND,
    SECOND * 5 / 2,
    SECOND * 5,
    SECOND * 10,
    SECOND * 60,
];
/// Bounds of tasks: 5 ms to an hour.
pub(super) const TASK_BOUNDS: &[u64] = &[
    SECOND / 200,
    SECOND / 100,
    SECOND / 40,
    SECOND / 20,
    SECOND / 10,
    SECOND / 4,
    SECOND / 2,
    SECOND,
    SECOND * 5 / 2,
    SECOND * 5,
    SECOND * 10,
    SECOND * 30,
    SECOND * 60,
    SECOND * 300,
    SECOND * 1800,
    SECOND * 3600,
];
/// Bounds of a disk's sync: 50 us to 2.5 s.
const SYNC_BOUNDS: &[u64] = &[
    SECOND / 20_000,
    SECOND / 10_000,
    SECOND / 4000,
    SECOND / 2000,
    SECOND / 1000,
    SECOND / 400,
    SECOND / 200,
    SECOND / 100,
    SECOND / 40,
    SECOND / 20,
    SECOND / 10,
    SECOND / 4,
    SECOND,
    SECOND * 5 / 2,
];
/// Bounds of a batch: records.
const BATCH_BOUNDS: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// Counts by size. What it is read as is not one moment's: a scrape may be one observation apart.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// What one of the shown unit is: a second in nanoseconds, or 1.
    scale: u64,
    /// By bound, and above the last one.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    /// Durations of syncs of a disk.
    pub fn syncs() -> Self {
        Self::new(SYNC_BOUNDS, SECOND)
    }

    /// Numbers of records.
    pub fn batches() -> Self {
        Self::new(BATCH_BOUNDS, 1)
    }

    /// Durations of calls.
    pub fn calls() -> Self {
        Self::new(CALL_BOUNDS, SECOND)
    }

    /// Durations of tasks.
    pub fn tasks() -> Self {
        Self::new(TASK_BOUNDS, SECOND)
    }

    fn new(bounds: &'static [u64], scale: u64) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self {
            bounds,
            scale,
            counts,
            sum: AtomicU64::new(0),
        }
    }

    /// Takes a duration in.
    pub fn took(&self, duration: Duration) {
        self.count(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Takes a number in.
    pub fn count(&self, value: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        self.counts[place].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// Takes in what another one of the same bounds has.
    pub(super) fn absorb(&self, other: &Self) {
        debug_assert_eq!(self.bounds, other.bounds);
        for (sum, part) in self.counts.iter().zip(&other.counts) {
            sum.fetch_add(part.load(Relaxed), Relaxed);
        }
        self.sum.fetch_add(other.sum.load(Relaxed), Relaxed);
    }

    /// How many were taken in.
    pub fn len(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Whether none was taken in.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sum, and bounds with their own counts, in the unit that is shown; the last one is infinite.
    pub(super) fn read(&self) -> (f64, Vec<(f64, u64)>) {
        let shown = |value: u64| value as f64 / self.scale as f64;
        let bounds = self.bounds.iter().copied().map(shown);
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        let buckets = bounds.chain([f64::INFINITY]).zip(counts).collect();
        (shown(self.sum.load(Relaxed)), buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_is_within_it() {
        let histogram = Histogram::batches();
        for value in [1, 2, 3, 1024, 1025] {
            histogram.count(value);
        }
        let (sum, buckets) = histogram.read();
        assert_eq!((sum, histogram.len()), (2055.0, 5));
        let filled: Vec<_> = buckets
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        let expected = [
            (1.0, 1),
            (2.0, 1),
            (4.0, 1),
            (1024.0, 1),
            (f64::INFINITY, 1),
        ];
        assert_eq!(filled, expected);
    }

    #[test]
    fn durations_are_shown_in_seconds_and_bounds_rise() {
        for histogram in [Histogram::syncs(), Histogram::calls(), Histogram::tasks()] {
            histogram.took(Duration::from_millis(1500));
            let (sum, buckets) = histogram.read();
            assert!((sum - 1.5).abs() < 1e-9);
            assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }
}
