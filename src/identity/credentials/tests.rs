//! Handshakes in memory: who gets in, who does not, and what is shown.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustls::{
    CertificateError, ClientConnection, HandshakeKind, ServerConnection,
    time_provider::TimeProvider,
};

use super::*;
use crate::identity::authority::Validity;
use crate::identity::csr::Draft;
use crate::identity::fixture::{BILLING, Mesh};
use crate::identity::peer::exporter;
use crate::runtime::clock;

/// Who refused a handshake.
#[derive(Debug)]
enum Refused {
    Client(Error),
    Server(Error),
}

type Ends = (ClientConnection, ServerConnection);

/// Shakes hands until both ends are quiet.
fn shake(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Result<Ends, Refused> {
    let name = "mesh.internal".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().map_err(Refused::Server)?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(Refused::Client)?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok((client, server))
}

fn shown_by(certificates: Option<&[CertificateDer<'_>]>) -> Peer {
    crate::identity::certificate::peer_of(&certificates.unwrap()[0]).unwrap()
}

fn refused_by_server(outcome: Result<Ends, Refused>) -> Error {
    match outcome {
        Err(Refused::Server(error)) => error,
        Err(Refused::Client(error)) => panic!("the client refused: {error}"),
        Ok(_) => panic!("accepted"),
    }
}

fn refused_by_client(outcome: Result<Ends, Refused>) -> Error {
    match outcome {
        Err(Refused::Client(error)) => error,
        Err(Refused::Server(error)) => panic!("the server refused: {error}"),
        Ok(_) => panic!("accepted"),
    }
}

#[derive(Debug)]
struct At(AtomicU64);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = self.0.load(Ordering::SeqCst);
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

fn at(when: std::time::SystemTime) -> Arc<At> {
    Arc::new(At(AtomicU64::new(clock::unix_seconds(when))))
}

#[test]
fn members_meet_and_both_know_whom() {
    let mesh = Mesh::new();
    let server = Credentials::new(mesh.svid(BILLING, Some("i1")));
    let client = mesh.credentials("ns/default/service/web");
    let expect = Expect::Instance(server.id(), "i1".parse().unwrap());
    let (c, s) = shake(&server.server_config(), &client.client_config(expect)).unwrap();
    assert_eq!(shown_by(s.peer_certificates()).id, client.id());
    assert_eq!(shown_by(c.peer_certificates()), **server.current().peer());
    assert_eq!(c.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(s.alpn_protocol(), Some(&b"h2"[..]));
    let (ours, theirs) = (exporter(&c).unwrap(), exporter(&s).unwrap());
    assert_eq!(ours, theirs);
    let again = shake(
        &server.server_config(),
        &client.client_config(Expect::Member(server.id())),
    );
    assert_ne!(exporter(&again.unwrap().0).unwrap(), ours);
}

#[test]
fn nobody_else_is_taken_for_the_one_who_was_dialled() {
    let mesh = Mesh::new();
    let server = Credentials::new(mesh.svid(BILLING, Some("i1")));
    let client = mesh.credentials("operator/ops");
    for expect in [
        Expect::Member(mesh.id("ns/default/agent/research")),
        Expect::Member(mesh.id("ns/default/service/billing")),
        Expect::Instance(server.id(), "i2".parse().unwrap()),
        Expect::Instance(mesh.id("ns/default/agent/research"), "i1".parse().unwrap()),
        Expect::AnyRegistry,
    ] {
        let config = client.client_config(expect.clone());
        let error = refused_by_client(shake(&server.server_config(), &config));
        let mismatch = Mismatch::of(&error).unwrap_or_else(|| panic!("{expect:?}: {error}"));
        assert!(mismatch.found.contains("billing"), "{mismatch}");
    }
    let registry = mesh.credentials("registry/r1");
    let config = client.client_config(Expect::AnyRegistry);
    shake(&registry.server_config(), &config).unwrap();
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let registry = mesh.credentials("registry/r1");
    let mut anonymous = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let servers = Servers {
        held: Arc::clone(&registry.held),
        expect: Expect::AnyRegistry,
    };
    anonymous
        .dangerous()
        .set_certificate_verifier(Arc::new(servers));
    anonymous.alpn_protocols = vec![ALPN.to_vec()];
    let outcome = shake(&registry.server_config(), &Arc::new(anonymous));
    assert_eq!(refused_by_server(outcome), Error::NoCertificatesPresented);
}

#[test]
fn other_protocols_inside_tls_are_refused() {
    let mesh = Mesh::new();
    let registry = mesh.credentials("registry/r1");
    let client = mesh.credentials("operator/ops");
    let mut config = (*client.client_config(Expect::AnyRegistry)).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let outcome = shake(&registry.server_config(), &Arc::new(config));
    assert_eq!(refused_by_server(outcome), Error::NoApplicationProtocol);
}

#[test]
fn foreign_meshes_stay_outside_even_under_the_same_name() {
    let (ours, theirs) = (Mesh::new(), Mesh::new());
    let other_domain = Mesh::of("other");
    let server = ours.credentials("registry/r1");
    for foreign in [&theirs, &other_domain] {
        let client = foreign.credentials("operator/ops");
        let mut config = (*client.client_config(Expect::AnyRegistry)).clone();
        let trusting = ours.credentials("operator/ops");
        // It trusts our server, so that the refusal tested is the server's.
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(Servers {
                held: Arc::clone(&trusting.held),
                expect: Expect::AnyRegistry,
            }));
        let error = refused_by_server(shake(&server.server_config(), &Arc::new(config)));
        assert!(
            matches!(
                error,
                Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::BadSignature
                )
            ),
            "{error:?}"
        );
        let client = foreign.credentials("operator/ops");
        let config = client.client_config(Expect::AnyRegistry);
        refused_by_client(shake(&server.server_config(), &config));
    }
}

#[test]
fn our_roots_vouch_for_no_other_trust_domain() {
    let mesh = Mesh::of("other");
    let svid = mesh.svid("operator/ops", None);
    let ours = "attache.local".parse().unwrap();
    let trust = crate::identity::verify::Trust::new(ours, svid.bundle()).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(clock::unix_seconds(clock::wall())));
    let (leaf, rest) = (&svid.chain()[0], &svid.chain()[1..]);
    for outcome in [trust.client(leaf, rest, now), trust.server(leaf, rest, now)] {
        let error = outcome.unwrap_err();
        assert!(Mismatch::of(&error).is_some(), "{error}");
    }
}

