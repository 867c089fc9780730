//! What was measured lately, as it matters for the next call.
//!
//! Latency is quick to believe bad news and slow to forget it: a peak-sensitive exponential average,
//! after the "least loaded by observed latency" of Finagle and Linkerd. Failures are a share of the
//! last calls: one of a few says much, one of many says little. Reading lets both decay as well, so
//! an instance that did badly once is tried again.

use std::time::Duration;

use tokio::time::Instant;

/// A latency in seconds, measured at some time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PeakEwma {
    last: Option<(f64, Instant)>,
}

impl PeakEwma {
    /// One call took this long.
    pub(super) fn observe(&mut self, took: Duration, decay: Duration, now: Instant) {
        let took = took.as_secs_f64();
        let value = match self.last {
            Some((value, at)) if value > took => {
                let kept = keep(at, decay, now);
                value * kept + took * (1.0 - kept)
            }
            Some(_) | None => took,
        };
        self.last = Some((value, now));
    }

    /// In seconds; `None`: nothing was ever measured.
    pub(super) fn read(&self, decay: Duration, now: Instant) -> Option<f64> {
        self.last.map(|(value, at)| value * keep(at, decay, now))
    }
}

/// Calls that a share of failures looks back on; what went before is forgotten one by one.
const CALLS: f64 = 100.0;

/// Share of calls that failed lately.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FailureShare {
    bad: f64,
    all: f64,
    at: Option<Instant>,
}

impl FailureShare {
    /// One call went well or failed.
    pub(super) fn observe(&mut self, failed: bool, decay: Duration, now: Instant) {
        if !failed && self.bad <= f64::EPSILON && self.all >= CALLS - 1.0 {
            // All is well, as it was: when does not matter much.
            self.at = Some(now);
            return;
        }
        let kept = self.at.map_or(0.0, |at| keep(at, decay, now)) * (1.0 - 1.0 / CALLS);
        self.bad = self.bad * kept + f64::from(u8::from(failed));
        self.all = self.all * kept + 1.0;
        self.at = Some(now);
    }

    /// From 0 to 1, as if one more call had gone well.
    pub(super) fn read(&self, decay: Duration, now: Instant) -> f64 {
        let Some(at) = self.at.filter(|_| self.bad > f64::EPSILON) else {
            return 0.0;
        };
        let kept = keep(at, decay, now);
        self.bad * kept / (self.all * kept + 1.0)
    }
}

/// Share of an old value that is kept.
fn keep(at: Instant, decay: Duration, now: Instant) -> f64 {
    let passed = now.saturating_duration_since(at).as_secs_f64();
    let decay = decay.as_secs_f64();
    if decay > 0.0 {
        (-passed / decay).exp()
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: Duration = Duration::from_secs(10);

    #[test]
    fn bad_news_counts_at_once_and_good_news_by_and_by() {
        let (mut ewma, start) = (PeakEwma::default(), Instant::now());
        assert_eq!(ewma.read(DECAY, start), None);
        ewma.observe(Duration::from_millis(10), DECAY, start);
        ewma.observe(Duration::from_secs(1), DECAY, start);
        assert_eq!(ewma.read(DECAY, start), Some(1.0));
        let later = start + DECAY;
        ewma.observe(Duration::ZERO, DECAY, later);
        let value = ewma.read(DECAY, later).unwrap();
        assert!((value - (-1.0_f64).exp()).abs() < 1e-9, "{value}");
        assert!(ewma.read(DECAY, later + 10 * DECAY).unwrap() < 1e-4);
    }

    #[test]
    fn one_failure_of_a_few_says_much_and_one_of_many_says_little() {
        let now = Instant::now();
        let share = |good: u32, bad: u32| {
            let mut share = FailureShare::default();
            (0..good).for_each(|_| share.observe(false, DECAY, now));
            (0..bad).for_each(|_| share.observe(true, DECAY, now));
            share.read(DECAY, now)
        };
        for (good, bad, least, most) in [
            (0, 0, 0.0, 0.0),
            (50, 0, 0.0, 0.0),
            (0, 1, 0.5, 0.5),
            (3, 1, 0.19, 0.21),
            (1000, 1, 0.009, 0.011),
            (1000, 100, 0.6, 0.7),
            (0, 1000, 0.98, 1.0),
        ] {
            let share = share(good, bad);
            assert!(least <= share && share <= most, "{good}, {bad}: {share}");
        }
    }

    #[test]
    fn what_failed_is_forgotten_by_time_and_by_what_goes_well() {
        let (mut share, mut now) = (FailureShare::default(), Instant::now());
        (0..10).for_each(|_| share.observe(true, DECAY, now));
        let mut last = share.read(DECAY, now);
        for _ in 0..10 {
            now += DECAY;
            let next = share.read(DECAY, now);
            assert!(next < last, "{next} after {last}");
            last = next;
        }
        assert!(last < 1e-3, "{last}");
        let mut share = FailureShare::default();
        (0..10).for_each(|_| share.observe(true, DECAY, now));
        (0..500).for_each(|_| share.observe(false, DECAY, now));
        assert!(share.read(DECAY, now) < 1e-3);
    }
}
