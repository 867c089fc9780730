//! What must be refused, over real connections: wrong certificates, wrong names, wrong tokens.
//!
//! Servers are the library's own, in this process, on free ports of loopback. Each refusal stands
//! beside the same call done right, so that nothing is refused for another reason.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test that finds nonsense should fail"
)]
#![allow(clippy::large_futures, reason = "each test is one story, told once")]

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use attache::{
    domain::SpiffeId,
    identity::{
        Authority, Credentials, Draft, EnrollmentService, Expect, JoinString, Ledger, Names, Svid,
        authority::Validity, certificate::peer_of, create_join_token, join, join::JoinError,
        joining_config,
    },
    pb::{
        self, enrollment_client::EnrollmentClient, enrollment_server::EnrollmentServer,
        registry_client::RegistryClient, registry_server::RegistryServer,
    },
    registry::{
        Door, Engine, RegistryService,
        storage::{MemoryStore, Store},
    },
    runtime::{DataThreads, Nursery, Stop, clock::wall},
    transport::{Channel, Limits, Listener, Pool, Security, Server, Target, dial_enrollment},
    wire::status::reason_of,
};
use futures_util::future::join_all;
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    client::Resumption,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::{Code, Status};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A CA, a ledger and a catalog, and the threads that serve them.
struct Mesh {
    dir: tempfile::TempDir,
    authority: Arc<Authority>,
    store: Arc<MemoryStore>,
    threads: DataThreads,
}

impl Mesh {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let domain = "attache.local".parse().unwrap();
        let authority = Authority::create(&dir.path().join("ca"), &domain, Names::Mesh).unwrap();
        Self {
            dir,
            authority: Arc::new(authority),
            store: Arc::new(MemoryStore::new(tokio::time::Instant::now())),
            threads: DataThreads::start(1).unwrap(),
        }
    }

    fn svid(&self, name: &str, instance: &str) -> Svid {
        let instance = instance.parse().unwrap();
        let svid = self.authority.svid(&agent(name), Some(&instance), HOUR);
        svid.unwrap()
    }

    fn registry_svid(&self) -> Credentials {
        let id: SpiffeId = "spiffe://attache.local/registry/main".parse().unwrap();
        Credentials::new(self.authority.svid(&id, None, HOUR).unwrap())
    }

    /// A registry's mutual TLS listener, and a way to call it as anybody.
    fn registry(&self) -> String {
        let engine = Engine::new(self.store.clone(), Door { loopback: true });
        let service = RegistryService::new(engine, Stop::new());
        let listener = Listener::tcp("127.0.0.1:0").unwrap();
        let address = listener.address().to_owned();
        let security = Security::MutualTls(self.registry_svid());
        Server::start(listener, security, &self.threads, Limits::default(), |_| {
            tonic::service::Routes::new(RegistryServer::new(service.clone()))
        });
        address
    }

    fn call(&self, address: &str, svid: Svid) -> RegistryClient<Channel> {
        let pool = Pool::new(Credentials::new(svid), Nursery::here());
        RegistryClient::new(pool.channel(Target {
            endpoints: vec![address.to_owned()],
            expect: Some(Expect::AnyRegistry),
        }))
    }

    /// A fresh enrolment listener, which has seen no failures yet, with this clock.
    fn enrollment(&self, wall: fn() -> SystemTime) -> String {
        let ledger: Arc<dyn Ledger> = self.store.clone();
        let service = EnrollmentService::new(self.authority.clone(), ledger).with_clock(wall);
        let service = EnrollmentServer::new(service);
        let listener = Listener::tcp("127.0.0.1:0").unwrap();
        let address = listener.address().to_owned();
        let security = Security::Enrollment(self.registry_svid());
        Server::start(listener, security, &self.threads, Limits::default(), |_| {
            tonic::service::Routes::new(service.clone())
        });
        address
    }

    async fn newcomer(&self, address: &str) -> (Channel, [u8; 32]) {
        let config = joining_config(self.authority.root_key_pin().unwrap());
        let endpoints = [address.to_owned()];
        let dialed = dial_enrollment(&endpoints, config, &Nursery::here()).await;
        dialed.unwrap()
    }

    async fn token(&self, name: &str, made: SystemTime) -> JoinString {
        let life = Duration::from_secs(60);
        let made = create_join_token(
            &self.authority,
            self.store.as_ref(),
            agent(name),
            None,
            life,
            made,
        );
        made.await.unwrap().0
    }

    async fn join(&self, address: &str, token: &JoinString) -> Result<Svid, JoinError> {
        let (channel, _) = self.newcomer(address).await;
        let draft = Draft::new().unwrap();
        join::enroll(channel, token, &draft, rand::random()).await
    }

    async fn enroll(&self, address: &str, request: pb::EnrollRequest) -> Result<pb::Svid, Status> {
        let (channel, _) = self.newcomer(address).await;
        let answer = EnrollmentClient::new(channel).enroll(request).await?;
        Ok(answer.into_inner().svid.unwrap())
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        for root in self.authority.bundle() {
            roots.add(root).unwrap();
        }
        roots
    }
}

