//! The executor against scripted handlers and homes, on a paused clock.

#[path = "asking_tests.rs"]
mod asking;
#[path = "slots_tests.rs"]
mod slots;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Status};

use super::*;
use crate::pb::execute_request::Step as Ask;
use crate::pb::handle_response::Update;
use crate::runtime::{DataThreads, Nursery};
use crate::task::doors::{Parents as _, Updates};
use crate::telemetry::TraceContext;
use crate::wire::status::reason_of;

const SKILL: &str = "demo.echo";

/// What the agent does when it is asked to cancel.
#[derive(Clone, Copy, PartialEq)]
enum OnCancel {
    Unimplemented,
    Ends,
    Ignores,
}

type Word = Result<pb::HandleResponse, HandlerError>;

/// An agent whose words the test speaks.
struct Agent {
    words: Mutex<Option<mpsc::Sender<Word>>>,
    reachable: Mutex<bool>,
    opens: Mutex<bool>,
    on_cancel: OnCancel,
    handled: Mutex<Vec<pb::HandleRequest>>,
    running: Arc<AtomicUsize>,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl HandlerLink for Agent {
    async fn handle(
        &self,
        request: pb::HandleRequest,
        _: Duration,
        _: Option<&TraceContext>,
    ) -> Result<HandleStream, HandlerError> {
        if !*self.reachable.lock() {
            return Err(HandlerError::Unreachable("connection refused".into()));
        }
        self.handled.lock().push(request);
        self.running.fetch_add(1, Ordering::SeqCst);
        let running = Running(Arc::clone(&self.running));
        if !*self.opens.lock() {
            std::future::pending::<()>().await;
        }
        let (words, said) = mpsc::channel(64);
        *self.words.lock() = Some(words);
        Ok(Box::pin(ReceiverStream::new(said).map(move |word| {
            let _alive = &running;
            word
        })))
    }

    async fn cancel(&self, _: pb::CancelRequest) -> Result<(), Status> {
        match self.on_cancel {
            OnCancel::Unimplemented => return Err(Status::unimplemented("")),
            OnCancel::Ends => drop(self.words.lock().take()),
            OnCancel::Ignores => {}
        }
        Ok(())
    }

    async fn describe(&self) -> Result<Option<pb::AgentCard>, Status> {
        Ok(None)
    }
}

struct Bench {
    agent: Arc<Agent>,
    executor: Executor,
}

/// The home's end of a stream.
struct Home {
    steps: mpsc::Sender<pb::ExecuteRequest>,
    updates: Updates,
}

impl Bench {
    fn new(slots: u32, on_cancel: OnCancel) -> Self {
        Self::offering(Offers::from_iter([SKILL.into()]), slots, on_cancel)
    }

    fn offering(skills: Offers, slots: u32, on_cancel: OnCancel) -> Self {
        let agent = Arc::new(Agent {
            words: Mutex::new(None),
            reachable: Mutex::new(true),
            opens: Mutex::new(true),
            on_cancel,
            handled: Mutex::default(),
            running: Arc::default(),
        });
        let config = ExecutorConfig {
            own: "spiffe://a/ns/default/agent/worker".parse().unwrap(),
            slots,
            boot_id: "boot".into(),
            skills,
        };
        let link = Arc::<Agent>::clone(&agent);
        let executor = Executor::new(config, link, vec![Nursery::here()]);
        Self { agent, executor }
    }

    async fn open(&self, first: Ask) -> Home {
        let mut home = self.silent();
        home.ask(first).await;
        home
    }

    /// A stream on which nothing has been said.
    fn silent(&self) -> Home {
        let (steps, asked) = mpsc::channel(8);
        let home = HomePeer {
            id: "spiffe://a/ns/default/agent/asker".parse().unwrap(),
            instance: "i1".parse().unwrap(),
        };
        let updates = self
            .executor
            .execute(home, Box::pin(ReceiverStream::new(asked)), None);
        Home { steps, updates }
    }

    /// An accepted attempt of a task.
    async fn started(&self, task: u128, attempt: u32) -> Home {
        let mut home = self.open(Ask::Start(start(task, attempt))).await;
        assert_eq!(home.next().await, "accepted");
        home
    }

    async fn say(&self, word: Word) {
        let words = self.agent.words.lock().clone().expect("a handler runs");
        words.send(word).await.unwrap();
    }

    fn hang_up(&self) {
        *self.agent.words.lock() = None;
    }

    async fn resume(&self, task: u128, after_update: u64) -> Home {
        self.open(Ask::Resume(pb::Resume {
            task_id: id(task),
            attempt: 1,
            after_update,
        }))
        .await
    }

