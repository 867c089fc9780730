//! Latency as it matters for the next call: quick to believe bad news, slow to forget it.
//!
//! Peak-sensitive exponential average, after the "least loaded by observed latency" of Finagle and
//! Linkerd. Reading lets it decay as well, so an instance that was slow once is tried again.

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
}
