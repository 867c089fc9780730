//! The certificate of the moment, and TLS configurations that follow it.
//!
//! A configuration is built once; each handshake takes the certificate and the roots that are
//! current then. TLS 1.3 and HTTP/2 only. Tickets and resumption are off on both sides: a resumed
//! session is never verified again, so it would let an expired certificate in.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::verify_tls13_signature,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::sync::watch;

use crate::domain::InstanceId;
use crate::domain::Member;
use crate::domain::SpiffeId;
use crate::identity::peer::Peer;
use crate::identity::revocation::Revoked;
use crate::identity::svid::{Svid, SvidError};
use crate::identity::verify::{Mismatch, Pinned, provider, tls13_signatures};

/// The one protocol that is spoken inside TLS.
pub(crate) const ALPN: &[u8] = b"h2";

/// Whom a client dials: the peer must prove to be exactly that.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expect {
    /// Any instance of this member.
    Member(SpiffeId),
    /// This one instance of this member.
    Instance(SpiffeId, InstanceId),
    /// Any registry of our trust domain.
    AnyRegistry,
}

impl Expect {
    /// Whether `peer` is who is meant.
    ///
    /// # Errors
    /// With both sides' names when it is not.
    pub fn check(&self, peer: &Peer) -> Result<(), Mismatch> {
        let fits = match self {
            Self::Member(id) => peer.id == *id,
            Self::Instance(id, instance) => {
                peer.id == *id && peer.instance.as_ref() == Some(instance)
            }
            Self::AnyRegistry => matches!(peer.id.member, Member::Registry(_)),
        };
        if fits {
            return Ok(());
        }
        let named = |id: &SpiffeId, instance: Option<&InstanceId>| match instance {
            Some(instance) => format!("{id} instance {instance}"),
            None => id.to_string(),
        };
        Err(Mismatch {
            expected: match self {
                Self::Member(id) => named(id, None),
                Self::Instance(id, instance) => named(id, Some(instance)),
                Self::AnyRegistry => "a registry".into(),
            },
            found: named(&peer.id, peer.instance.as_ref()),
        })
    }
}

/// Certificates of roots.
type Roots = Vec<CertificateDer<'static>>;

/// A member's hot-swappable certificate, key and bundle. Clones share them.
#[derive(Clone)]
pub struct Credentials {
    held: Arc<Held>,
    server: Arc<ServerConfig>,
    enrollment: Arc<ServerConfig>,
}

