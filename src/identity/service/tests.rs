//! Renewal, tokens and the bundle, as members see them.

use futures_util::FutureExt;
use tokio::time::Instant;

use crate::identity::authority::Overlap;
use crate::identity::credentials::Credentials;
use crate::identity::csr::Draft;
use crate::identity::fixture::{BILLING, Mesh, anonymous, from_peer};
use crate::identity::peer::Peer;
use crate::identity::svid::Svid;
use crate::identity::token::JoinString;
use crate::runtime::Nursery;
use crate::wire::status::reason_of;

use super::*;

fn service(mesh: &Mesh) -> IdentityService {
    service_as(mesh, mesh.credentials("registry/main"))
}

/// The service of a registry that verifies with these credentials.
fn service_as(mesh: &Mesh, credentials: Credentials) -> IdentityService {
    let ledger: Arc<dyn Ledger> = Arc::clone(&mesh.ledger) as _;
    let opened = Shutting::open(Arc::clone(&ledger), credentials).now_or_never();
    let (shutting, keeper) = opened.expect("memory answers at once").unwrap();
    Nursery::here().start("keeper", |stop| keeper.run(stop));
    IdentityService::new(Arc::clone(&mesh.authority), ledger, shutting, Stop::new())
}

/// A member as enrolment leaves it.
async fn member(mesh: &Mesh) -> Svid {
    enrolled(mesh, &mesh.token(BILLING, None).await)
        .await
        .unwrap()
}

async fn enrolled(mesh: &Mesh, token: &JoinString) -> Result<Svid, Status> {
    use crate::identity::enrollment::EnrollmentService;
    use crate::pb::enrollment_server::Enrollment;

    let draft = Draft::new().unwrap();
    let sent = pb::EnrollRequest {
        token: token.token.reveal(),
        csr: draft.csr().to_vec(),
        ..Default::default()
    };
    let ledger = Arc::clone(&mesh.ledger);
    let enrollment = EnrollmentService::new(Arc::clone(&mesh.authority), ledger);
    let sent = anonymous(sent, "192.0.2.1:1", [0; 32]);
    let svid = enrollment.enroll(sent).await?.into_inner().svid.unwrap();
    let chain = svid.chain.into_iter().map(Into::into).collect();
    let certified = draft.certified(chain, mesh.authority.bundle(), svid.generation);
    Ok(certified.unwrap())
}

async fn renew(
    service: &IdentityService,
    peer: &Arc<Peer>,
    generation: u64,
    draft: &Draft,
) -> Result<pb::Svid, Status> {
    let csr = draft.csr().to_vec();
    let sent = from_peer(pb::RenewRequest { csr, generation }, peer);
    let answer = service.renew(sent).await?;
    Ok(answer.into_inner().svid.unwrap())
}

#[tokio::test]
async fn each_renewal_is_the_next_generation_of_the_same_member() {
    let mesh = Mesh::new();
    let service = service(&mesh);
    let present = member(&mesh).await;
    for generation in 1..4 {
        let draft = Draft::new().unwrap();
        let svid = renew(&service, present.peer(), generation, &draft)
            .await
            .unwrap();
        assert_eq!(svid.generation, generation + 1);
        let peer = crate::identity::certificate::peer_of(&svid.chain[0]).unwrap();
        assert_eq!(
            (&peer.id, &peer.instance),
            (&present.peer().id, &present.peer().instance)
        );
        assert_eq!(peer.key, draft.public_key().unwrap().hash());
        assert_eq!(svid.not_after, Some(peer.not_after.into()));
    }
}

#[tokio::test]
async fn an_old_generation_is_refused_but_a_retry_is_not() {
    let mesh = Mesh::new();
    let service = service(&mesh);
    let present = member(&mesh).await;
    let draft = Draft::new().unwrap();
    renew(&service, present.peer(), 1, &draft).await.unwrap();
    let retried = renew(&service, present.peer(), 1, &draft).await.unwrap();
    assert_eq!(retried.generation, 2);
    let thief = Draft::new().unwrap();
    for generation in [0, 1, 3, u64::MAX] {
        let status = renew(&service, present.peer(), generation, &thief)
            .await
            .unwrap_err();
        assert_eq!(
            reason_of(&status).unwrap(),
            "GENERATION_STALE",
            "{generation}"
        );
    }
}

