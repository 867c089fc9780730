//! Agents without a port: they attach to their own sidecars, and everything else is as with others.

use std::{fs, time::Duration};

use attache::pb::{
    self, TaskState, attach_request::Say, attach_response::Say as Heard,
    registry_client::RegistryClient, task_event::Kind,
};
use rustix::process::Signal;
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Endpoint};

use crate::support::{
    client::{self, Local, Seen},
    hand::{ByHand, REGISTRY},
    mesh::{Site, agent},
    process::signal,
    tools::{fetched, root},
    wait::{eventually, within},
};

const ATTACH: &str = "attach = true";
/// What a sidecar may grow by while a home takes nothing: the 1 MiB that an attempt may keep is some
/// 100,000 updates of a few bytes, each with its place in memory.
const GROWTH: u64 = 64 << 20;

fn home_and_worker(skills: &[&str], more: &str) -> String {
    agent("home", &["test.home"], "") + &agent("worker", skills, &format!("{ATTACH}\n{more}"))
}

async fn works(home: &Local, id: &str) {
    eventually("the task works", || {
        let mut home = home.clone();
        async move {
            let task = client::full(&mut home, id)
                .await
                .map_err(|s| s.to_string())?;
            let works = task.state() == TaskState::Working && task.last_seq > 1;
            works.then_some(()).ok_or_else(|| format!("{task:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn an_attached_agent_does_tasks_says_what_it_makes_and_stops() {
    let skills = [
        "test.echo",
        "test.make",
        "test.hang",
        "test.silent",
        "test.nothing",
    ];
    let site = Site::new(&home_and_worker(&skills, ""));
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);

    let seen = client::run(&mut home, client::spec("test.echo", "over a stream")).await;
    let seen = seen.unwrap();
    assert_eq!(seen.result().as_deref(), Some("over a stream"), "{seen:?}");
    let steps = seen
        .events
        .iter()
        .filter(|event| matches!(event.kind, Some(Kind::Progress(_))));
    assert_eq!(steps.count(), 3);

    let made = client::run(
        &mut home,
        client::spec("test.make", "an artifact in two pieces"),
    )
    .await;
    let task = client::full(&mut home, &made.unwrap().id).await.unwrap();
    let copy: String = task
        .artifacts
        .iter()
        .map(|one| client::text_of(&one.parts))
        .collect();
    assert_eq!(copy, "an artifact in two pieces");

    let failed = client::run(&mut home, client::spec("test.nothing", "x"))
        .await
        .unwrap();
    assert_eq!(failed.failure().reason, "NO_SUCH_WORK");

    let late = client::run(&mut home, client::bounded("test.hang", "x", 2))
        .await
        .unwrap();
    assert_eq!(late.failure().reason, "DEADLINE_EXCEEDED");

    let task = client::submit(&mut home, client::spec("test.hang", "x"))
        .await
        .unwrap();
    works(&home, &task.id).await;
    let request = pb::CancelTaskRequest {
        task_id: task.id.clone(),
        reason: "enough".into(),
    };
    home.cancel_task(request).await.unwrap();
    let seen = client::watch_whole(&mut home, &task.id).await;
    assert_eq!(seen.state(), TaskState::Canceled);
    let task = client::full(&mut home, &task.id).await.unwrap();
    assert!(task.cancel_confirmed, "{task:?}");
}

#[tokio::test]
async fn a_killed_attached_agent_fails_its_work_or_moves_it() {
    let skills = ["test.hold", "test.echo.hold"];
    let site = Site::new(&home_and_worker(&skills, "instances = 2"));
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let gate = site.path("gate");
    let held = gate.display().to_string();

    let sidecar = &up.instance("default/home", 0).local;
    let registry = Endpoint::from_shared(sidecar.clone()).unwrap();
    let registry = RegistryClient::new(registry.connect_lazy());
    let killed = async |home: &mut Local, skill: &str| {
        // An agent that was killed before is there again: there is another place to go to.
        eventually("the home knows both", || {
            let mut registry = registry.clone();
            let selector = Some(pb::Selector {
                skill: skill.into(),
                ..Default::default()
            });
            async move {
                let request = pb::DiscoverRequest { selector, limit: 0 };
                let found = registry.discover(request).await;
                let found = found.map_err(|status| status.to_string())?.into_inner();
                let both = found.instances.len() == 2;
                both.then_some(()).ok_or_else(|| format!("{found:?}"))
            }
        })
        .await;
        let task = client::submit(home, client::spec(skill, &held))
            .await
            .unwrap();
        works(home, &task.id).await;
        let task = client::full(home, &task.id).await.unwrap();
        let by = task.executor_instance.clone();
        let both = [0, 1].map(|place| up.instance("default/worker", place));
        let place = both.iter().position(|one| one.instance == by).unwrap();
        // Agents are told apart by nothing but their sidecar.
        let sidecar = &both[place].local;
        let all = site.mark.processes().into_iter();
        let agent = all
            .filter(|one| one.command.contains("test-agent"))
            .find(|one| {
                let environment = fs::read_to_string(format!("/proc/{}/environ", one.pid));
                environment.is_ok_and(|all| all.contains(&format!("ATTACHE_SIDECAR={sidecar}\0")))
            });
        signal(agent.unwrap().pid, Signal::KILL);
        (task.id, by)
    };

    let (id, _) = killed(&mut home, "test.hold").await;
    let seen = client::watch_whole(&mut home, &id).await;
    assert_eq!(
        (seen.state(), seen.failure().reason.as_str()),
        (TaskState::Failed, "AGENT_LOST")
    );

    let (id, before) = killed(&mut home, "test.echo.hold").await;
    eventually("it works elsewhere", || {
        let (mut home, id, before) = (home.clone(), id.clone(), before.clone());
        async move {
            let task = client::full(&mut home, &id).await.unwrap();
            let moved = task.attempt > 1 && task.executor_instance != before;
            (moved && task.state() == TaskState::Working)
                .then_some(())
                .ok_or_else(|| format!("{task:?}"))
        }
    })
    .await;
    fs::write(&gate, "").unwrap();
    let seen = client::watch_whole(&mut home, &id).await;
    assert_eq!(seen.result().as_deref(), Some("let go"));
}

#[tokio::test]
async fn an_attached_agent_comes_back_to_a_sidecar_that_was_restarted() {
    let mesh = home_and_worker(&["test.echo"], "");
    let mut hand = ByHand::started(&mesh).await;
    let mut home = hand.local("home-1");
    for text in ["before", "after a kill", "after a drain"] {
        let seen = client::run(&mut home, client::bounded("test.echo", text, 60)).await;
        assert_eq!(seen.unwrap().result().as_deref(), Some(text));
        if text == "before" {
            hand.kill("worker-1").await;
        } else {
            hand.term("worker-1");
            hand.ended("worker-1").await;
        }
        hand.start("worker-1");
        // Not ready before its agent is there again.
        hand.ready("worker-1").await;
    }
    assert!(hand.runs("worker-1-agent"), "the agent has ended");

    // Without its agent it is not ready, and gets nothing.
    hand.kill("worker-1-agent").await;
    hand.finds("home-1", "test.echo", &[]).await;
    hand.start("worker-1-agent");
    hand.ready("worker-1").await;
    hand.finds("home-1", "test.echo", &["worker-1"]).await;
    assert!(hand.runs(REGISTRY));
}

#[tokio::test]
async fn an_attached_agent_that_leaves_loses_nothing() {
    let mesh = home_and_worker(&["test.hold", "test.echo"], "");
    let mut hand = ByHand::started(&mesh).await;
    let mut home = hand.local("home-1");
    // The agent is told to end, then its sidecar, each in the middle of work that may not run twice.
    for told in ["worker-1-agent", "worker-1"] {
        let gate = hand.site.path(told);
        let spec = client::spec("test.hold", &gate.display().to_string());
        let task = client::submit(&mut home, spec).await.unwrap();
        works(&home, &task.id).await;
        hand.term(told);
        // It has heard of that, and takes nothing more.
        hand.finds("home-1", "test.hold", &[]).await;
        fs::write(&gate, "").unwrap();
        let seen = client::watch_whole(&mut home, &task.id).await;
        assert_eq!(seen.result().as_deref(), Some("let go"), "{told}: {seen:?}");
        let attempts = seen.events.iter().map(|event| event.attempt).max();
        assert_eq!(attempts, Some(1), "{told}");
        assert!(hand.ended(told).await.success(), "{told}");
        hand.start(told);
        hand.ready("worker-1").await;
    }
}

#[tokio::test]
async fn a_slow_home_slows_an_attached_agent_and_fills_no_memory() {
    let site = Site::new(&home_and_worker(&["test.endless"], ""));
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let task = client::submit(&mut home, client::spec("test.endless", "x"))
        .await
        .unwrap();
    works(&home, &task.id).await;

    let sidecar = site.mark.process(&["sidecar", "worker-1"]).pid;
    let agent = site.mark.processes().into_iter().find(|one| {
        let environment = fs::read_to_string(format!("/proc/{}/environ", one.pid));
        one.command.contains("test-agent")
            && environment.is_ok_and(|all| all.contains("ATTACHE_LISTEN=attach"))
    });
    let agent = agent.unwrap().pid;
    let stopped = site.mark.process(&["sidecar", "home-1"]).pid;
    signal(stopped, Signal::STOP);
    let before = memory(sidecar);
    // It stops by itself, in the middle of what never ends.
    let mut ticks = 0;
    eventually("the agent waits", || {
        let now = processor(agent);
        let waits = now == std::mem::replace(&mut ticks, now);
        async move {
            sleep(Duration::from_millis(300)).await;
            waits.then_some(()).ok_or_else(|| format!("{now} ticks"))
        }
    })
    .await;
    let grown = memory(sidecar).saturating_sub(before);
    assert!(grown < GROWTH, "the sidecar has grown by {grown} bytes");
    let of_agent = memory(agent);
    assert!(of_agent < 4 * GROWTH, "the agent has {of_agent} bytes");

    signal(stopped, Signal::CONT);
    let seq = client::full(&mut home, &task.id).await.unwrap().last_seq;
    eventually("it goes on", || {
        let (mut home, id) = (home.clone(), task.id.clone());
        async move {
            let now = client::full(&mut home, &id).await.unwrap().last_seq;
            (now > seq + 100)
                .then_some(())
                .ok_or_else(|| now.to_string())
        }
    })
    .await;
}

/// Bytes of memory that a process has.
fn memory(pid: u32) -> u64 {
    let shown = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = shown.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Ticks of processor time that a process has used.
fn processor(pid: u32) -> u64 {
    let shown = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = shown.rsplit_once(')').unwrap().1;
    let words: Vec<&str> = after_name.split_whitespace().collect();
    words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap()
}

/// A stream that a test speaks for itself.
struct Raw {
    says: mpsc::Sender<pb::AttachRequest>,
    hears: Streaming<pb::AttachResponse>,
}

impl Raw {
    async fn open(sidecar: &mut Local, places: u32) -> Result<Self, Status> {
        let (says, saying) = mpsc::channel(8);
        let say = Some(Say::Hello(pb::AttachHello { places, card: None }));
        says.send(pb::AttachRequest { say }).await.unwrap();
        let opened = within(
            "a stream opens",
            sidecar.attach(ReceiverStream::new(saying)),
        );
        let hears = opened.await?.into_inner();
        Ok(Self { says, hears })
    }

    async fn hear(&mut self) -> Result<Option<Heard>, Status> {
        let message = within("a message", self.hears.message()).await?;
        Ok(message.and_then(|message| message.say))
    }
}

#[tokio::test]
async fn only_the_own_agent_attaches_and_who_breaks_a_rule_is_told_which() {
    let mesh = agent("home", &["test.home"], "")
        + "[[agents]]\nname = \"notebook\"\nattach = true\n[[agents.skills]]\nname = \"test.note\"\n";
    let site = Site::new(&mesh);
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let notebook = up.instance("default/notebook", 0);

    // Its sidecar dials its agent.
    let refused = Raw::open(&mut home, 1).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("\"attach\""), "{refused:?}");
    // Members are not the agent, operators neither.
    let pool = client::pool(&site.state().join("operator"));
    let mut member = client::member(&pool, &notebook.mtls, "ns/default/agent/notebook");
    let nothing = tokio_stream::empty::<pb::AttachRequest>();
    let refused = within("a refusal", member.attach(nothing))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");

    let mut sidecar = client::local(&notebook.local);
    let mut raw = Raw::open(&mut sidecar, 1).await.unwrap();
    assert!(matches!(raw.hear().await, Ok(Some(Heard::Attached(_)))));
    let seen = client::submit(&mut home, client::spec("test.note", "x"))
        .await
        .unwrap();
    let Ok(Some(Heard::Work(work))) = raw.hear().await else {
        panic!("no work")
    };
    assert_eq!(work.request.unwrap().task.unwrap().id, seen.id);
    assert!(work.remaining.is_some_and(|left| left.seconds > 3000));
    let end = pb::AttachEnd {
        work: work.work + 1,
        ..Default::default()
    };
    let say = Some(Say::End(end));
    raw.says.send(pb::AttachRequest { say }).await.unwrap();
    let broken = raw.hear().await.err().unwrap();
    assert_eq!(broken.code(), Code::InvalidArgument, "{broken:?}");
    assert!(broken.message().contains("an end of work 2"), "{broken:?}");
    // What it had is lost, as with a process that dies.
    let lost = client::watch_whole(&mut home, &seen.id).await;
    assert_eq!(lost.failure().reason, "AGENT_LOST");
}

#[tokio::test]
async fn a_python_notebook_takes_work_without_a_port() {
    let test = "attached::a_python_notebook_takes_work_without_a_port";
    let (Some(python), Some(stubs)) = (fetched("python/bin/python", test), fetched("stubs", test))
    else {
        return;
    };
    let program = root().join("tests/polyglot/python/attached.py");
    // What the contract shows is what runs here.
    let code = fs::read_to_string(&program).unwrap();
    let code = code.split_once("\"\"\"\n\n").unwrap().1;
    let contract = fs::read_to_string(root().join("proto/attache/v1/agent.proto")).unwrap();
    let shown: Vec<&str> = contract
        .lines()
        .filter_map(|line| line.strip_prefix("  //"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .collect();
    assert!(
        shown.join("\n").contains(code.trim_end()),
        "agent.proto shows another program"
    );

    let mesh = agent("home", &["test.home"], "")
        + &format!(
            "[[agents]]\nname = \"notebook\"\n{ATTACH}\ncommand = [{:?}, {:?}]\n\
             env = {{ PYTHONPATH = {:?} }}\n[[agents.skills]]\nname = \"text.upper\"\n",
            python.display().to_string(),
            program.display().to_string(),
            stubs.display().to_string(),
        );
    let site = Site::new(&mesh);
    let up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    for text in ["one", "another"] {
        let seen: Seen = client::run(&mut home, client::spec("text.upper", text))
            .await
            .unwrap();
        assert_eq!(seen.result(), Some(text.to_uppercase()), "{seen:?}");
    }
}
