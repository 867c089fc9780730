//! Work that goes on to others: children of children, and tasks that are handed over.

use std::{fs, time::Duration};

use attache::pb::{self, TaskState, task_event::Kind};
use rustix::process::Signal;
use tokio::time::sleep;

use crate::support::{
    client::{self, Local, Seen, is_end},
    mesh::{Site, Up, agent},
    process::signal,
    wait::{eventually, within},
};

fn mesh() -> String {
    let room = "max_concurrent_tasks = 10";
    agent("home", &["test.home"], room)
        + &agent("a", &["test.ask.a", "test.pass.a"], room)
        + &agent("b", &["test.ask.b", "test.pass.b"], room)
        + &agent("c", &["test.echo", "test.hold", "test.ask.c"], room)
}

fn sidecar(up: &Up, agent: &str) -> Local {
    client::local(&up.instance(&format!("default/{agent}"), 0).local)
}

fn scope(all: &[&str]) -> Vec<pb::AgentSkill> {
    let pair = |one: &&str| {
        let (agent, skill) = one.rsplit_once('/').unwrap();
        pb::AgentSkill {
            agent: agent.into(),
            skill: skill.into(),
        }
    };
    all.iter().map(pair).collect()
}

/// How often a skill was run.
fn runs(site: &Site, skill: &str) -> usize {
    site.runs()
        .iter()
        .filter(|(what, _, _)| what == skill)
        .count()
}

#[tokio::test]
async fn a_circle_of_agents_is_refused_where_it_closes() {
    let site = Site::new(&mesh());
    let up = site.up(&[]).await;
    let mut a = sidecar(&up, "a");
    let round = "test.ask.b@b test.ask.a@a test.ask.b test.echo x";
    let seen = client::run(&mut a, client::spec("test.ask.a", round))
        .await
        .unwrap();
    let failure = seen.failure();
    let cycle = "default/a (test.ask.a) -> default/b (test.ask.b) -> default/a (test.ask.a)";
    assert!(failure.message.contains(cycle), "{failure:?}");
    assert_eq!(
        failure.code,
        i32::from(tonic::Code::FailedPrecondition),
        "{failure:?}"
    );
    assert_eq!(
        (runs(&site, "test.ask.a"), runs(&site, "test.ask.b")),
        (1, 1)
    );
    // The same agents for other work are no circle.
    let on = "test.ask.b@b test.ask.c@c test.pass.a@a test.echo@c fine";
    let seen = client::run(&mut a, client::spec("test.ask.a", on))
        .await
        .unwrap();
    assert_eq!(
        seen.result().as_deref(),
        Some("fine"),
        "{:?}",
        seen.events.last()
    );
}

#[tokio::test]
async fn a_scope_is_narrowed_down_a_chain_of_three_and_the_tree_is_drawn() {
    let site = Site::new(&mesh());
    let up = site.up(&[]).await;
    let mut home = sidecar(&up, "home");
    let all = ["default/b/test.ask.b", "c/test.echo", "c/test.ask.c"];
    let spec = |text: &str| pb::TaskSpec {
        scope: scope(&all),
        ..client::spec("test.ask.a", text)
    };
    let fine = spec("test.ask.b?c/test.echo test.echo fine");
    let seen = client::run(&mut home, fine).await.unwrap();
    assert_eq!(
        seen.result().as_deref(),
        Some("fine"),
        "{:?}",
        seen.events.last()
    );
    let root = client::full(&mut home, &seen.id).await.unwrap();
    assert_eq!(
        root.scope,
        scope(&[
            "default/b/test.ask.b",
            "default/c/test.echo",
            "default/c/test.ask.c"
        ])
    );

    // What the root may have done by others, its child may not.
    let wide = spec("test.ask.b?c/test.echo test.ask.c@c test.echo x");
    let seen = client::run(&mut home, wide).await.unwrap();
    let failure = seen.failure();
    assert_eq!(
        failure.code,
        i32::from(tonic::Code::PermissionDenied),
        "{failure:?}"
    );
    assert!(
        failure
            .message
            .ends_with("delegated to: default/c/test.echo"),
        "{failure:?}"
    );
    assert_eq!(runs(&site, "test.ask.c"), 0);

    let printed = draw(&site, &root.id).await;
    let places: Vec<_> = ["test.ask.a", "└─ test.ask.b", "   └─ test.echo"]
        .iter()
        .map(|line| {
            printed
                .find(line)
                .unwrap_or_else(|| panic!("{line}: {printed}"))
        })
        .collect();
    assert!(places.is_sorted(), "{printed}");
    assert_eq!(printed.matches("completed").count(), 3, "{printed}");
    let mut ids = std::collections::BTreeSet::new();
    for agent in ["home", "a", "b"] {
        let request = pb::ListTasksRequest {
            root_task_id: root.id.clone(),
            ..Default::default()
        };
        let page = within("a list", sidecar(&up, agent).list_tasks(request))
            .await
            .unwrap();
        for task in page.into_inner().tasks {
            assert_eq!(task.correlation_id, root.correlation_id);
            ids.insert(task.id);
        }
    }
    assert_eq!(ids.len(), 3, "one lives at each home");
}

