//! Rolling restarts: every sidecar and the registry end and start again one after the other, round
//! after round, under load. No call that was sent fails, and no stream ends but with its cursor.
//!
//! Callers wait for their connection, as gRPC's `wait_for_ready` does: two kinds of client, ours and
//! the one of gRPC itself. Those whose own sidecar stays up need not even wait.

use std::{
    collections::BTreeMap,
    fmt::Write,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use attache::{
    domain::Reason,
    pb::{self, registry_client::RegistryClient},
    transport::Pool,
    wire::status::reason_of,
};
use serde_json::Value;
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::support::{
    client,
    hand::{ByHand, REGISTRY},
    load::{Load, Shape},
    mesh::agent,
    passing::{Passing, echo},
    tools::{fetched, root},
    wait::within,
};

/// Without a word. Ten take more than two minutes on two cores, and up to five where those are busy:
/// `tests/soak/rolling` does them, by ATTACHE_ROLLING_ROUNDS.
const ROUNDS: usize = 3;
/// Short, and enough for the work of a machine that is busy: nothing here takes longer than 100 ms.
const DRAIN: &str = "9s";
/// What is logged where the time of a drain is over before all peers have let go.
const CUT: [&str; 3] = [
    "connection cut",
    "tasks did not stop within their grace",
    "there is no time to tell every peer to go",
];
/// Callers of each kind at each of the two homes.
const CALLERS: usize = 4;
const SKILL: &str = "test.slow";

fn mesh() -> String {
    let workers = "instances = 3\nmax_concurrent_tasks = 16";
    agent("home", &["test.home"], "instances = 2") + &agent("worker", &[SKILL], workers) + &echo(2)
}

/// Callers that use gRPC's own client for Python.
struct Foreign {
    child: Child,
}

impl Foreign {
    fn start(mesh: &ByHand, home: &str, tools: &(std::path::PathBuf, std::path::PathBuf)) -> Self {
        let (key, value) = mesh.site.mark.env();
        let child = Command::new(&tools.0)
            .arg(root().join("tests/polyglot/python/patient.py"))
            .arg(mesh.local_address(home))
            .args([SKILL, &CALLERS.to_string(), &format!("py-{home}")])
            .env("PYTHONPATH", &tools.1)
            .env(key, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        Self {
            child: child.unwrap(),
        }
    }

    /// Lets what is under way end, and asks what they have seen.
    async fn stop(mut self) -> Value {
        drop(self.child.stdin.take());
        let mut out = String::new();
        let mut stdout = self.child.stdout.take().unwrap();
        within("the callers tell", stdout.read_to_string(&mut out))
            .await
            .unwrap();
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
}

/// Asks the registry itself, over mutual TLS, again and again.
struct Asking {
    stop: Arc<AtomicBool>,
    fine: Arc<AtomicUsize>,
    task: JoinSet<Vec<String>>,
}

impl Asking {
    fn start(mesh: &ByHand) -> Self {
        let pool = client::pool(&mesh.site.state().join("operator"));
        let registry = client::registry(&pool, &mesh.endpoints.registry.mtls);
        let (stop, fine) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let mut task = JoinSet::new();
        task.spawn(asking(pool, registry, Arc::clone(&stop), Arc::clone(&fine)));
        Self { stop, fine, task }
    }

    async fn stop(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Relaxed);
        let failures = within("the last answer", self.task.join_next()).await;
        (self.fine.load(Relaxed), failures.unwrap().unwrap())
    }
}

async fn asking(
    _pool: Pool,
    mut registry: RegistryClient<attache::transport::Channel>,
    stop: Arc<AtomicBool>,
    fine: Arc<AtomicUsize>,
) -> Vec<String> {
    let mut failures = Vec::new();
    let selector = Some(pb::Selector {
        skill: SKILL.to_owned(),
        ..Default::default()
    });
    while !stop.load(Relaxed) {
        let request = pb::DiscoverRequest {
            selector: selector.clone(),
            limit: 0,
        };
        match registry.discover(request).await {
            Ok(found) if found.get_ref().instances.is_empty() => {
                failures.push("nobody is there".to_owned());
            }
            Ok(_) => drop(fine.fetch_add(1, Relaxed)),
            // Not sent: there is no connection yet.
            Err(status)
                if reason_of(&status).as_deref() == Some(Reason::PeerUnreachable.label()) => {}
            Err(status) => failures.push(format!("{status:?}")),
        }
        sleep(Duration::from_millis(10)).await;
    }
    failures
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "the table is what a soak is for")]
async fn every_process_is_restarted_in_turn_and_no_call_fails() {
    let rounds = std::env::var("ATTACHE_ROLLING_ROUNDS").ok();
    let rounds = rounds.map_or(ROUNDS, |text| text.parse().unwrap());
    let test = "rolling::every_process_is_restarted_in_turn_and_no_call_fails (Python)";
    let python = fetched("python/bin/python", test);
    let tools = python.and_then(|python| Some((python, fetched("stubs", test)?)));

    let mut mesh = ByHand::made(&mesh()).await;
    let all = mesh.sidecars();
    for name in all.iter().map(String::as_str).chain([REGISTRY]) {
        mesh.set(name, "drain", DRAIN);
    }
    mesh.start_all().await;
    let shape = Shape {
        skill: SKILL,
        work: Duration::from_millis(60),
        ..Shape::default()
    };
    let loads: BTreeMap<&str, Load> = ["home-1", "home-2"]
        .map(|home| {
            let load = Load::shaped(vec![mesh.patient(home)], CALLERS, shape.clone());
            (home, load)
        })
        .into();
    let foreign: Vec<Foreign> = tools
        .iter()
        .flat_map(|tools| ["home-1", "home-2"].map(|home| Foreign::start(&mesh, home, tools)))
        .collect();
    let asking = Asking::start(&mesh);
    let passing: Vec<Passing> = ["home-1", "home-2"]
        .map(|home| Passing::start(&mesh.local_address(home), CALLERS))
        .into();

    let began = Instant::now();
    let mut longest = Duration::ZERO;
    for round in 1..=rounds {
        for name in all.iter().map(String::as_str).chain([REGISTRY]) {
            let unsent = |of: &BTreeMap<&str, Load>| -> Vec<usize> {
                let others = of.iter().filter(|(home, _)| **home != name);
                others.map(|(_, load)| load.count().unsent).collect()
            };
            let before = unsent(&loads);
            mesh.term(name);
            let termed = Instant::now();
            let status = mesh.ended(name).await;
            assert!(status.success(), "{name}: {status}\n{}", mesh.site.logs());
            let took = termed.elapsed();
            longest = longest.max(took);
            mesh.start(name);
            mesh.ready(name).await;
            for load in loads.values() {
                load.goes_on(5).await;
            }
            for callers in &passing {
                callers.goes_on(20).await;
            }
            // Whose own sidecar was up had a connection all the time.
            assert_eq!(unsent(&loads), before, "{name}, round {round}");
        }
    }
    let took = began.elapsed();

    let mut table = format!(
        "{rounds} rounds of {} restarts in {took:.1?}; the longest drain took {longest:.1?}\n",
        all.len() + 1
    );
    for (home, load) in loads {
        let outcome = load.stop().await;
        writeln!(table, "Rust, {home}: {:?}", outcome.count).unwrap();
        outcome.unbroken();
        // They were sent away, and had to wait, in every round.
        let count = outcome.count;
        assert!(count.sent_away >= rounds, "{count:?}");
    }
    for callers in passing {
        // Nobody was killed, so each call had its answer, or went again and had it.
        let (passed, failed) = callers.stop().await;
        writeln!(table, "passing: {passed} answers").unwrap();
        assert_eq!(failed, Vec::<String>::new(), "{passed} passed");
    }
    let (fine, failures) = asking.stop().await;
    writeln!(table, "registry: {fine} answers").unwrap();
    assert!(failures.is_empty(), "{fine}: {failures:#?}");
    assert!(fine > rounds, "{fine}");
    for callers in foreign {
        let told = callers.stop().await;
        writeln!(table, "Python: {told}").unwrap();
        assert_eq!(told["failures"], Value::Null, "{told:#}");
        assert!(told["cursors"].as_u64() > Some(0), "{told:#}");
        assert!(told["submit"].as_u64() > Some(10), "{told:#}");
    }
    for name in all.iter().map(String::as_str).chain([REGISTRY]) {
        let log = std::fs::read_to_string(mesh.log(name)).unwrap();
        let mut lines = log.lines();
        let cut = lines.find(|line| CUT.iter().any(|text| line.contains(text)));
        assert_eq!(cut, None, "{name}");
    }
    println!("{table}");
}
