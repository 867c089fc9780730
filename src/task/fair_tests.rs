//! Homes and executors together, in process: whose tasks get an executor's slots, wherever they wait.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::stream;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::Status;

use crate::domain::{Fault, InstanceId, SpiffeId};
use crate::pb;
use crate::pb::handle_response::Update;
use crate::runtime::Nursery;
use crate::telemetry::TraceContext;
use crate::telemetry::metrics::{Format, Metrics};

use super::doors::{
    Call, Candidate, Claims, Connect, Contract, Grants, Pick, Route, Steps, Updates, Want,
};
use super::executor::{
    Executor, ExecutorConfig, HandleStream, HandlerError, HandlerLink, HomePeer,
};
use super::home::{Home, HomeConfig, Replay, Submission};
use super::journal::Journal;

const WORKER: &str = "worker";
/// How long a task works.
const WORK: Duration = Duration::from_millis(20);

/// An agent that takes [`WORK`] for each task, and notes whose it was when it was done.
struct Agent {
    done: watch::Sender<Vec<(String, u32)>>,
}

#[tonic::async_trait]
impl HandlerLink for Agent {
    async fn handle(
        &self,
        request: pb::HandleRequest,
        _: Duration,
        _: Option<&TraceContext>,
    ) -> Result<HandleStream, HandlerError> {
        let task = request.task.unwrap_or_default();
        let priority = task.options.unwrap_or_default().priority;
        let done = self.done.clone();
        Ok(Box::pin(stream::once(async move {
            sleep(WORK).await;
            done.send_modify(|done| done.push((task.origin, priority)));
            Ok(pb::HandleResponse {
                update: Some(Update::Result(pb::TaskResult::default())),
            })
        })))
    }

    async fn cancel(&self, _: pb::CancelRequest) -> Result<(), Status> {
        Err(Status::unimplemented("no"))
    }

    async fn describe(&self) -> Result<Option<pb::AgentCard>, Status> {
        Ok(None)
    }
}

/// The executors as one home sees them.
struct Way {
    /// By their instances.
    executors: Vec<(InstanceId, Executor)>,
    home: HomePeer,
    /// It is of an earlier version.
    old: bool,
    /// Its grants get lost.
    deaf: Arc<AtomicBool>,
    starts: Arc<Mutex<HashMap<bool, usize>>>,
    changes: watch::Sender<u64>,
}

impl Way {
    fn executor(&self, instance: &InstanceId) -> &Executor {
        let found = self.executors.iter().find(|(one, _)| one == instance);
        &found.expect("one that was picked").1
    }
}