#[test]
fn dates_are_judged_without_leeway() {
    let mesh = Mesh::new();
    let server = mesh.credentials("registry/r1");
    let client = mesh.credentials("operator/ops");
    let second = Duration::from_secs(1);
    // Of each its own dates: a second may have begun between the two certificates.
    let moments = |of: &Credentials| {
        let peer = Arc::clone(of.current().peer());
        [
            (peer.not_before - second, false),
            (peer.not_before, true),
            (peer.not_after, true),
            (peer.not_after + second, false),
        ]
    };
    let own = client.client_config(Expect::AnyRegistry);
    for (when, fits) in moments(&client) {
        let mut config = (*server.server_config()).clone();
        config.time_provider = at(when);
        let outcome = shake(&Arc::new(config), &own);
        assert_eq!(outcome.is_ok(), fits, "the client's, {when:?}");
    }
    for (when, fits) in moments(&server) {
        let mut config = (*own).clone();
        config.time_provider = at(when);
        let outcome = shake(&server.server_config(), &Arc::new(config));
        assert_eq!(outcome.is_ok(), fits, "the server's, {when:?}");
    }
}

/// The client's certificate ends between two connections.
fn second_connection(server: ServerConfig, client: ClientConfig) -> Result<Ends, Refused> {
    let time = at(clock::wall());
    let (mut server, client) = (server, Arc::new(client));
    server.time_provider = Arc::clone(&time) as Arc<dyn TimeProvider>;
    let server = Arc::new(server);
    shake(&server, &client).unwrap();
    time.0.fetch_add(120, Ordering::SeqCst);
    shake(&server, &client)
}

fn short_lived(mesh: &Mesh) -> Credentials {
    let draft = Draft::new().unwrap();
    let now = clock::wall();
    let life = Validity {
        not_before: now - Duration::from_secs(60),
        not_after: now + Duration::from_secs(60),
    };
    let key = draft.public_key().unwrap();
    let id = mesh.id("operator/ops");
    let chain = mesh.authority.issue_within(&key, &id, None, life).unwrap();
    let svid = draft.certified(chain, mesh.authority.bundle(), 0).unwrap();
    Credentials::new(svid)
}