fn agent(name: &str) -> SpiffeId {
    let text = format!("spiffe://attache.local/ns/default/agent/{name}");
    text.parse().unwrap()
}

fn refusal(error: &JoinError) -> String {
    match error {
        JoinError::Refused(status) => reason_of(status).unwrap(),
        other @ (JoinError::Empty
        | JoinError::Unfit(_)
        | JoinError::Pin
        | JoinError::Stranger { .. }
        | JoinError::Authority(_)
        | JoinError::Sign(_)) => panic!("{other}"),
    }
}

/// Handshake, and whether the server still talks to us after it: one that refuses a certificate of
/// TLS 1.3 says so only then.
async fn greet(config: &Arc<ClientConfig>, address: &str) -> Result<HandshakeKind, String> {
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("main.registry.attache").unwrap();
    let connector = TlsConnector::from(config.clone());
    let mut tls = match connector.connect(name, socket).await {
        Ok(tls) => tls,
        Err(error) => return Err(error.to_string()),
    };
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let said = async {
        tls.write_all(preface).await?;
        // The server's own SETTINGS.
        let mut frame = [0; 9];
        tls.read_exact(&mut frame).await.map(|_| ())
    };
    timeout(Duration::from_secs(5), said)
        .await
        .unwrap()
        .map_err(|error| error.to_string())?;
    Ok(tls.get_ref().1.handshake_kind().unwrap())
}

