//! kill -9 of what must not lose anything.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use attache::pb::{self, TaskState};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::support::{
    client::{self, Local, Seen, is_end},
    hand::{ByHand, REGISTRY},
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
            assert!(client::is_away(&status), "{status:?}");
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
        site.mark.kill_and_wait("home-1").await;
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

/// How often to kill, and when: said, so that it can be repeated.
#[allow(
    clippy::print_stdout,
    reason = "the seed repeats it; shown where it fails"
)]
fn chance() -> (u64, StdRng) {
    let kills = said("ATTACHE_KILLS", KILLS as u64);
    let seed = said("ATTACHE_SEED", rand::random());
    println!("ATTACHE_KILLS={kills} ATTACHE_SEED={seed}");
    (kills, StdRng::seed_from_u64(seed))
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
#[allow(clippy::print_stdout, reason = "the counts are what a soak is for")]
async fn a_home_that_is_killed_again_and_again_loses_nothing() {
    let (kills, mut random) = chance();
    let mut mesh = ByHand::started(&home_and_workers()).await;
    // No skill that may run twice: what runs twice is seen.
    let shape = Shape {
        skill: "test.slow",
        work: Duration::from_millis(300),
        pause: Duration::ZERO,
        // A home that is up for half a second at a time gets little done.
        bound: 3600,
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

#[tokio::test]
#[allow(clippy::print_stdout, reason = "the counts are what a soak is for")]
async fn whoever_is_killed_again_and_again_every_task_ends_once_and_no_stream_has_a_gap() {
    let (kills, mut random) = chance();
    let mut mesh = ByHand::made(&home_and_workers()).await;
    // What is lost with its sidecar is given up before the load ends.
    mesh.set("home-1", "agent_lost_after", "3s");
    mesh.start_all().await;
    let shape = |skill, may_fail_by| Shape {
        skill,
        work: Duration::from_millis(300),
        pause: Duration::from_millis(20),
        bound: 3600,
        may_fail_by,
    };
    let homes = || (0..3).map(|_| mesh.local("home-1")).collect();
    // Some may not run twice, some may.
    let once = Load::shaped(homes(), 40, shape("test.slow", &["AGENT_LOST"]));
    let lost = &["AGENT_LOST", "RETRIES_EXHAUSTED"];
    let again = Load::shaped(homes(), 40, shape("test.echo.slow", lost));
    let victims = [
        "home-1",
        "worker-1",
        "worker-2",
        "worker-1-agent",
        "worker-2-agent",
    ];
    for _ in 0..kills {
        let victim = victims[random.random_range(0..victims.len())];
        let before = once.count().acknowledged + again.count().acknowledged;
        if !random.random_ratio(1, 5) {
            eventually("new tasks come", || async {
                let now = once.count().acknowledged + again.count().acknowledged;
                (now > before)
                    .then_some(())
                    .ok_or_else(|| format!("{before}\n{}", mesh.site.logs()))
            })
            .await;
        }
        sleep(Duration::from_millis(random.random_range(0..400))).await;
        mesh.kill(victim).await;
        mesh.start(victim);
    }
    mesh.start_all().await;
    let (once, again) = tokio::join!(once.stop(), again.stop());
    println!("{:?}\n{:?}", once.count, again.count);
    for outcome in [once, again] {
        outcome.clean();
        assert!(outcome.count.completed > 0, "{:?}", outcome.count);
    }
    let (mut ran, mut attempts) = (HashSet::new(), HashSet::new());
    for (skill, id, attempt) in mesh.site.runs() {
        let first = ran.insert(id.clone());
        assert!(first || skill != "test.slow", "{id} ran again, {attempt}");
        assert!(
            attempts.insert((id.clone(), attempt)),
            "{id} ran attempt {attempt} twice"
        );
    }
}

/// The registry of these tests holds leases for 6 s, with 2 s of grace.
const LEASE: (&str, Duration) = ("6s", Duration::from_secs(8));
/// For the sweeper, for a burst of changes to settle, and for a machine that is busy.
const NOTICED: Duration = Duration::from_secs(6);

/// A home and two workers under a load, and two tasks that one of the workers holds: one that may
/// not run twice, and one that may.
struct Losing {
    mesh: ByHand,
    load: Load,
    home: Local,
    once: String,
    twice: String,
    gate: PathBuf,
    /// The worker that is going to be lost, and the other.
    lost: &'static str,
    other: &'static str,
}

impl Losing {
    async fn begin() -> Self {
        let skills = ["test.slow", "test.echo.slow", "test.hold", "test.echo.hold"];
        let workers = agent(
            "worker",
            &skills,
            "instances = 2\nmax_concurrent_tasks = 32",
        );
        let mut mesh = ByHand::made(&(agent("home", &["test.home"], "") + &workers)).await;
        mesh.set(REGISTRY, "lease", LEASE.0);
        mesh.set("home-1", "agent_lost_after", "3s");
        mesh.start_all().await;
        let mut home = mesh.local("home-1");
        let gate = mesh.site.path("gate");
        let (once, first) = held(&mut home, "test.hold", &gate).await;
        let twice = loop {
            let (id, at) = held(&mut home, "test.echo.hold", &gate).await;
            if at == first {
                break id;
            }
        };
        let (lost, other) = if first == mesh.instance("worker-1") {
            ("worker-1", "worker-2")
        } else {
            ("worker-2", "worker-1")
        };
        let shape = Shape {
            skill: "test.slow",
            work: Duration::from_millis(200),
            may_fail_by: &["AGENT_LOST"],
            ..Shape::default()
        };
        let load = Load::shaped(vec![mesh.local("home-1")], 12, shape);
        load.goes_on(10).await;
        Self {
            mesh,
            load,
            home,
            once,
            twice,
            gate,
            lost,
            other,
        }
    }

    /// What must become of the work, once whoever was lost is back.
    async fn end(mut self) {
        let failed = client::watch_whole(&mut self.home, &self.once).await;
        assert_eq!(failed.failure().reason, "AGENT_LOST");
        reaches(&self.home, &self.twice, TaskState::Working).await;
        let moved = client::full(&mut self.home, &self.twice).await.unwrap();
        assert_eq!(moved.executor_instance, self.mesh.instance(self.other));
        self.load.goes_on(10).await;
        fs::write(&self.gate, "").unwrap();
        let done = client::watch_whole(&mut self.home, &self.twice).await;
        assert_eq!(done.result().as_deref(), Some("let go"));
        let both = ["worker-1", "worker-2"];
        self.mesh.finds("home-1", "test.slow", &both).await;
        self.load.stop().await.clean();
        let mut once = HashSet::new();
        let runs = self.mesh.site.runs().into_iter();
        for (_, id, attempt) in runs.filter(|(skill, ..)| skill == "test.slow") {
            assert!(once.insert(id.clone()), "{id} ran again, attempt {attempt}");
        }
    }
}

/// A task that runs until the gate is there, and the instance that runs it.
async fn held(home: &mut Local, skill: &str, gate: &Path) -> (String, String) {
    let spec = client::spec(skill, &gate.display().to_string());
    let id = client::submit(home, spec).await.unwrap().id;
    reaches(home, &id, TaskState::Working).await;
    let task = client::full(home, &id).await.unwrap();
    (id, task.executor_instance)
}

#[tokio::test]
async fn a_killed_executor_is_gone_within_its_lease_and_its_work_moves_or_fails() {
    let mut all = Losing::begin().await;
    let mut watched = all.mesh.watch().await;
    all.mesh.kill(all.lost).await;
    let began = Instant::now();
    let lost = all.mesh.instance(all.lost);
    let gone = async {
        while watched.there.contains(&lost) {
            watched.next().await.expect("the watch holds");
        }
        began.elapsed()
    };
    let found = async {
        let other = [all.other];
        all.mesh.finds("home-1", "test.slow", &other).await;
        began.elapsed()
    };
    let (gone, found) = tokio::join!(gone, found);
    for took in [gone, found] {
        assert!(
            took < LEASE.1 + NOTICED,
            "watch {gone:?}, Discover {found:?}"
        );
    }
    all.mesh.start(all.lost);
    all.end().await;
}

#[tokio::test]
async fn a_killed_agent_is_not_found_until_it_is_back_and_its_work_moves_or_fails() {
    let mut all = Losing::begin().await;
    let its_agent = format!("{}-agent", all.lost);
    all.mesh.kill(&its_agent).await;
    // No lease has to run out for that: its sidecar sees it at once.
    let began = Instant::now();
    all.mesh.finds("home-1", "test.slow", &[all.other]).await;
    assert!(began.elapsed() < NOTICED, "{:?}", began.elapsed());
    all.mesh.start(&its_agent);
    all.end().await;
}

#[tokio::test]
async fn what_its_caller_lets_start_again_does_so_elsewhere_three_times_in_all() {
    let workers = agent("worker", &["test.hold"], "instances = 3");
    let mut mesh = ByHand::made(&(agent("home", &["test.home"], "") + &workers)).await;
    mesh.set("home-1", "agent_lost_after", "3s");
    mesh.start_all().await;
    let names = ["worker-1", "worker-2", "worker-3"];
    mesh.finds("home-1", "test.hold", &names).await;
    let mut home = mesh.local("home-1");
    let gate = mesh.site.path("gate").display().to_string();
    let mut spec = client::spec("test.hold", &gate);
    spec.options = Some(pb::TaskOptions {
        on_agent_loss: pb::OnAgentLoss::Restart.into(),
        ..Default::default()
    });
    let id = client::submit(&mut home, spec).await.unwrap().id;
    let mut killed = HashSet::new();
    for attempt in 1..=3 {
        let taken = eventually(&format!("attempt {attempt} is at work"), || {
            let (mut home, id) = (home.clone(), id.clone());
            async move {
                let task = client::full(&mut home, &id).await;
                let task = task.map_err(|status| status.to_string())?;
                let works = task.state() == TaskState::Working && task.attempt == attempt;
                works
                    .then(|| task.executor_instance.clone())
                    .ok_or_else(|| format!("{task:?}"))
            }
        })
        .await;
        let name = names.into_iter().find(|name| mesh.instance(name) == taken);
        let name = name.expect("one of the workers");
        assert!(killed.insert(name), "{name} has it again");
        mesh.kill(name).await;
    }
    let ended = client::watch_whole(&mut home, &id).await;
    assert_eq!(ended.state(), TaskState::Failed);
    assert_eq!(ended.failure().reason, "RETRIES_EXHAUSTED");
    let attempts: Vec<u32> = mesh.site.runs().into_iter().map(|(.., n)| n).collect();
    assert_eq!(attempts, [1, 2, 3]);
}

#[tokio::test]
async fn a_home_that_comes_back_knows_its_peers_before_it_gives_anything_out() {
    let mut mesh = ByHand::started(&home_and_worker()).await;
    let mut home = mesh.local("home-1");
    let gate = mesh.site.path("gate");
    let (held, worker) = held(&mut home, "test.hold", &gate).await;
    // The only slot is taken: it waits, though it is not to wait where nobody is.
    let mut hasty = client::spec("test.echo", "hasty");
    hasty.options = Some(pb::TaskOptions {
        fail_fast: true,
        ..Default::default()
    });
    let hasty = client::submit(&mut home, hasty).await.unwrap().id;
    eventually("the catalog is on disk", || async {
        let copy = fs::read(mesh.catalog("home-1")).map_err(|error| error.to_string())?;
        let there = copy
            .windows(worker.len())
            .any(|part| part == worker.as_bytes());
        there.then_some(()).ok_or_else(|| "without it".to_owned())
    })
    .await;
    mesh.kill("home-1").await;
    mesh.start("home-1");
    mesh.ready("home-1").await;
    let mut home = mesh.local("home-1");
    assert_eq!(state_of(&mut home, &hasty).await, Ok(TaskState::Submitted));
    fs::write(&gate, "").unwrap();
    for id in [held, hasty] {
        let done = client::watch_whole(&mut home, &id).await;
        assert_eq!(done.state(), TaskState::Completed, "{:?}", done.events);
    }
}
