//! A home and an executor of one sidecar together, in process: as the own agent is reached.

mod callbacks;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_stream::{Stream, iter};
use tonic::Status;

use crate::domain::{InstanceId, Label, SpiffeId, TaskId};
use crate::pb;
use crate::pb::handle_response::Update;
use crate::pb::task_update::Update as Shown;
use crate::runtime::Nursery;
use crate::telemetry::TraceContext;

use super::doors::{Call, Candidate, Connect, Contract, Pick, Route, Steps, Updates, Want};
use super::executor::{
    Executor, ExecutorConfig, HandleStream, HandlerError, HandlerLink, HomePeer,
};
use super::home::{Home, HomeConfig, Replay, Submission};
use super::journal::{Journal, JournalConfig};

/// What the agent was called with.
type Traced = Arc<Mutex<Vec<Option<TraceContext>>>>;

/// How home and executor are apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Apart {
    Together,
    /// Nothing arrives, and nobody is told; what was open breaks at the end of it.
    Silent,
    /// Every stream breaks, and no new one comes about.
    Refused,
}

/// A stream between the two: what `broken` makes is its last word where it breaks.
fn between<T: Send + 'static>(
    stream: impl Stream<Item = T> + Send + Unpin + 'static,
    apart: watch::Receiver<Apart>,
    broken: impl Fn() -> Option<T> + Send + 'static,
) -> Pin<Box<dyn Stream<Item = T> + Send>> {
    let open = Some((stream, apart, broken));
    Box::pin(futures_util::stream::unfold(open, |open| async {
        let (mut stream, mut apart, broken) = open?;
        tokio::select! {
            biased;
            how = async { apart.wait_for(|apart| *apart != Apart::Together).await.map(|how| *how) } => {
                if how.ok()? == Apart::Silent {
                    let healed = apart.wait_for(|apart| *apart == Apart::Together).await;
                    drop(healed.ok()?);
                }
                Some((broken()?, None))
            }
            item = stream.next() => Some((item?, Some((stream, apart, broken)))),
        }
    }))
}

/// An agent that answers at once, or, asked to wait, never; asked to be long, in a minute, with a word
/// each second; asked to die, it is lost once.
struct Agent {
    tokens: watch::Sender<Vec<String>>,
    traces: Traced,
    handled: AtomicUsize,
    /// Takes note when it is asked to stop, and goes on.
    deaf: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl HandlerLink for Agent {
    async fn handle(
        &self,
        request: pb::HandleRequest,
        _: Duration,
        trace: Option<&TraceContext>,
    ) -> Result<HandleStream, HandlerError> {
        self.traces.lock().push(trace.cloned());
        let task = request.task.unwrap_or_default();
        self.tokens
            .send_modify(|tokens| tokens.push(request.parent_token));
        let before = self.handled.fetch_add(1, Ordering::SeqCst);
        if task.skill == "work.die" && before == 0 {
            let gone = HandlerError::Lost("the connection was reset".into());
            return Ok(Box::pin(iter([Err(gone)])));
        }
        if task.skill == "work.moody" && before == 1 {
            let update = Some(Update::Failure(pb::Failure {
                retryable: true,
                ..Default::default()
            }));
            return Ok(Box::pin(iter([Ok(pb::HandleResponse { update })])));
        }
        if task.skill == "work.wait" || task.skill == "work.rest" || task.skill.starts_with("bomb.")
        {
            return Ok(Box::pin(futures_util::stream::pending()));
        }
        if task.skill == "work.long" {
            let words = futures_util::stream::iter(0..=60).then(|second| async move {
                sleep(Duration::from_secs(u64::from(second > 0))).await;
                let update = Some(match second {
                    60 => Update::Result(pb::TaskResult::default()),
                    _ => Update::Progress(pb::Progress::default()),
                });
                Ok(pb::HandleResponse { update })
            });
            return Ok(Box::pin(words));
        }
        let updates = [
            Update::Progress(pb::Progress::default()),
            Update::Result(pb::TaskResult::default()),
        ];
        let said = updates.map(|update| {
            Ok(pb::HandleResponse {
                update: Some(update),
            })
        });
        Ok(Box::pin(iter(said)))
    }

    async fn cancel(&self, _: pb::CancelRequest) -> Result<(), Status> {
        if self.deaf.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(Status::unimplemented("no"))
    }

    async fn describe(&self) -> Result<Option<pb::AgentCard>, Status> {
        Ok(None)
    }
}

struct Here {
    executor: Executor,
    own: SpiffeId,
    idempotent: bool,
    asks: Arc<AtomicBool>,
    changes: watch::Sender<u64>,
    apart: watch::Receiver<Apart>,
}

fn instance() -> InstanceId {
    "home".parse().unwrap()
}

impl Route for Here {
    fn pick(&self, want: &Want<'_>, _: Instant) -> Pick {
        let agent = "default/worker".parse().unwrap();
        if !(want.admits)(&agent) {
            return Pick::Nobody;
        }
        if !(want.allows)(&instance()) {
            return Pick::Busy(None);
        }
        let here = Candidate {
            wants_descendants: self.asks.load(Ordering::SeqCst),
            instance: instance(),
            agent,
            idempotent: self.idempotent,
            boot_id: "b".into(),
            contract: Contract::default(),
        };
        Pick::Go(Arc::new(here), Box::default())
    }

