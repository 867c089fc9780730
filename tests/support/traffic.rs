//! A mesh of which one instance of five gets into trouble: a home, and five instances of an agent,
//! each behind a route of the fault proxy.

use std::{fs, path::PathBuf, time::Duration};

use attache::pb;

use super::{
    callers::{Callers, PASSING, Plan},
    client,
    fault::{Fault, FaultProxy},
    hand::ByHand,
    mesh::agent,
    process::text,
    wait::eventually,
};

/// Instances of the agent.
pub const WORKERS: usize = 5;
/// The skill that may run twice, and the one that may not.
pub const SKILLS: &[&str] = &[AGAIN, ONCE];
/// Those, and a call that passes.
pub const ALL: &[&str] = &[AGAIN, ONCE, PASSING];
pub const AGAIN: &str = "test.echo.brief";
pub const ONCE: &str = "test.brief";
/// The sidecar that the callers call.
pub const HOME: &str = "home-1";

/// What happens to one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The agent takes ten times as long.
    Slow,
    /// Half of the agent's calls end UNAVAILABLE before a first update.
    Errors,
    /// The same, and it says that it has not begun (`attache-not-processed: 1`).
    Unprocessed,
    /// Connections stay open and nothing passes.
    Hangs,
    /// Nobody listens, and what was connected is reset.
    Refuses,
    /// All connections are reset twice in a second, in the middle of what goes on over them.
    Resets,
    /// It refuses for 3 s, is well for 3 s, and so on.
    Flaps,
}

impl Trouble {
    pub const ALL: [Self; 7] = [
        Self::Slow,
        Self::Errors,
        Self::Unprocessed,
        Self::Hangs,
        Self::Refuses,
        Self::Resets,
        Self::Flaps,
    ];

    /// What stands in the table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Slow => "slow by 10x",
            Self::Errors => "erring at 50%",
            Self::Unprocessed => "erring at 50%, not begun",
            Self::Hangs => "hanging",
            Self::Refuses => "refusing",
            Self::Resets => "resetting mid-stream",
            Self::Flaps => "flapping, 3 s",
        }
    }
}

/// Time between two resets, and for which each is in force.
const RESETS_MS: (u64, u64) = (450, 50);
/// Connections that have to be reset before something can be said of it.
const RESETS_LEAST: u64 = 3;
/// How long it flaps each way.
const FLAP_MS: u64 = 3000;

/// One call that came to an agent. One that passes has its path for a skill, and its number for a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub skill: String,
    pub task: String,
    pub attempt: u32,
    /// It ended UNAVAILABLE by `Trouble`.
    pub failed: bool,
}

/// The mesh.
pub struct Scene {
    pub mesh: ByHand,
    pub proxy: FaultProxy,
    /// How long the agents work on a task that is well.
    pub work: Duration,
}

impl Scene {
    /// Starts it. An attempt that is out of reach for `lost_after` is lost; `slots`: tasks that an
    /// instance runs at once.
    pub async fn start(work: Duration, lost_after: &str, slots: u32) -> Self {
        let workers = format!("instances = {WORKERS}\nmax_concurrent_tasks = {slots}");
        let workers = agent("worker", SKILLS, &workers);
        let mut mesh = ByHand::made(&(agent("home", &["test.home"], "") + &workers)).await;
        let proxy = FaultProxy::start(&mesh.site).await;
        mesh.set(HOME, "agent_lost_after", lost_after);
        for place in 1..=WORKERS {
            let name = worker(place);
            mesh.advertise_through(&proxy, &name).await;
            let (ill, runs) = (mesh.site.path(&ill(place)), mesh.site.path(&runs(place)));
            mesh.start_with(&format!("{name}-agent"), |mut command| {
                command
                    .arg(format!("ill={}", ill.display()))
                    .env("TEST_RUNS", runs);
                command
            });
        }
        mesh.start_all().await;
        let scene = Self { mesh, proxy, work };
        scene.warm_up().await;
        scene
    }

    /// Every instance has worked, and is found.
    async fn warm_up(&self) {
        let all: Vec<String> = (1..=WORKERS).map(worker).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        self.mesh.finds(HOME, ONCE, &all).await;
        let callers = self.callers(40);
        eventually("every instance has worked", || async {
            let runs: Vec<usize> = (1..=WORKERS).map(|place| self.runs(place).len()).collect();
            let idle = runs.iter().any(|runs| *runs < 3);
            (!idle).then_some(()).ok_or_else(|| format!("{runs:?}"))
        })
        .await;
        let failed: Vec<_> = callers.stop().await;
        let failed: Vec<_> = failed.iter().filter(|call| call.failed.is_some()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }

    /// Callers of both skills.
    pub fn callers(&self, pace: u32) -> Callers {
        self.callers_of(SKILLS, pace, 4)
    }

    /// Callers over so many connections, each of which carries 100 calls at a time.
    pub fn callers_of(
        &self,
        skills: &'static [&'static str],
        pace: u32,
        connections: usize,
    ) -> Callers {
        let plan = Plan {
            skills,
            pace,
            work: self.work,
            bound: 50,
        };
        Callers::start(
            (0..connections)
                .map(|_| client::way(&self.mesh.local_address(HOME)))
                .collect(),
            plan,
        )
    }

