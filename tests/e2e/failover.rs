//! Instances that go away under load: their work moves to others, also to another agent, and nobody
//! who calls sees it.

use std::{sync::Arc, time::Duration};

use attache::pb::{TaskState, task_event::Kind};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::support::{
    client::{self, Local, Seen},
    hand::ByHand,
    mesh::agent,
    wait::eventually,
};

/// Callers at a time.
const CALLERS: usize = 12;
/// Pause of each between two tasks: some two hundred tasks a second in all, on a machine that does
/// little else.
const PAUSE: Duration = Duration::from_millis(50);
/// Within this the last call goes the other way. Far above what it takes.
const BOUND: Duration = Duration::from_secs(30);

/// One task, seen to its end.
struct Run {
    begun: Instant,
    ended: Instant,
    seen: Seen,
}

impl Run {
    /// Times that it was given out.
    fn attempts(&self) -> u32 {
        self.seen.events.last().map_or(0, |event| event.attempt)
    }

    /// Whether an attempt had been taken by somebody who was lost.
    fn was_lost(&self) -> bool {
        self.seen.events.iter().any(|event| {
            matches!(&event.kind, Some(Kind::StateChanged(change)) if change.reason == "AGENT_LOST")
        })
    }

    /// Who took it last.
    fn instance(&self) -> String {
        let taken = self
            .seen
            .events
            .iter()
            .rev()
            .find_map(|event| match &event.kind {
                Some(Kind::StateChanged(change)) if change.reason == "ACCEPTED" => {
                    Some(change.executor_instance.clone())
                }
                _ => None,
            });
        taken.unwrap_or_default()
    }
}

/// Callers at work, and all that they have seen.
struct Calls {
    callers: JoinSet<()>,
    runs: Arc<Mutex<Vec<Run>>>,
    stop: watch::Sender<bool>,
}

impl Calls {
    fn start(home: &Local, skill: &'static str) -> Self {
        let (stop, stopping) = watch::channel(false);
        let runs = Arc::new(Mutex::new(Vec::new()));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (mut home, runs, stopping) = (home.clone(), runs.clone(), stopping.clone());
            callers.spawn(async move {
                while !*stopping.borrow() {
                    let begun = Instant::now();
                    let spec = client::bounded(skill, "go", 300);
                    let seen = client::run(&mut home, spec).await.unwrap();
                    let ended = Instant::now();
                    runs.lock().push(Run { begun, ended, seen });
                    sleep(PAUSE).await;
                }
            });
        }
        Self {
            callers,
            runs,
            stop,
        }
    }

    /// Waits until so many more are done.
    async fn go_on(&self, more: usize) {
        let before = self.runs.lock().len();
        eventually("more tasks are done", || async {
            let done = self.runs.lock().len() - before;
            (done >= more)
                .then_some(())
                .ok_or_else(|| format!("{done} of {more}"))
        })
        .await;
    }

    /// Lets what is under way end; all that was seen.
    async fn stop(mut self) -> Vec<Run> {
        self.stop.send_replace(true);
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut self.runs.lock())
    }
}

/// How those fared that had been sent to somebody who was gone, and moved.
struct Moved {
    count: usize,
    /// From the kill until the last of the first wave was done elsewhere. After it a call goes there
    /// only to see whether it is back, with a second at least between two.
    last: Duration,
    /// Longest time that one of them took.
    slowest: Duration,
}

/// Checks that every task was done, and tells how those fared that had to move after the kill.
#[allow(clippy::print_stdout, reason = "how long it took, for whoever looks")]
fn judge(runs: &[Run], killed: Instant, gone: &[String]) -> Moved {
    for run in runs {
        let state = run.seen.state();
        assert_eq!(state, TaskState::Completed, "{:?}", run.seen.events);
        let after = run.begun > killed;
        assert!(!after || !gone.contains(&run.instance()), "nobody is there");
    }
    let moved = |run: &&Run| run.attempts() > 1 && !run.was_lost() && run.ended > killed;
    let mut moved: Vec<&Run> = runs.iter().filter(moved).collect();
    moved.sort_unstable_by_key(|run| run.ended);
    let mut last = Duration::ZERO;
    for run in &moved {
        let after = run.ended - killed;
        if last > Duration::ZERO && after > last + Duration::from_secs(1) {
            break;
        }
        last = after;
    }
    let told = Moved {
        count: moved.len(),
        last,
        slowest: moved
            .iter()
            .map(|run| run.ended - run.begun)
            .max()
            .unwrap_or_default(),
    };
    let mut took: Vec<Duration> = runs.iter().map(|run| run.ended - run.begun).collect();
    took.sort_unstable();
    println!(
        "{} tasks, none failed, p50 {:?}, p99 {:?}; {} were begun by who was killed",
        runs.len(),
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        runs.iter().filter(|run| run.was_lost()).count(),
    );
    println!(
        "{} were sent to who was gone, and moved: the last call had gone the other way {:?} after the kill, the slowest took {:?}",
        told.count, told.last, told.slowest,
    );
    told
}

#[tokio::test]
async fn when_all_instances_of_an_agent_are_killed_another_agent_does_its_work() {
    let mesh = agent("home", &["test.home"], "")
        + &agent("one", &["test.echo"], "instances = 2")
        + &agent("two", &["test.echo"], "instances = 2");
    let mut mesh = ByHand::made(&mesh).await;
    mesh.set("home-1", "agent_lost_after", "2s");
    mesh.start_all().await;
    let calls = Calls::start(&mesh.local("home-1"), "test.echo");
    calls.go_on(200).await;
    let gone = ["one-1", "one-2"].map(|name| mesh.instance(name));
    let killed = Instant::now();
    mesh.kill("one-1").await;
    mesh.kill("one-2").await;
    calls.go_on(400).await;
    let runs = calls.stop().await;
    let before = |run: &&Run| run.ended < killed && gone.contains(&run.instance());
    assert!(runs.iter().any(|run| before(&run)), "it had its part");
    let moved = judge(&runs, killed, &gone);
    assert!(
        moved.last < BOUND && moved.slowest < BOUND,
        "{:?}",
        moved.last
    );
}

#[tokio::test]
async fn one_of_three_that_refuses_is_left_alone_after_a_few_tries() {
    let mesh =
        agent("home", &["test.home"], "") + &agent("worker", &["test.echo"], "instances = 3");
    let mut mesh = ByHand::made(&mesh).await;
    mesh.set("home-1", "agent_lost_after", "2s");
    mesh.start_all().await;
    let calls = Calls::start(&mesh.local("home-1"), "test.echo");
    calls.go_on(200).await;
    let gone = [mesh.instance("worker-2")];
    let killed = Instant::now();
    mesh.kill("worker-2").await;
    calls.go_on(600).await;
    // Its breaker opens, unless it is so seldom tried that its lease runs out first.
    mesh.finds("home-1", "test.echo", &["worker-1", "worker-3"])
        .await;
    let runs = calls.stop().await;
    let moved = judge(&runs, killed, &gone);
    assert!(
        moved.last < BOUND && moved.slowest < BOUND,
        "{:?}",
        moved.last
    );
    // Five that open it, those that were on their way with them, and a probe now and then.
    let count = moved.count;
    assert!(count <= 5 + CALLERS + 10, "{count} were sent there");
}
