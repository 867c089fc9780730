//! A CA in a temporary directory, for this component's tests.

use std::{sync::Arc, time::Duration};

use tonic::Request;

use crate::domain::SpiffeId;
use crate::identity::authority::{Authority, LEAF_LIFE, Names};
use crate::identity::credentials::Credentials;
use crate::identity::ledger::MemoryLedger;
use crate::identity::peer::{Caller, Connection, Peer};
use crate::identity::svid::Svid;
use crate::identity::token::{JoinString, create_join_token};
use crate::runtime::clock;

pub(super) const BILLING: &str = "ns/default/agent/billing";

/// A mesh with its CA and ledger.
pub(super) struct Mesh {
    pub(super) dir: tempfile::TempDir,
    pub(super) authority: Arc<Authority>,
    pub(super) ledger: Arc<MemoryLedger>,
}

impl Mesh {
    pub(super) fn new() -> Self {
        Self::of("attache.local")
    }

    pub(super) fn of(domain: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let domain = domain.parse().unwrap();
        let authority = Authority::create(&dir.path().join("ca"), &domain, Names::Mesh).unwrap();
        Self {
            dir,
            authority: Arc::new(authority),
            ledger: Arc::new(MemoryLedger::default()),
        }
    }

    pub(super) fn id(&self, path: &str) -> SpiffeId {
        let domain = self.authority.trust_domain();
        format!("spiffe://{domain}/{path}").parse().unwrap()
    }

    pub(super) fn svid(&self, path: &str, instance: Option<&str>) -> Svid {
        let instance = instance.map(|text| text.parse().unwrap());
        let id = self.id(path);
        self.authority
            .svid(&id, instance.as_ref(), LEAF_LIFE)
            .unwrap()
    }

    pub(super) fn credentials(&self, path: &str) -> Credentials {
        Credentials::new(self.svid(path, None))
    }

    pub(super) async fn token(&self, path: &str, instance: Option<&str>) -> JoinString {
        let instance = instance.map(|text| text.parse().unwrap());
        let life = Duration::from_mins(10);
        let now = clock::wall();
        create_join_token(
            &self.authority,
            &*self.ledger,
            self.id(path),
            instance,
            life,
            now,
        )
        .await
        .unwrap()
        .0
    }
}

/// A request as it comes by the enrolment listener.
pub(super) fn anonymous<T>(message: T, remote: &str, exporter: [u8; 32]) -> Request<T> {
    let connection = Connection {
        caller: Caller::Anonymous,
        remote: Some(remote.parse().unwrap()),
        local: None,
        exporter: Some(exporter),
    };
    with(message, connection)
}

/// A request as it comes by mutual TLS.
pub(super) fn from_peer<T>(message: T, peer: &Arc<Peer>) -> Request<T> {
    let connection = Connection {
        caller: Caller::Member(Arc::clone(peer)),
        remote: None,
        local: None,
        exporter: None,
    };
    with(message, connection)
}

fn with<T>(message: T, connection: Connection) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Arc::new(connection));
    request
}
