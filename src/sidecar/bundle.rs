//! Follows the registry's bundle: who is shut out is refused here within moments, too, and roots
//! that are rotated are trusted before they sign.
//!
//! What is known stays in force while no registry can be reached, and over a restart.

use std::{path::PathBuf, time::Duration};

use rustls::pki_types::CertificateDer;
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
    /// The roots are kept beside the certificate, by who renews it: all is told anew once, lest a
    /// crash between the two lost them.
    told: bool,
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
            told: false,
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
        let asked = client.watch_bundle(self.ask());
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

    fn ask(&self) -> pb::WatchBundleRequest {
        if !self.told {
            return pb::WatchBundleRequest::default();
        }
        pb::WatchBundleRequest {
            after_revision: self.known.revision,
            generation: self.known.generation.clone(),
        }
    }

    fn take(&mut self, mut list: pb::WatchBundleResponse) {
        let roots = std::mem::take(&mut list.bundle);
        let roots = roots.into_iter().map(CertificateDer::from).collect();
        // A registry tells at least one; those before stay where none of them can be used.
        if let Err(error) = self.credentials.trust(roots, Vec::new()) {
            tracing::error!(%error, "the roots that the registry tells cannot be used");
        }
        let (told, unread) = Revocations::told(list);
        if unread > 0 {
            tracing::error!(
                unread,
                "revocations that cannot be read: is the registry newer?"
            );
        }
        let (revision, shut_out) = (told.revision, told.all.len());
        let roots = self.credentials.current().bundle().len();
        tracing::info!(
            revision,
            shut_out,
            roots,
            "list of who is shut out and whom to trust"
        );
        self.credentials
            .shut_out(Revoked::of(told.all.iter().cloned()));
        if let Err(error) = told.keep_in(&self.state) {
            tracing::error!(%error, "the list of who is shut out is not kept: a restart without a registry forgets it");
        }
        self.known = told;
        self.told = true;
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
        // Its roots may not have been kept: all is told anew, and from then on what came after it.
        assert_eq!(second.ask().after_revision, 0);
        second.take(list(Vec::new()));
        assert_eq!(second.ask().after_revision, 2);
        assert!(!refused.borrow().refuses(stolen.peer()));
    }
}
