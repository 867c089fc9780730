//! How long a connection lives: its age, and the life of the certificate that was shown on it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::sleep};

use crate::domain::InstanceId;
use crate::domain::SpiffeId;
use crate::identity::{Credentials, Peer, Revoked};
use crate::runtime::clock::wall;
use crate::telemetry::metrics::pool::Close;

/// The wall clock is looked at this often: a laptop that slept must not outlive its certificate.
const LOOK: Duration = Duration::from_secs(10);
/// Members that are remembered; beyond it the ones whose certificates have ended go first.
const MOST: usize = 16_384;

type Who = (SpiffeId, Option<InstanceId>);

/// Why a connection may not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// The life of the peer's certificate is over.
    Expired,
    /// The peer is shut out.
    Revoked,
}

/// The end of the newest certificate that each instance has shown on any connection, and who is
/// shut out.
#[derive(Clone, Debug, Default)]
pub(super) struct Sightings {
    newest: Arc<Mutex<HashMap<Who, SystemTime>>>,
    /// `None`: nobody ever is.
    revoked: Option<watch::Receiver<Arc<Revoked>>>,
}

impl Cut {
    /// For the log.
    pub(super) fn why(self) -> &'static str {
        match self {
            Self::Expired => "the peer's certificate has ended",
            Self::Revoked => "the peer was shut out",
        }
    }
}

impl From<Cut> for Close {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Expired => Self::Expired,
            Cut::Revoked => Self::Revoked,
        }
    }
}

impl Sightings {
    /// Of connections that these credentials verify; `None`: of none.
    pub(super) fn of(credentials: Option<&Credentials>) -> Self {
        Self {
            newest: Arc::default(),
            revoked: credentials.map(Credentials::revoked),
        }
    }

    /// Takes note of a certificate that was verified at `now`.
    pub(super) fn saw(&self, peer: &Peer, now: SystemTime) {
        let mut newest = self.newest.lock();
        let who = who(peer);
        if newest.len() >= MOST && !newest.contains_key(&who) {
            newest.retain(|_, end| *end > now);
            if newest.len() >= MOST {
                // Not remembered: its connections end with their own certificates.
                return;
            }
        }
        let end = newest.entry(who).or_insert(peer.not_after);
        *end = peer.not_after.max(*end);
    }

    /// Whether a connection on which `peer` was shown has to end at `now`.
    pub(super) fn ended(&self, peer: &Peer, now: SystemTime) -> bool {
        now >= self.end(peer)
    }

    /// Waits until a connection on which `peer` was shown has to end.
    pub(super) async fn end_of(&self, peer: &Peer) -> Cut {
        tokio::select! {
            () = self.over(peer) => Cut::Expired,
            () = self.shut_out(peer) => Cut::Revoked,
        }
    }

    async fn over(&self, peer: &Peer) {
        loop {
            let now = wall();
            if self.ended(peer, now) {
                return;
            }
            let left = self.end(peer).duration_since(now).unwrap_or(Duration::ZERO);
            sleep(left.clamp(Duration::from_millis(1), LOOK)).await;
        }
    }

    async fn shut_out(&self, peer: &Peer) {
        if let Some(mut revoked) = self.revoked.clone() {
            // No error: who verified the peer holds the sender, or the process ends.
            if revoked.wait_for(|all| all.refuses(peer)).await.is_ok() {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    fn end(&self, peer: &Peer) -> SystemTime {
        let newest = self.newest.lock();
        let shown = newest.get(&who(peer)).copied();
        shown.map_or(peer.not_after, |end| end.max(peer.not_after))
    }
}

fn who(peer: &Peer) -> Who {
    (peer.id.clone(), peer.instance.clone())
}

/// An age give or take a tenth, so that connections made together do not end together; `chance`
/// from 0 to 1.
pub(super) fn around(age: Duration, chance: f64) -> Duration {
    age.mul_f64(0.9 + 0.2 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(instance: &str, not_after: SystemTime) -> Peer {
        Peer {
            id: "spiffe://m/ns/default/agent/a".parse().unwrap(),
            instance: Some(instance.parse().unwrap()),
            not_before: SystemTime::UNIX_EPOCH,
            not_after,
            serial: "1".into(),
            key: [0; 32],
        }
    }

    #[test]
    fn a_newer_certificate_of_the_same_instance_alone_keeps_a_connection() {
        let start = wall();
        let hour = Duration::from_secs(3600);
        let sightings = Sightings::default();
        let old = peer("i1", start + hour);
        sightings.saw(&old, start);
        assert!(!sightings.ended(&old, start));
        assert!(sightings.ended(&old, start + hour));
        sightings.saw(&peer("i2", start + 2 * hour), start);
        assert!(sightings.ended(&old, start + hour), "another instance's");
        sightings.saw(&peer("i1", start + 2 * hour), start);
        sightings.saw(&old, start);
        assert!(!sightings.ended(&old, start + hour));
        assert!(sightings.ended(&old, start + 2 * hour));
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_certificate_ends_the_wait() {
        let past = peer("i1", wall() - Duration::from_secs(1));
        Sightings::default().end_of(&past).await;
    }

    #[test]
    fn ages_spread_by_a_tenth_each_way() {
        let age = Duration::from_secs(100);
        assert_eq!(around(age, 0.0), Duration::from_secs(90));
        assert_eq!(around(age, 1.0), Duration::from_secs(110));
    }
}