    /// No attempt runs.
    async fn freed(&self) {
        let mut changed = self.executor.changes();
        while self.executor.load().running > 0 {
            changed.changed().await.unwrap();
        }
    }

    fn handlers(&self) -> usize {
        self.agent.running.load(Ordering::SeqCst)
    }
}

impl Home {
    async fn ask(&mut self, step: Ask) {
        let request = pb::ExecuteRequest { step: Some(step) };
        self.steps.send(request).await.unwrap();
    }

    async fn ack(&mut self, update: u64) {
        self.ask(Ask::Ack(pb::Ack { update })).await;
    }

    async fn abort(&mut self) {
        let reason = "enough".into();
        self.ask(Ask::Abort(pb::Abort { reason })).await;
    }

    /// The next message in short; keepalives are left out.
    async fn next(&mut self) -> String {
        loop {
            let told = match self.updates.next().await {
                None => "end".into(),
                Some(Err(status)) => reason_of(&status).unwrap_or_else(|| status.to_string()),
                Some(Ok(response)) => match response.step.unwrap() {
                    Step::Accepted(accepted) => {
                        assert_eq!(accepted.boot_id, "boot");
                        "accepted".into()
                    }
                    Step::Refused(refused) => format!("refused {}", refused.reason),
                    Step::AttemptUnknown(_) => "unknown".into(),
                    Step::Keepalive(_) => continue,
                    Step::DescendantsWanted(wanted) => {
                        format!("wants {} as {}", wanted.total, wanted.turn)
                    }
                    Step::Update(update) => short(&update),
                },
            };
            return told;
        }
    }
}

fn short(update: &pb::NumberedUpdate) -> String {
    let what = match &update.update.as_ref().unwrap().update {
        Some(Update::Progress(progress)) => &progress.message,
        Some(Update::Failure(failure)) => &failure.reason,
        Some(Update::Result(_)) => "result",
        Some(Update::Canceled(_)) => "canceled",
        Some(Update::Transient(_)) => "transient",
        Some(Update::Question(question)) => &format!("asks {}", question.question_id),
        _ => panic!("{update:?}"),
    };
    let cut = if update.cut { ", cut" } else { "" };
    format!("{}: {what}{cut}", update.number)
}

fn id(task: u128) -> String {
    format!("i1.{}", uuid::Uuid::from_u128(task))
}

fn start(task: u128, attempt: u32) -> Box<pb::Start> {
    Box::new(pb::Start {
        handle: Some(pb::HandleRequest {
            task: Some(pb::Task {
                id: id(task),
                skill: SKILL.into(),
                caller: "spiffe://a/ns/default/service/web".into(),
                ..pb::Task::default()
            }),
            attempt,
            ..pb::HandleRequest::default()
        }),
        remaining: Some(prost_types::Duration {
            seconds: 3600,
            nanos: 0,
        }),
        home: "i1".into(),
        ..pb::Start::default()
    })
}

fn said(update: Update) -> Word {
    Ok(pb::HandleResponse {
        update: Some(update),
    })
}

fn progress(message: &str) -> Word {
    said(Update::Progress(pb::Progress {
        message: message.into(),
        ..pb::Progress::default()
    }))
}

fn result() -> Word {
    said(Update::Result(pb::TaskResult::default()))
}

#[tokio::test(start_paused = true)]
async fn an_attempt_runs_once_and_is_forgotten_when_acknowledged() {
    let bench = Bench::new(4, OnCancel::Ends);
    let mut home = bench.started(1, 1).await;
    assert_eq!(bench.executor.load().running, 1);
    bench.say(progress("half")).await;
    bench
        .say(said(Update::Transient(pb::Part::default())))
        .await;
    bench.say(result()).await;
    bench.hang_up();
    assert_eq!(home.next().await, "1: half");
    assert_eq!(home.next().await, "0: transient");
    assert_eq!(home.next().await, "2: result");
    let load = bench.executor.load();
    assert_eq!((load.running, load.slots), (0, 4));
    assert!(load.execution_mean.is_some());
    home.ack(2).await;
    assert_eq!(home.next().await, "end");
    assert_eq!(bench.resume(1, 2).await.next().await, "unknown");
    let mut again = bench.open(Ask::Start(start(1, 1))).await;
    assert_eq!(again.next().await, "refused ATTEMPT_STALE");
    assert_eq!(bench.agent.handled.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_away_is_not_a_start() {
    let bench = Bench::new(1, OnCancel::Ends);
    *bench.agent.reachable.lock() = false;
    let mut home = bench.open(Ask::Start(start(1, 1))).await;
    assert_eq!(home.next().await, "refused AGENT_UNAVAILABLE");
    assert_eq!(home.next().await, "end");
    *bench.agent.reachable.lock() = true;
    drop(bench.started(1, 1).await);
}

/// The status of an agent that has not begun.
fn unbegun() -> HandlerError {
    let mut status = Status::unavailable("the model is not loaded");
    let mark = "1".parse().unwrap();
    status.metadata_mut().insert("attache-not-processed", mark);
    HandlerError::Status(status)
}

#[tokio::test(start_paused = true)]
async fn an_unhealthy_agent_gets_nothing_new_and_what_runs_goes_on() {
    let bench = Bench::new(2, OnCancel::Ends);
    let mut running = bench.started(1, 1).await;
    bench.executor.set_healthy(false);
    let mut home = bench.open(Ask::Start(start(2, 1))).await;
    assert_eq!(home.next().await, "refused AGENT_UNAVAILABLE");
    assert_eq!(bench.agent.handled.lock().len(), 1);
    bench.say(progress("half")).await;
    assert_eq!(running.next().await, "1: half");
    bench.executor.set_healthy(true);
    drop(bench.started(2, 1).await);
}

#[tokio::test(start_paused = true)]
async fn work_that_was_not_begun_is_refused_also_after_it_was_accepted() {
    let bench = Bench::new(1, OnCancel::Ends);
    let mut home = bench.started(1, 1).await;
    bench.say(Err(unbegun())).await;
    assert_eq!(home.next().await, "refused AGENT_UNAVAILABLE");
    assert_eq!(home.next().await, "end");
    assert_eq!((bench.executor.load().running, bench.handlers()), (0, 0));
    // A home whose stream was broken at that moment hears the same by a resume.
    let home = bench.started(2, 1).await;
    drop(home);
    tokio::task::yield_now().await;
    bench.say(Err(unbegun())).await;
    bench.freed().await;
    let mut home = bench.resume(2, 0).await;
    let step = home.updates.next().await.unwrap().unwrap().step.unwrap();
    assert!(matches!(step, Step::AttemptUnknown(unknown) if unknown.never_begun));
    // After its first words it is a failure like any other.
    let mut home = bench.started(3, 1).await;
    bench.say(progress("half")).await;
    bench.say(Err(unbegun())).await;
    assert_eq!(home.next().await, "1: half");
    assert_eq!(home.next().await, "2: AGENT_ERROR");
}

#[tokio::test(start_paused = true)]
async fn calls_in_a_row_without_a_word_make_the_agent_suspect() {
    let bench = Bench::new(4, OnCancel::Ends);
    let suspicions = bench.executor.suspicions();
    // Whether it was reached then, and how often it was suspect by then.
    for (task, reachable, suspected) in [
        (1, true, 0),
        (2, false, 0),
        (3, true, 1),
        (4, false, 1),
        (5, false, 1),
        (6, false, 2),
    ] {
        *bench.agent.reachable.lock() = reachable;
        let mut home = bench.open(Ask::Start(start(task, 1))).await;
        if reachable {
            assert_eq!(home.next().await, "accepted");
            // UNAVAILABLE before the first update is as silent as nobody there.
            bench.say(Err(unbegun())).await;
        }
        assert_eq!(home.next().await, "refused AGENT_UNAVAILABLE");
        assert_eq!(*suspicions.borrow(), suspected, "{task}");
    }
    *bench.agent.reachable.lock() = true;
    let mut home = bench.started(7, 1).await;
    bench.say(progress("half")).await;
    bench
        .say(Err(HandlerError::Status(Status::unavailable(""))))
        .await;
    assert_eq!(home.next().await, "1: half");
    assert_eq!(home.next().await, "2: AGENT_ERROR");
    assert_eq!(*suspicions.borrow(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_free_only_when_its_handler_has_ended() {
    let bench = Bench::new(1, OnCancel::Ends);
    let mut home = bench.started(1, 1).await;
    let mut other = bench.open(Ask::Start(start(2, 1))).await;
    assert_eq!(other.next().await, "refused SLOTS_FULL");
    bench.say(result()).await;
    assert_eq!(home.next().await, "1: result");
    home.ack(1).await;
    assert_eq!(home.next().await, "end");
    // The handler still cleans up.
    let mut other = bench.open(Ask::Start(start(2, 1))).await;
    assert_eq!(other.next().await, "refused SLOTS_FULL");
    bench.hang_up();
    let mut changed = bench.executor.changes();
    while bench.executor.load().running > 0 {
        changed.changed().await.unwrap();
    }
    drop(bench.started(2, 1).await);
}

#[tokio::test(start_paused = true)]
async fn every_way_to_fail_is_told_apart() {
    let table: Vec<(Vec<Word>, &str)> = vec![
        (vec![], "1: AGENT_ERROR"),
        (
            vec![Err(HandlerError::Lost("reset".into()))],
            "1: AGENT_LOST",
        ),
        (
            vec![Err(HandlerError::Status(Status::internal("boom")))],
            "1: AGENT_ERROR",
        ),
        (
            vec![Ok(pb::HandleResponse { update: None })],
            "1: AGENT_ERROR, cut",
        ),
        (
            vec![progress(&"x".repeat(300 << 10))],
            "1: AGENT_ERROR, cut",
        ),
        (vec![result(), result()], "1: AGENT_ERROR, cut"),
    ];
    for (words, end) in table {
        let bench = Bench::new(1, OnCancel::Ends);
        let mut home = bench.started(1, 1).await;
        for word in words {
            bench.say(word).await;
        }
        bench.hang_up();
        assert_eq!(home.next().await, end);
        assert_eq!((bench.executor.load().running, bench.handlers()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_answers_is_cut_after_its_deadline() {
    let bench = Bench::new(1, OnCancel::Ignores);
    *bench.agent.opens.lock() = false;
    let began = Instant::now();
    let mut home = bench.started(1, 1).await;
    assert_eq!(home.next().await, "1: DEADLINE_EXCEEDED, cut");
    assert!(began.elapsed() >= Duration::from_secs(3600) + CANCEL_GRACE);
    assert_eq!((bench.executor.load().running, bench.handlers()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_is_confirmed_by_the_end_of_the_stream() {
    for (on_cancel, end, least) in [
        (OnCancel::Ends, "1: canceled", Duration::ZERO),
        (OnCancel::Unimplemented, "1: canceled, cut", Duration::ZERO),
        (OnCancel::Ignores, "1: canceled, cut", CANCEL_GRACE),
    ] {
        let bench = Bench::new(1, on_cancel);
        let mut home = bench.started(1, 1).await;
        let began = Instant::now();
        home.abort().await;
        assert_eq!(home.next().await, end);
        let took = began.elapsed();
        assert!(
            took >= least && took < least + Duration::from_secs(1),
            "{took:?}"
        );
        assert_eq!(bench.handlers(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn cuts_and_resumes_at_every_update_lose_and_repeat_nothing() {
    let bench = Bench::new(1, OnCancel::Ends);
    let mut home = bench.started(1, 1).await;
    let mut seen = Vec::new();
    for number in 1..=40_u64 {
        bench.say(progress(&format!("p{number}"))).await;
        match number % 5 {
            // Read it.
            0 | 1 => seen.push(home.next().await),
            // Read and acknowledge it.
            2 => {
                seen.push(home.next().await);
                home.ack(seen.len() as u64).await;
            }
            // The stream breaks before it is read, and the new one finds it.
            3 => {
                drop(home);
                home = bench.resume(1, seen.len() as u64).await;
                assert_eq!(home.next().await, "accepted");
                seen.push(home.next().await);
            }
            // A second stream takes the place of one that the executor believes in.
            _ => {
                let mut newer = bench.resume(1, seen.len() as u64).await;
                assert_eq!(newer.next().await, "accepted");
                seen.push(newer.next().await);
                while home.next().await != "ATTEMPT_STALE" {}
                home = newer;
            }
        }
    }
    let all: Vec<_> = (1..=40)
        .map(|number| format!("{number}: p{number}"))
        .collect();
    assert_eq!(seen, all);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_whose_home_is_gone_is_kept_for_a_minute() {
    let bench = Bench::new(1, OnCancel::Ends);
    let home = bench.started(1, 1).await;
    bench.say(progress("a")).await;
    drop(home);
    tokio::time::advance(ORPHAN_KEEP - Duration::from_secs(5)).await;
    let mut home = bench.resume(1, 0).await;
    assert_eq!(home.next().await, "accepted");
    assert_eq!(home.next().await, "1: a");
    drop(home);
    let mut changed = bench.executor.changes();
    while bench.executor.load().running > 0 {
        changed.changed().await.unwrap();
    }
    assert_eq!(bench.handlers(), 0);
    assert_eq!(bench.resume(1, 1).await.next().await, "unknown");
}

#[tokio::test(start_paused = true)]
async fn a_newer_attempt_cuts_the_older() {
    let bench = Bench::new(2, OnCancel::Ends);
    let mut older = bench.started(1, 1).await;
    let newer = bench.started(1, 2).await;
    assert_eq!(older.next().await, "ATTEMPT_STALE");
    assert_eq!(older.next().await, "end");
    assert_eq!(bench.handlers(), 1);
    let mut late = bench.open(Ask::Start(start(1, 1))).await;
    assert_eq!(late.next().await, "refused ATTEMPT_STALE");
    drop(newer);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_attempt_says_that_it_is_alive() {
    let bench = Bench::new(1, OnCancel::Ends);
    let mut home = bench.started(1, 1).await;
    for _ in 0..3 {
        let next = timeout(Duration::from_secs(16), home.updates.next()).await;
        let step = next.unwrap().unwrap().unwrap().step.unwrap();
        assert!(matches!(step, Step::Keepalive(_)), "{step:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_parent_token_lives_as_long_as_its_attempt() {
    let bench = Bench::new(1, OnCancel::Ends);
    let mut home = bench.started(1, 1).await;
    let token = bench.agent.handled.lock()[0].parent_token.clone();
    assert_eq!(token.len(), 43);
    let parent = bench.executor.parent(&token).unwrap();
    assert_eq!((parent.task.id, parent.attempt), (id(1), 1));
    assert!(bench.executor.parent("").is_none());
    bench.hang_up();
    assert_eq!(home.next().await, "1: AGENT_ERROR");
    assert!(bench.executor.parent(&token).is_none());
}

#[tokio::test(start_paused = true)]
async fn strangers_never_reach_the_agent() {
    type Spoil = fn(&mut pb::Task);
    let table: [(Spoil, &str); 3] = [
        (|task| task.skill = "demo.other".into(), "NOT_OWN_AGENT"),
        (
            |task| task.caller = "spiffe://a/ns/prod/agent/x".into(),
            "PERMISSION_DENIED",
        ),
        (
            |task| task.id = format!("i2.{}", uuid::Uuid::nil()),
            "IDENTITY_MISMATCH",
        ),
    ];
    let bench = Bench::new(1, OnCancel::Ends);
    for (spoil, reason) in table {
        let mut start = start(1, 1);
        spoil(start.handle.as_mut().unwrap().task.as_mut().unwrap());
        let mut home = bench.open(Ask::Start(start)).await;
        assert_eq!(home.next().await, reason);
    }
    let mut home = bench.open(Ask::Ack(pb::Ack { update: 1 })).await;
    assert_eq!(home.next().await, "PROTOCOL_VIOLATION");
    assert!(bench.agent.handled.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_first_word_that_was_lost_on_the_way_is_no_refusal() {
    let bench = Bench::new(1, OnCancel::Ends);
    let mut home = bench.silent();
    // A home takes PROTOCOL_VIOLATION for the end of its task.
    assert_eq!(home.next().await, "CONNECTION_LOST");
    assert_eq!(bench.resume(1, 0).await.next().await, "unknown");
    assert!(bench.agent.handled.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_home_that_does_not_acknowledge_holds_the_agent_back() {
    let bench = Bench::new(1, OnCancel::Ends);
    let mut home = bench.started(1, 1).await;
    let words = bench.agent.words.lock().clone().unwrap();
    let large = "x".repeat(200 << 10);
    let mut given = 0_u64;
    let give = async {
        loop {
            words.send(progress(&large)).await.unwrap();
            given += 1;
        }
    };
    // The handler's own window fills and stays full.
    assert!(timeout(Duration::from_secs(5), give).await.is_err());
    assert!(given < 64 + 8, "{given}");
    for number in 1..=given {
        assert!(home.next().await.starts_with(&format!("{number}: ")));
        home.ack(number).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_what_runs_then_cuts_it() {
    let bench = Bench::new(4, OnCancel::Ends);
    let mut done = bench.started(1, 1).await;
    bench.say(result()).await;
    bench.hang_up();
    assert_eq!(done.next().await, "1: result");
    let mut stuck = bench.started(2, 1).await;
    let draining = bench.executor.drain(Duration::from_secs(30));
    let homes = async {
        tokio::task::yield_now().await;
        let mut late = bench.open(Ask::Start(start(3, 1))).await;
        assert_eq!(late.next().await, "refused DRAINING");
        done.ack(1).await;
        assert_eq!(done.next().await, "end");
        assert_eq!(stuck.next().await, "DRAINING");
    };
    let began = Instant::now();
    tokio::join!(draining, homes);
    assert!(began.elapsed() >= Duration::from_secs(30));
    assert_eq!(bench.handlers(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_status_keeps_its_code() {
    let bench = Bench::new(1, OnCancel::Ends);
    let mut home = bench.started(1, 1).await;
    let error = HandlerError::Status(Status::unavailable("the model is away"));
    bench.say(Err(error)).await;
    let step = home.updates.next().await.unwrap().unwrap().step.unwrap();
    let Step::Update(update) = step else {
        panic!("{step:?}")
    };
    let Some(Update::Failure(failure)) = update.update.unwrap().update else {
        panic!("a failure")
    };
    assert_eq!(failure.message, "the model is away");
    assert_eq!(failure.code, i32::from(Code::Unavailable));
    assert!(failure.retryable);
}

/// A real agent on a Unix socket, and an executor before it.
struct Wired {
    executor: Executor,
    stop: crate::runtime::Stop,
    agent: Nursery,
    /// The agent's whole process, as far as its sockets can tell.
    process: DataThreads,
    _directory: tempfile::TempDir,
}

async fn wired(handler: impl crate::agent::Handler) -> Wired {
    let directory = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", directory.path().join("agent.sock").display());
    let process = DataThreads::start(1).unwrap();
    let agent = Nursery::on(process.handles().next().unwrap().clone());
    let (tell, bound) = tokio::sync::oneshot::channel();
    let (stop, listen) = (crate::runtime::Stop::new(), address.clone());
    agent.start("agent", |_| {
        let stop = stop.clone();
        async move {
            let bound = crate::agent::Agent::bind(&listen, None, None, handler).await;
            tell.send(()).unwrap();
            bound.unwrap().run(stop).await;
        }
    });
    bound.await.unwrap();
    let channel = crate::agent::Channel::new(&address, Nursery::here()).unwrap();
    let config = ExecutorConfig {
        own: "spiffe://a/ns/default/agent/worker".parse().unwrap(),
        slots: 4,
        boot_id: "boot".into(),
        skills: Offers::from_iter([SKILL.into()]),
    };
    let link = GrpcHandler::new(channel);
    assert_eq!(link.describe().await.unwrap(), None);
    Wired {
        executor: Executor::new(config, Arc::new(link), vec![Nursery::here()]),
        stop,
        agent,
        process,
        _directory: directory,
    }
}

impl Wired {
    async fn open(&self, first: Ask) -> Home {
        let (steps, asked) = mpsc::channel(8);
        let home = HomePeer {
            id: "spiffe://a/ns/default/agent/asker".parse().unwrap(),
            instance: "i1".parse().unwrap(),
        };
        let updates = self
            .executor
            .execute(home, Box::pin(ReceiverStream::new(asked)), None);
        let mut home = Home { steps, updates };
        home.ask(first).await;
        home
    }
}

#[tokio::test]
async fn an_agent_of_a_few_lines_does_tasks_fails_and_stops() {
    use crate::agent::{Task, failure, text};

    let wired = wired(|task: Task| async move {
        task.progress(0.5, "half").await;
        task.transient("to").await;
        match task.attempt() {
            1 => Ok(text("done")),
            2 => Err(failure("no luck").reason("LUCK")),
            _ => std::future::pending().await,
        }
    })
    .await;
    for (attempt, end) in [(1, "2: result"), (2, "2: LUCK"), (3, "2: canceled")] {
        let mut home = wired.open(Ask::Start(start(1, attempt))).await;
        assert_eq!(home.next().await, "accepted");
        assert_eq!(home.next().await, "1: half");
        if attempt == 3 {
            home.abort().await;
        }
        let mut told = home.next().await;
        while told.starts_with("0: ") {
            told = home.next().await;
        }
        assert_eq!(told, end);
        home.ack(2).await;
        assert_eq!(home.next().await, "end");
    }
    wired.stop.cancel();
    wired.agent.close(Duration::from_secs(10)).await;
    let mut home = wired.open(Ask::Start(start(2, 1))).await;
    assert_eq!(home.next().await, "refused AGENT_UNAVAILABLE");
}

#[tokio::test]
async fn an_agent_that_dies_or_panics_in_the_middle_is_told_apart() {
    let wired = wired(|task: crate::agent::Task| async move {
        task.progress(0.5, "half").await;
        assert!(task.attempt() != 1, "as the test wants it");
        std::future::pending().await
    })
    .await;
    let mut home = wired.open(Ask::Start(start(1, 1))).await;
    assert_eq!(home.next().await, "accepted");
    assert_eq!(home.next().await, "1: half");
    assert_eq!(home.next().await, "2: AGENT_ERROR");
    let mut home = wired.open(Ask::Start(start(1, 2))).await;
    assert_eq!(home.next().await, "accepted");
    assert_eq!(home.next().await, "1: half");
    drop(wired.process);
    assert_eq!(home.next().await, "2: AGENT_LOST");
}

/// Doubles a number, by its card.
fn doubling() -> Offers {
    let number = r#"{"type":"number"}"#.to_owned();
    let card = pb::AgentCard {
        skills: vec![pb::Skill {
            name: SKILL.into(),
            input_schema: number.clone(),
            output_schema: number,
            output_modes: vec!["application/json".into()],
            ..pb::Skill::default()
        }],
        ..pb::AgentCard::default()
    };
    Offers::of(&card).unwrap()
}

fn json(text: &str) -> pb::Part {
    pb::Part {
        content: Some(pb::part::Content::Text(text.into())),
        media_type: "application/json".into(),
        ..pb::Part::default()
    }
}

#[tokio::test(start_paused = true)]
async fn input_that_does_not_fit_never_reaches_the_agent() {
    let bench = Bench::offering(doubling(), 1, OnCancel::Ends);
    let given = |text: &str| {
        let mut start = start(1, 1);
        start.handle.as_mut().unwrap().inputs = vec![pb::Message {
            parts: vec![json(text)],
            ..pb::Message::default()
        }];
        Ask::Start(start)
    };
    let mut home = bench.open(given("{}")).await;
    let refused = home.updates.next().await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let failure = crate::wire::status::failure_of(&refused).unwrap();
    assert_eq!(failure.reason, "INPUT_INVALID");
    let details = failure.details.unwrap().fields;
    assert!(
        ["pointer", "rule", "expected"]
            .iter()
            .all(|fact| details.contains_key(*fact))
    );
    assert!(bench.agent.handled.lock().is_empty());
    assert_eq!(bench.executor.load().running, 0);
    assert_eq!(bench.open(given("2")).await.next().await, "accepted");
}

#[tokio::test(start_paused = true)]
async fn a_result_that_does_not_fit_never_leaves() {
    for (parts, told) in [
        (vec![json("4")], "1: result"),
        (vec![json("null")], "1: OUTPUT_INVALID"),
        (vec![], "1: OUTPUT_INVALID"),
    ] {
        let bench = Bench::offering(doubling(), 1, OnCancel::Ends);
        let mut home = bench.started(1, 1).await;
        let result = pb::TaskResult {
            parts,
            ..pb::TaskResult::default()
        };
        bench.say(said(Update::Result(result))).await;
        bench.hang_up();
        assert_eq!(home.next().await, told);
        bench.freed().await;
    }
}

#[test]
fn a_card_with_a_schema_that_cannot_be_is_refused_by_its_path() {
    let card = pb::AgentCard {
        skills: vec![
            pb::Skill::default(),
            pb::Skill {
                output_schema: r#"{"items":{"$ref":"https://example.com/a"}}"#.into(),
                ..pb::Skill::default()
            },
        ],
        ..pb::AgentCard::default()
    };
    let refused = Offers::of(&card).unwrap_err();
    assert_eq!(
        refused.field.as_deref(),
        Some("card.skills[1].output_schema")
    );
    assert!(refused.text.starts_with("at /items/$ref: "), "{refused}");
}

/// A Start whose handler may have so many tasks made below it.
fn wide(task: u128, descendants_left: u32) -> Ask {
    Ask::Start(Box::new(pb::Start {
        descendants_left: Some(descendants_left),
        ..*start(task, 1)
    }))
}

#[tokio::test(start_paused = true)]
async fn the_last_update_says_what_was_made_below_and_who_made_any_has_begun() {
    let bench = Bench::new(2, OnCancel::Ends);
    let mut home = bench.open(wide(1, 30)).await;
    assert_eq!(home.next().await, "accepted");
    let token = bench.agent.handled.lock()[0].parent_token.clone();
    assert_eq!(bench.executor.take(&token, 5), Ok(5));
    bench.executor.give_back(&token, 2);
    // It cannot say any more that it has done nothing.
    bench.say(Err(unbegun())).await;
    let step = home.updates.next().await.unwrap().unwrap().step.unwrap();
    let Step::Update(last) = step else {
        panic!("{step:?}")
    };
    assert_eq!((last.number, last.descendants_used), (1, Some(3)));
    let late = bench.executor.take(&token, 1).unwrap_err();
    assert_eq!(late.reason, Reason::ParentTokenInvalid);

    let mut home = bench.open(wide(2, 1)).await;
    assert_eq!(home.next().await, "accepted");
    let token = bench.agent.handled.lock()[1].parent_token.clone();
    assert_eq!(bench.executor.take(&token, 2), Ok(1));
    // A home that gives no more is not asked.
    let full = bench.executor.draw(&token, 1, None).await.unwrap_err();
    assert_eq!(full.reason, Reason::DescendantsExhausted);
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_is_asked_for_until_the_home_has_answered() {
    let bench = Bench::new(2, OnCancel::Ends);
    let asked = pb::Start {
        descendants_left: Some(0),
        grants_descendants: true,
        ..*start(1, 1)
    };
    let mut home = bench.open(Ask::Start(Box::new(asked))).await;
    assert_eq!(home.next().await, "accepted");
    let token = bench.agent.handled.lock()[0].parent_token.clone();
    assert_eq!(bench.executor.take(&token, 1), Ok(0));
    let waits = Duration::from_secs(5);
    let draw = |count| bench.executor.draw(&token, count, Some(waits));
    let mut first = draw(2);
    assert!((&mut first).now_or_never().is_none());
    assert_eq!(home.next().await, "wants 2 as 1");
    let mut second = draw(1);
    assert!((&mut second).now_or_never().is_none());
    assert_eq!(home.next().await, "wants 3 as 2");
    // On the next stream, too.
    drop(home);
    let mut home = bench.resume(1, 0).await;
    assert_eq!(home.next().await, "accepted");
    assert_eq!(home.next().await, "wants 3 as 2");
    let grant = |turn, total, exhausted| {
        Ask::DescendantsGranted(pb::DescendantsGranted {
            turn,
            total,
            left: 9,
            exhausted,
        })
    };
    home.ask(grant(2, 3, false)).await;
    assert_eq!((first.await, second.await), (Ok(2), Ok(1)));
    // The same again gives nothing.
    home.ask(grant(2, 3, false)).await;
    let mut third = draw(1);
    assert!((&mut third).now_or_never().is_none());
    assert_eq!(home.next().await, "wants 4 as 3");
    home.ask(grant(3, 3, true)).await;
    let refused = third.await.unwrap_err();
    assert_eq!(refused.reason, Reason::DescendantsExhausted);
    // A home that does not answer is not waited for without end.
    let silent = draw(1).await.unwrap_err();
    assert_eq!(silent.reason, Reason::HomeUnavailable);
    assert_eq!(home.next().await, "wants 4 as 4");
    let mut late = bench.executor.draw(&token, 1, None);
    assert!((&mut late).now_or_never().is_none());
    assert_eq!(home.next().await, "wants 4 as 5");
    bench.say(result()).await;
    bench.hang_up();
    let over = late.await.unwrap_err();
    assert_eq!(over.reason, Reason::ParentTokenInvalid);
    let step = home.updates.next().await.unwrap().unwrap().step.unwrap();
    let Step::Update(last) = step else {
        panic!("{step:?}")
    };
    assert_eq!((last.number, last.descendants_used), (1, Some(3)));
}

#[tokio::test(start_paused = true)]
async fn a_home_that_does_not_count_is_counted_for() {
    let bench = Bench::new(8, OnCancel::Ends);
    let cases = [
        (None, 0, 1000),
        (Some(0), 0, 0),
        (None, 1, 16),
        (None, 8, 0),
    ];
    for (place, (left, hops, expected)) in cases.into_iter().enumerate() {
        let asked = pb::Start {
            descendants_left: left,
            chain: vec![pb::ChainLink::default(); hops],
            ..*start(place as u128 + 1, 1)
        };
        let mut home = bench.open(Ask::Start(Box::new(asked))).await;
        assert_eq!(home.next().await, "accepted");
        let token = bench.agent.handled.lock()[place].parent_token.clone();
        let taken = bench.executor.take(&token, 5000);
        assert_eq!(taken, Ok(expected), "{left:?} {hops}");
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_came_a_wrong_way_is_turned_down_whatever_its_home_says() {
    let link = |agent: &str, skill: &str| pb::ChainLink {
        spiffe_id: format!("spiffe://a/ns/default/agent/{agent}"),
        skill: skill.into(),
        ..pb::ChainLink::default()
    };
    let scoped = pb::ChainLink {
        scope: vec![pb::AgentSkill {
            agent: "default/other".into(),
            skill: SKILL.into(),
        }],
        ..link("asker", "ask")
    };
    let long: Vec<_> = (0..9).map(|n| link(&format!("n{n}"), SKILL)).collect();
    for (chain, reason) in [
        (
            vec![link("worker", SKILL), link("asker", "ask")],
            "DELEGATION_LOOP",
        ),
        (vec![scoped], "OUT_OF_SCOPE"),
        (long, "INVALID_FIELD"),
    ] {
        let bench = Bench::new(1, OnCancel::Ends);
        let asked = pb::Start {
            chain,
            ..*start(1, 1)
        };
        let mut home = bench.open(Ask::Start(Box::new(asked))).await;
        let refused = home.updates.next().await.unwrap().unwrap_err();
        let found = reason_of(&refused);
        assert_eq!(found.as_deref(), Some(reason));
        assert!(bench.agent.handled.lock().is_empty());
    }
    let bench = Bench::new(1, OnCancel::Ends);
    let asked = pb::Start {
        chain: vec![link("worker", "other"), link("asker", SKILL)],
        ..*start(1, 1)
    };
    let mut home = bench.open(Ask::Start(Box::new(asked))).await;
    assert_eq!(home.next().await, "accepted");
}
