//! Counts of the last while, in ten buckets that expire one by one.
//!
//! Exact within a bucket's width: a fast burst and a slow one of the same counts are judged alike,
//! which an exponential average would not do.

use std::time::Duration;

use tokio::time::Instant;

/// Buckets of a window: a tenth of it is lost at a time.
const BUCKETS: usize = 10;

/// Good and bad within the last while.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    /// Where the buckets are counted from, and how wide each is.
    frame: Option<(Instant, Duration)>,
    buckets: [Bucket; BUCKETS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    tick: u64,
    good: u32,
    bad: u32,
}

impl Window {
    /// Counts one more. A span other than before begins anew.
    pub(super) fn count(&mut self, good: bool, span: Duration, now: Instant) {
        let width = width(span);
        let (start, _) = match self.frame {
            Some((start, same)) if same == width => (start, same),
            Some(_) | None => {
                *self = Self::default();
                *self.frame.insert((now, width))
            }
        };
        let tick = tick(start, width, now);
        let bucket = &mut self.buckets[place(tick)];
        if bucket.tick != tick {
            *bucket = Bucket {
                tick,
                ..Bucket::default()
            };
        }
        if good {
            bucket.good = bucket.good.saturating_add(1);
        } else {
            bucket.bad = bucket.bad.saturating_add(1);
        }
    }

    /// Good and bad ones within the last span.
    pub(super) fn sums(&self, now: Instant) -> (u32, u32) {
        let Some((start, width)) = self.frame else {
            return (0, 0);
        };
        let tick = tick(start, width, now);
        let oldest = (tick + 1).saturating_sub(BUCKETS as u64);
        let live = |bucket: &&Bucket| bucket.tick >= oldest && bucket.tick <= tick;
        self.buckets
            .iter()
            .filter(live)
            .fold((0_u32, 0_u32), |(good, bad), bucket| {
                (
                    good.saturating_add(bucket.good),
                    bad.saturating_add(bucket.bad),
                )
            })
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

fn width(span: Duration) -> Duration {
    (span / 10).max(Duration::from_millis(1))
}

fn tick(start: Instant, width: Duration, now: Instant) -> u64 {
    let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    nanos(now.saturating_duration_since(start)) / nanos(width).max(1)
}

fn place(tick: u64) -> usize {
    usize::try_from(tick % BUCKETS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPAN: Duration = Duration::from_secs(10);

    proptest! {
        /// Against a list of all that ever came: nothing of the last nine tenths is missing, and
        /// nothing older than the span is counted.
        #[test]
        fn counts_what_a_list_counts(steps in prop::collection::vec((0_u64..3000, any::<bool>()), 1..200)) {
            let start = Instant::now();
            let (mut window, mut all, mut at) = (Window::default(), Vec::new(), 0);
            for (wait, good) in steps {
                at += wait;
                let now = start + Duration::from_millis(at);
                window.count(good, SPAN, now);
                all.push((at, good));
                let (sum_good, sum_bad) = window.sums(now);
                for (kind, sum) in [(true, sum_good), (false, sum_bad)] {
                    let within = |span: u64| all.iter()
                        .filter(|(then, good)| *good == kind && at - then < span).count();
                    let sum = usize::try_from(sum).unwrap();
                    prop_assert!(within(9_000) <= sum && sum <= within(10_001));
                }
            }
        }
    }

    #[test]
    fn another_span_begins_anew() {
        let (mut window, now) = (Window::default(), Instant::now());
        window.count(false, SPAN, now);
        window.count(true, SPAN * 2, now);
        assert_eq!(window.sums(now), (1, 0));
        assert_eq!(window.sums(now + SPAN * 3), (0, 0));
    }
}
