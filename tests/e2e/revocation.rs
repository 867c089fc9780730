//! Who is shut out is out within seconds, on every sidecar, and nobody else notices.

use attache::pb;
use tokio::time::{Duration, Instant, timeout};

use crate::support::{
    client,
    mesh::{Site, agent},
    passing::{ECHO, TALK, Talk, echo, pass, reached},
    wait::eventually,
};

/// From the command to the end of what an open stream or a catalog still has of it.
const BOUND: Duration = Duration::from_secs(5);

#[tokio::test]
async fn threat_06_who_is_shut_out_is_cut_off_within_five_seconds_and_nobody_else() {
    let agents = agent("stolen", &["test.stolen"], "") + &agent("home", &["test.home"], "");
    let site = Site::new(&(agents + &echo(1)));
    let up = site.up(&[]).await;
    let [stolen, home] = ["stolen", "home"].map(|name| {
        let agent = format!("default/{name}");
        up.instance(&agent, 0).local.clone()
    });
    for local in [&stolen, &home] {
        reached(local, ECHO).await;
    }
    // Both end at a sidecar that the command does not talk to.
    let mut cut = Talk::open(&stolen, TALK, 65_535).await;
    let mut stays = Talk::open(&home, TALK, 65_535).await;
    for talk in [&mut cut, &mut stays] {
        talk.answered().await;
    }
    let pool = client::pool(&site.operator(""));
    let registry = client::registry(&pool, &up.endpoints.registry.mtls);
    let found = async |skill: &str| {
        let selector = pb::Selector {
            skill: skill.into(),
            ..Default::default()
        };
        let asked = pb::DiscoverRequest {
            selector: Some(selector),
            limit: 0,
        };
        let found = registry.clone().discover(asked).await.unwrap();
        found.into_inner().instances.len()
    };
    assert_eq!(found("test.stolen").await, 1);

    let began = Instant::now();
    let state = site.state();
    let said = site
        .attache(&[
            "ca",
            "revoke",
            "stolen",
            "--reason",
            "left in a taxi",
            "--mesh",
        ])
        .arg(&state)
        .output()
        .await
        .unwrap();
    assert!(said.status.success(), "{said:?}{}", site.logs());
    let ended = timeout(BOUND, cut.rest()).await;
    assert!(ended.is_ok(), "an open stream goes on{}", site.logs());
    let left = eventually("it leaves the catalog", || async {
        let left = found("test.stolen").await;
        (left == 0).then_some(()).ok_or_else(|| left.to_string())
    });
    left.await;
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());

    let refused = pass(&stolen, ECHO).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    stays.ask();
    stays.answered().await;
    pass(&home, ECHO).await.unwrap();
    assert_eq!(found("test.home").await, 1);
    let log = site.log("registry");
    assert!(log.contains("left in a taxi"), "{log}");
}
