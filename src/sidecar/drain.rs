//! The end of a sidecar, in two phases with a bound for the whole.
//!
//! ```text
//!   told to stop: not ready, health NOT_SERVING, lease DRAINING
//!   1. work: nothing new starts here, what runs may finish and be acknowledged by its home; the home
//!      still gives its tasks out, since running work may have tasks of its own. Then the home gives
//!      nothing more out and waits for what runs elsewhere: whoever runs it may be about to stop too
//!   2. streams: the listeners close and connections get GOAWAY, every stream ends with its cursor,
//!      the lease is given back; when no connection is left the home takes nothing more
//! ```
//! A caller is told to come back (a closed socket, a GOAWAY, a cursor) and never refused: what was on
//! its way when it was told is taken like everything before it, and a client that waits for its
//! connection sees no failure. Only an executor refuses, since homes have somewhere else to go.
//! What has not finished goes on elsewhere or after the restart, as the rules of its task say.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{error::SidecarError, run::Parts};
use crate::{
    task::{executor::Executor, home::Home},
    transport::{Hubs, Server},
};

/// How long peers get to hear that this sidecar drains, before it stops taking attempts. Short: what
/// comes later is refused as not started, and goes elsewhere without loss.
const SETTLE: Duration = Duration::from_millis(300);
/// What of the whole is kept for the second phase at least: a second for attempts that are cut, half
/// of one for what is on its way to the disk, two for streams and the lease, and the rest.
const TAIL: Duration = Duration::from_secs(5);
/// How long acknowledged records may take to be on disk.
const FLUSH: Duration = Duration::from_millis(500);
/// How long streams may take to end, and the registry to hear of it, at least.
const STREAMS: Duration = Duration::from_secs(2);
/// And at most, where work has settled early: a peer that has not answered a PING by then is taken
/// for dead, as `transport` does with those that are silent. One that only waits for its turn on a
/// machine that is busy would lose calls that it may not send again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the connections to the registry may take to close.
const CONTROL: Duration = Duration::from_millis(500);
/// How long the shards may take to stop.
const SHARDS: Duration = Duration::from_secs(1);

/// What serves, and has to end in order.
pub(super) struct Running {
    pub(super) home: Home,
    pub(super) executor: Executor,
    pub(super) mtls: Server,
    pub(super) local: Server,
    pub(super) hubs: Hubs,
}

impl Running {
    /// Serves until it is told to stop, then drains.
    ///
    /// # Errors
    /// When the journal fails: nothing may be acknowledged any more, so nothing is drained.
    pub(super) async fn until_stopped(self, parts: &Parts) -> Result<(), SidecarError> {
        let failed = self.home.failed();
        tokio::select! {
            () = parts.stop.cancelled() => {}
            () = failed.cancelled() => return Err(SidecarError::JournalFailed),
        }
        let ends = Instant::now() + parts.config.drain;
        let drained = async {
            parts.progress.drain();
            sleep(SETTLE).await;
            let left = || (ends - TAIL).saturating_duration_since(Instant::now());
            self.executor.drain(left()).await;
            if timeout(left(), self.home.settle()).await.is_err() {
                tracing::warn!("attempts elsewhere go on: they are taken up after the restart");
            }
            let ends = streams_end(Instant::now(), ends);
            tokio::join!(self.mtls.leave(), self.local.leave());
            // Not before: whoever comes back at once has to find that he must wait.
            self.home.send_away();
            let left = ends.saturating_duration_since(Instant::now());
            tokio::join!(
                self.mtls.drain(left),
                self.local.drain(left),
                parts.nursery.close(left),
            );
            // Calls that the listeners have cut are over; the connections that they went on follow.
            self.hubs.close(CONTROL).await;
            if timeout(FLUSH, self.home.drain()).await.is_err() {
                tracing::warn!("the disk is slow: not all that was appended is synced yet");
            }
            // Last: the lease was given back over it.
            parts.control.close(CONTROL).await;
            self.home.clone().close(SHARDS).await;
        };
        tokio::select! {
            () = drained => tracing::info!("sidecar ended"),
            () = failed.cancelled() => return Err(SidecarError::JournalFailed),
        }
        Ok(())
    }
}

/// Until when connections may stay: what comes after them has its share of the drain left.
fn streams_end(now: Instant, ends: Instant) -> Instant {
    let rest = FLUSH + CONTROL + SHARDS;
    (ends - rest).clamp(now + STREAMS, now + PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_may_stay_for_what_work_has_left() {
        let now = Instant::now();
        let table = [(0, 2_000), (5_000, 3_000), (9_000, 7_000), (30_000, 10_000)];
        for (left, stay) in
            table.map(|(left, stay)| (Duration::from_millis(left), Duration::from_millis(stay)))
        {
            assert_eq!(streams_end(now, now + left), now + stay, "{left:?}");
        }
    }
}
