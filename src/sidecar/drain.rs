//! The end of a sidecar, in two phases with a bound for the whole.
//!
//! ```text
//!   told to stop: not ready, health NOT_SERVING, lease DRAINING
//!   1. attempts: nothing new starts here, what runs may finish and be acknowledged by its home; the
//!      home still serves, since running work may have tasks of its own
//!   2. streams: the home takes nothing more, every stream ends with its cursor, connections get
//!      GOAWAY; the lease is given back
//! ```
//! What has not finished goes on elsewhere or after the restart, as the rules of its task say.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{error::SidecarError, run::Parts};
use crate::{
    admin::introspection,
    task::{executor::Executor, home::Home},
    transport::Server,
};

/// How long peers get to hear that this sidecar drains, before it stops taking attempts. Short: what
/// comes later is refused as not started, and goes elsewhere without loss.
const SETTLE: Duration = Duration::from_millis(300);
/// What of the whole is kept for the second phase: a second for attempts that are cut, one for what
/// is on its way to the disk, two for streams and the lease, one for the shards.
const TAIL: Duration = Duration::from_secs(5);
/// How long acknowledged records may take to be on disk.
const FLUSH: Duration = Duration::from_secs(1);
/// How long streams may take to end, and the registry to hear of it.
const STREAMS: Duration = Duration::from_secs(2);
/// How long the shards may take to stop.
const SHARDS: Duration = Duration::from_secs(1);

/// What serves, and has to end in order.
pub(super) struct Running {
    pub(super) home: Home,
    pub(super) executor: Executor,
    pub(super) health: introspection::Health,
    pub(super) mtls: Server,
    pub(super) local: Server,
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
            self.health.stop().await;
            sleep(SETTLE).await;
            let work = (ends - TAIL).saturating_duration_since(Instant::now());
            self.executor.drain(work).await;
            if timeout(FLUSH, self.home.drain()).await.is_err() {
                tracing::warn!("the disk is slow: not all that was appended is synced yet");
            }
            tokio::join!(
                self.mtls.drain(STREAMS),
                self.local.drain(STREAMS),
                parts.nursery.close(STREAMS),
            );
            self.home.clone().close(SHARDS).await;
        };
        tokio::select! {
            () = drained => tracing::info!("sidecar ended"),
            () = failed.cancelled() => return Err(SidecarError::JournalFailed),
        }
        Ok(())
    }
}
