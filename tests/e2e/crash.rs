//! kill -9 of what must not lose anything.

use std::{collections::HashSet, fs, time::Duration};

use attache::pb::TaskState;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use tokio::time::sleep;
use tonic::Code;

use crate::support::{
    client::{self, Local, Seen, is_end},
    hand::ByHand,
    load::{Load, Shape},
    mesh::{Site, agent},
    process::signal,
    wait::{eventually, within},
};

/// A home for tasks, and a worker elsewhere that does one at a time.
fn home_and_worker() -> String {
    agent("home", &["test.home"], "")
        + &agent(
            "worker",
            &["test.hold", "test.echo"],
            "max_concurrent_tasks = 1",
        )
}

/// Watches a task to its end, coming back with the last number whenever the stream breaks.
async fn watch_through(mut home: Local, id: String) -> (Seen, u32) {
    let (mut seen, mut breaks) = (Seen::default(), 0);
    while !is_end(seen.state()) {
        let stream = client::watch(&mut home, &id, seen.last_seq()).await;
        let broken = match stream {
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(response)) => seen.take(response.update.unwrap()),
                    Ok(None) => break None,
                    Err(status) => break Some(status),
                }
            },
            Err(status) => Some(status),
        };
        if let Some(status) = broken {
            // The home is away: nothing else may go wrong.
            let away = [
                Code::Unavailable,
                Code::Unknown,
                Code::Cancelled,
                Code::Internal,
            ];
            assert!(away.contains(&status.code()), "{status:?}");
            breaks += 1;
            sleep(Duration::from_millis(50)).await;
        }
    }
    (seen.whole(), breaks)
}

async fn state_of(home: &mut Local, id: &str) -> Result<TaskState, String> {
    let task = client::full(home, id)
        .await
        .map_err(|status| status.to_string())?;
    Ok(task.state())
}

