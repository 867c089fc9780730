//! What one more call would cost at an instance, beside another one.

use super::pace::Speed;

/// Latency of an instance, in seconds, where neither it nor the one beside it was ever measured. Any
/// figure does: they are compared with each other.
const UNKNOWN: f64 = 0.03;

/// What decides between two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) speed: Speed,
    pub(super) penalty: f64,
    pub(super) factor: f64,
}

impl Cost {
    /// Whether what failed there lately weighs more than how fast it is.
    pub(super) fn is_doubtful(self) -> bool {
        self.penalty > self.speed.known().unwrap_or(UNKNOWN)
    }

    /// Whether this one is the better choice.
    pub(super) fn beats(self, other: Self) -> bool {
        let (own, others) = self.speed.pair(other.speed, UNKNOWN);
        (own + self.penalty) * self.factor < (others + other.penalty) * other.factor
    }
}
