//! What is away for a while: the mesh goes on without it, and is whole when it is back.

use std::{collections::BTreeSet, time::Duration};

use attache::pb::watch_response::Change;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::support::{
    client,
    hand::{ByHand, REGISTRY, page},
    load::{Load, Shape},
    mesh::{Site, agent},
};

/// How long the registry is away; a soak says more by ATTACHE_AWAY_SECONDS.
const AWAY: u64 = 10;
/// Shorter than the outage, so that every lease has run out when the registry is back: 6 s, a beat
/// every 2 s, 2 s of grace.
const LEASE: &str = "6s";
/// After this long, restart grace and all, who was not heard is taken out.
const SETTLED: Duration = Duration::from_secs(12);

fn mesh() -> String {
    agent("home", &["test.home"], "instances = 2")
        + &agent("worker", &["test.echo.slow", "test.echo"], "instances = 2")
}

#[tokio::test]
async fn a_load_on_a_healthy_mesh_is_clean() {
    let site = Site::new(&mesh());
    let up = site.up(&[]).await;
    let home = client::local(&up.instance("default/home", 0).local);
    let load = Load::start(home, 4);
    load.goes_on(50).await;
    let outcome = load.stop().await;
    outcome.clean();
    let count = outcome.count;
    assert_eq!(
        (
            count.unknown,
            count.refused + count.unsent,
            count.breaks,
            count.sent_away
        ),
        (0, 0, 0, 0)
    );
}

#[tokio::test]
async fn tasks_go_on_while_the_registry_is_away_and_nobody_is_missing_when_it_is_back() {
    let away = std::env::var("ATTACHE_AWAY_SECONDS").map_or(AWAY, |text| text.parse().unwrap());
    let mut mesh = ByHand::made(&mesh()).await;
    mesh.set(REGISTRY, "lease", LEASE);
    mesh.start_all().await;
    let shape = Shape {
        skill: "test.echo.slow",
        work: Duration::from_millis(100),
        ..Shape::default()
    };
    let load = Load::shaped(vec![mesh.local("home-1")], 12, shape);
    load.goes_on(20).await;

    mesh.kill(REGISTRY).await;
    let back = Instant::now() + Duration::from_secs(away);
    load.goes_on(20).await;
    // A sidecar that starts now has its certificate and its copy of the catalog, and no registry.
    mesh.kill("home-2").await;
    mesh.start("home-2");
    mesh.ready("home-2").await;
    let shown = page(&mesh.admin("home-2"), "/").await.unwrap();
    assert!(shown.contains("\"catalog\":4"), "{shown}");
    let mut late = mesh.local("home-2");
    let ran = client::run(&mut late, client::bounded("test.echo", "found", 50)).await;
    assert_eq!(ran.unwrap().result().as_deref(), Some("found"));
    mesh.finds("home-2", "test.echo", &["worker-1", "worker-2"])
        .await;
    sleep_until(back).await;
    load.goes_on(20).await;

    mesh.start(REGISTRY);
    mesh.ready(REGISTRY).await;
    // All leases ended while it was away, and nobody is taken out for that.
    let all: BTreeSet<String> = mesh
        .sidecars()
        .iter()
        .map(|name| mesh.instance(name))
        .collect();
    let mut watched = mesh.watch().await;
    assert_eq!(watched.there, all);
    let settled = Instant::now() + SETTLED;
    while let Ok(change) = timeout_at(settled, watched.next()).await {
        let change = change.expect("the watch holds");
        assert!(!matches!(change, Change::Gone(_)), "{change:?}");
    }
    assert_eq!(watched.there, all);
    // News come through again: to who was there all the time, and to who came meanwhile.
    mesh.kill("worker-2").await;
    for home in ["home-1", "home-2"] {
        mesh.finds(home, "test.echo", &["worker-1"]).await;
    }
    mesh.start("worker-2");
    for home in ["home-1", "home-2"] {
        mesh.finds(home, "test.echo", &["worker-1", "worker-2"])
            .await;
    }
    let outcome = load.stop().await;
    outcome.clean();
    // Its home was never away: no stream broke and no submission was refused.
    let count = outcome.count;
    let refused = count.refused + count.unsent;
    assert_eq!((count.unknown, refused, count.breaks), (0, 0, 0));
}
