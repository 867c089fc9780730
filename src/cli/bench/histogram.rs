//! Counts durations in buckets of less than one percent, from a nanosecond to eighteen minutes.
//!
//! Fixed memory whatever is recorded; nothing is sampled and nothing is averaged away.

use std::time::Duration;

/// Buckets of each doubling, as a power of two: 128 make a bucket 0.8% wide at most.
const FINE: u32 = 7;
const STEPS: u64 = 1 << FINE;
/// Durations from 2^40 ns (18 minutes) on share the last bucket.
const BITS: u32 = 40;
const BUCKETS: usize = ((BITS - FINE + 1) as usize) << FINE;

/// How often each duration was seen.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    /// All of them together, in nanoseconds.
    sum: u128,
    longest: Duration,
}

impl Histogram {
    /// Nothing seen yet.
    pub(super) fn new() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
            sum: 0,
            longest: Duration::ZERO,
        }
    }

    /// Counts one.
    pub(super) fn record(&mut self, took: Duration) {
        self.counts[bucket(nanos(took))] += 1;
        self.total += 1;
        self.sum += took.as_nanos();
        self.longest = self.longest.max(took);
    }

    /// Adds what another one has seen.
    pub(super) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.sum += other.sum;
        self.longest = self.longest.max(other.longest);
    }

    /// How many were seen.
    pub(super) fn count(&self) -> u64 {
        self.total
    }

    /// What this share of them, in parts of 1000, kept within: at most 0.8% too long, never too
    /// short. Zero when nothing was seen.
    pub(super) fn within(&self, permille: u64) -> Duration {
        let wanted = (u128::from(self.total) * u128::from(permille)).div_ceil(1000);
        let mut seen = 0_u128;
        for (place, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen >= wanted {
                return Duration::from_nanos(top(place)).min(self.longest);
            }
        }
        self.longest
    }

    /// The longest of all, exactly.
    pub(super) fn longest(&self) -> Duration {
        self.longest
    }

    /// Their mean; zero when nothing was seen.
    pub(super) fn mean(&self) -> Duration {
        let mean = self.sum.checked_div(u128::from(self.total));
        Duration::from_nanos(u64::try_from(mean.unwrap_or(0)).unwrap_or(u64::MAX))
    }
}

fn nanos(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).map_or(u64::MAX, |nanos| nanos.min((1 << BITS) - 1))
}

/// Up to 128 ns one bucket for each; then 128 for each doubling.
fn bucket(nanos: u64) -> usize {
    let nanos = nanos.min((1 << BITS) - 1);
    let shift = (u64::BITS - nanos.leading_zeros()).saturating_sub(FINE + 1);
    let place = (u64::from(shift) << FINE) + (nanos >> shift);
    usize::try_from(place).expect("below BUCKETS, since nanos has BITS bits at most")
}

/// The longest that falls into a bucket.
fn top(place: usize) -> u64 {
    let place = place as u64;
    let shift = (place >> FINE).saturating_sub(1);
    let base = place - (shift << FINE);
    debug_assert!(base < 2 * STEPS);
    ((base + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_bucket_is_the_longest_duration() {
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(top(BUCKETS - 1), (1 << BITS) - 1);
        assert_eq!(Histogram::new().within(999), Duration::ZERO);
        assert_eq!(Histogram::new().mean(), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn shares_are_those_of_the_sorted_list(
            took in prop::collection::vec(0_u64..2_000_000_000_000, 1..200),
            permille in 0_u64..=1000,
        ) {
            let (mut one, mut two) = (Histogram::new(), Histogram::new());
            for (place, nanos) in took.iter().enumerate() {
                let half = if place % 2 == 0 { &mut one } else { &mut two };
                half.record(Duration::from_nanos(*nanos));
            }
            one.add(&two);
            prop_assert_eq!(one.count(), took.len() as u64);
            let mut sorted = took.clone();
            sorted.sort_unstable();
            let rank = (took.len() * usize::try_from(permille).unwrap()).div_ceil(1000);
            let exact = sorted[rank.saturating_sub(1)];
            let said = u64::try_from(one.within(permille).as_nanos()).unwrap();
            prop_assert!(said >= exact.min((1 << BITS) - 1), "{said} {exact}");
            prop_assert!(said <= exact + exact / STEPS, "{said} {exact}");
            prop_assert_eq!(one.longest(), Duration::from_nanos(*sorted.last().unwrap()));
        }
    }
}