async fn reaches(home: &Local, id: &str, wanted: TaskState) {
    eventually(&format!("{id} is {wanted:?}"), || {
        let mut home = home.clone();
        async move {
            let state = state_of(&mut home, id).await?;
            if state == wanted {
                Ok(())
            } else {
                Err(format!("{state:?}"))
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_killed_home_loses_no_task_and_no_event() {
    let site = Site::new(&home_and_worker());
    let up = site.up(&[]).await;
    let gate = site.path("gate");
    let mut home = client::local(&up.instance("default/home", 0).local);

    let held = gate.display().to_string();
    let running = client::submit(&mut home, client::spec("test.hold", &held))
        .await
        .unwrap()
        .id;
    reaches(&home, &running, TaskState::Working).await;
    let queued = client::submit(&mut home, client::spec("test.echo", "late"))
        .await
        .unwrap()
        .id;
    assert_eq!(state_of(&mut home, &queued).await, Ok(TaskState::Submitted));

    let watchers = [&running, &queued].map(|id| watch_through(home.clone(), id.clone()));
    let crash = async {
        // In the middle: events have come, and more are coming.
        eventually("events flow", || {
            let mut home = home.clone();
            let running = &running;
            async move {
                let task = client::full(&mut home, running)
                    .await
                    .map_err(|s| s.to_string())?;
                if task.last_seq > 5 {
                    Ok(())
                } else {
                    Err(format!("{}", task.last_seq))
                }
            }
        })
        .await;
        let before = site.mark.process(&["sidecar", "home-1"]).pid;
        signal(before, Signal::KILL);
        eventually("the home is started again", || async {
            let all = site.mark.processes();
            let found = all
                .iter()
                .find(|one| one.command.contains("sidecar") && one.command.contains("home-1"));
            match found {
                Some(home) if home.pid != before => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        reaches(&home, &running, TaskState::Working).await;
        assert_eq!(
            state_of(&mut home.clone(), &queued).await,
            Ok(TaskState::Submitted)
        );
        fs::write(&gate, "").unwrap();
    };
    let [first, second] = watchers;
    let both = async { tokio::join!(first, second, crash) };
    let ((held, breaks), (echoed, _), ()) = within("both tasks end", both).await;

    assert!(breaks > 0, "the watcher has not noticed the crash");
    assert_eq!(
        held.result().as_deref(),
        Some("let go"),
        "{:?}",
        held.events.last()
    );
    assert_eq!(
        echoed.result().as_deref(),
        Some("late"),
        "{:?}",
        echoed.events.last()
    );
    // What was seen in pieces is what stands in the log, and each was run once.
    for seen in [&held, &echoed] {
        let whole = client::watch_whole(&mut home, &seen.id).await;
        assert_eq!(whole.events, seen.events);
        let runs = site
            .runs()
            .into_iter()
            .filter(|(_, id, _)| *id == seen.id)
            .count();
        assert_eq!(runs, 1, "{:?}", site.runs());
    }
}

#[tokio::test]
async fn a_killed_executor_fails_work_that_may_not_run_twice() {
    let site = Site::new(&home_and_worker());
    let up = site.up(&[]).await;
    let gate = site.path("gate");
    let mut home = client::local(&up.instance("default/home", 0).local);
    let held = gate.display().to_string();
    let running = client::submit(&mut home, client::spec("test.hold", &held))
        .await
        .unwrap()
        .id;
    reaches(&home, &running, TaskState::Working).await;

    signal(
        site.mark.process(&["sidecar", "worker-1"]).pid,
        Signal::KILL,
    );

    let seen = client::watch_whole(&mut home, &running).await;
    assert_eq!(seen.state(), TaskState::Failed);
    assert_eq!(seen.failure().reason, "AGENT_LOST");
    fs::write(&gate, "").unwrap();
    // The worker is started again and works on.
    let echoed = client::run(&mut home, client::bounded("test.echo", "again", 50))
        .await
        .unwrap();
    assert_eq!(echoed.result().as_deref(), Some("again"));
}

#[tokio::test]
async fn after_a_kill_of_everything_the_next_run_ends_every_task() {
    let mesh = home_and_worker();
    let site = Site::new(&mesh);
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let done = client::run(&mut home, client::spec("test.echo", "before"))
        .await
        .unwrap();
    assert_eq!(done.result().as_deref(), Some("before"));
    let never = site.path("never").display().to_string();
    let running = client::submit(&mut home, client::spec("test.hold", &never))
        .await
        .unwrap()
        .id;
    reaches(&home, &running, TaskState::Working).await;
    // Nobody offers this version yet: it waits.
    let mut later = client::spec("test.echo", "over the crash");
    later.selector.as_mut().unwrap().version = "^9".into();
    let waiting = client::submit(&mut home, later).await.unwrap().id;

    site.mark.kill_all();
    let name = "name = \"test.echo\"\n";
    let newer = mesh.replace(name, &format!("{name}version = \"9.0.0\"\n"));
    fs::write(site.dir.join("mesh.toml"), newer).unwrap();

    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    // What had ended stands as it was; what had started may not run twice; what waited is done.
    assert_eq!(
        client::watch_whole(&mut home, &done.id).await.events,
        done.events
    );
    let lost = client::watch_whole(&mut home, &running).await;
    assert_eq!(
        (lost.state(), lost.failure().reason.as_str()),
        (TaskState::Failed, "AGENT_LOST")
    );
    let late = client::watch_whole(&mut home, &waiting).await;
    assert_eq!(
        late.result().as_deref(),
        Some("over the crash"),
        "{:?}",
        late.failure()
    );
    assert_eq!(site.runs().len(), 3, "{:?}", site.runs());
}

/// How often the home is killed in one run of [`a_home_that_is_killed_again_and_again_loses_nothing`];
/// `tests/soak/kill` says more by ATTACHE_KILLS; ATTACHE_SEED repeats its moments.
const KILLS: usize = 20;

/// A number that the environment may say otherwise.
fn said(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// A home for tasks, and two workers for slow ones.
fn home_and_workers() -> String {
    agent("home", &["test.home"], "")
        + &agent(
            "worker",
            &["test.slow", "test.echo.slow", "test.echo"],
            "instances = 2\nmax_concurrent_tasks = 16",
        )
}

#[tokio::test]
#[allow(
    clippy::print_stdout,
    reason = "the seed repeats it; shown where it fails"
)]
async fn a_home_that_is_killed_again_and_again_loses_nothing() {
    let kills = said("ATTACHE_KILLS", KILLS as u64);
    let seed = said("ATTACHE_SEED", rand::random());
    println!("ATTACHE_KILLS={kills} ATTACHE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut mesh = ByHand::started(&home_and_workers()).await;
    // No skill that may run twice: what runs twice is seen.
    let shape = Shape {
        skill: "test.slow",
        work: Duration::from_millis(300),
        pause: Duration::ZERO,
        ..Shape::default()
    };
    let homes = (0..5).map(|_| mesh.local("home-1")).collect();
    let load = Load::shaped(homes, 200, shape);
    let mut open = Vec::new();
    for _ in 0..kills {
        let before = load.count().acknowledged;
        // Now and then in the middle of the start itself.
        if !random.random_ratio(1, 5) {
            eventually("new tasks come", || async {
                match load.count().acknowledged {
                    now if now > before => Ok(()),
                    same => Err(format!("{same}\n{}", mesh.site.logs())),
                }
            })
            .await;
        }
        sleep(Duration::from_millis(random.random_range(0..400))).await;
        open.push(load.open());
        mesh.kill("home-1").await;
        mesh.start("home-1");
    }
    mesh.ready("home-1").await;
    let outcome = load.stop().await;
    println!("{:?}, open at each kill: {open:?}", outcome.count);
    outcome.clean();
    assert!(outcome.count.breaks > 0, "{:?}", outcome.count);
    let most = open.iter().max();
    assert!(most >= Some(&150), "hardly anything was open: {open:?}");
    let mut once = HashSet::new();
    for (_, id, attempt) in mesh.site.runs() {
        assert!(once.insert(id.clone()), "{id} ran again, attempt {attempt}");
    }
}
