//! kill -9 of what must not lose anything.

use std::fs;

use attache::pb::TaskState;
use rustix::process::Signal;
use tonic::Code;

use crate::support::{
    client::{self, Local, Seen, is_end},
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
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
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