#[tokio::test]
async fn an_expired_certificate_is_refused_also_by_a_client_that_would_resume() {
    let mesh = Mesh::new();
    let address = mesh.registry();
    let draft = Draft::new().unwrap();
    let life = Validity {
        not_before: wall() - Duration::from_secs(60),
        not_after: wall() + Duration::from_secs(3),
    };
    let (key, id) = (draft.public_key().unwrap(), agent("short"));
    let chain = mesh.authority.issue_within(&key, &id, None, life).unwrap();
    let svid = draft.certified(chain.clone(), mesh.authority.bundle(), 0);
    let dir = mesh.dir.path().join("short");
    svid.unwrap().save(&dir).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(mesh.roots())
        .with_client_auth_cert(chain, key);
    let mut config = config.unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::in_memory_sessions(16);
    let config = Arc::new(config);
    for _ in 0..2 {
        let kind = greet(&config, &address).await.unwrap();
        assert_eq!(kind, HandshakeKind::Full, "a session was resumed");
    }
    // The only way to an expired certificate that was shown before is to let it expire.
    while wall() <= life.not_after + Duration::from_secs(1) {
        sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..2 {
        let refused = greet(&config, &address).await.unwrap_err();
        assert!(refused.contains("alert"), "{refused}");
    }
}

#[tokio::test]
async fn a_wrong_peer_with_a_valid_certificate_gets_no_byte_of_a_request() {
    let mesh = Mesh::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let impostor = Credentials::new(mesh.svid("impostor", "i2"));
    let acceptor = TlsAcceptor::from(impostor.server_config());
    let nursery = Nursery::here();
    let (tell, mut told) = tokio::sync::mpsc::channel(16);
    nursery.adopt("impostor", async move {
        while let Ok((socket, _)) = listener.accept().await {
            let mut read = Vec::new();
            if let Ok(mut tls) = acceptor.accept(socket).await {
                // An error is the end as well; what counts is what came before it.
                drop(tls.read_to_end(&mut read).await);
            }
            tell.send(read).await.unwrap();
        }
    });
    let pool = Pool::new(Credentials::new(mesh.svid("caller", "i1")), Nursery::here());
    let i2 = || "i2".parse().unwrap();
    for expect in [
        Expect::Member(agent("billing")),
        Expect::Instance(agent("billing"), i2()),
        Expect::Instance(agent("impostor"), "i9".parse().unwrap()),
        Expect::AnyRegistry,
    ] {
        let target = Target {
            endpoints: vec![endpoint.clone()],
            expect: Some(expect),
        };
        let mut client = RegistryClient::new(pool.channel(target));
        let asked = client.list_agents(pb::ListAgentsRequest::default()).await;
        let status = asked.unwrap_err();
        assert_eq!(reason_of(&status).as_deref(), Some("PEER_MISMATCH"));
        assert_eq!(told.recv().await.unwrap(), b"", "bytes of a request came");
    }
    // The same peer under its own name is spoken to.
    let target = Target {
        endpoints: vec![endpoint],
        expect: Some(Expect::Instance(agent("impostor"), i2())),
    };
    let mut client = RegistryClient::new(pool.channel(target));
    let call = client.list_agents(pb::ListAgentsRequest::default());
    assert!(timeout(Duration::from_millis(300), call).await.is_err());
    drop((client, pool));
    nursery.close(Duration::ZERO).await;
}

fn registration(name: &str, spiffe_id: &str, instance: &str) -> pb::RegisterRequest {
    pb::RegisterRequest {
        card: Some(pb::AgentCard {
            name: name.into(),
            version: "1.0.0".into(),
            skills: vec![pb::Skill {
                name: "billing.pay".into(),
                version: "1.0.0".into(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        instance: Some(pb::Instance {
            id: instance.into(),
            spiffe_id: spiffe_id.into(),
            endpoints: vec!["127.0.0.1:1".into()],
            ..Default::default()
        }),
    }
}

#[tokio::test]
async fn nobody_registers_or_speaks_as_somebody_else() {
    let mesh = Mesh::new();
    let address = mesh.registry();
    let mut own = mesh.call(&address, mesh.svid("mallory", "m1"));
    let billing = agent("billing").to_string();
    for foreign in [
        registration("billing", "", ""),
        registration("", &billing, ""),
        registration("", "", "b1"),
        registration("billing", &billing, "b1"),
    ] {
        let status = own.register(foreign).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert_eq!(reason_of(&status).as_deref(), Some("IDENTITY_MISMATCH"));
    }
    assert_eq!(mesh.store.live().read(|catalog| catalog.len()), 0);

    let mut victim = mesh.call(&address, mesh.svid("billing", "b1"));
    let lease = victim.register(registration("", "", "")).await.unwrap();
    let lease_id = lease.into_inner().lease_id;
    // A replica of the same agent holds other leases too.
    let replica = mesh.call(&address, mesh.svid("billing", "b2"));
    for mut other in [own.clone(), replica] {
        let health = pb::Health::NotServing.into();
        let beat = pb::HeartbeatRequest {
            lease_id: lease_id.clone(),
            health,
            ..Default::default()
        };
        let status = other.heartbeat(beat).await.unwrap_err();
        assert_eq!(reason_of(&status).as_deref(), Some("LEASE_UNKNOWN"));
        let leave = pb::DeregisterRequest {
            lease_id: lease_id.clone(),
        };
        let status = other.deregister(leave).await.unwrap_err();
        assert_eq!(reason_of(&status).as_deref(), Some("LEASE_UNKNOWN"));
    }
    assert_eq!(mesh.store.live().read(|catalog| catalog.len()), 1);
    let leave = victim.deregister(pb::DeregisterRequest { lease_id });
    leave.await.unwrap();
    assert_eq!(mesh.store.live().read(|catalog| catalog.len()), 0);
}

#[tokio::test]
async fn a_join_token_is_good_once_in_time_and_for_its_id() {
    let mesh = Mesh::new();
    let token = mesh.token("billing", wall()).await;
    let first = mesh.join(&mesh.enrollment(wall), &token).await.unwrap();
    assert_eq!(first.peer().id, agent("billing"));
    let again = mesh.join(&mesh.enrollment(wall), &token).await.unwrap_err();
    assert_eq!(refusal(&again), "TOKEN_REFUSED");

    let late = mesh.token("billing", wall() - DAY).await;
    let address = mesh.enrollment(wall);
    let refused = mesh.join(&address, &late).await.unwrap_err();
    assert_eq!(refusal(&refused), "TOKEN_REFUSED");
    // A guesser has to wait, however good the next token is.
    let good = mesh.token("billing", wall()).await;
    let hasty = mesh.join(&address, &good).await.unwrap_err();
    assert_eq!(refusal(&hasty), "RATE_LIMITED");

    // The token names the member; the newcomer cannot choose an instance, least of all another's.
    let asked = pb::EnrollRequest {
        token: good.token.reveal(),
        csr: Draft::new().unwrap().csr().to_vec(),
        instance_id: first.peer().instance.as_ref().unwrap().to_string(),
        nonce: vec![1; 16],
    };
    let status = mesh.enroll(&mesh.enrollment(wall), asked).await;
    assert_eq!(
        reason_of(&status.unwrap_err()).as_deref(),
        Some("TOKEN_REFUSED")
    );
    mesh.join(&mesh.enrollment(wall), &good).await.unwrap();
}

#[tokio::test]
async fn a_hundred_users_of_one_token_get_one_certificate() {
    let mesh = Mesh::new();
    let token = mesh.token("billing", wall()).await;
    let address = mesh.enrollment(wall);
    let joined = join_all((0..100).map(|_| mesh.join(&address, &token))).await;
    let (joined, refused): (Vec<_>, Vec<_>) = joined.into_iter().partition(Result::is_ok);
    assert_eq!(joined.len(), 1);
    for error in refused {
        let reason = refusal(&error.unwrap_err());
        assert!(
            ["TOKEN_REFUSED", "RATE_LIMITED"].contains(&reason.as_str()),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn a_request_for_a_certificate_gives_its_key_and_nothing_else() {
    let mesh = Mesh::new();
    let token = mesh.token("billing", wall()).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut greedy = rcgen::CertificateParams::new(vec!["main.registry.attache".into()]).unwrap();
    greedy.distinguished_name = rcgen::DistinguishedName::new();
    greedy.distinguished_name.push(
        rcgen::DnType::CommonName,
        "spiffe://attache.local/operator/root",
    );
    let operator = "spiffe://attache.local/operator/root".try_into().unwrap();
    greedy.subject_alt_names.push(rcgen::SanType::URI(operator));
    greedy.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let csr = greedy.serialize_request(&key).unwrap().der().to_vec();
    let asked = pb::EnrollRequest {
        token: token.token.reveal(),
        csr,
        instance_id: String::new(),
        nonce: vec![1; 16],
    };
    let svid = mesh.enroll(&mesh.enrollment(wall), asked).await.unwrap();
    let leaf = CertificateDer::from(svid.chain[0].clone());
    let peer = peer_of(&leaf).unwrap();
    assert_eq!(peer.id, agent("billing"));
    assert_eq!(peer.instance.unwrap().to_string(), svid.instance_id);
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(parsed.subject().iter_common_name().count(), 0);
    assert!(!parsed.is_ca());
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(!usage.key_cert_sign() && !usage.crl_sign());
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    let names: Vec<_> = names
        .value
        .general_names
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        names.iter().all(|name| name.contains("billing")),
        "{names:?}"
    );
}

fn in_eight_days() -> SystemTime {
    wall() + 8 * DAY
}

fn in_six_days() -> SystemTime {
    wall() + 6 * DAY
}

#[tokio::test]
async fn a_rejoin_needs_the_key_the_time_and_the_instance() {
    let mesh = Mesh::new();
    let token = mesh.token("billing", wall()).await;
    let svid = mesh.join(&mesh.enrollment(wall), &token).await.unwrap();
    let draft = Draft::new().unwrap();
    let rejoin = async |address: &str, present: &Svid| {
        let (channel, exporter) = mesh.newcomer(address).await;
        join::rejoin(channel, &exporter, present, &draft).await
    };

    // A proof that was made for another connection is one that somebody overheard.
    let address = mesh.enrollment(in_six_days);
    let (_, overheard) = mesh.newcomer(&address).await;
    let (channel, _) = mesh.newcomer(&address).await;
    let replayed = join::rejoin(channel, &overheard, &svid, &draft).await;
    assert_eq!(refusal(&replayed.unwrap_err()), "REJOIN_REFUSED");

    let late = rejoin(&mesh.enrollment(in_eight_days), &svid).await;
    assert_eq!(refusal(&late.unwrap_err()), "REJOIN_REFUSED");

    // Signed by the CA, but of an instance that never joined; and of another CA.
    let unknown = rejoin(&mesh.enrollment(wall), &mesh.svid("billing", "b9")).await;
    assert_eq!(refusal(&unknown.unwrap_err()), "REJOIN_REFUSED");
    let foreign = Mesh::new().svid("billing", "b9");
    let foreign = rejoin(&mesh.enrollment(wall), &foreign).await;
    assert_eq!(refusal(&foreign.unwrap_err()), "REJOIN_REFUSED");

    // The same name and instance, with a key that is not the latest one.
    let instance = svid.peer().instance.clone().unwrap();
    let twin = mesh.svid("billing", instance.as_str());
    let twin = rejoin(&mesh.enrollment(wall), &twin).await;
    assert_eq!(refusal(&twin.unwrap_err()), "REJOIN_REFUSED");

    let again = rejoin(&mesh.enrollment(in_six_days), &svid).await.unwrap();
    assert_eq!(again.peer().instance, svid.peer().instance);
    assert_eq!(again.generation(), svid.generation() + 1);
}
