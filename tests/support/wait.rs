//! Waiting for a condition, never for a time.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep, timeout};

/// How long a condition may take. Far above what it does take: the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Waits until `probe` answers.
///
/// # Panics
/// When it does not within [`LIMIT`], with what it said last.
pub async fn eventually<T, F>(what: &str, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let until = Instant::now() + LIMIT;
    loop {
        let last = match probe().await {
            Ok(found) => return found,
            Err(last) => last,
        };
        assert!(
            Instant::now() < until,
            "not within {LIMIT:?}: {what}; at last: {last}"
        );
        sleep(LOOK_EVERY).await;
    }
}

/// The future's output.
///
/// # Panics
/// When it takes more than [`LIMIT`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(output) = timeout(LIMIT, future).await else {
        panic!("not within {LIMIT:?}: {what}");
    };
    output
}