    fn wants_descendants(&self, _: &Label, _: &pb::Selector) -> bool {
        self.asks.load(Ordering::SeqCst)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[tonic::async_trait]
impl Connect for Here {
    async fn execute(
        &self,
        _: &InstanceId,
        steps: Steps,
        _: Option<Box<Call>>,
        trace: Option<&TraceContext>,
    ) -> Result<Updates, Status> {
        let peer = HomePeer {
            id: self.own.clone(),
            instance: instance(),
        };
        let apart = self.apart.clone();
        if *apart.borrow() != Apart::Together {
            sleep(Duration::from_secs(1)).await;
            return Err(Status::unavailable("no way there"));
        }
        let steps = between(steps, apart.clone(), || None);
        let updates = self.executor.execute(peer, steps, trace.cloned());
        let broken = || Some(Err(Status::unavailable("the connection broke")));
        Ok(between(updates, apart, broken))
    }
}

pub(super) struct Bench {
    pub(super) home: Home,
    pub(super) own: SpiffeId,
    pub(super) tokens: watch::Receiver<Vec<String>>,
    traces: Traced,
    deaf: Arc<AtomicBool>,
    /// Its executor asks for the tasks that may be made below an attempt.
    pub(super) asks: Arc<AtomicBool>,
    apart: watch::Sender<Apart>,
}

impl Bench {
    pub(super) fn new(slots: u32) -> Self {
        Self::over(slots, false, Journal::memory())
    }

    #[allow(clippy::too_many_lines, reason = "each part of a sidecar once")]
    pub(super) fn over(slots: u32, idempotent: bool, journal: Journal) -> Self {
        let own: SpiffeId = "spiffe://attache.local/ns/default/agent/worker"
            .parse()
            .unwrap();
        let tokens = watch::Sender::new(Vec::new());
        let heard = tokens.subscribe();
        let config = ExecutorConfig {
            own: own.clone(),
            slots,
            boot_id: "b".into(),
            skills: "work.do work.wait work.rest work.long work.die work.moody"
                .split(' ')
                .map(String::from)
                .chain((0..10).map(|depth| format!("bomb.{depth}")))
                .collect(),
        };
        let handled = AtomicUsize::new(0);
        let deaf = Arc::new(AtomicBool::new(false));
        let traces = Traced::default();
        let agent = Arc::new(Agent {
            tokens,
            traces: traces.clone(),
            handled,
            deaf: deaf.clone(),
        });
        let executor = Executor::new(config, agent, vec![Nursery::here()]);
        let changes = watch::Sender::new(0);
        let apart = watch::Sender::new(Apart::Together);
        let asks = Arc::new(AtomicBool::new(true));
        let here = Arc::new(Here {
            asks: asks.clone(),
            apart: apart.subscribe(),
            executor: executor.clone(),
            own: own.clone(),
            idempotent,
            changes,
        });
        let (route, connect): (Arc<dyn Route>, Arc<dyn Connect>) = (here.clone(), here);
        let config = HomeConfig {
            instance: instance(),
            own: own.clone(),
            lost_after: crate::task::home::LOST_AFTER,
            descendants: crate::task::descendants::DESCENDANTS_MAX,
        };
        let journal = (journal, Replay::new(&instance(), 2));
        let nurseries = vec![Nursery::here()];
        let home = Home::on(
            config,
            journal,
            &route,
            &connect,
            Arc::new(executor),
            nurseries,
        );
        Self {
            home: home.unwrap(),
            own,
            tokens: heard,
            traces,
            deaf,
            asks,
            apart,
        }
    }

    pub(super) fn asked(&self, skill: &str, parent_token: &str) -> Submission {
        let selector = Some(pb::Selector {
            skill: skill.into(),
            ..Default::default()
        });
        let parent_token = parent_token.into();
        let spec = pb::TaskSpec {
            selector,
            parent_token,
            ..Default::default()
        };
        Submission {
            spec,
            caller: self.own.clone(),
            trace: None,
        }
    }

    /// Follows a task to its end.
    pub(super) async fn end(&self, id: &str) -> pb::Task {
        let (id, viewer): (TaskId, _) = (id.parse().unwrap(), Arc::new(self.own.clone()));
        let mut updates = self.home.watch(&id, &viewer, 0, false).await.unwrap();
        let mut seq = 0;
        while let Some(update) = updates.next().await {
            if let Some(Shown::Event(event)) = update.unwrap().update {
                assert_eq!(event.seq, seq + 1);
                seq = event.seq;
            }
        }
        self.home.get(&id, &viewer, true).await.unwrap().0
    }
}

#[tokio::test(start_paused = true)]
async fn many_tasks_pass_through_few_slots() {
    let bench = Bench::new(3);
    let mut ids = Vec::new();
    for thread in 0..200 {
        ids.push(
            bench
                .home
                .submit(bench.asked("work.do", ""), thread)
                .await
                .unwrap()
                .task
                .id,
        );
    }
    for id in ids {
        let task = bench.end(&id).await;
        assert_eq!((task.state(), task.last_seq), (pb::TaskState::Completed, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_minute_apart_in_the_middle_of_a_minutes_work_runs_nothing_twice() {
    for how in [Apart::Silent, Apart::Refused] {
        let bench = Bench::new(1);
        let submitted = bench.home.submit(bench.asked("work.long", ""), 0).await;
        let (id, began) = (submitted.unwrap().task.id, Instant::now());
        let parts = async {
            sleep(Duration::from_secs(15)).await;
            bench.apart.send_replace(how);
            sleep(Duration::from_secs(30)).await;
            bench.apart.send_replace(Apart::Together);
        };
        let (task, ()) = tokio::join!(bench.end(&id), parts);
        // Begun, a word each second, and the result: the watcher saw each once, in order.
        assert_eq!(
            (task.state(), task.attempt, task.last_seq),
            (pb::TaskState::Completed, 1, 62),
            "{how:?}"
        );
        assert_eq!(bench.tokens.borrow().len(), 1, "{how:?}: it ran once");
        assert!(began.elapsed() < Duration::from_secs(62), "{how:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_parent_takes_its_children_along() {
    let mut bench = Bench::new(4);
    let parent = bench
        .home
        .submit(bench.asked("work.wait", ""), 0)
        .await
        .unwrap()
        .task
        .id;
    let tokens = bench
        .tokens
        .wait_for(|tokens| !tokens.is_empty())
        .await
        .unwrap()
        .clone();
    let child = bench
        .home
        .submit(bench.asked("work.rest", &tokens[0]), 1)
        .await
        .unwrap()
        .task;
    assert_eq!(
        (child.parent_task_id.as_str(), child.parent_attempt),
        (parent.as_str(), 1)
    );
    assert_eq!(child.root_task_id, parent);
    let viewer = Arc::new(bench.own.clone());
    bench
        .home
        .cancel(&parent.parse().unwrap(), &viewer, "enough".into())
        .await
        .unwrap();
    for id in [&parent, &child.id] {
        assert_eq!(bench.end(id).await.state(), pb::TaskState::Canceled);
    }
    let late = bench
        .home
        .submit(bench.asked("work.do", &tokens[0]), 0)
        .await
        .unwrap_err();
    assert_eq!(late.reason, crate::domain::Reason::ParentTokenInvalid);
}

#[tokio::test(start_paused = true)]
async fn children_are_asked_at_once_though_the_parent_takes_its_time() {
    let mut bench = Bench::new(4);
    bench.deaf.store(true, Ordering::SeqCst);
    let submitted = bench.home.submit(bench.asked("work.wait", ""), 0).await;
    let parent = submitted.unwrap().task.id;
    let tokens = bench.tokens.wait_for(|tokens| !tokens.is_empty()).await;
    let token = tokens.unwrap()[0].clone();
    let child = |detached: bool| {
        let mut asked = bench.asked("work.rest", &token);
        asked.spec.options = Some(pb::TaskOptions {
            detached,
            ..Default::default()
        });
        bench.home.submit(asked, 1)
    };
    let (attached, detached) = (child(false).await.unwrap(), child(true).await.unwrap());
    let viewer = Arc::new(bench.own.clone());
    let id = |task: &pb::Task| task.id.parse::<TaskId>().unwrap();
    let watched = bench
        .home
        .watch(&id(&attached.task), &viewer, 0, false)
        .await;
    let mut watched = watched.unwrap();
    let asked = Instant::now();
    let parent: TaskId = parent.parse().unwrap();
    let canceled = bench.home.cancel(&parent, &viewer, "enough".into()).await;
    canceled.unwrap();
    while let Some(update) = watched.next().await {
        if let Some(Shown::Event(event)) = update.unwrap().update
            && let Some(pb::task_event::Kind::CancelRequested(why)) = event.kind
        {
            assert_eq!(why.reason, "PARENT_ENDED");
            break;
        }
    }
    assert!(
        asked.elapsed() < Duration::from_millis(100),
        "{:?}",
        asked.elapsed()
    );
    // Who was asked to stop gets no more children.
    let late = child(false).await.unwrap_err();
    assert_eq!(late.reason, crate::domain::Reason::ParentTokenInvalid);
    assert_eq!(
        bench.end(&attached.task.id).await.state(),
        pb::TaskState::Canceled
    );
    assert!(
        asked.elapsed() < Duration::from_secs(11),
        "{:?}",
        asked.elapsed()
    );
    let free = bench.home.get(&id(&detached.task), &viewer, false).await;
    assert_eq!(free.unwrap().0.state(), pb::TaskState::Working);
}

#[tokio::test(start_paused = true)]
async fn a_trace_reaches_the_handler_and_its_children() {
    let parse = |span: u64| {
        let text = format!("00-0af7651916cd43dd8448eb211c80319c-{span:016x}-00");
        TraceContext::parse(&text, "vendor=x").unwrap()
    };
    let mut bench = Bench::new(4);
    let root = Submission {
        trace: Some(parse(1)),
        ..bench.asked("work.wait", "")
    };
    bench.home.submit(root, 0).await.unwrap();
    let tokens = bench.tokens.wait_for(|tokens| !tokens.is_empty()).await;
    let token = tokens.unwrap()[0].clone();
    for trace in [None, Some(parse(2))] {
        let child = Submission {
            trace,
            ..bench.asked("work.do", &token)
        };
        let child = bench.home.submit(child, 0).await.unwrap().task;
        bench.end(&child.id).await;
    }
    // Nobody's child and nobody's trace: none is made up.
    let alone = bench
        .home
        .submit(bench.asked("work.do", ""), 0)
        .await
        .unwrap();
    bench.end(&alone.task.id).await;
    let seen = bench.traces.lock().clone();
    // Without an exporter nothing comes in between.
    assert_eq!(seen, [Some(parse(1)), Some(parse(1)), Some(parse(2)), None]);
}

#[tokio::test]
async fn tasks_share_their_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path(), JournalConfig::default(), |_, _| {}).unwrap();
    let bench = Bench::over(64, false, journal.clone());
    let alone = bench
        .home
        .submit(bench.asked("work.do", ""), 0)
        .await
        .unwrap()
        .task
        .id;
    bench.end(&alone).await;
    let one = journal.stats().syncs;
    assert!((2..=3).contains(&one), "{one} syncs for a task alone");
    let submit = (0..100).map(|thread| bench.home.submit(bench.asked("work.do", ""), thread));
    for task in futures_util::future::join_all(submit).await {
        bench.end(&task.unwrap().task.id).await;
    }
    let many = journal.stats().syncs - one;
    assert!(many <= 100, "{many} syncs for 100 tasks at once");
    bench.home.close(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_lost_while_it_works_is_a_loss() {
    for (idempotent, state, attempts) in [
        (true, pb::TaskState::Completed, 2),
        (false, pb::TaskState::Failed, 1),
    ] {
        let bench = Bench::over(1, idempotent, Journal::memory());
        let submitted = bench.home.submit(bench.asked("work.die", ""), 0).await;
        let task = bench.end(&submitted.unwrap().task.id).await;
        assert_eq!((task.state(), task.attempt), (state, attempts));
        let reason = task
            .failure
            .map_or_else(String::new, |failure| failure.reason);
        assert_eq!(reason, if idempotent { "" } else { "AGENT_LOST" });
    }
}

#[tokio::test(start_paused = true)]
async fn aborted_attempts_leave_room_for_others() {
    let bench = Bench::new(4);
    let viewer = Arc::new(bench.own.clone());
    for thread in 0..300 {
        let submitted = bench.home.submit(bench.asked("work.wait", ""), thread);
        let shown = submitted.await.unwrap().task.id;
        let id: TaskId = shown.parse().unwrap();
        let waits = bench.home.watch(&id, &viewer, 0, false);
        let mut updates = waits.await.unwrap();
        // The executor has it once it works.
        while let Some(Ok(update)) = updates.next().await {
            if matches!(&update.update, Some(Shown::Event(event)) if event.state() == pb::TaskState::Working)
            {
                break;
            }
        }
        let cancel = bench.home.cancel(&id, &viewer, "no".into());
        cancel.await.unwrap();
        assert_eq!(bench.end(&shown).await.state(), pb::TaskState::Canceled);
    }
    let began = Instant::now();
    let submitted = bench.home.submit(bench.asked("work.do", ""), 0).await;
    bench.end(&submitted.unwrap().task.id).await;
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "it had to wait for room"
    );
}
