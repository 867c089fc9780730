//! Waiting longer after each failure, with full jitter so that a herd spreads out (gRFC A6).

use std::time::Duration;

/// Waits between tries: `rand(0, min(first * 2^n, most))`.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    tries: u32,
}

impl Backoff {
    /// How a client comes back to a peer that is away: 0.5 s doubling to 30 s.
    pub const RECONNECT: Self = Self::new(Duration::from_millis(500), Duration::from_secs(30));

    /// Waits of at most `first` after the first failure, doubling up to `most`.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            tries: 0,
        }
    }

    /// The wait after one more failure; `chance` from 0 to 1 picks within the range.
    pub fn next(&mut self, chance: f64) -> Duration {
        let ceiling = self
            .first
            .saturating_mul(1_u32.checked_shl(self.tries).unwrap_or(u32::MAX));
        self.tries = self.tries.saturating_add(1);
        ceiling.min(self.most).mul_f64(chance.clamp(0.0, 1.0))
    }

    /// After a success the next failure starts again at `first`.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_most_and_starts_again() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let waits: Vec<u64> = (0..40).map(|_| backoff.next(1.0).as_secs()).collect();
        assert_eq!(waits[..5], [1, 2, 4, 5, 5]);
        assert_eq!(waits[39], 5);
        backoff.reset();
        assert_eq!(backoff.next(0.5), Duration::from_millis(500));
        assert_eq!(backoff.next(0.0), Duration::ZERO);
    }
}
