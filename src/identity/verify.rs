//! Verifies peers' chains against the bundle of the moment, then reads who they are.
//!
//! Chain and dates are webpki's to check; shape, trust domain and pin are ours. A clock that is
//! off gets no leeway here: certificates are backdated when they are issued.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
};

use crate::domain::Member;
use crate::domain::TrustDomain;
use crate::identity::certificate;
use crate::identity::peer::Peer;
use crate::runtime::clock;

/// TLS 1.3 signatures by the provider; TLS 1.2 is not spoken.
macro_rules! tls13_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.3 only".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = provider().signature_verification_algorithms;
            verify_tls13_signature(message, leaf, signature, &algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}
pub(super) use tls13_signatures;

/// The one crypto provider, named wherever a configuration is built.
///
/// rustls panics when it has to guess between two, and any dependency may switch a second one on.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())))
}

/// The peer holds a valid certificate, but is not who was expected. Nothing was sent to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, met {found}")]
pub struct Mismatch {
    /// Who was dialled.
    pub expected: String,
    /// Who answered.
    pub found: String,
}

impl Mismatch {
    /// The mismatch in a TLS error, if it is one.
    pub fn of(error: &Error) -> Option<&Self> {
        let Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) = error else {
            return None;
        };
        inner.downcast_ref()
    }

    pub(super) fn into_error(self) -> Error {
        refused(self)
    }
}

/// A refusal of ours as TLS sees it; its text is for our own log, the peer gets an alert only.
pub(super) fn refused(why: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

/// Whom we trust: the roots of one trust domain.
pub(super) struct Trust {
    domain: TrustDomain,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Trust {
    /// Trusts the roots of `bundle` to vouch for members of `domain`, and for nobody else.
    ///
    /// # Errors
    /// When the bundle is empty or a certificate in it cannot be a root.
    pub(super) fn new(
        domain: TrustDomain,
        bundle: &[CertificateDer<'static>],
    ) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for root in bundle {
            roots.add(root.clone())?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Self {
            domain,
            roots,
            clients,
        })
    }

    /// The member behind a client's chain at `now`.
    pub(super) fn client(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Peer, Error> {
        self.clients.verify_client_cert(leaf, rest, now)?;
        self.member(leaf)
    }

    /// The member behind a server's chain at `now`. The URI is the name; DNS names are not asked.
    pub(super) fn server(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Peer, Error> {
        signed(leaf, &self.roots, rest, now)?;
        self.member(leaf)
    }

    fn member(&self, leaf: &CertificateDer<'_>) -> Result<Peer, Error> {
        let peer = certificate::peer_of(leaf).map_err(refused)?;
        if peer.id.trust_domain == self.domain {
            Ok(peer)
        } else {
            Err(Mismatch {
                expected: format!("a member of {}", self.domain),
                found: peer.id.to_string(),
            }
            .into_error())
        }
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("domain", &self.domain)
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

/// First contact: trusts only a chain that leads to the root whose key hash is the pin.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) root_key: [u8; 32],
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = |der: &&CertificateDer<'_>| {
            certificate::key_pin(der).is_ok_and(|pin| pin == self.root_key)
        };
        let root = rest.iter().find(pinned);
        let root = root.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        signed(leaf, &roots, rest, now)?;
        let peer = certificate::peer_of(leaf).map_err(refused)?;
        match peer.id.member {
            Member::Registry(_) => Ok(ServerCertVerified::assertion()),
            Member::Agent(_) | Member::Service(_) | Member::Operator(_) => Err(Mismatch {
                expected: "a registry".into(),
                found: peer.id.to_string(),
            }
            .into_error()),
        }
    }

    tls13_signatures!();
}

fn signed(
    leaf: &CertificateDer<'_>,
    roots: &RootCertStore,
    rest: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(leaf)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, rest, now, algorithms)
}

/// Whether the roots vouched for a leaf when its life began, be it over by now.
pub(super) fn member_signed(
    leaf: &CertificateDer<'_>,
    roots: &RootCertStore,
    rest: &[CertificateDer<'_>],
    not_before: SystemTime,
) -> Result<(), Error> {
    signed(leaf, roots, rest, unix(not_before))
}

/// A wall time as rustls takes it.
pub(super) fn unix(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(clock::unix_seconds(at)))
}