#[test]
fn resume_after_expiry() {
    let mesh = Mesh::new();
    let server = Credentials::new(mesh.svid("registry/r1", None));
    let client = short_lived(&mesh);
    let ours = (*server.server_config()).clone();
    let theirs = (*client.client_config(Expect::AnyRegistry)).clone();

    // A client that would resume meets a server that does not.
    let mut eager = theirs.clone();
    eager.resumption = Resumption::in_memory_sessions(8);
    let error = refused_by_server(second_connection(ours.clone(), eager.clone()));
    assert!(
        matches!(
            error,
            Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            )
        ),
        "{error:?}"
    );

    // A server that would resume meets a client of ours, which does not.
    let mut lax = ours;
    lax.send_tls13_tickets = 2;
    lax.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    refused_by_server(second_connection(lax.clone(), theirs));

    // Without both controls the expired client is let in: this test can fail.
    let (_, resumed) = second_connection(lax, eager).unwrap();
    assert_eq!(resumed.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[tokio::test]
async fn new_handshakes_use_the_new_certificate() {
    let mesh = Mesh::new();
    let registry = mesh.credentials("registry/r1");
    let client = mesh.credentials(BILLING);
    let mut changes = client.changes();
    let (server, config) = (
        registry.server_config(),
        client.client_config(Expect::AnyRegistry),
    );
    let serials = |ends: Ends| {
        let (c, s) = ends;
        let client = shown_by(s.peer_certificates()).serial;
        (client, shown_by(c.peer_certificates()).serial)
    };
    let before = serials(shake(&server, &config).unwrap());
    assert_eq!(before, serials(shake(&server, &config).unwrap()));
    client.clone().replace(mesh.svid(BILLING, None));
    registry.replace(mesh.svid("registry/r1", None));
    changes.changed().await.unwrap();
    assert_eq!(*changes.borrow(), 1);
    let after = serials(shake(&server, &config).unwrap());
    assert_ne!(before.0, after.0);
    assert_ne!(before.1, after.1);
    assert_eq!(after.0, client.current().peer().serial);
}

#[test]
fn first_contact_trusts_only_the_pinned_root_and_a_registry() {
    let (mesh, impostor) = (Mesh::new(), Mesh::new());
    let pin = mesh.authority.root_key_pin().unwrap();
    let config = joining_config(pin);
    let registry = mesh.credentials("registry/r1");
    shake(&registry.enrollment_config(), &config).unwrap();

    let fake = impostor.credentials("registry/r1");
    let error = refused_by_client(shake(&fake.enrollment_config(), &config));
    assert_eq!(
        error,
        Error::InvalidCertificate(CertificateError::UnknownIssuer)
    );
    // Our root beside a foreign chain proves nothing.
    let mixed = CertifiedKey {
        cert: [fake.current().chain(), &mesh.authority.bundle()[..]].concat(),
        key: Arc::clone(&fake.current().shown(false).key),
        ocsp: None,
    };
    let mut lying = (*fake.enrollment_config()).clone();
    lying.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(mixed));
    refused_by_client(shake(&Arc::new(lying), &config));
    // A member that is no registry may not collect tokens.
    let member = mesh.credentials(BILLING);
    let error = refused_by_client(shake(&member.enrollment_config(), &config));
    assert_eq!(Mismatch::of(&error).unwrap().expected, "a registry");
}

#[test]
fn nothing_shows_the_key() {
    let mesh = Mesh::new();
    let credentials = mesh.credentials("registry/r1");
    let svid = credentials.current();
    svid.save(mesh.dir.path()).unwrap();
    let pem = std::fs::read_to_string(mesh.dir.path().join("key.pem")).unwrap();
    let line = pem.lines().nth(1).unwrap();
    let bytes = format!("{:?}", &svid.key_bytes()[36..60]);
    for shown in [format!("{credentials:?}"), format!("{svid:?}")] {
        assert!(!shown.contains(line), "{shown}");
        assert!(!shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
    }
}
