//! Wall time. Monotonic time is `tokio::time::Instant`, which tests can pause.

use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock's time. Only for what is shown, signed or compared with a certificate.
#[allow(clippy::disallowed_methods, reason = "the one door to the wall clock")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Seconds since 1970, zero before it.
pub fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
