//! Joining and rejoining, by the service and by the client functions against it.

use futures_util::future::join_all;
use tonic::Code;
use tower::ServiceExt;

use super::*;
use crate::domain::SpiffeId;
use crate::identity::csr::Draft;
use crate::identity::fixture::{BILLING, Mesh, anonymous};
use crate::identity::join::{self, JoinError};
use crate::identity::peer::Caller;
use crate::identity::svid::Svid;
use crate::identity::token::{TokenError, create_join_token};
use crate::pb::enrollment_server::EnrollmentServer;
use crate::wire::status::{reason_of, retry_after};

const REMOTE: &str = "192.0.2.1:1000";
const EXPORTER: [u8; 32] = [5; 32];

fn service(mesh: &Mesh) -> EnrollmentService {
    let ledger = Arc::clone(&mesh.ledger);
    EnrollmentService::new(Arc::clone(&mesh.authority), ledger)
}

/// A channel to the service over a connection with this exporter.
fn channel(service: EnrollmentService, exporter: [u8; 32]) -> impl join::Channel {
    let connection = Arc::new(Connection {
        caller: Caller::Anonymous,
        remote: Some(REMOTE.parse().unwrap()),
        local: None,
        exporter: Some(exporter),
    });
    EnrollmentServer::new(service).map_request(
        move |mut request: http::Request<tonic::body::Body>| {
            request.extensions_mut().insert(Arc::clone(&connection));
            request
        },
    )
}

fn request(token: &str, draft: &Draft, nonce: u8) -> pb::EnrollRequest {
    pb::EnrollRequest {
        token: token.into(),
        csr: draft.csr().to_vec(),
        instance_id: String::new(),
        nonce: vec![nonce; 16],
    }
}

fn reason(status: &Status) -> String {
    reason_of(status).unwrap()
}

async fn joined(mesh: &Mesh) -> Svid {
    let token = mesh.token(BILLING, None).await;
    let draft = Draft::new().unwrap();
    let service = channel(service(mesh), EXPORTER);
    join::enroll(service, &token, &draft, [1; 16])
        .await
        .unwrap()
}

