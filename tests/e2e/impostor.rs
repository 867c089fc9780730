//! A member that says it is somebody else.

use attache::{
    domain::{InstanceId, SpiffeId},
    identity::{Authority, Credentials},
    pb,
    runtime::Nursery,
    transport::Pool,
    wire::status::reason_of,
};
use tonic::Code;

use crate::support::{
    client,
    mesh::{DOMAIN, Site, agent},
};

/// A request to be in the catalog, as `card` says and as the instance says.
fn register(name: &str, instance: &str, spiffe_id: &str) -> pb::RegisterRequest {
    pb::RegisterRequest {
        card: Some(pb::AgentCard {
            name: name.into(),
            version: "1.0.0".into(),
            skills: vec![pb::Skill {
                name: "test.stolen".into(),
                version: "1.0.0".into(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        instance: Some(pb::Instance {
            id: instance.into(),
            spiffe_id: spiffe_id.into(),
            endpoints: vec!["127.0.0.1:9".into()],
            health: pb::Health::Serving.into(),
            ..Default::default()
        }),
    }
}

#[tokio::test]
async fn nobody_registers_as_somebody_else() {
    let site = Site::new(&agent("worker", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let worker = up.instance("default/worker", 0).instance.clone();

    // A true member, signed by the mesh's CA, with an instance of its own.
    let authority = Authority::open(&site.state().join("ca")).unwrap();
    let id: SpiffeId = format!("spiffe://{DOMAIN}/ns/default/agent/mallory")
        .parse()
        .unwrap();
    let own = InstanceId::from_random([7; 10]);
    let svid = authority
        .svid(&id, Some(&own), std::time::Duration::from_secs(600))
        .unwrap();
    let pool = Pool::new(Credentials::new(svid), Nursery::here());
    let mut registry = client::registry(&pool, &up.endpoints.registry.mtls);

    let their_id = format!("spiffe://{DOMAIN}/ns/default/agent/worker");
    for (what, request) in [
        ("another's name", register("worker", "", "")),
        ("another's instance", register("", &worker, "")),
        ("another's SPIFFE id", register("", "", &their_id)),
    ] {
        let refused = registry.register(request).await.expect_err(what);
        assert_eq!(
            refused.code(),
            Code::PermissionDenied,
            "{what}: {refused:?}"
        );
        assert_eq!(
            reason_of(&refused).as_deref(),
            Some("IDENTITY_MISMATCH"),
            "{what}"
        );
        assert!(!refused.message().is_empty(), "{what}");
    }

    let discover = |skill: &str| pb::DiscoverRequest {
        selector: Some(pb::Selector {
            skill: skill.into(),
            ..Default::default()
        }),
        limit: 0,
    };
    let stolen = registry
        .discover(discover("test.stolen"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        stolen.instances,
        vec![],
        "a refused registration has left a record"
    );
    let true_one = registry
        .discover(discover("test.echo"))
        .await
        .unwrap()
        .into_inner();
    let ids: Vec<&str> = true_one
        .instances
        .iter()
        .map(|one| one.id.as_str())
        .collect();
    assert_eq!(ids, [worker.as_str()]);

    // As itself it is welcome.
    registry.register(register("", "", "")).await.unwrap();
    let stolen = registry
        .discover(discover("test.stolen"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(stolen.instances.len(), 1);
}
