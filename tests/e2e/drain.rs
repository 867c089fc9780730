//! SIGTERM under load: nothing is lost, everybody is told to come back, and it ends in its time.

use std::time::Duration;

use attache::{
    domain::Reason,
    pb::{TaskState, task_update::Update},
    wire::status::reason_of,
};
use rustix::process::Signal;
use tokio::time::Instant;
use tonic_types::StatusExt;

use crate::support::{
    client::{self, Local},
    hand::{ByHand, REGISTRY, page},
    ledger::Outcome,
    load::{Load, Shape},
    mesh::{Site, agent},
    process::signal,
    wait::{eventually, within},
};

/// What the processes of these tests are told where it is not the 30 s of a default.
const SHORT: Duration = Duration::from_secs(12);
/// For the kernel, and for a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(3);

/// Two homes of one agent, and two workers.
fn homes_and_workers(work: &str) -> String {
    let two = format!("instances = 2\n{work}");
    agent("home", &["test.home"], "instances = 2")
        + &agent("worker", &["test.slow", "test.hold", "test.hang"], &two)
}

fn one_worker() -> String {
    agent("home", &["test.home"], "") + &agent("worker", &["test.hang"], "")
}

/// Tasks that must not run twice: what drains lets them finish.
fn slow() -> Shape {
    Shape {
        skill: "test.slow",
        work: Duration::from_millis(150),
        pause: Duration::from_millis(20),
        ..Shape::default()
    }
}

async fn held(home: &mut Local, text: &str, skill: &str) -> String {
    let task = client::submit(home, client::spec(skill, text))
        .await
        .unwrap();
    eventually("the held task works", || {
        let (mut home, id) = (home.clone(), task.id.clone());
        async move {
            let state = client::full(&mut home, &id).await.unwrap().state();
            if state == TaskState::Working {
                Ok(())
            } else {
                Err(format!("{state:?}"))
            }
        }
    })
    .await;
    task.id
}

#[tokio::test]
async fn every_process_in_turn_is_drained_under_load_and_nothing_is_lost() {
    let mut mesh = ByHand::started(&homes_and_workers("max_concurrent_tasks = 8")).await;
    let load = Load::shaped(vec![mesh.local("home-1")], 24, slow());
    load.goes_on(20).await;
    for name in ["worker-1", "home-1", REGISTRY, "home-2", "worker-2"] {
        mesh.term(name);
        let began = Instant::now();
        let status = mesh.ended(name).await;
        assert!(status.success(), "{name}: {status}\n{}", mesh.site.logs());
        // Nothing here takes longer than its 150 ms: the 30 s of the drain are not waited for.
        assert!(
            began.elapsed() < SHORT + SLACK,
            "{name}: {:?}",
            began.elapsed()
        );
        if ["worker-1", "home-1"].contains(&name) {
            // It has given its lease back: nobody waits for that to run out. Right after the
            // registry's own restart its connection may be a dead one.
            let shown = page(&mesh.admin(REGISTRY), "/").await.unwrap();
            assert!(shown.contains("\"instances\":3"), "{name}: {shown}");
        }
        if name != "home-1" {
            load.goes_on(20).await;
        }
        mesh.start(name);
        mesh.ready(name).await;
        load.goes_on(20).await;
    }
    let Outcome { count, .. } = {
        let outcome = load.stop().await;
        outcome.clean();
        outcome
    };
    // The drained home let nobody guess: all streams ended with the word to come back.
    assert!(count.sent_away > 0, "{count:?}");
    let both = ["worker-1", "worker-2"];
    mesh.finds("home-2", "test.slow", &both).await;
}

#[tokio::test]
async fn work_that_never_ends_is_cut_in_time_and_moves_by_the_rules() {
    let mut mesh = ByHand::made(&homes_and_workers("")).await;
    for name in ["worker-1", "worker-2"] {
        mesh.set(name, "drain", "12s");
    }
    mesh.set("home-1", "agent_lost_after", "2s");
    mesh.start_all().await;
    let mut home = mesh.local("home-1");
    let id = held(&mut home, "", "test.hang").await;
    let runs = client::full(&mut home, &id).await.unwrap();
    let (busy, idle) = if runs.executor_instance == mesh.instance("worker-1") {
        ("worker-1", "worker-2")
    } else {
        ("worker-2", "worker-1")
    };

    mesh.term(busy);
    let began = Instant::now();
    // Peers hear of it at once, and find the other.
    mesh.finds("home-1", "test.hang", &[idle]).await;
    let told = began.elapsed();
    assert!(told < SLACK, "{told:?}");
    // While it drains it still serves: who comes now is answered, and new work goes elsewhere.
    let answer = page(&mesh.admin(busy), "/readyz").await.unwrap();
    assert!(
        answer.contains("503") && answer.contains("draining"),
        "{answer}"
    );
    let mut late = mesh.local(busy);
    let echo = client::run(&mut late, client::spec("test.slow", "10 late")).await;
    assert_eq!(echo.unwrap().result().as_deref(), Some("10 late"));
    let status = mesh.ended(busy).await;
    assert!(status.success(), "{status}");
    let took = began.elapsed();
    assert!(took < SHORT + SLACK, "{took:?}");

    // It had started and may not run twice.
    let seen = client::watch_whole(&mut home, &id).await;
    assert_eq!(seen.failure().reason, "AGENT_LOST", "{:?}", seen.failure());
}

