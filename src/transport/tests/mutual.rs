//! Who may talk to whom: certificates, pins and their ends.

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::domain::SpiffeId;
use crate::identity::authority::Validity;
use crate::identity::{
    Authority, Credentials, Draft, Expect, Names, Revocation, Revoked, Svid, joining_config,
};
use crate::runtime::clock::wall;
use crate::transport::dial_enrollment;
use crate::wire::status::reason_of;

pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// A CA with members of it.
pub(super) struct Mesh {
    pub(super) authority: Authority,
    _dir: tempfile::TempDir,
}

impl Mesh {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let domain = "attache.local".parse().unwrap();
        let authority = Authority::create(&dir.path().join("ca"), &domain, Names::Mesh).unwrap();
        Self {
            authority,
            _dir: dir,
        }
    }

    pub(super) fn agent(&self, name: &str, ttl: Duration) -> Credentials {
        Credentials::new(self.svid(name, ttl))
    }

    fn svid(&self, name: &str, ttl: Duration) -> Svid {
        let instance = format!("{name}-1").parse().unwrap();
        self.authority
            .svid(&id(name), Some(&instance), ttl)
            .unwrap()
    }

    fn instance(&self, name: &str, instance: &str, ttl: Duration) -> Credentials {
        let instance = instance.parse().unwrap();
        let svid = self.authority.svid(&id(name), Some(&instance), ttl);
        Credentials::new(svid.unwrap())
    }

    fn expired(&self, name: &str) -> Credentials {
        let draft = Draft::new().unwrap();
        let life = Validity {
            not_before: wall() - Duration::from_secs(50),
            not_after: wall() - Duration::from_secs(5),
        };
        let key = draft.public_key().unwrap();
        let chain = self.authority.issue_within(&key, &id(name), None, life);
        let svid = draft.certified(chain.unwrap(), self.authority.bundle(), 1);
        Credentials::new(svid.unwrap())
    }
}

fn id(name: &str) -> SpiffeId {
    let text = format!("spiffe://attache.local/ns/default/agent/{name}");
    text.parse().unwrap()
}

/// A server of the agent `name`, and how to reach it.
fn serve_as(own: &Credentials, threads: &DataThreads, seen: &Seen) -> (Server, Target) {
    serve_within(Limits::default(), own, threads, seen)
}

fn serve_within(
    limits: Limits,
    own: &Credentials,
    threads: &DataThreads,
    seen: &Seen,
) -> (Server, Target) {
    let listener = Listener::tcp("127.0.0.1:0").unwrap();
    let target = Target {
        endpoints: vec![listener.address().to_owned()],
        expect: Some(Expect::Member(own.id())),
    };
    let security = Security::MutualTls(own.clone());
    let server = Server::start(listener, security, threads, limits, |_| seen.routes());
    (server, target)
}