/// What `attache task tree` prints.
async fn draw(site: &Site, id: &str) -> String {
    let mesh = site.state().display().to_string();
    let mut command = site.attache(&["task", "tree", "--mesh", &mesh, id]);
    let out = within("a tree", command.output()).await.unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        out.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    text
}

/// Watches a task to its end over whatever breaks.
async fn watched(mut home: Local, id: String) -> Seen {
    let mut seen = Seen::default();
    while !is_end(seen.state()) {
        if let Ok(mut stream) = client::watch(&mut home, &id, seen.last_seq()).await {
            while let Ok(Some(response)) = stream.message().await {
                seen.take(response.update.unwrap());
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
    seen.whole()
}

#[tokio::test]
async fn a_task_that_is_handed_over_is_finished_by_another_though_its_home_is_killed() {
    let site = Site::new(&mesh());
    let up = site.up(&[]).await;
    let mut home = sidecar(&up, "home");
    let gate = site.path("gate");
    // Twice: from a to b, and on to c.
    let way = format!("test.pass.b@b test.hold@c {}", gate.display());
    let task = client::submit(&mut home, client::spec("test.pass.a", &way))
        .await
        .unwrap();
    let watching = watched(home.clone(), task.id.clone());
    let works = |attempt: u32| {
        let (home, id) = (home.clone(), task.id.clone());
        eventually("c works on it", move || {
            let (mut home, id) = (home.clone(), id.clone());
            async move {
                let task = client::full(&mut home, &id)
                    .await
                    .map_err(|s| s.to_string())?;
                let by = task.executor.clone().unwrap_or_default();
                let works = task.state() == TaskState::Working && by.agent == "default/c";
                if works && task.attempt == attempt {
                    Ok(())
                } else {
                    Err(format!("{task:?}"))
                }
            }
        })
    };
    let crash = async {
        works(3).await;
        let before = site.mark.process(&["sidecar", "home-1"]).pid;
        signal(before, Signal::KILL);
        works(3).await;
        fs::write(&gate, "").unwrap();
    };
    let (seen, ()) = within("it ends", async { tokio::join!(watching, crash) }).await;
    assert_eq!(
        seen.result().as_deref(),
        Some("let go"),
        "{:?}",
        seen.events.last()
    );
    let whole = client::watch_whole(&mut home, &task.id).await;
    assert_eq!(whole.events, seen.events);
    let mut to = Vec::new();
    for event in &seen.events {
        if let Some(Kind::Delegation(delegation)) = &event.kind {
            assert_eq!(event.state(), TaskState::Submitted);
            to.push(delegation.to.clone().unwrap().agent);
        }
    }
    assert_eq!(to, ["default/b", "default/c"]);

    let task = client::full(&mut home, &task.id).await.unwrap();
    assert_eq!(
        (&*task.skill, &*task.delegated_to),
        ("test.pass.a", "default/c")
    );
    let by = task.executor.unwrap();
    assert_eq!((&*by.agent, &*by.skill), ("default/c", "test.hold"));
    let chain: Vec<_> = task
        .chain
        .iter()
        .map(|link| (&*link.skill, link.attempt))
        .collect();
    assert_eq!(chain, [("test.pass.a", 1), ("test.pass.b", 2)]);
    let runs: Vec<_> = site
        .runs()
        .into_iter()
        .filter(|(_, id, _)| *id == task.id)
        .collect();
    assert_eq!(runs.len(), 3, "{runs:?}");
    let printed = draw(&site, &task.id).await;
    assert!(printed.contains("handed to default/c"), "{printed}");
}

#[tokio::test]
async fn a_task_goes_back_to_nobody_and_nowhere_out_of_its_scope() {
    let site = Site::new(&mesh());
    let up = site.up(&[]).await;
    let mut home = sidecar(&up, "home");
    let back = "test.pass.b@b test.pass.a@a x";
    let seen = client::run(&mut home, client::spec("test.pass.a", back))
        .await
        .unwrap();
    assert_eq!(
        seen.failure().reason,
        "DELEGATION_LOOP",
        "{:?}",
        seen.failure()
    );
    let out = pb::TaskSpec {
        scope: scope(&["b/test.pass.b"]),
        ..client::spec("test.pass.a", "test.pass.b@b test.echo@c x")
    };
    let seen = client::run(&mut home, out).await.unwrap();
    assert_eq!(
        seen.failure().reason,
        "OUT_OF_SCOPE",
        "{:?}",
        seen.failure()
    );
    assert_eq!(runs(&site, "test.echo"), 0);
}

/// Most tasks below a root.
const DESCENDANTS: usize = 1000;

/// How many tasks of a tree are at these homes, and how many of them have not ended.
async fn counted(homes: &mut [Local], root: &str) -> (usize, usize) {
    let (mut all, mut live) = (0, 0);
    for home in homes {
        let mut request = pb::ListTasksRequest {
            root_task_id: root.into(),
            page_size: 1000,
            ..Default::default()
        };
        loop {
            let page = within("a list", home.list_tasks(request.clone())).await;
            let page = page.unwrap().into_inner();
            all += page.tasks.len();
            live += page.tasks.iter().filter(|one| !is_end(one.state())).count();
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
    }
    (all, live)
}

#[tokio::test]
async fn a_fork_bomb_is_stopped_and_leaves_the_mesh_as_it_was() {
    let names: Vec<String> = (0..10).map(|depth| format!("test.bomb.{depth}")).collect();
    let mut skills: Vec<&str> = names.iter().map(String::as_str).collect();
    skills.push("test.echo");
    let room = "max_concurrent_tasks = 400";
    let mesh = agent("home", &["test.home"], "")
        + &agent("a", &skills, room)
        + &agent("b", &skills, room)
        + &agent("c", &skills, room);
    let site = Site::new(&mesh);
    let up = site.up(&[]).await;
    let mut homes = ["home", "a", "b", "c"].map(|agent| sidecar(&up, agent));
    let bomb = client::spec("test.bomb.0", "");
    let root = client::submit(&mut homes[0], bomb).await.unwrap();
    let full = "ResourceExhausted:DESCENDANTS_EXHAUSTED";
    let begun = || {
        let runs = site.runs();
        let begun = runs
            .iter()
            .filter(|(what, _, _)| what.starts_with("test.bomb"));
        begun.count()
    };
    for goal in (100..=DESCENDANTS).step_by(100) {
        eventually("it goes off", || async {
            let begun = begun();
            (begun > goal)
                .then_some(())
                .ok_or_else(|| format!("{begun} of {goal}"))
        })
        .await;
    }
    // Whoever makes any is refused more, but at the end of the chain.
    eventually("all are refused", || async {
        let runs = site.runs();
        let of = |reason: &str| runs.iter().filter(|(what, _, _)| what == reason).count();
        let (stopped, deep) = (of(full), of("InvalidArgument:INVALID_FIELD"));
        (stopped > 0 && stopped + deep == DESCENDANTS + 1)
            .then_some(())
            .ok_or_else(|| format!("{stopped} and {deep}"))
    })
    .await;
    assert_eq!(
        counted(&mut homes, &root.id).await,
        (DESCENDANTS + 1, DESCENDANTS + 1)
    );
    // Others are served as before, in the middle of it.
    let echo = client::spec("test.echo", "fine");
    let seen = client::run(&mut homes[0], echo.clone()).await.unwrap();
    assert_eq!(seen.result().as_deref(), Some("fine"));

    let request = pb::CancelTaskRequest {
        task_id: root.id.clone(),
        reason: "enough".into(),
    };
    within("a cancellation", homes[0].cancel_task(request))
        .await
        .unwrap();
    eventually("all have ended", || {
        let (mut homes, root) = (homes.clone(), root.id.clone());
        async move {
            let (_, live) = counted(&mut homes, &root).await;
            (live == 0)
                .then_some(())
                .ok_or_else(|| format!("{live} live"))
        }
    })
    .await;
    assert_eq!(begun(), DESCENDANTS + 1, "nothing was begun again");
    let seen = client::run(&mut homes[0], echo).await.unwrap();
    assert_eq!(seen.result().as_deref(), Some("fine"));
    let printed = draw(&site, &root.id).await;
    assert!(
        printed.contains("1000 tasks below it, of 1000"),
        "{}",
        printed.len()
    );
}
