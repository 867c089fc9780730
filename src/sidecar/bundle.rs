//! Follows the registry's bundle: who is shut out is refused here within moments, too.
//!
//! What is known stays in force while no registry can be reached, and over a restart.

use std::{path::PathBuf, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use crate::{
    domain::{Fault, Reason},
    identity::{Credentials, Expect, Revocations, Revoked},
    pb::{self, identity_client::IdentityClient},
    registry::client::source::ANSWER_WITHIN,
    runtime::{Backoff, Stop},
    transport::{Pool, Target},
};

/// A watch that held for this long was no failure.
const HEALTHY: Duration = Duration::from_secs(10);

/// The watch, and how far it has come.
pub(super) struct Bundle {
    credentials: Credentials,
    control: Pool,
    /// Addresses of registries.
    registry: Vec<String>,
    /// Where the list is kept.
    state: PathBuf,
    /// What was taken in last.
    known: Revocations,
}

impl Bundle {
    /// Puts the list that was kept in force.
    pub(super) fn new(
        credentials: Credentials,
        control: Pool,
        (registry, state): (Vec<String>, PathBuf),
    ) -> Self {
        let known = Revocations::kept_in(&state).unwrap_or_else(|error| {
            tracing::error!(%error, "the list of who is shut out cannot be read; a registry tells it anew");
            Revocations::default()
        });
        credentials.shut_out(Revoked::of(known.all.iter().cloned()));
        Self {
            credentials,
            control,
            registry,
            state,
            known,
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
        let mut client = IdentityClient::new(channel);
        let asked = client.watch_bundle(pb::WatchBundleRequest {
            after_revision: self.known.revision,
            generation: self.known.generation.clone(),
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
        let (told, unread) = Revocations::told(list);
        if unread > 0 {
            tracing::error!(
                unread,
                "revocations that cannot be read: is the registry newer?"
            );
        }
        let (revision, shut_out) = (told.revision, told.all.len());
        tracing::info!(revision, shut_out, "list of who is shut out");
        self.credentials
            .shut_out(Revoked::of(told.all.iter().cloned()));
        if let Err(error) = told.keep_in(&self.state) {
            tracing::error!(%error, "the list of who is shut out is not kept: a restart without a registry forgets it");
        }
        self.known = told;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::SpiffeId,
        identity::{Authority, Names, Revocation},
        runtime::{Nursery, clock::wall},
    };

    #[tokio::test]
    async fn what_was_told_is_in_force_at_once_and_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let domain = "attache.local".parse().unwrap();
        let authority = Authority::create(&dir.path().join("ca"), &domain, Names::Mesh).unwrap();
        let svid = |name: &str| {
            let id = format!("spiffe://attache.local/ns/default/agent/{name}");
            let id: SpiffeId = id.parse().unwrap();
            authority
                .svid(&id, None, Duration::from_secs(3600))
                .unwrap()
        };
        let bundle = || {
            let credentials = Credentials::new(svid("own"));
            let pool = Pool::new(credentials.clone(), Nursery::here());
            let places = (Vec::new(), dir.path().to_path_buf());
            (
                credentials.revoked(),
                Bundle::new(credentials, pool, places),
            )
        };
        let stolen = svid("stolen");
        let (refused, mut first) = bundle();
        assert!(!refused.borrow().refuses(stolen.peer()));
        let one = Revocation::at(wall(), stolen.peer().id.clone(), None);
        let list = |revocations| pb::WatchBundleResponse {
            revision: 2,
            revocations,
            ..Default::default()
        };
        first.take(list(vec![one.message()]));
        assert!(refused.borrow().refuses(stolen.peer()));
        let (refused, mut second) = bundle();
        assert!(refused.borrow().refuses(stolen.peer()));
        assert_eq!(second.known.revision, 2, "asks for what came after it");
        second.take(list(Vec::new()));
        assert!(!refused.borrow().refuses(stolen.peer()));
    }
}
