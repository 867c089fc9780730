//! A mesh whose members reach each other through the proxy.

use std::fs;

use crate::support::{
    client::{self, Local, Seen, is_end},
    fault::{Fault, FaultProxy},
    hand::ByHand,
    load::Load,
    mesh::agent,
    wait::{eventually, within},
};

const WORKERS: [&str; 2] = ["worker-1", "worker-2"];

/// How long an attempt may be out of reach: shorter than an instance is believed that is cut off.
const LOST_SOON: &str = "2s";
/// The same, longer than anything here takes.
const LOST_LATE: &str = "1m";

/// A home and two workers, each behind a route of its name.
async fn behind_a_proxy(lost_after: &str) -> (ByHand, FaultProxy) {
    let skills = ["test.echo", "test.hold", "test.echo.hold"];
    let workers = agent("worker", &skills, "instances = 2");
    let mut mesh = ByHand::made(&(agent("home", &["test.home"], "") + &workers)).await;
    let proxy = FaultProxy::start(&mesh.site).await;
    for name in mesh.sidecars() {
        mesh.advertise_through(&proxy, &name).await;
        mesh.registry_through(&proxy, &name).await;
    }
    mesh.set("home-1", "agent_lost_after", lost_after);
    mesh.start_all().await;
    (mesh, proxy)
}

/// A task that waits for its gate, and the worker that has it.
async fn held(mesh: &ByHand, home: &mut Local, skill: &str) -> (String, &'static str) {
    let gate = mesh.site.path("gate").display().to_string();
    let submitted = client::submit(home, client::bounded(skill, &gate, 300)).await;
    let id = submitted.unwrap().id;
    let by = eventually("it has started", || {
        let (mut home, id) = (home.clone(), &id);
        async move {
            let task = client::full(&mut home, id).await;
            let task = task.map_err(|status| status.to_string())?;
            // Its agent has said something: it may not run twice from here on.
            if task.last_seq >= 3 {
                Ok(task.executor_instance)
            } else {
                Err(format!("{task:?}"))
            }
        }
    })
    .await;
    let worker = WORKERS.into_iter().find(|name| mesh.instance(name) == by);
    (id, worker.unwrap())
}

/// Watches a task from its start on, through whatever happens to its executor.
async fn seen_until(
    home: &mut Local,
    id: &str,
    what: &str,
    enough: impl Fn(&Seen) -> bool,
) -> Seen {
    let follow = async {
        let mut stream = client::watch(home, id, 0).await.unwrap();
        let mut seen = Seen::default();
        while !enough(&seen) {
            let response = stream.message().await.unwrap();
            let Some(response) = response else { break };
            seen.take(response.update.unwrap());
        }
        seen
    };
    within(what, follow).await
}

/// Attempts that the agents were given of a task.
fn attempts(mesh: &ByHand, id: &str) -> Vec<u32> {
    let runs = mesh.site.runs().into_iter();
    runs.filter(|(_, task, _)| task == id)
        .map(|(_, _, attempt)| attempt)
        .collect()
}