#[tokio::test]
async fn handlers_know_the_member_that_calls() {
    let (mesh, seen) = (Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let (server, target) = serve_as(&mesh.agent("server", HOUR), &threads, &seen);
    let own = mesh.agent("client", HOUR);
    let channel = Pool::new(own.clone(), Nursery::here()).channel(target);
    assert_eq!(call(&channel, "/echo", b"hello").await.unwrap(), "hello");
    let caller = seen.callers.lock().remove(0);
    let Caller::Member(peer) = caller else {
        panic!("{caller:?}");
    };
    assert_eq!(peer.as_ref(), own.current().peer().as_ref());
    server.drain(GRACE).await;
}

#[tokio::test]
async fn a_pin_that_does_not_fit_lets_no_byte_of_a_request_out() {
    let (mesh, seen) = (Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let (server, mut target) = serve_as(&mesh.agent("server", HOUR), &threads, &seen);
    let pool = Pool::new(mesh.agent("client", HOUR), Nursery::here());
    let other = "another".parse().unwrap();
    for expect in [
        Expect::Member(id("somebody")),
        Expect::Instance(id("server"), other),
        Expect::AnyRegistry,
    ] {
        target.expect = Some(expect);
        let channel = pool.channel(target.clone());
        let fault = call(&channel, "/echo", b"secret").await.unwrap_err();
        assert_eq!(
            reason_of(&fault).as_deref(),
            Some("PEER_MISMATCH"),
            "{fault}"
        );
        assert!(fault.message().contains("agent/server"), "{fault}");
    }
    until("nobody is connected", || server.connections() == 0).await;
    assert_eq!(seen.calls.load(SeqCst), 0);
    target.expect = Some(Expect::Instance(id("server"), "server-1".parse().unwrap()));
    call(&pool.channel(target), "/echo", b"x").await.unwrap();
    server.drain(GRACE).await;
}

#[tokio::test]
async fn who_proves_nothing_is_refused_in_the_handshake() {
    let (mesh, foreign, seen) = (Mesh::new(), Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let (server, target) = serve_as(&mesh.agent("server", HOUR), &threads, &seen);

    let expired = Pool::new(mesh.expired("client"), Nursery::here()).channel(target.clone());
    let fault = call(&expired, "/echo", b"x").await.unwrap_err();
    assert_eq!(reason_of(&fault).as_deref(), Some("PEER_UNREACHABLE"));
    assert!(
        fault.message().contains("refused our certificate"),
        "{fault}"
    );

    let stranger = foreign.agent("client", HOUR);
    let channel = Pool::new(stranger, Nursery::here()).channel(target.clone());
    let fault = call(&channel, "/echo", b"x").await.unwrap_err();
    assert_eq!(
        reason_of(&fault).as_deref(),
        Some("PEER_UNREACHABLE"),
        "{fault}"
    );

    let plain = Target {
        expect: None,
        ..target.clone()
    };
    let channel = Pool::plaintext(Nursery::here()).channel(plain);
    let fault = call(&channel, "/echo", b"x").await.unwrap_err();
    assert_eq!(
        reason_of(&fault).as_deref(),
        Some("PEER_UNREACHABLE"),
        "{fault}"
    );

    // A client that takes any server, and shows nothing, or shows a foreign certificate.
    for config in [trusting(None), trusting(Some(self_made()))] {
        let error = say_something(&target.endpoints[0], config).await;
        assert!(error.contains("received fatal alert"), "{error}");
    }
    assert_eq!(seen.calls.load(SeqCst), 0);
    server.drain(GRACE).await;
}

#[tokio::test]
async fn a_pool_without_credentials_opens_nothing_that_needs_them() {
    let (mesh, seen) = (Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let (server, target) = serve_as(&mesh.agent("server", HOUR), &threads, &seen);
    let channel = Pool::plaintext(Nursery::here()).channel(target);
    let fault = call(&channel, "/echo", b"x").await.unwrap_err();
    assert!(fault.message().contains("no certificate"), "{fault}");
    server.drain(GRACE).await;
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let (mesh, seen) = (Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let (server, target) = serve_as(&mesh.agent("server", HOUR), &threads, &seen);
    let own = mesh.agent("client", Duration::from_secs(2));
    let pool = Pool::new(own, Nursery::here());
    let (feed, request) = flow();
    let response = pool.channel(target).oneshot(request).await.unwrap();
    let ended = response.into_body().collect().await;
    assert!(ended.is_err(), "cut, not ended");
    drop(feed);
    until("it is closed", || server.connections() == 0).await;
    server.drain(GRACE).await;
}

#[tokio::test]
async fn a_server_whose_certificate_ends_is_left() {
    let (mesh, seen) = (Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let own = mesh.agent("server", Duration::from_secs(2));
    let (server, target) = serve_as(&own, &threads, &seen);
    let pool = Pool::new(mesh.agent("client", HOUR), Nursery::here());
    let (feed, request) = flow();
    let response = pool.channel(target.clone()).oneshot(request).await.unwrap();
    assert!(
        response.into_body().collect().await.is_err(),
        "cut, not ended"
    );
    drop(feed);
    let fault = call(&pool.channel(target), "/echo", b"x")
        .await
        .unwrap_err();
    assert_eq!(
        reason_of(&fault).as_deref(),
        Some("PEER_UNREACHABLE"),
        "{fault}"
    );
    server.drain(GRACE).await;
}

#[tokio::test]
async fn a_client_whose_certificate_ends_is_cut_though_another_instance_has_a_newer_one() {
    let (mesh, seen) = (Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let (server, target) = serve_as(&mesh.agent("server", HOUR), &threads, &seen);
    let own = mesh.agent("client", Duration::from_secs(2));
    let sibling = mesh.instance("client", "client-2", HOUR);
    let pools = [own, sibling].map(|own| Pool::new(own, Nursery::here()));
    let mut bodies = Vec::new();
    for pool in &pools {
        let (feed, request) = flow();
        let response = pool.channel(target.clone()).oneshot(request).await.unwrap();
        bodies.push((feed, response.into_body()));
    }
    let (mut stays, ends) = (bodies.pop().unwrap(), bodies.pop().unwrap());
    assert!(ends.1.collect().await.is_err(), "cut, not ended");
    stays.0.send(Ok(Frame::data("x".into()))).await.unwrap();
    stays.1.frame().await.unwrap().unwrap();
    let fault = call(&pools[0].channel(target), "/echo", b"x").await;
    let fault = fault.unwrap_err();
    assert_eq!(reason_of(&fault).as_deref(), Some("PEER_UNREACHABLE"));
    drop(stays);
    server.drain(GRACE).await;
}

#[tokio::test]
async fn an_instance_has_so_many_connections_and_those_told_to_go_do_not_count() {
    let (mesh, seen) = (Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let server = mesh.agent("server", HOUR);
    let limits = Limits {
        per_instance: 1,
        connection_age: Duration::from_secs(2),
        ..Limits::default()
    };
    let (server, target) = serve_within(limits, &server, &threads, &seen);
    // Pools that do not move by themselves, each with a stream that keeps its connection open.
    let open = |own: &Credentials| {
        let channel = Pool::new(own.clone(), Nursery::here()).channel(target.clone());
        async move {
            let (feed, request) = flow();
            let response = channel.oneshot(request).await;
            response.map(|response| (feed, response.into_body()))
        }
    };
    let one = mesh.agent("client", HOUR);
    let mut first = open(&one).await.unwrap();
    let fault = open(&one).await.unwrap_err();
    assert_eq!(reason_of(&fault).as_deref(), Some("PEER_UNREACHABLE"));
    let sibling = mesh.instance("client", "client-2", HOUR);
    open(&sibling).await.unwrap();
    // Once the first is told to go there is room for its successor, while its stream goes on.
    let second = loop {
        if let Ok(second) = open(&one).await {
            break second;
        }
    };
    first.0.send(Ok(Frame::data("x".into()))).await.unwrap();
    first.1.frame().await.unwrap().unwrap();
    drop((first, second));
    server.drain(GRACE).await;
}

#[tokio::test]
async fn who_does_not_ask_for_http2_gets_nothing() {
    let (mesh, seen) = (Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let (server, target) = serve_as(&mesh.agent("server", HOUR), &threads, &seen);
    let own = mesh.agent("client", HOUR);
    let mut config = (*own.client_config(target.expect.clone().unwrap())).clone();
    config.alpn_protocols.clear();
    let error = say_something(&target.endpoints[0], Arc::new(config)).await;
    assert!(!error.is_empty());
    until("it is forgotten", || server.connections() == 0).await;
    assert_eq!(seen.calls.load(SeqCst), 0);
    server.drain(GRACE).await;
}

#[tokio::test]
async fn a_renewed_certificate_keeps_old_streams_and_moves_new_calls() {
    let (mesh, seen) = (Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let (server, target) = serve_as(&mesh.agent("server", HOUR), &threads, &seen);
    let own = mesh.agent("client", Duration::from_secs(3));
    let pool = Pool::new(own.clone(), Nursery::here());
    let channel = pool.channel(target);
    let (feed, request) = flow();
    let mut body = channel.clone().oneshot(request).await.unwrap().into_body();
    let first_end = own.current().peer().not_after;

    own.replace(mesh.svid("client", HOUR));
    let serial = own.current().peer().serial.clone();
    let shown = || match seen.callers.lock().last() {
        Some(Caller::Member(peer)) => peer.serial.clone(),
        _ => String::new(),
    };
    while shown() != serial {
        // Made before the old one is left: calls go on meanwhile.
        call(&channel, "/echo", b"x").await.unwrap();
    }
    while wall() < first_end + Duration::from_secs(1) {
        feed.send(Ok(Frame::data("x".into()))).await.unwrap();
        body.frame().await.unwrap().unwrap();
    }
    drop(feed);
    body.collect().await.unwrap();
    until("the old one is gone", || server.connections() == 1).await;
    server.drain(GRACE).await;
}

#[tokio::test]
async fn both_ends_of_an_enrolment_share_keying_material() {
    let (mesh, seen) = (Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let registry = "spiffe://attache.local/registry/main".parse().unwrap();
    let own = mesh.authority.svid(&registry, None, HOUR).unwrap();
    let listener = Listener::tcp("127.0.0.1:0").unwrap();
    let endpoints = [listener.address().to_owned()];
    let security = Security::Enrollment(Credentials::new(own));
    let server = Server::start(listener, security, &threads, Limits::default(), |_| {
        seen.routes()
    });

    let nursery = Nursery::here();
    let pin = mesh.authority.root_key_pin().unwrap();
    let dialed = dial_enrollment(&endpoints, joining_config(pin), &nursery).await;
    let (channel, exporter) = dialed.unwrap();
    call(&channel, "/echo", b"x").await.unwrap();
    assert_eq!(seen.callers.lock()[0], Caller::Anonymous);
    assert_eq!(seen.exporters.lock()[0], Some(exporter));

    let other = joining_config([7; 32]);
    let fault = dial_enrollment(&endpoints, other, &nursery)
        .await
        .unwrap_err();
    assert_eq!(fault.reason.label(), "PEER_UNREACHABLE", "{fault}");
    server.drain(GRACE).await;
    let fault = call(&channel, "/echo", b"x").await.unwrap_err();
    assert_eq!(reason_of(&fault).as_deref(), Some("PEER_UNREACHABLE"));
}

#[tokio::test]
async fn a_slow_handshake_is_closed() {
    let (mesh, seen) = (Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let listener = Listener::tcp("127.0.0.1:0").unwrap();
    let address = listener.address().to_owned();
    let security = Security::MutualTls(mesh.agent("server", HOUR));
    let limits = Limits {
        handshake_time: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = Server::start(listener, security, &threads, limits, |_| seen.routes());
    let mut silent = TcpStream::connect(&address).await.unwrap();
    let mut heard = Vec::new();
    silent.read_to_end(&mut heard).await.unwrap();
    assert!(heard.is_empty());
    until("it is forgotten", || server.connections() == 0).await;
    server.drain(GRACE).await;
}

#[tokio::test]
async fn who_is_shut_out_is_cut_and_refused_on_either_side_and_nobody_else() {
    let (mesh, seen) = (Mesh::new(), Seen::new());
    let threads = DataThreads::start(1).unwrap();
    let own = mesh.agent("server", HOUR);
    let (server, target) = serve_as(&own, &threads, &seen);
    let [stolen, honest] = ["stolen", "honest"].map(|name| {
        let credentials = mesh.agent(name, HOUR);
        let channel = Pool::new(credentials.clone(), Nursery::here()).channel(target.clone());
        (credentials, channel)
    });
    let open = async |channel: &Channel| {
        let (feed, request) = flow();
        let response = channel.clone().oneshot(request).await.unwrap();
        (feed, response)
    };
    let ended = async |response| {
        let ended = tokio::time::timeout(Duration::from_secs(5), whole(response)).await;
        ended.expect("the stream was not cut").is_err()
    };
    // A connection that broke at once is dialled again after a moment only.
    let refused = async |channel: &Channel| {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let fault = call(channel, "/echo", b"x").await.unwrap_err();
            assert_eq!(reason_of(&fault).as_deref(), Some("PEER_UNREACHABLE"));
            if fault.message().contains("Revoked") {
                return;
            }
            assert!(Instant::now() < end, "{fault}");
            tokio::task::yield_now().await;
        }
    };
    let of = |name: &str| Revoked::of([Revocation::at(wall(), id(name), None)]);

    let (_feed, cut) = open(&stolen.1).await;
    let (fed, stays) = open(&honest.1).await;
    own.shut_out(of("stolen"));
    assert!(ended(cut).await);
    refused(&stolen.1).await;
    drop(fed);
    whole(stays).await.unwrap();
    call(&honest.1, "/echo", b"x").await.unwrap();

    // A client cuts and refuses a server as well.
    let (_feed, cut) = open(&honest.1).await;
    honest.0.shut_out(of("server"));
    assert!(ended(cut).await);
    refused(&honest.1).await;

    // Who is on the list no more is let in again.
    own.shut_out(Revoked::default());
    let end = Instant::now() + Duration::from_secs(30);
    while call(&stolen.1, "/echo", b"x").await.is_err() {
        assert!(Instant::now() < end);
        tokio::task::yield_now().await;
    }
    server.drain(GRACE).await;
}

/// Sends HTTP/2's first words and returns the error that comes back.
async fn say_something(address: &str, config: Arc<ClientConfig>) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("mesh.internal").unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    let mut tls = connector.connect(name, stream).await.unwrap();
    drop(tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await);
    let read = tls.read_u8().await;
    read.unwrap_err().to_string()
}

/// A client that believes every server.
fn trusting(
    shown: Option<(Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>)>,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(key))
            .unwrap(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A client certificate of a CA that nobody knows.
fn self_made() -> (Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>) {
    let mut params = rcgen::CertificateParams::default();
    let name = id("client").to_string().try_into().unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(name));
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (vec![certificate.der().clone()], key.serialize_der().into())
}

#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