impl Route for Way {
    fn pick(&self, want: &Want<'_>, _: Instant) -> Pick {
        let all = self.executors.iter().map(|(instance, _)| instance);
        let (again, new): (Vec<_>, Vec<_>) = all.partition(|one| want.exclude.contains(one));
        let fits = if new.is_empty() { again } else { new };
        let Some(worker) = fits.into_iter().find(|one| (want.allows)(one)) else {
            return Pick::Busy(None);
        };
        let there = Candidate {
            wants_descendants: true,
            instance: worker.clone(),
            agent: "default/worker".parse().unwrap(),
            idempotent: false,
            boot_id: "b".into(),
            contract: Contract::default(),
        };
        Pick::Go(Arc::new(there), Box::default())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[tonic::async_trait]
impl Connect for Way {
    async fn execute(
        &self,
        instance: &InstanceId,
        steps: Steps,
        _: Option<Box<Call>>,
        _: Option<&TraceContext>,
    ) -> Result<Updates, Status> {
        use futures_util::StreamExt;
        let starts = self.starts.clone();
        let steps = steps.inspect(move |step| {
            if let Some(pb::execute_request::Step::Start(start)) = &step.step {
                *starts.lock().entry(start.grant_id.is_empty()).or_default() += 1;
            }
        });
        sleep(Duration::from_millis(1)).await;
        Ok(self
            .executor(instance)
            .execute(self.home.clone(), Box::pin(steps), None))
    }

    async fn slots(&self, instance: &InstanceId, claims: Claims) -> Result<Grants, Status> {
        use futures_util::StreamExt;
        if self.old {
            return Err(Fault::unimplemented("Slots").into());
        }
        let grants = self.executor(instance).slots(&self.home, claims)?;
        let deaf = self.deaf.clone();
        let heard = move |_: &Result<pb::SlotsResponse, Status>| {
            std::future::ready(!deaf.load(Ordering::SeqCst))
        };
        Ok(Box::pin(grants.filter(heard)))
    }
}

/// An executor, and homes that have it work.
struct Bench {
    executor: Executor,
    /// Does the same work.
    replica: Option<Executor>,
    done: watch::Receiver<Vec<(String, u32)>>,
    homes: Vec<Home>,
    deaf: Arc<AtomicBool>,
    /// By whether they came without a grant.
    starts: Arc<Mutex<HashMap<bool, usize>>>,
}

fn member(name: &str) -> SpiffeId {
    format!("spiffe://attache.local/ns/default/agent/{name}")
        .parse()
        .unwrap()
}

impl Bench {
    fn new(slots: u32, homes: usize, old: bool) -> Self {
        Self::with(slots, homes, old, false)
    }

    fn with(slots: u32, homes: usize, old: bool, twice: bool) -> Self {
        let done = watch::Sender::new(Vec::new());
        let heard = done.subscribe();
        let config = ExecutorConfig {
            own: member("worker"),
            slots,
            boot_id: "b".into(),
            skills: ["work.do", "work.more"]
                .map(String::from)
                .into_iter()
                .collect(),
        };
        let executor = || {
            let agent = Arc::new(Agent { done: done.clone() });
            Executor::new(config.clone(), agent, vec![Nursery::here()])
        };
        let mut bench = Self {
            executor: executor(),
            replica: twice.then(executor),
            done: heard,
            homes: Vec::new(),
            deaf: Arc::default(),
            starts: Arc::default(),
        };
        for number in 0..homes {
            let home = bench.home(&format!("h{number}"), old);
            bench.homes.push(home);
        }
        bench
    }

    fn home(&self, name: &str, old: bool) -> Home {
        let (own, instance): (_, InstanceId) = (member(name), name.parse().unwrap());
        let first = (WORKER.parse().unwrap(), self.executor.clone());
        let second = self.replica.clone();
        let second = second.map(|second| ("replica".parse().unwrap(), second));
        let way = Arc::new(Way {
            executors: [first].into_iter().chain(second).collect(),
            home: HomePeer {
                id: own.clone(),
                instance: instance.clone(),
            },
            old,
            deaf: self.deaf.clone(),
            starts: self.starts.clone(),
            changes: watch::Sender::new(0),
        });
        let (route, connect): (Arc<dyn Route>, Arc<dyn Connect>) = (way.clone(), way);
        let journal = (Journal::memory(), Replay::new(&instance, 2));
        let config = HomeConfig {
            instance,
            own,
            lost_after: super::home::LOST_AFTER,
            descendants: crate::task::descendants::DESCENDANTS_MAX,
        };
        let parents = Arc::new(self.executor.clone());
        let nurseries = vec![Nursery::here(), Nursery::here()];
        Home::on(config, journal, &route, &connect, parents, nurseries).unwrap()
    }

    /// Submits tasks of `caller` at a home's thread.
    async fn submit(
        &self,
        (home, thread): (usize, usize),
        caller: &str,
        count: usize,
        priority: u32,
    ) {
        for number in 0..count {
            let skill = ["work.do", "work.more"][number % 2];
            let selector = Some(pb::Selector {
                skill: skill.into(),
                ..Default::default()
            });
            let options = Some(pb::TaskOptions {
                priority,
                ..Default::default()
            });
            let spec = pb::TaskSpec {
                selector,
                options,
                ..Default::default()
            };
            let asked = Submission {
                spec,
                caller: member(caller),
                trace: None,
            };
            self.homes[home].submit(asked, thread).await.unwrap();
        }
    }

    /// Waits until so many are done.
    async fn done(&self, count: usize) -> Vec<(String, u32)> {
        let mut done = self.done.clone();
        let done = done.wait_for(|done| done.len() >= count).await.unwrap();
        done.clone()
    }

    /// A figure of the executor's metrics.
    fn figure(&self, name: &str) -> f64 {
        let metrics = Metrics::new("sidecar");
        metrics.add(self.executor.clone());
        let page = metrics.page(Format::Text);
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {page}"))
            .parse()
            .unwrap()
    }
}

fn of(done: &[(String, u32)], caller: &str) -> usize {
    let own = member(caller).to_string();
    done.iter().filter(|(origin, _)| *origin == own).count()
}

/// Where the last task of `few` was among all that were done after it had been submitted.
async fn last_of_few(bench: &Bench, few: (usize, usize), many: usize) -> usize {
    bench.submit((0, 0), "crowd", many, 10).await;
    bench.submit(few, "few", 10, 1).await;
    let before = bench.done.borrow().len();
    let done = bench.done(many + 10).await;
    assert_eq!((of(&done, "crowd"), of(&done, "few")), (many, 10));
    let few = member("few").to_string();
    done.iter().rposition(|(origin, _)| *origin == few).unwrap() - before
}

#[tokio::test(start_paused = true)]
async fn ten_tasks_at_another_home_do_not_wait_for_ten_thousand() {
    let bench = Bench::new(4, 2, false);
    let last = last_of_few(&bench, (1, 1), 10_000).await;
    assert!(last < 100, "the last of few was number {last}");
    assert!(bench.figure("attache_executor_grants_total{outcome=\"used\"}") > 9_000.0);
    assert_eq!(bench.figure("attache_executor_waiting"), 0.0);
    // Offered in vain were only those of before it was known that there is no room.
    assert!(bench.starts.lock()[&true] < 1_000, "{:?}", bench.starts);
}

#[tokio::test(start_paused = true)]
async fn ten_tasks_on_another_thread_do_not_wait_for_thousands() {
    let bench = Bench::new(4, 1, false);
    let last = last_of_few(&bench, (0, 1), 2_000).await;
    assert!(last < 100, "the last of few was number {last}");
}

#[tokio::test(start_paused = true)]
async fn priorities_count_over_homes_and_threads_and_none_starves() {
    for low in [(1, 0), (0, 1)] {
        let bench = Bench::new(4, 2, false);
        bench.submit(low, "a", 300, 1).await;
        bench.submit((0, 0), "a", 300, 10).await;
        let before = bench.done.borrow().len();
        let done = bench.done(600).await;
        let high = |some: &[(String, u32)]| some.iter().filter(|(_, one)| *one == 10).count();
        let (first, all) = (high(&done[before + 20..before + 240]), high(&done));
        assert!((180..=212).contains(&first), "{low:?}: {first} of 220");
        assert_eq!((all, done.len()), (300, 600));
    }
}

#[tokio::test(start_paused = true)]
async fn homes_and_threads_of_one_origin_share_alike() {
    let bench = Bench::new(4, 2, false);
    // Told apart by their priorities, which weigh nearly the same.
    bench.submit((0, 0), "a", 400, 9).await;
    bench.submit((1, 0), "a", 100, 10).await;
    bench.submit((1, 1), "b", 100, 5).await;
    let before = bench.done.borrow().len();
    let done = bench.done(600).await;
    let first = &done[before + 20..before + 120];
    let other = of(first, "b");
    let count = |which| first.iter().filter(|(_, one)| *one == which).count();
    assert!((40..=60).contains(&other), "{other}");
    assert!((15..=35).contains(&count(9)) && (15..=35).contains(&count(10)));
}

#[tokio::test(start_paused = true)]
async fn an_executor_with_room_takes_work_without_a_grant() {
    let bench = Bench::new(8, 2, false);
    for round in 1..=20 {
        bench.submit((round % 2, 0), "a", 8, 5).await;
        bench.done(8 * round).await;
        sleep(WORK).await;
    }
    assert_eq!(*bench.starts.lock(), HashMap::from([(true, 160)]));
}

#[tokio::test(start_paused = true)]
async fn homes_that_ask_for_no_grants_have_their_turns_too() {
    let mut bench = Bench::new(4, 1, true);
    bench.homes.push(bench.home("h1", false));
    bench.submit((0, 0), "old", 200, 5).await;
    bench.submit((1, 0), "new", 200, 5).await;
    let done = bench.done(200).await;
    let share = of(&done, "old");
    assert!(share >= 40, "the old home had {share} of the first 200");
    let done = bench.done(400).await;
    assert_eq!((of(&done, "old"), of(&done, "new")), (200, 200));
}

#[tokio::test(start_paused = true)]
async fn two_replicas_serve_those_who_wait_for_either_and_neither_is_idle() {
    let bench = Bench::with(4, 2, false, true);
    let began = Instant::now();
    bench.submit((0, 0), "crowd", 1000, 10).await;
    bench.submit((1, 1), "few", 10, 1).await;
    let before = bench.done.borrow().len();
    let done = bench.done(1010).await;
    let took = began.elapsed();
    assert_eq!((of(&done, "crowd"), of(&done, "few")), (1000, 10));
    let few = member("few").to_string();
    let last = done.iter().rposition(|(origin, _)| *origin == few).unwrap();
    assert!(last - before < 100, "the last of few was number {last}");
    // Eight slots, as long as anybody waits, less what a grant is on its way.
    assert!(took < 2 * 1010 * WORK / 8, "{took:?}");
    let replica = bench.replica.as_ref().unwrap();
    assert_eq!(
        (bench.executor.load().running, replica.load().running),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn grants_that_get_lost_are_void_and_all_goes_on() {
    let bench = Bench::new(4, 2, false);
    bench.submit((0, 0), "a", 200, 5).await;
    bench.done(40).await;
    bench.deaf.store(true, Ordering::SeqCst);
    sleep(Duration::from_secs(10)).await;
    assert!(bench.figure("attache_executor_grants_total{outcome=\"expired\"}") > 0.0);
    // The home finds out by the silence, and offers attempts as it did before.
    let before = bench.done.borrow().len();
    bench.done(before + 10).await;
    bench.deaf.store(false, Ordering::SeqCst);
    bench.submit((1, 0), "b", 10, 5).await;
    bench.done(210).await;
}

#[tokio::test(start_paused = true)]
async fn a_home_that_goes_leaves_its_slots_to_others() {
    let mut bench = Bench::new(4, 2, false);
    bench.submit((0, 0), "a", 500, 5).await;
    bench.submit((1, 0), "b", 200, 5).await;
    bench.done(100).await;
    let gone = bench.homes.remove(0);
    gone.close(Duration::from_secs(1)).await;
    let began = Instant::now();
    let mut done = bench.done.clone();
    done.wait_for(|done| of(done, "b") == 200).await.unwrap();
    assert!(began.elapsed() < 200 * WORK, "{:?}", began.elapsed());
}