#[tokio::test]
async fn a_token_makes_one_member_once() {
    let mesh = Mesh::new();
    let svid = joined(&mesh).await;
    assert_eq!(svid.peer().id, mesh.id(BILLING));
    assert_eq!(svid.generation(), 1);
    let instance = svid.peer().instance.clone().unwrap();
    let known = mesh.ledger.instance(&instance).await.unwrap().unwrap();
    assert_eq!((known.id, known.key), (mesh.id(BILLING), svid.peer().key));

    let token = mesh.token(BILLING, None).await;
    let service = service(&mesh);
    for (nonce, attempt) in [(1, 0), (2, 1)] {
        let draft = Draft::new().unwrap();
        let sent = request(&token.token.reveal(), &draft, nonce);
        let remote = format!("192.0.2.{attempt}:1");
        let answer = service.enroll(anonymous(sent, &remote, EXPORTER)).await;
        match attempt {
            0 => drop(answer.unwrap()),
            _ => {
                let status = answer.unwrap_err();
                assert_eq!(status.code(), Code::PermissionDenied);
                assert_eq!(reason(&status), "TOKEN_REFUSED");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn token_race_100() {
    let mesh = Mesh::new();
    let token = mesh.token(BILLING, None).await.token.reveal();
    let service = Arc::new(service(&mesh));
    let nursery = crate::runtime::Nursery::here();
    let tries = (0..100_u8).map(|number| {
        let (tell, told) = tokio::sync::oneshot::channel();
        let (service, token) = (Arc::clone(&service), token.clone());
        nursery.adopt("try", async move {
            let draft = Draft::new().unwrap();
            let sent = request(&token, &draft, number);
            // Each from an address of its own, so that the pause after failures decides nothing.
            let remote = format!("192.0.2.{number}:1");
            let answer = service.enroll(anonymous(sent, &remote, EXPORTER)).await;
            tell.send(answer.map(|_| ())).unwrap();
        });
        told
    });
    let outcomes = join_all(tries.collect::<Vec<_>>()).await;
    let won = outcomes.iter().filter(|one| one.as_ref().unwrap().is_ok());
    assert_eq!(won.count(), 1);
    for refused in outcomes
        .iter()
        .filter_map(|one| one.as_ref().unwrap().as_ref().err())
    {
        assert_eq!(reason(refused), "TOKEN_REFUSED");
    }
}

#[tokio::test]
async fn a_lost_answer_is_given_again_to_the_same_key_and_nonce() {
    let mesh = Mesh::new();
    let token = mesh.token(BILLING, None).await.token.reveal();
    let service = service(&mesh);
    let draft = Draft::new().unwrap();
    let ask = |draft: &Draft, nonce: u8, remote: &str| {
        service.enroll(anonymous(request(&token, draft, nonce), remote, EXPORTER))
    };
    let first = ask(&draft, 1, REMOTE).await.unwrap().into_inner();
    let again = ask(&draft, 1, REMOTE).await.unwrap().into_inner();
    assert_eq!(first, again);
    let other = Draft::new().unwrap();
    ask(&draft, 2, "192.0.2.2:1").await.unwrap_err();
    ask(&other, 1, "192.0.2.3:1").await.unwrap_err();

    let later = EnrollmentService::new(
        Arc::clone(&mesh.authority),
        Arc::clone(&mesh.ledger) as Arc<dyn Ledger>,
    )
    .with_clock(|| clock::wall() + Duration::from_secs(61));
    let sent = anonymous(request(&token, &draft, 1), REMOTE, EXPORTER);
    assert_eq!(
        reason(&later.enroll(sent).await.unwrap_err()),
        "TOKEN_REFUSED"
    );
}

#[tokio::test]
async fn tokens_end_and_unknown_ones_are_refused_alike() {
    let mesh = Mesh::new();
    let token = mesh.token(BILLING, None).await.token.reveal();
    let late = service(&mesh).with_clock(|| clock::wall() + Duration::from_secs(601));
    let draft = Draft::new().unwrap();
    let mut texts = Vec::new();
    for (number, text) in [token.as_str(), &"A".repeat(43), "", "x"]
        .iter()
        .enumerate()
    {
        let remote = format!("192.0.2.{number}:1");
        let sent = anonymous(request(text, &draft, 1), &remote, EXPORTER);
        let status = late.enroll(sent).await.unwrap_err();
        assert_eq!(reason(&status), "TOKEN_REFUSED");
        texts.push(status.message().to_owned());
    }
    texts.dedup();
    assert_eq!(texts.len(), 1);
}

#[tokio::test]
async fn a_request_without_proof_does_not_use_the_token_up() {
    let mesh = Mesh::new();
    let token = mesh.token(BILLING, None).await.token.reveal();
    let service = service(&mesh);
    let draft = Draft::new().unwrap();
    let mut broken = request(&token, &draft, 1);
    *broken.csr.last_mut().unwrap() ^= 1;
    let sent = anonymous(broken, "192.0.2.9:1", EXPORTER);
    let status = service.enroll(sent).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(reason(&status), "INVALID_CSR");
    let sent = anonymous(request(&token, &draft, 1), REMOTE, EXPORTER);
    service.enroll(sent).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn failures_are_paused_per_address_and_successes_are_not() {
    let mesh = Mesh::new();
    let service = service(&mesh);
    let draft = Draft::new().unwrap();
    let ask = |token: &str, remote: &str| {
        service.enroll(anonymous(request(token, &draft, 1), remote, EXPORTER))
    };
    let good = [
        mesh.token(BILLING, None).await,
        mesh.token(BILLING, None).await,
    ];
    for token in &good {
        ask(&token.token.reveal(), "192.0.2.1:1").await.unwrap();
    }
    ask("bad", "192.0.2.1:2").await.unwrap_err();
    let paused = ask("bad", "192.0.2.1:3").await.unwrap_err();
    assert_eq!(paused.code(), Code::ResourceExhausted);
    assert_eq!(retry_after(&paused), Some(Duration::from_secs(1)));
    let other = ask("bad", "192.0.2.2:3").await.unwrap_err();
    assert_eq!(reason(&other), "TOKEN_REFUSED");
    tokio::time::advance(Duration::from_secs(1)).await;
    let status = ask("bad", "192.0.2.1:4").await.unwrap_err();
    assert_eq!(reason(&status), "TOKEN_REFUSED");
}

#[tokio::test]
async fn a_token_for_an_instance_makes_that_one_again() {
    let mesh = Mesh::new();
    let first = joined(&mesh).await;
    let instance = first.peer().instance.clone().unwrap();
    let token = mesh.token(BILLING, Some(instance.as_str())).await;
    let draft = Draft::new().unwrap();
    let again = join::enroll(channel(service(&mesh), EXPORTER), &token, &draft, [1; 16]);
    let again = again.await.unwrap();
    assert_eq!(again.peer().instance, Some(instance.clone()));
    assert_eq!(again.generation(), 2);

    let foreign = create_join_token(
        &mesh.authority,
        &*mesh.ledger,
        mesh.id("ns/default/agent/research"),
        Some(instance),
        Duration::from_secs(60),
        clock::wall(),
    );
    assert!(matches!(foreign.await, Err(TokenError::Instance(_))));

    let mut sent = request(&mesh.token(BILLING, None).await.token.reveal(), &draft, 1);
    sent.instance_id = "i1".into();
    let answer = service(&mesh)
        .enroll(anonymous(sent, REMOTE, EXPORTER))
        .await;
    assert_eq!(reason(&answer.unwrap_err()), "TOKEN_REFUSED");
}

#[tokio::test]
async fn operators_join_without_an_instance() {
    let mesh = Mesh::new();
    let token = mesh.token("operator/ops", None).await;
    let draft = Draft::new().unwrap();
    let svid = join::enroll(channel(service(&mesh), EXPORTER), &token, &draft, [1; 16]);
    let svid = svid.await.unwrap();
    assert_eq!((svid.peer().instance.clone(), svid.generation()), (None, 0));
}

#[tokio::test]
async fn a_registry_of_other_roots_is_not_believed() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let mut token = mesh.token(BILLING, None).await;
    token.pin = other.authority.root_key_pin().unwrap();
    let draft = Draft::new().unwrap();
    let outcome = join::enroll(channel(service(&mesh), EXPORTER), &token, &draft, [1; 16]);
    assert!(matches!(outcome.await, Err(JoinError::Pin)));
}

/// Wall clocks that are ahead by what a test needs.
fn hours_later<const HOURS: u64>() -> SystemTime {
    clock::wall() + Duration::from_hours(HOURS)
}

#[tokio::test]
async fn an_expired_certificate_rejoins_by_its_key() {
    let mesh = Mesh::new();
    let present = joined(&mesh).await;
    let draft = Draft::new().unwrap();
    let asleep = || service(&mesh).with_clock(hours_later::<100>);
    let fresh = join::rejoin(channel(asleep(), EXPORTER), &EXPORTER, &present, &draft);
    let fresh = fresh.await.unwrap();
    assert_eq!(fresh.peer().instance, present.peer().instance);
    assert_eq!(
        (fresh.generation(), fresh.peer().key),
        (2, draft.public_key().unwrap().hash())
    );

    // The answer was lost: the same new key gets the same generation, another one nothing.
    let again = join::rejoin(channel(asleep(), EXPORTER), &EXPORTER, &present, &draft);
    assert_eq!(again.await.unwrap().generation(), 2);
    let thief = Draft::new().unwrap();
    let stale = join::rejoin(channel(asleep(), EXPORTER), &EXPORTER, &present, &thief);
    assert_rejoin_refused(stale.await);
}

fn assert_rejoin_refused(outcome: Result<Svid, JoinError>) {
    match outcome {
        Err(JoinError::Refused(status)) => {
            assert_eq!(status.code(), Code::PermissionDenied);
            assert_eq!(reason(&status), "REJOIN_REFUSED");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_rejoin_ends_after_seven_days() {
    let mesh = Mesh::new();
    let present = joined(&mesh).await;
    let draft = Draft::new().unwrap();
    let late = service(&mesh).with_clock(hours_later::<{ 7 * 24 + 2 }>);
    let outcome = join::rejoin(channel(late, EXPORTER), &EXPORTER, &present, &draft);
    assert_rejoin_refused(outcome.await);
    let in_time = service(&mesh).with_clock(hours_later::<{ 7 * 24 }>);
    let outcome = join::rejoin(channel(in_time, EXPORTER), &EXPORTER, &present, &draft);
    outcome.await.unwrap();
}

#[tokio::test]
async fn a_proof_is_of_this_key_this_request_and_this_connection() {
    let mesh = Mesh::new();
    let present = joined(&mesh).await;
    let (draft, other) = (Draft::new().unwrap(), Draft::new().unwrap());
    let elsewhere = join::rejoin(
        channel(service(&mesh), [6; 32]),
        &EXPORTER,
        &present,
        &draft,
    );
    assert_rejoin_refused(elsewhere.await);
    let sign = |svid: &Svid, csr: &[u8]| svid.sign(&rejoin_message(csr, &EXPORTER)).unwrap();
    let stranger = mesh.svid(BILLING, None);
    let chain: Vec<_> = present.chain().iter().map(|der| der.to_vec()).collect();
    let mut number = 10;
    for proof in [
        sign(&stranger, draft.csr()),
        sign(&present, other.csr()),
        present.sign(draft.csr()).unwrap(),
        Vec::new(),
    ] {
        let csr = draft.csr().to_vec();
        let chain = chain.clone();
        let sent = pb::RejoinRequest { chain, csr, proof };
        number += 1;
        let remote = format!("192.0.2.{number}:1");
        let answer = service(&mesh)
            .rejoin(anonymous(sent, &remote, EXPORTER))
            .await;
        assert_eq!(reason(&answer.unwrap_err()), "REJOIN_REFUSED");
    }
}

#[tokio::test]
async fn foreign_unknown_and_instanceless_certificates_do_not_rejoin() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let draft = Draft::new().unwrap();
    for present in [
        other.svid(BILLING, Some("i1")),
        mesh.svid(BILLING, Some("i1")),
        mesh.svid("operator/ops", None),
    ] {
        let outcome = join::rejoin(
            channel(service(&mesh), EXPORTER),
            &EXPORTER,
            &present,
            &draft,
        );
        assert_rejoin_refused(outcome.await);
    }
    // An instance that is another member's.
    let known = joined(&mesh).await.peer().instance.clone().unwrap();
    let present = mesh.svid("ns/default/agent/research", Some(known.as_str()));
    let outcome = join::rejoin(
        channel(service(&mesh), EXPORTER),
        &EXPORTER,
        &present,
        &draft,
    );
    assert_rejoin_refused(outcome.await);
}

#[tokio::test]
async fn tokens_live_for_a_second_to_a_day() {
    let mesh = Mesh::new();
    let made = |id: SpiffeId, life| {
        create_join_token(
            &mesh.authority,
            &*mesh.ledger,
            id,
            None,
            life,
            clock::wall(),
        )
    };
    for (life, fits) in [(0, false), (1, true), (86_400, true), (86_401, false)] {
        let outcome = made(mesh.id(BILLING), Duration::from_secs(life)).await;
        assert_eq!(outcome.is_ok(), fits, "{life}");
    }
    let foreign = "spiffe://other/ns/default/agent/a".parse().unwrap();
    let outcome = made(foreign, Duration::from_secs(60)).await;
    assert!(matches!(outcome, Err(TokenError::Foreign(_))));
}

#[tokio::test]
async fn a_certificate_from_the_future_may_rejoin() {
    let mesh = Mesh::new();
    let present = joined(&mesh).await;
    let draft = Draft::new().unwrap();
    let behind = service(&mesh).with_clock(|| clock::wall() - Duration::from_hours(2));
    let outcome = join::rejoin(channel(behind, EXPORTER), &EXPORTER, &present, &draft);
    outcome.await.unwrap();
}

#[tokio::test]
async fn only_this_ca_and_this_member_vouch_for_a_known_key() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let token = mesh.token(BILLING, None).await;
    let held = Draft::new().unwrap();
    let present = join::enroll(channel(service(&mesh), EXPORTER), &token, &held, [1; 16]);
    let instance = present.await.unwrap().peer().instance.clone().unwrap();
    let key = held.public_key().unwrap();
    let draft = Draft::new().unwrap();
    for (signer, path, fits) in [
        (&other, BILLING, false),
        (&mesh, "ns/default/agent/research", false),
        (&mesh, BILLING, true),
    ] {
        let ca = &signer.authority;
        let chain = ca.issue(&key, &signer.id(path), Some(&instance), ca.leaf_life());
        let shown = held.certified(chain.unwrap(), ca.bundle(), 1).unwrap();
        let outcome = join::rejoin(channel(service(&mesh), EXPORTER), &EXPORTER, &shown, &draft);
        match outcome.await {
            Ok(_) => assert!(fits, "{path}"),
            refused => {
                assert!(!fits, "{path}");
                assert_rejoin_refused(refused);
            }
        }
    }
}