/// Waits until a worker is given a task and does it.
async fn does_a_task(mesh: &ByHand, worker: &str) {
    eventually("it does a task", || {
        let (mut home, wanted) = (mesh.local("home-1"), mesh.instance(worker));
        async move {
            let ran = client::run(&mut home, client::bounded("test.echo", "x", 50)).await;
            let id = ran.map_err(|status| status.to_string())?.id;
            let task = client::full(&mut home, &id).await;
            let task = task.map_err(|status| status.to_string())?;
            (task.executor_instance == wanted)
                .then_some(())
                .ok_or_else(|| format!("{task:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn without_a_fault_nobody_notices_the_proxy() {
    let (mesh, proxy) = behind_a_proxy(LOST_SOON).await;
    // A hundred tasks may be over before the home has heard of both.
    for name in WORKERS {
        does_a_task(&mesh, name).await;
    }
    let load = Load::start(mesh.local("home-1"), 8);
    load.goes_on(100).await;
    let outcome = load.stop().await;
    outcome.clean();
    let count = outcome.count;
    assert_eq!(
        (count.unknown, count.refused, count.breaks, count.sent_away),
        (0, 0, 0, 0)
    );
    for name in WORKERS {
        let counters = proxy.counters(name).await;
        // All that the home has of it came this way.
        assert!(
            counters.bytes_up > 1000 && counters.bytes_down > 1000,
            "{name}: {counters:?}"
        );
        assert!(counters.applied.is_empty(), "{name}: {counters:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_reset_once_does_not_touch_the_work() {
    let (mesh, proxy) = behind_a_proxy(LOST_LATE).await;
    let mut home = mesh.local("home-1");
    // It may not run twice: only the same attempt can end it.
    let (id, worker) = held(&mesh, &mut home, "test.hold").await;
    let before = proxy.counters(worker).await;
    proxy.set(worker, Fault::reset_once()).await;
    // It is heard of again, over another connection.
    let at = client::full(&mut home, &id).await.unwrap().last_seq;
    seen_until(&mut home, &id, "events go on", |seen| {
        seen.last_seq() > at + 20
    })
    .await;
    let after = proxy.counters(worker).await;
    assert!(after.applied["reset"] >= 1, "{after:?}");
    assert!(after.connections > before.connections, "{after:?}");
    fs::write(mesh.site.path("gate"), "").unwrap();
    let seen = client::watch_whole(&mut home, &id).await;
    assert_eq!(seen.result().as_deref(), Some("let go"));
    assert_eq!(attempts(&mesh, &id), [1]);
}

#[tokio::test]
async fn work_at_an_instance_that_only_resets_fails_or_moves_by_the_rules() {
    let (mesh, proxy) = behind_a_proxy(LOST_SOON).await;
    let mut home = mesh.local("home-1");
    let (once, worker) = held(&mesh, &mut home, "test.hold").await;
    let again = loop {
        let (id, at) = held(&mesh, &mut home, "test.echo.hold").await;
        if at == worker {
            break id;
        }
    };
    proxy.set(worker, Fault::reset()).await;
    let failed = seen_until(&mut home, &once, "it fails", |seen| is_end(seen.state())).await;
    assert_eq!(failed.failure().reason, "AGENT_LOST", "{failed:?}");
    eventually("the other attempt runs elsewhere", || {
        let (mut home, id, mesh) = (home.clone(), &again, &mesh);
        async move {
            let task = client::full(&mut home, id).await;
            let task = task.map_err(|status| status.to_string())?;
            let moved = task.executor_instance != mesh.instance(worker);
            (moved && attempts(mesh, id).len() == 2)
                .then_some(())
                .ok_or_else(|| format!("{task:?}"))
        }
    })
    .await;
    fs::write(mesh.site.path("gate"), "").unwrap();
    let seen = client::watch_whole(&mut home, &again).await;
    assert_eq!(seen.result().as_deref(), Some("let go"));
    assert_eq!(attempts(&mesh, &once), [1]);
    assert_eq!(attempts(&mesh, &again), [1, 2]);

    // Healed, it is given work again.
    proxy.clear(worker).await;
    does_a_task(&mesh, worker).await;
}

#[tokio::test]
async fn work_whose_start_only_trickles_in_is_given_again() {
    let (mesh, proxy) = behind_a_proxy(LOST_LATE).await;
    let mut home = mesh.local("home-1");
    // A connection is there: what trickles is the call and not the handshake.
    for worker in WORKERS {
        does_a_task(&mesh, worker).await;
    }
    for worker in WORKERS {
        let rate = Fault::Rate {
            bytes_per_second: 30,
        };
        proxy.set(worker, rate.up()).await;
    }
    let submitted = client::submit(&mut home, client::bounded("test.echo", "slow", 300)).await;
    let id = submitted.unwrap().id;
    eventually("an executor waits for the first step in vain", || async {
        let logs = WORKERS.map(|name| mesh.site.log(name)).concat();
        let said = logs.contains("CONNECTION_LOST") || logs.contains("PROTOCOL_VIOLATION");
        said.then_some(()).ok_or(logs)
    })
    .await;
    for worker in WORKERS {
        proxy.clear(worker).await;
    }
    let seen = client::watch_whole(&mut home, &id).await;
    assert_eq!(
        seen.result().as_deref(),
        Some("slow"),
        "{:?}",
        seen.failure()
    );
    assert_eq!(attempts(&mesh, &id).len(), 1, "{:?}", mesh.site.runs());
}