    /// Gets an instance, counted from 1, into trouble.
    pub async fn strike(&self, place: usize, trouble: Trouble) {
        let route = worker(place);
        match trouble {
            Trouble::Slow => {
                let late = 9 * self.work.as_millis();
                self.infect(place, &format!("slow {late}"));
            }
            Trouble::Errors => self.infect(place, "unavailable 0.5"),
            Trouble::Unprocessed => self.infect(place, "unprocessed 0.5"),
            Trouble::Hangs => self.proxy.set(&route, Fault::Blackhole).await,
            Trouble::Refuses => self.refuse(&route).await,
            Trouble::Resets => {
                let (up_ms, down_ms) = RESETS_MS;
                let now_and_then = Fault::Flap { up_ms, down_ms };
                self.proxy.set(&route, now_and_then).await;
                self.proxy.set(&route, Fault::reset_once()).await;
            }
            Trouble::Flaps => {
                let flap = Fault::Flap {
                    up_ms: FLAP_MS,
                    down_ms: FLAP_MS,
                };
                self.proxy.set(&route, flap).await;
                self.refuse(&route).await;
            }
        }
    }

    /// Waits until a trouble that comes now and then has come. How often depends on whoever
    /// connects in between.
    pub async fn has_struck(&self, place: usize, trouble: Trouble) {
        if trouble != Trouble::Resets {
            return;
        }
        let route = worker(place);
        eventually("its connections were reset", || async {
            let counters = self.proxy.counters(&route).await;
            let resets = counters.applied.get("reset").copied().unwrap_or(0);
            (resets >= RESETS_LEAST)
                .then_some(())
                .ok_or_else(|| format!("{counters:?}"))
        })
        .await;
    }

    async fn refuse(&self, route: &str) {
        self.proxy.set(route, Fault::Refuse).await;
        self.proxy.set(route, Fault::reset_once()).await;
    }

    /// Tells an instance's agent how to be ill.
    pub fn infect(&self, place: usize, how: &str) {
        // In one step: the agent reads it with every task.
        let (file, new) = (self.mesh.site.path(&ill(place)), self.mesh.site.path("new"));
        fs::write(&new, how).unwrap();
        fs::rename(new, file).unwrap();
    }

    /// Ends all trouble of an instance.
    pub async fn heal(&self, place: usize) {
        let file: PathBuf = self.mesh.site.path(&ill(place));
        if file.exists() {
            fs::remove_file(file).unwrap();
        }
        self.proxy.clear(&worker(place)).await;
    }

    /// What has come to an instance's agent so far.
    pub fn runs(&self, place: usize) -> Vec<Run> {
        let runs = text(&self.mesh.site.path(&runs(place)));
        // A line may be in the making.
        let whole = runs.rfind('\n').map_or(0, |end| end + 1);
        let runs = runs[..whole].lines().map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            Run {
                skill: words[0].to_owned(),
                task: words[1].to_owned(),
                attempt: words[2].parse().unwrap(),
                failed: words.len() > 3,
            }
        });
        runs.collect()
    }

    /// Has no breaker open any more.
    pub async fn breaker_off(&self) {
        let breaker = pb::RuleBreaker {
            enabled: Some(false),
            ..Default::default()
        };
        self.rule(pb::TrafficRule {
            name: "breaker-off".into(),
            breaker: Some(breaker),
            ..Default::default()
        })
        .await;
    }

    /// Puts a rule, and waits until the home has it.
    pub async fn rule(&self, rule: pb::TrafficRule) {
        let operator = self.mesh.site.state().join("operator");
        let registry = &self.mesh.endpoints.registry.mtls;
        client::rule(&operator, registry, rule, &[self.mesh.local_address(HOME)]).await;
    }

    /// Waits until an instance is given work again.
    pub async fn is_back(&self, place: usize) {
        let before = self.runs(place).len();
        eventually("it is given work again", || async {
            let more = self.runs(place).len() - before;
            (more >= 3).then_some(()).ok_or_else(|| format!("{more}"))
        })
        .await;
    }
}

/// Name of an instance, counted from 1.
pub fn worker(place: usize) -> String {
    format!("worker-{place}")
}

fn ill(place: usize) -> String {
    format!("ill-{place}")
}

fn runs(place: usize) -> String {
    format!("runs-{place}")
}