impl Credentials {
    /// Starts with `svid`.
    pub fn new(svid: Svid) -> Self {
        let held = Arc::new(Held {
            svid: ArcSwap::from_pointee(svid),
            changes: watch::Sender::new(0),
            revoked: watch::Sender::new(Arc::default()),
            told: Mutex::default(),
        });
        let mutual = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_client_cert_verifier(Arc::new(Clients(Arc::clone(&held))))
            .with_cert_resolver(Arc::new(Shown {
                held: Arc::clone(&held),
                with_root: false,
            }));
        let open = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shown {
                held: Arc::clone(&held),
                with_root: true,
            }));
        Self {
            held,
            server: Arc::new(hardened(mutual)),
            enrollment: Arc::new(hardened(open)),
        }
    }

    /// Takes a new certificate of the same member. New handshakes use it; open connections go on.
    /// The roots are those of [`Self::trust`] as soon as there are any: an answer that was under way
    /// may be older.
    pub fn replace(&self, svid: Svid) {
        let told = self.held.told.lock();
        let fitted = told.as_ref().filter(|told| told.0 != svid.bundle());
        let fitted = fitted.and_then(|(bundle, former)| {
            let fitted = svid.trusting(bundle.clone(), former.clone());
            fitted.ok()
        });
        self.held.put(fitted.unwrap_or(svid));
    }

    /// Trusts these roots from now on, the one that signs first, in place of those before; shows
    /// `former` to who has only a pin.
    ///
    /// # Errors
    /// When there is none, or one is no root; those before stay.
    pub fn trust(&self, bundle: Roots, former: Roots) -> Result<(), SvidError> {
        let mut told = self.held.told.lock();
        let present = self.held.svid.load();
        if present.bundle() != bundle || present.former() != former {
            let fitted = present.trusting(bundle.clone(), former.clone())?;
            self.held.put(fitted);
        }
        *told = Some((bundle, former));
        Ok(())
    }

    /// Refuses these certificates from now on, in place of those before: in handshakes, and open
    /// connections end.
    pub fn shut_out(&self, revoked: Revoked) {
        self.held.revoked.send_replace(Arc::new(revoked));
    }

    /// Whose certificates are refused, now and after each change.
    pub fn revoked(&self) -> watch::Receiver<Arc<Revoked>> {
        self.held.revoked.subscribe()
    }

    /// The certificate of this moment.
    pub fn current(&self) -> Arc<Svid> {
        self.held.svid.load_full()
    }

    /// Who we are.
    pub fn id(&self) -> SpiffeId {
        self.current().peer().id.clone()
    }

    /// Which instance we are, if one.
    pub fn instance(&self) -> Option<InstanceId> {
        self.current().peer().instance.clone()
    }

    /// How often the certificate or its roots were replaced; changes each time.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.held.changes.subscribe()
    }

    /// Listens for members: a client certificate of our trust domain is demanded.
    ///
    /// A client that offers protocols without `h2` is refused in the handshake. One that offers
    /// none at all passes it: to be refused by who looks at what was agreed on.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// Listens for those without a certificate; shows the root too, for them to check its pin.
    pub fn enrollment_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.enrollment)
    }

    /// Dials exactly `expect`; a peer with a valid certificate that is somebody else gets nothing,
    /// and [`Mismatch::of`] finds it in the error. The server name is not looked at.
    pub fn client_config(&self, expect: Expect) -> Arc<ClientConfig> {
        let servers = Servers {
            held: Arc::clone(&self.held),
            expect,
        };
        let own = Shown {
            held: Arc::clone(&self.held),
            with_root: false,
        };
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(servers))
            .with_client_cert_resolver(Arc::new(own));
        Arc::new(without_resumption(config))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("current", &self.held.svid.load())
            .finish_non_exhaustive()
    }
}

/// Dials an enrolment listener for the first time: nothing is sent unless the server is a registry
/// whose chain leads to the root with this key hash (SHA-256 of its SPKI).
pub fn joining_config(root_key_pin: [u8; 32]) -> Arc<ClientConfig> {
    let pinned = Pinned {
        root_key: root_key_pin,
    };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    Arc::new(without_resumption(config))
}

fn hardened(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config
}

fn without_resumption(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
}

#[derive(Debug)]
struct Held {
    svid: ArcSwap<Svid>,
    changes: watch::Sender<u64>,
    revoked: watch::Sender<Arc<Revoked>>,
    /// Roots that were told by themselves, and former ones. Also keeps one change from another.
    told: Mutex<Option<(Roots, Roots)>>,
}

impl Held {
    fn put(&self, svid: Svid) {
        self.svid.store(Arc::new(svid));
        self.changes.send_modify(|count| *count += 1);
    }

    /// A peer whose chain and dates are good, unless it is shut out.
    fn admitted(&self, peer: Peer) -> Result<Peer, Error> {
        if self.revoked.borrow().refuses(&peer) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(peer)
    }
}

/// Shows our certificate of the moment.
#[derive(Debug)]
struct Shown {
    held: Arc<Held>,
    with_root: bool,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.held.svid.load().shown(self.with_root)))
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.held.svid.load().shown(self.with_root)))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Lets members of our trust domain in.
#[derive(Debug)]
struct Clients(Arc<Held>);

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints would be borrowed from the bundle of one moment; without them clients send theirs.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let peer = self.0.svid.load().trust().client(leaf, rest, now)?;
        let peer = self.0.admitted(peer)?;
        tracing::trace!(peer = %peer.id, serial = peer.serial, "client verified");
        Ok(ClientCertVerified::assertion())
    }

    tls13_signatures!();
}

/// Trusts only the member that was dialled.
#[derive(Debug)]
struct Servers {
    held: Arc<Held>,
    expect: Expect,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let peer = self.held.svid.load().trust().server(leaf, rest, now)?;
        let peer = self.held.admitted(peer)?;
        self.expect.check(&peer).map_err(Mismatch::into_error)?;
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures!();
}

#[cfg(test)]
mod tests;