#[tokio::test]
async fn watches_end_with_their_cursor_here_and_by_way_of_another_home() {
    let mut mesh = ByHand::started(&homes_and_workers("")).await;
    let gate = mesh.site.path("gate");
    let mut home = mesh.local("home-1");
    let id = held(&mut home, &gate.display().to_string(), "test.hold").await;
    for through in ["home-2", "home-1"] {
        let mut local = mesh.local(through);
        let mut stream = client::watch(&mut local, &id, 0).await.unwrap();
        let mut seen = client::Seen::default();
        let mut keepalive = None;
        let mut termed = false;
        let status = loop {
            match within("an update", stream.message()).await {
                Ok(Some(response)) => {
                    let update = response.update.unwrap();
                    keepalive = match &update.update {
                        Some(Update::Keepalive(alive)) => Some(alive.last_seq),
                        _ => None,
                    };
                    seen.take(update);
                }
                Ok(None) => panic!("{through}: a clean end in the middle of a task"),
                Err(status) => break status,
            }
            if seen.last_seq() >= 5 && !termed {
                termed = true;
                mesh.term(through);
            }
        };
        let reason = reason_of(&status);
        assert_eq!(
            reason.as_deref(),
            Some(Reason::Draining.label()),
            "{status:?}"
        );
        let info = status.get_details_error_info().unwrap();
        let last = seen.last_seq();
        assert_eq!(info.metadata["last_seq"], last.to_string(), "{through}");
        assert_eq!(keepalive, Some(last), "{through}: the last word before");
        assert!(mesh.ended(through).await.success());
        mesh.start(through);
        mesh.ready(through).await;
        // On from there, without a gap.
        let mut stream = client::watch(&mut local, &id, last).await.unwrap();
        for _ in 0..5 {
            let next = within("an update", stream.message()).await.unwrap();
            seen.take(next.unwrap().update.unwrap());
        }
    }
    std::fs::write(&gate, "").unwrap();
    let seen = client::watch_whole(&mut home, &id).await;
    assert_eq!(seen.result().as_deref(), Some("let go"));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut mesh = ByHand::started(&one_worker()).await;
    let mut home = mesh.local("home-1");
    held(&mut home, "", "test.hang").await;
    mesh.term("worker-1");
    mesh.finds("home-1", "test.hang", &[]).await;
    let began = Instant::now();
    mesh.term("worker-1");
    let status = mesh.ended("worker-1").await;
    assert_eq!(status.code(), Some(130));
    assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_whole_mesh_drains_under_load_and_goes_on_at_the_next_run() {
    let site = Site::new(&homes_and_workers("max_concurrent_tasks = 8"));
    let mut up = site.up(&[]).await;
    let home = client::local(&up.instance("default/home", 0).local);
    let load = Load::shaped(vec![home], 24, slow());
    load.goes_on(50).await;
    let began = Instant::now();
    signal(up.pid, Signal::TERM);
    assert_eq!(up.ended().await.code(), Some(0), "{}", site.logs());
    let took = began.elapsed();
    if took > SHORT {
        for l in ["home-1", "worker-1", "worker-2"] {
            std::fs::copy(
                site.state().join(format!("logs/{l}.log")),
                format!("/tmp/survive-{l}.log"),
            )
            .unwrap();
        }
    }
    assert!(took < SHORT + SLACK, "{took:?}\n{}", site.logs());
    assert_eq!(site.mark.processes(), vec![], "left behind");

    let _up = site.up(&[]).await;
    load.goes_on(50).await;
    let outcome = load.stop().await;
    outcome.clean();
    assert!(outcome.count.sent_away > 0, "{:?}", outcome.count);
}
