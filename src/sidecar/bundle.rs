//! Follows the registry's bundle: who is shut out is refused here within moments, too.
//!
//! What is known stays in force while no registry can be reached.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use crate::{
    domain::{Fault, Reason},
    identity::{Credentials, Expect, Revocation, Revoked},
    pb::{self, identity_client::IdentityClient},
    registry::client::source::ANSWER_WITHIN,
    runtime::{Backoff, Stop},
    transport::{Pool, Target},
};

/// A watch that held for this long was no failure.
const HEALTHY: Duration = Duration::from_secs(10);

/// The watch, and how far it has come.
pub(super) struct Bundle {
    pub(super) credentials: Credentials,
    pub(super) control: Pool,
    /// Addresses of registries.
    pub(super) registry: Vec<String>,
    /// Revision and generation of what was taken in last.
    known: (u64, String),
}

impl Bundle {
    pub(super) fn new(credentials: Credentials, control: Pool, registry: Vec<String>) -> Self {
        Self {
            credentials,
            control,
            registry,
            known: (0, String::new()),
        }
    }

    /// Follows until `stop`.
    pub(super) async fn follow(mut self, stop: Stop) {
        let mut backoff = Backoff::RECONNECT;
        loop {
            let began = Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.watch() => ended,
            };
            if began.elapsed() >= HEALTHY {
                backoff.reset();
            }
            let wait = backoff.next(rand::random());
            let why = ended.err().map(|status| status.to_string());
            tracing::info!(
                ?why,
                ?wait,
                "the watch of who is shut out ended; going on with what is known"
            );
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(wait) => {}
            }
        }
    }

    async fn watch(&mut self) -> Result<(), Status> {
        let channel = self.control.channel(Target {
            endpoints: self.registry.clone(),
            expect: Some(Expect::AnyRegistry),
        });
        let (after_revision, generation) = self.known.clone();
        let mut client = IdentityClient::new(channel);
        let asked = client.watch_bundle(pb::WatchBundleRequest {
            after_revision,
            generation,
        });
        // Boxed: generated client futures are large.
        let opened = timeout(ANSWER_WITHIN, Box::pin(asked)).await;
        let late = || {
            Fault::new(
                Reason::DeadlineExceeded,
                "the registry did not answer within 5 s",
            )
        };
        let mut told = opened.map_err(|_| late())??.into_inner();
        while let Some(list) = told.message().await? {
            self.take(list);
        }
        Ok(())
    }

    fn take(&mut self, list: pb::WatchBundleResponse) {
        let read: Vec<_> = list
            .revocations
            .iter()
            .filter_map(Revocation::read)
            .collect();
        if read.len() < list.revocations.len() {
            let unread = list.revocations.len() - read.len();
            tracing::error!(
                unread,
                "revocations that cannot be read: is the registry newer?"
            );
        }
        tracing::info!(
            revision = list.revision,
            shut_out = read.len(),
            "list of who is shut out"
        );
        self.credentials.shut_out(Revoked::of(read));
        self.known = (list.revision, list.generation);
    }
}
