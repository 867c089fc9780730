//! Wall time. Monotonic time is `tokio::time::Instant`, which tests can pause.

use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock's time. Only for what is shown, signed or compared with a certificate.
#[allow(clippy::disallowed_methods, reason = "the one door to the wall clock")]
pub fn wall() -> SystemTime {
    #[cfg(test)]
    if let Some(set) = set::wall() {
        return set;
    }
    SystemTime::now()
}

/// Seconds since 1970, zero before it.
pub fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A wall clock that a test has set, on one thread: it goes as the tokio clock does, and jumps.
#[cfg(test)]
pub(crate) mod set {
    use std::cell::Cell;
    use std::time::SystemTime;

    use tokio::time::Instant;

    thread_local! {
        static SET: Cell<Option<(SystemTime, Instant)>> = const { Cell::new(None) };
    }

    /// From now on it is `at`; `None`: the real one again.
    pub(crate) fn to(at: Option<SystemTime>) {
        SET.set(at.map(|at| (at, Instant::now())));
    }

    pub(super) fn wall() -> Option<SystemTime> {
        SET.get().map(|(at, since)| at + since.elapsed())
    }
}