#[tokio::test]
async fn who_has_no_known_instance_is_not_renewed() {
    let mesh = Mesh::new();
    let service = service(&mesh);
    let draft = Draft::new().unwrap();
    let known = member(&mesh).await.peer().instance.clone().unwrap();
    for (path, instance, reason) in [
        ("operator/ops", None, "PERMISSION_DENIED"),
        ("ns/default/service/web", None, "PERMISSION_DENIED"),
        (BILLING, Some("i1"), "GENERATION_STALE"),
        (
            "ns/default/agent/other",
            Some(known.as_str()),
            "GENERATION_STALE",
        ),
    ] {
        let svid = mesh.svid(path, instance);
        let status = renew(&service, svid.peer(), 1, &draft).await.unwrap_err();
        assert_eq!(reason_of(&status).unwrap(), reason, "{path}");
    }
    let sent = anonymous(pb::RenewRequest::default(), "192.0.2.1:1", [0; 32]);
    let status = service.renew(sent).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn operators_make_tokens_and_nobody_else() {
    let mesh = Mesh::new();
    let service = service(&mesh);
    let wanted = |id: &str| pb::CreateJoinTokenRequest {
        spiffe_id: id.into(),
        ttl: None,
        instance_id: String::new(),
    };
    let billing = mesh.id(BILLING).to_string();
    for path in [BILLING, "ns/default/service/web", "registry/r1"] {
        let svid = mesh.svid(path, None);
        let sent = from_peer(wanted(&billing), svid.peer());
        let status = service.create_join_token(sent).await.unwrap_err();
        assert_eq!(reason_of(&status).unwrap(), "OPERATORS_ONLY", "{path}");
    }
    let operator = mesh.svid("operator/ops", None);
    let sent = from_peer(wanted(&billing), operator.peer());
    let made = service.create_join_token(sent).await.unwrap().into_inner();
    let join: JoinString = made.join.parse().unwrap();
    assert_eq!(join.pin, mesh.authority.root_key_pin().unwrap());
    let stored = mesh
        .ledger
        .token(&join.token.hash())
        .await
        .unwrap()
        .unwrap();
    let left = stored
        .entry
        .expires_at
        .duration_since(clock::wall())
        .unwrap();
    assert!((598..=600).contains(&left.as_secs()), "{left:?}");

    let mut long = wanted(&billing);
    long.ttl = Some(pb_duration(86_401));
    let mut negative = wanted(&billing);
    negative.ttl = Some(pb_duration(-5));
    let mut unknown = wanted(&billing);
    unknown.instance_id = "i1".into();
    let foreign = wanted("spiffe://other/ns/default/agent/a");
    for wrong in [long, negative, unknown, foreign, wanted("nobody")] {
        let status = service
            .create_join_token(from_peer(wrong, operator.peer()))
            .await;
        assert_eq!(reason_of(&status.unwrap_err()).unwrap(), "INVALID_FIELD");
    }
}

fn pb_duration(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

#[tokio::test]
async fn the_bundle_comes_once_and_the_watch_stays_until_the_stop() {
    let mesh = Mesh::new();
    let service = service(&mesh);
    let svid = mesh.svid(BILLING, None);
    let sent = from_peer(pb::WatchBundleRequest::default(), svid.peer());
    let mut watch = service.watch_bundle(sent).await.unwrap().into_inner();
    let first = watch.next().await.unwrap().unwrap();
    assert_eq!(first.bundle, [mesh.authority.bundle()[0].to_vec()]);
    assert!(futures_util::poll!(watch.next()).is_pending());
    // Other roots are another generation: who knows the one before is told.
    let span = Duration::from_secs(10);
    let overlap = Overlap {
        prepare: span,
        keep: span,
    };
    mesh.authority.rotate_root(overlap, clock::wall()).unwrap();
    let second = watch.next().await.unwrap().unwrap();
    assert_eq!(
        (second.bundle.len(), &second.bundle[0]),
        (2, &first.bundle[0])
    );
    assert_eq!(second.revision, first.revision);
    for (known, told) in [(&first, true), (&second, false)] {
        let request = pb::WatchBundleRequest {
            after_revision: known.revision,
            generation: known.generation.clone(),
        };
        let sent = from_peer(request, svid.peer());
        let mut watch = service.watch_bundle(sent).await.unwrap().into_inner();
        assert_eq!(futures_util::poll!(watch.next()).is_ready(), told);
    }
    service.stop.cancel();
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn what_is_not_served_yet_says_so() {
    let mesh = Mesh::new();
    let service = service(&mesh);
    let operator = mesh.svid("operator/ops", None);
    let sent = from_peer(pb::IssueTokenRequest::default(), operator.peer());
    let status = service.issue_token(sent).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
}

async fn revoke(
    service: &IdentityService,
    by: &Svid,
    (id, instance): (&str, &str),
) -> Result<u64, Status> {
    let request = pb::RevokeRequest {
        spiffe_id: id.into(),
        instance_id: instance.into(),
        reason: "stolen\nlaptop".into(),
    };
    let answer = service.revoke(from_peer(request, by.peer())).await?;
    Ok(answer.into_inner().revision)
}

#[tokio::test]
async fn operators_shut_members_out_and_nobody_else() {
    let mesh = Mesh::new();
    let service = service(&mesh);
    let billing = mesh.id(BILLING).to_string();
    for path in [BILLING, "ns/default/service/web", "registry/r1"] {
        let svid = mesh.svid(path, None);
        let status = revoke(&service, &svid, (&billing, "")).await.unwrap_err();
        assert_eq!(reason_of(&status).unwrap(), "OPERATORS_ONLY", "{path}");
    }
    let operator = mesh.svid("operator/ops", None);
    let registry = mesh.id("registry/main").to_string();
    for wrong in [
        ("", ""),
        ("nobody", ""),
        ("spiffe://other/ns/default/agent/a", ""),
        (&*registry, ""),
        (&*billing, "Not one"),
    ] {
        let status = revoke(&service, &operator, wrong).await.unwrap_err();
        assert_eq!(reason_of(&status).unwrap(), "INVALID_FIELD", "{wrong:?}");
    }
    assert!(mesh.ledger.revocations().await.unwrap().all.is_empty());
    assert_eq!(
        revoke(&service, &operator, (&billing, "")).await.unwrap(),
        2
    );
}

#[tokio::test]
async fn who_is_shut_out_is_neither_verified_nor_renewed_until_it_is_enrolled_anew() {
    let mesh = Mesh::new();
    let credentials = mesh.credentials("registry/main");
    let service = service_as(&mesh, credentials.clone());
    let operator = mesh.svid("operator/ops", None);
    let (one, two) = (member(&mesh).await, member(&mesh).await);
    let invited = mesh.token(BILLING, None).await;
    let refused = credentials.revoked();
    let refuses = |svid: &Svid| refused.borrow().refuses(svid.peer());
    assert!(!refuses(&one));

    let id = mesh.id(BILLING).to_string();
    let instance = one.peer().instance.clone().unwrap();
    let instance = (&*id, instance.as_str());
    revoke(&service, &operator, instance).await.unwrap();
    assert!(refuses(&one) && !refuses(&two));
    let draft = Draft::new().unwrap();
    let status = renew(&service, one.peer(), 1, &draft).await.unwrap_err();
    assert_eq!(reason_of(&status).unwrap(), "GENERATION_STALE");
    assert_eq!(
        renew(&service, two.peer(), 1, &draft)
            .await
            .unwrap()
            .generation,
        2
    );

    revoke(&service, &operator, (&id, "")).await.unwrap();
    assert!(refuses(&two));
    let status = renew(&service, two.peer(), 2, &draft).await.unwrap_err();
    assert_eq!(reason_of(&status).unwrap(), "GENERATION_STALE");
    // Nor by a token that was made before.
    let status = enrolled(&mesh, &invited).await.unwrap_err();
    assert_eq!(reason_of(&status).unwrap(), "TOKEN_REFUSED");
    // A new one lets it in, with a certificate that is not refused.
    let token = mesh.token(BILLING, None).await;
    let status = enrolled(&mesh, &token).await.unwrap_err();
    assert_eq!(reason_of(&status).unwrap(), "RATE_LIMITED");
    let end = Instant::now() + Duration::from_secs(10);
    let again = loop {
        match enrolled(&mesh, &token).await {
            Ok(svid) => break svid,
            Err(status) => {
                assert_eq!(reason_of(&status).unwrap(), "RATE_LIMITED");
                assert!(Instant::now() < end);
                tokio::task::yield_now().await;
            }
        }
    };
    assert!(!refuses(&again));
    renew(&service, again.peer(), 1, &draft).await.unwrap();
    // A registry that starts knows it, too.
    let restarted = mesh.credentials("registry/main");
    service_as(&mesh, restarted.clone());
    assert!(restarted.revoked().borrow().refuses(two.peer()));
    assert!(!restarted.revoked().borrow().refuses(again.peer()));
}

#[tokio::test]
async fn each_change_of_who_is_shut_out_is_told_at_once_and_none_twice() {
    let mesh = Mesh::new();
    let service = service(&mesh);
    let operator = mesh.svid("operator/ops", None);
    let billing = mesh.svid(BILLING, None);
    let follow = async |revision, generation: &str| {
        let sent = pb::WatchBundleRequest {
            after_revision: revision,
            generation: generation.into(),
        };
        let sent = from_peer(sent, billing.peer());
        service.watch_bundle(sent).await.unwrap().into_inner()
    };
    let mut watch = follow(0, "").await;
    let first = watch.next().await.unwrap().unwrap();
    assert_eq!((first.revision, first.revocations.len()), (1, 0));
    let mut resumed = follow(1, &first.generation).await;
    assert!(futures_util::poll!(resumed.next()).is_pending());
    let mut stranger = follow(1, "another store's").await;
    assert_eq!(stranger.next().await.unwrap().unwrap(), first);

    let id = mesh.id(BILLING).to_string();
    assert_eq!(revoke(&service, &operator, (&id, "i1")).await.unwrap(), 2);
    for watch in [&mut watch, &mut resumed, &mut stranger] {
        let told = watch.next().await.unwrap().unwrap();
        assert_eq!((told.revision, &told.generation), (2, &first.generation));
        let [told] = &told.revocations[..] else {
            panic!("{told:?}")
        };
        assert_eq!((&*told.spiffe_id, &*told.instance_id), (&*id, "i1"));
        assert!(futures_util::poll!(watch.next()).is_pending());
    }
}
