//! The driver over a journal in memory and on disk, with a scripted executor on the other end.

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::domain::{Fault, InstanceId, Reason, SpiffeId, TaskId};
use crate::pb;
use crate::pb::execute_request::Step;
use crate::pb::execute_response::Step as Answer;
use crate::pb::handle_response::Update;
use crate::pb::task_update::Update as Shown;
use crate::runtime::Nursery;
use crate::task::archive::{Archive, ArchiveConfig};
use crate::task::doors::{Call, Connect, Parent, Parents, Route, Steps, Updates};
use crate::task::journal::{Journal, JournalConfig};
use crate::telemetry::TraceContext;

use super::config::{HomeConfig, Keeping, Submission};
use super::handle::Home;
use super::replay::Replay;
use super::tests::{FakeRoute, own, spec, text};
use super::view::ListQuery;
use super::watch::TaskUpdates;

/// What every submission of these tests comes with.
fn traced() -> TraceContext {
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    TraceContext::parse(parent, "a=1,b=2").unwrap()
}

/// A stream that the home opened, in the test's hands.
pub(super) struct Opened {
    instance: InstanceId,
    steps: Steps,
    say: mpsc::Sender<Result<pb::ExecuteResponse, Status>>,
    trace: Option<TraceContext>,
}

impl Opened {
    pub(super) async fn step(&mut self) -> Step {
        self.steps.next().await.unwrap().step.unwrap()
    }

    async fn say(&self, step: Answer) {
        self.say
            .send(Ok(pb::ExecuteResponse { step: Some(step) }))
            .await
            .unwrap();
    }

    pub(super) async fn accept(&self) {
        self.say(Answer::Accepted(pb::Accepted::default())).await;
    }

    pub(super) async fn update(&self, number: u64, update: Update) {
        let update = Some(pb::HandleResponse {
            update: Some(update),
        });
        self.say(Answer::Update(pb::NumberedUpdate {
            number,
            update,
            ..Default::default()
        }))
        .await;
    }

    /// The connection breaks.
    pub(super) async fn breaks(&self) {
        let broken = Err(Status::unavailable("cut"));
        self.say.send(broken).await.unwrap();
    }

    pub(super) async fn acked(&mut self, update: u64) {
        loop {
            if let Step::Ack(ack) = self.step().await
                && ack.update == update
            {
                return;
            }
        }
    }
}

struct FakeConnect {
    opened: mpsc::Sender<Opened>,
}

#[tonic::async_trait]
impl Connect for FakeConnect {
    async fn execute(
        &self,
        instance: &InstanceId,
        steps: Steps,
        _: Option<Box<Call>>,
        trace: Option<&TraceContext>,
    ) -> Result<Updates, Status> {
        match instance.as_str() {
            "away" => return Err(Fault::new(Reason::PeerUnreachable, "nobody there").into()),
            "broken" => {
                let step = Some(Answer::Accepted(pb::Accepted::default()));
                let accepted = stream::iter([Ok(pb::ExecuteResponse { step })]);
                let defect = stream::poll_fn(|_| panic!("a defect on the way back"));
                return Ok(Box::pin(accepted.chain(defect)));
            }
            _ => {}
        }
        let (say, said) = mpsc::channel(16);
        let opened = Opened {
            instance: instance.clone(),
            steps,
            say,
            trace: trace.cloned(),
        };
        self.opened
            .send(opened)
            .await
            .map_err(|_| Status::internal("test over"))?;
        Ok(Box::pin(ReceiverStream::new(said)))
    }
}

struct NoParents;

impl Parents for NoParents {
    fn parent(&self, _: &str) -> Option<Parent> {
        None
    }

    fn lives(&self, _: &str) -> bool {
        false
    }

    fn over(&self) -> tokio::sync::broadcast::Receiver<Arc<str>> {
        tokio::sync::broadcast::Sender::new(1).subscribe()
    }
}

pub(super) struct Bench {
    pub(super) home: Home,
    pub(super) route: Arc<FakeRoute>,
    opened: mpsc::Receiver<Opened>,
}

impl Bench {
    pub(super) fn over(journal: Journal, replay: Replay, names: &[&str]) -> Self {
        let route = Arc::new(FakeRoute::of(names, false));
        let (opens, opened) = mpsc::channel(16);
        let config = HomeConfig {
            instance: "home".parse().unwrap(),
            own: own(),
            lost_after: super::config::LOST_AFTER,
            descendants: crate::task::descendants::DESCENDANTS_MAX,
        };
        let routes: Arc<dyn Route> = route.clone();
        let connect: Arc<dyn Connect> = Arc::new(FakeConnect { opened: opens });
        let nurseries = vec![Nursery::here(), Nursery::here()];
        let home = Home::on(
            config,
            (journal, replay),
            &routes,
            &connect,
            Arc::new(NoParents),
            nurseries,
        );
        Self {
            home: home.unwrap(),
            route,
            opened,
        }
    }

    pub(super) fn memory(names: &[&str]) -> Self {
        Self::over(
            Journal::memory(),
            Replay::new(&"home".parse().unwrap(), 2),
            names,
        )
    }

    pub(super) fn on_disk(dir: &Path, names: &[&str]) -> Self {
        Self::kept(dir, Keeping::default(), names)
    }

    /// With an archive, and nothing that has ended in memory longer than needed.
    pub(super) fn archived(dir: &Path, names: &[&str]) -> Self {
        Self::keeping(dir, 0, names)
    }

    /// With an archive, and so many finished tasks in memory.
    pub(super) fn keeping(dir: &Path, in_memory: usize, names: &[&str]) -> Self {
        let path = dir.join("archive.redb");
        let config = ArchiveConfig::new(path, Duration::from_secs(3600));
        let keeping = Keeping {
            archive: Some(Archive::start(config, "home").unwrap()),
            in_memory: 2 * in_memory,
            ..Default::default()
        };
        Self::kept(dir, keeping, names)
    }

    fn kept(dir: &Path, keeping: Keeping, names: &[&str]) -> Self {
        Self::on_threads(2, dir, keeping, names)
    }

    pub(super) fn on_threads(threads: usize, dir: &Path, keeping: Keeping, names: &[&str]) -> Self {
        let mut replay = Replay::keeping(&"home".parse().unwrap(), threads, keeping);
        let config = JournalConfig {
            segment_bytes: 64 << 10,
            ..JournalConfig::default()
        };
        let journal =
            Journal::open(dir, config, |lsn, record| replay.record(lsn, &record)).unwrap();
        Self::over(journal, replay, names)
    }

    async fn submit(&self, options: pb::TaskOptions) -> TaskId {
        let asked = Submission {
            spec: spec(options),
            caller: own(),
            trace: Some(traced()),
        };
        self.home
            .submit(asked, 1)
            .await
            .unwrap()
            .task
            .id
            .parse()
            .unwrap()
    }

    async fn run(&self) -> TaskUpdates {
        let asked = Submission {
            spec: spec(pb::TaskOptions::default()),
            caller: own(),
            trace: None,
        };
        self.home.run(asked, 0).await.unwrap().task
    }

    /// Whether nothing is given out, with all the time that it takes.
    pub(super) async fn idle(&mut self) -> bool {
        tokio::time::timeout(Duration::from_secs(1), self.opened.recv())
            .await
            .is_err()
    }

    pub(super) async fn next(&mut self) -> Opened {
        self.opened.recv().await.unwrap()
    }

    pub(super) async fn watch(&self, id: &TaskId, after_seq: u64) -> Result<TaskUpdates, Fault> {
        self.home.watch(id, &Arc::new(own()), after_seq, true).await
    }
}

pub(super) fn result() -> Update {
    Update::Result(pb::TaskResult {
        parts: vec![text("done")],
        ..Default::default()
    })
}

async fn shown(updates: &mut TaskUpdates) -> Shown {
    updates.next().await.unwrap().unwrap().update.unwrap()
}

pub(super) async fn event(updates: &mut TaskUpdates) -> pb::TaskEvent {
    let update = shown(updates).await;
    let Shown::Event(event) = update else {
        panic!("not an event: {update:?}")
    };
    event
}

pub(super) async fn snapshot(updates: &mut TaskUpdates) -> pb::Task {
    let update = shown(updates).await;
    let Shown::Task(task) = update else {
        panic!("not the task: {update:?}")
    };
    *task
}

#[tokio::test(start_paused = true)]
async fn a_run_shows_the_task_its_events_and_ends() {
    let mut bench = Bench::memory(&["i1"]);
    let mut updates = bench.run().await;
    assert_eq!(
        snapshot(&mut updates).await.state(),
        pb::TaskState::Submitted
    );
    let mut opened = bench.next().await;
    let Step::Start(start) = opened.step().await else {
        panic!("no start")
    };
    assert!((3599..=3600).contains(&start.remaining.unwrap().seconds));
    let handle = start.handle.unwrap();
    assert_eq!((handle.attempt, handle.inputs[0].parts.len()), (1, 1));
    opened.accept().await;
    opened.update(0, Update::Transient(text("tok"))).await;
    opened
        .update(1, Update::Progress(pb::Progress::default()))
        .await;
    opened.update(2, result()).await;
    let mut seqs = Vec::new();
    let mut transients = 0;
    while let Some(update) = updates.next().await {
        match update.unwrap().update.unwrap() {
            Shown::Event(event) => seqs.push((event.seq, event.state())),
            Shown::Transient(_) => transients += 1,
            Shown::Task(_) | Shown::Keepalive(_) => panic!("neither came"),
        }
    }
    let (working, completed) = (pb::TaskState::Working, pb::TaskState::Completed);
    assert_eq!(seqs, [(1, working), (2, working), (3, completed)]);
    assert_eq!(transients, 1);
    opened.acked(2).await;
    assert!(
        opened.steps.next().await.is_none(),
        "let go after the last acknowledgement"
    );
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_is_resumed_after_the_last_update() {
    let mut bench = Bench::memory(&["i1"]);
    let id = bench.submit(pb::TaskOptions::default()).await;
    let mut opened = bench.next().await;
    assert!(matches!(opened.step().await, Step::Start(_)));
    opened.accept().await;
    opened
        .update(1, Update::Progress(pb::Progress::default()))
        .await;
    opened.acked(1).await;
    opened.breaks().await;
    let mut again = bench.next().await;
    let Step::Resume(resume) = again.step().await else {
        panic!("no resume")
    };
    assert_eq!((resume.attempt, resume.after_update), (1, 1));
    // The executor repeats what was on its way.
    again
        .update(1, Update::Progress(pb::Progress::default()))
        .await;
    again.update(3, result()).await;
    let mut again = bench.next().await;
    assert!(matches!(again.step().await, Step::Resume(resume) if resume.after_update == 1));
    again.update(2, result()).await;
    again.acked(2).await;
    let (task, _) = bench.home.get(&id, &Arc::new(own()), true).await.unwrap();
    assert_eq!((task.state(), task.last_seq), (pb::TaskState::Completed, 3));
    assert_eq!(task.result.unwrap().parts.len(), 1);
    assert_eq!(task.messages.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_sent_or_was_refused_goes_elsewhere() {
    let mut bench = Bench::memory(&["away", "i1", "i2"]);
    bench.submit(pb::TaskOptions::default()).await;
    let mut first = bench.next().await;
    assert_eq!(first.instance.as_str(), "i1");
    assert!(matches!(first.step().await, Step::Start(_)));
    let refused = pb::Refused {
        reason: "SLOTS_FULL".into(),
        retry_after: None,
    };
    first.say(Answer::Refused(refused)).await;
    let mut second = bench.next().await;
    assert_eq!(second.instance.as_str(), "i2");
    let Step::Start(start) = second.step().await else {
        panic!("no start")
    };
    assert_eq!(start.handle.unwrap().attempt, 3);
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_and_not_begun_goes_elsewhere_without_an_error() {
    let mut bench = Bench::memory(&["i1", "i2"]);
    let mut updates = bench.run().await;
    snapshot(&mut updates).await;
    let mut first = bench.next().await;
    assert!(matches!(first.step().await, Step::Start(_)));
    first.accept().await;
    assert_eq!(event(&mut updates).await.state(), pb::TaskState::Working);
    let refused = pb::Refused {
        reason: "AGENT_UNAVAILABLE".into(),
        retry_after: None,
    };
    first.say(Answer::Refused(refused)).await;
    assert_eq!(event(&mut updates).await.state(), pb::TaskState::Submitted);
    let mut second = bench.next().await;
    assert_ne!(second.instance, first.instance);
    assert!(matches!(second.step().await, Step::Start(_)));
    second.accept().await;
    assert_eq!(event(&mut updates).await.state(), pb::TaskState::Working);
    second.update(1, result()).await;
    assert_eq!(event(&mut updates).await.state(), pb::TaskState::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_first_word_is_waited_for_as_long_as_the_rule_says_and_a_little() {
    for (patience, waited) in [(None, 20), (Some(3), 4), (Some(60), 61)] {
        let mut bench = Bench::memory(&[]);
        *bench.route.patience.lock().unwrap() = patience.map(Duration::from_secs);
        bench.route.set(&["i1", "i2"], true);
        let began = Instant::now();
        let _updates = bench.run().await;
        // The streams are open, and nobody says anything.
        let first = bench.next().await;
        let second = loop {
            let opened = bench.next().await;
            if opened.instance != first.instance {
                break opened;
            }
        };
        assert_eq!(second.instance.as_str(), "i2");
        assert_eq!(began.elapsed().as_secs(), waited, "{patience:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_whose_carrier_dies_is_lost_long_before_its_deadline() {
    let bench = Bench::memory(&["broken"]);
    let began = Instant::now();
    let mut updates = bench.run().await;
    snapshot(&mut updates).await;
    let working = event(&mut updates).await;
    assert_eq!(working.state(), pb::TaskState::Working);
    let ended = loop {
        if let Shown::Event(event) = shown(&mut updates).await {
            break event;
        }
    };
    assert_eq!(ended.state(), pb::TaskState::Failed, "{ended:?}");
    // The sweep would find it up to 5 s later; its own last word is at once.
    assert!(began.elapsed() < Duration::from_secs(46));
}

#[tokio::test(start_paused = true)]
async fn a_quick_answer_takes_two_syncs() {
    let journal = Journal::memory();
    let replay = Replay::new(&"home".parse().unwrap(), 2);
    let mut bench = Bench::over(journal.clone(), replay, &["i1"]);
    for quick in [true, false] {
        let before = journal.stats().syncs;
        let mut updates = bench.run().await;
        snapshot(&mut updates).await;
        let mut opened = bench.next().await;
        assert!(matches!(opened.step().await, Step::Start(_)));
        opened.accept().await;
        if quick {
            sleep(Duration::from_millis(1)).await;
        } else {
            let began = Instant::now();
            let working = event(&mut updates).await;
            assert_eq!(working.state(), pb::TaskState::Working);
            assert!(began.elapsed() < Duration::from_millis(5));
        }
        opened.update(1, result()).await;
        opened.acked(1).await;
        let syncs = if quick { 2 } else { 3 };
        assert_eq!(journal.stats().syncs - before, syncs);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_task_goes_out_when_an_agent_comes() {
    let mut bench = Bench::memory(&[]);
    let id = bench.submit(pb::TaskOptions::default()).await;
    bench.route.set(&["i1"], false);
    let mut opened = bench.next().await;
    assert!(matches!(opened.step().await, Step::Start(_)));
    let unknown = |boot_id: &str| pb::AttemptUnknown {
        boot_id: boot_id.into(),
        never_begun: true,
    };
    // The run that was there at the dispatch has never had it: nothing was lost.
    opened.say(Answer::AttemptUnknown(unknown("boot"))).await;
    let mut opened = bench.next().await;
    assert!(matches!(opened.step().await, Step::Start(_)));
    let mut updates = bench.watch(&id, 0).await.unwrap();
    snapshot(&mut updates).await;
    // Another run knows nothing of what an earlier one began.
    opened.say(Answer::AttemptUnknown(unknown("later"))).await;
    assert_eq!(event(&mut updates).await.state(), pb::TaskState::Failed);
    assert!(updates.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_reaches_the_executor() {
    let mut bench = Bench::memory(&["i1"]);
    let id = bench.submit(pb::TaskOptions::default()).await;
    let mut opened = bench.next().await;
    opened.accept().await;
    assert!(matches!(opened.step().await, Step::Start(_)));
    let me = Arc::new(own());
    let task = bench.home.cancel(&id, &me, "enough".into()).await.unwrap();
    assert!(task.cancel_requested);
    let Step::Abort(abort) = opened.step().await else {
        panic!("no abort")
    };
    assert_eq!(abort.reason, "enough");
    opened
        .update(1, Update::Canceled(pb::Canceled::default()))
        .await;
    opened.acked(1).await;
    let (task, _) = bench.home.get(&id, &me, false).await.unwrap();
    assert!(task.state() == pb::TaskState::Canceled && task.cancel_confirmed);
}

#[tokio::test(start_paused = true)]
async fn watchers_start_anywhere_and_strangers_see_nothing() {
    let mut bench = Bench::memory(&["i1"]);
    let id = bench.submit(pb::TaskOptions::default()).await;
    let mut opened = bench.next().await;
    opened.accept().await;
    assert!(matches!(opened.step().await, Step::Start(_)));
    for number in 1..=600 {
        opened
            .update(number, Update::Progress(pb::Progress::default()))
            .await;
    }
    opened.acked(600).await;
    let mut updates = bench.watch(&id, 5).await.unwrap();
    assert_eq!(snapshot(&mut updates).await.last_seq, 601);
    for seq in 6..=601 {
        assert_eq!(event(&mut updates).await.seq, seq);
    }
    assert!(matches!(shown(&mut updates).await, Shown::Keepalive(alive) if alive.last_seq == 601));
    let ahead = bench.watch(&id, 602).await.err().unwrap();
    assert_eq!(ahead.reason, Reason::SequenceAhead);
    let stranger: SpiffeId = "spiffe://attache.local/ns/default/agent/other"
        .parse()
        .unwrap();
    let (stranger, me) = (Arc::new(stranger), Arc::new(own()));
    let hidden = bench.home.get(&id, &stranger, false).await.unwrap_err();
    let missing = TaskId {
        uuid: uuid::Uuid::nil(),
        ..id.clone()
    };
    assert_eq!(
        bench.home.get(&missing, &me, false).await.unwrap_err(),
        hidden
    );
    let elsewhere = TaskId {
        home: "other".parse().unwrap(),
        ..id.clone()
    };
    let fault = bench.home.get(&elsewhere, &me, false).await.unwrap_err();
    assert_eq!(fault.reason, Reason::HomeElsewhere);
    // One that is behind has events before it that it did not read yet.
    let mut behind = bench.watch(&id, 0).await.unwrap();
    snapshot(&mut behind).await;
    assert_eq!(event(&mut behind).await.seq, 1);
    bench.home.drain().await;
    for (updates, cursor) in [(&mut updates, 601), (&mut behind, 1)] {
        let said = shown(updates).await;
        assert!(matches!(said, Shown::Keepalive(alive) if alive.last_seq == cursor));
        let fault = updates.next().await.unwrap().unwrap_err();
        assert_eq!(fault.reason, Reason::Draining);
        assert!(updates.next().await.is_none());
    }
    let asked = Submission {
        spec: spec(pb::TaskOptions::default()),
        caller: own(),
        trace: None,
    };
    assert_eq!(
        bench.home.submit(asked, 0).await.unwrap_err().reason,
        Reason::Draining
    );
}

#[tokio::test(start_paused = true)]
async fn artifacts_are_read_whole_or_from_an_offset() {
    let mut bench = Bench::memory(&["i1"]);
    let id = bench.submit(pb::TaskOptions::default()).await;
    let opened = bench.next().await;
    opened.accept().await;
    let chunk = |append, part| pb::ArtifactChunk {
        artifact_id: "a".into(),
        part: Some(part),
        append,
        ..Default::default()
    };
    for (number, append, part) in [(1, false, "hä"), (2, true, "llo "), (3, false, "world")] {
        opened
            .update(number, Update::Artifact(chunk(append, text(part))))
            .await;
    }
    let mut opened = opened;
    opened.acked(3).await;
    let me = Arc::new(own());
    let whole = "hällo world";
    for offset in [0_usize, 1, 3, 4, 8, 12, 99] {
        let stream = bench
            .home
            .read_artifact(&id, &me, "a", offset as u64)
            .await
            .unwrap();
        let pieces: Vec<_> = stream.collect().await;
        let read: String = pieces
            .into_iter()
            .map(|piece| said(&piece.unwrap()).to_owned())
            .collect();
        assert_eq!(read, whole.get(offset..).unwrap_or(""), "from {offset}");
    }
    let missing = bench
        .home
        .read_artifact(&id, &me, "b", 0)
        .await
        .err()
        .unwrap();
    assert_eq!(missing.reason, Reason::ArtifactNotFound);
    let (task, truncated) = bench.home.get(&id, &me, true).await.unwrap();
    assert!(!truncated);
    let parts: Vec<_> = task.artifacts[0].parts.iter().map(said).collect();
    assert_eq!(parts, ["hällo ", "world"]);
}

fn said(part: &pb::Part) -> &str {
    match &part.content {
        Some(pb::part::Content::Text(text)) => text,
        other => panic!("not text: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn lists_are_newest_first_and_paged() {
    let bench = Bench::memory(&[]);
    let mut ids = Vec::new();
    for thread in 0..7 {
        let asked = Submission {
            spec: spec(pb::TaskOptions::default()),
            caller: own(),
            trace: None,
        };
        ids.push(bench.home.submit(asked, thread).await.unwrap().task.id);
    }
    ids.reverse();
    let mut query = ListQuery {
        viewer: Arc::new(own()),
        filter: pb::ListTasksRequest::default(),
        before: None,
        limit: 3,
    };
    let mut seen = Vec::new();
    loop {
        let page = bench.home.list(query.clone()).await.unwrap();
        seen.extend(page.tasks.into_iter().map(|task| task.id));
        query.before = page.next;
        assert_eq!(page.next.is_some(), seen.len() < 7);
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(seen, ids);
}

#[tokio::test]
async fn a_restart_goes_on_where_the_home_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::on_disk(dir.path(), &["i1"]);
    let id = bench.submit(pb::TaskOptions::default()).await;
    let mut opened = bench.next().await;
    assert_eq!(opened.trace, Some(traced()));
    assert!(matches!(opened.step().await, Step::Start(_)));
    opened.accept().await;
    opened
        .update(
            1,
            Update::Message(pb::Message {
                parts: vec![text("hi")],
                ..Default::default()
            }),
        )
        .await;
    opened.acked(1).await;
    bench.route.set(&[], false);
    let waiting = bench.submit(pb::TaskOptions::default()).await;
    let before = bench.home.get(&id, &Arc::new(own()), true).await.unwrap();
    bench.home.drain().await;
    bench.home.close(Duration::from_secs(5)).await;

    let mut bench = Bench::on_disk(dir.path(), &[]);
    let me = Arc::new(own());
    let mut resumed = bench.next().await;
    let Step::Resume(resume) = resumed.step().await else {
        panic!("no resume")
    };
    assert_eq!(
        (resume.task_id, resume.attempt, resume.after_update),
        (id.to_string(), 1, 1)
    );
    assert_eq!(resumed.trace, Some(traced()), "the trace goes on");
    assert_eq!(bench.home.get(&id, &me, true).await.unwrap(), before);
    resumed.update(2, result()).await;
    let mut updates = bench.watch(&id, 0).await.unwrap();
    snapshot(&mut updates).await;
    for seq in 1..=3 {
        assert_eq!(event(&mut updates).await.seq, seq);
    }
    assert!(updates.next().await.is_none());
    bench.route.set(&["i2"], false);
    let mut opened = bench.next().await;
    let Step::Start(start) = opened.step().await else {
        panic!("no start")
    };
    assert_eq!(start.handle.unwrap().task.unwrap().id, waiting.to_string());
    assert_eq!(opened.trace, Some(traced()));
    bench.home.close(Duration::from_secs(5)).await;
}

/// Waits until a condition holds; what it looks at moves by itself.
pub(super) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < limit, "not within a minute: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

impl Bench {
    /// Runs a task to its end, with two messages and an artifact on the way.
    async fn finish(&mut self, size: usize) -> TaskId {
        let id = self.submit(pb::TaskOptions::default()).await;
        let mut opened = self.next().await;
        assert!(matches!(opened.step().await, Step::Start(_)));
        opened.accept().await;
        let message = |said: &str| {
            Update::Message(pb::Message {
                parts: vec![text(said)],
                ..Default::default()
            })
        };
        let chunk = Update::Artifact(pb::ArtifactChunk {
            artifact_id: "a".into(),
            part: Some(text(&"x".repeat(size))),
            ..Default::default()
        });
        let updates = [message("one"), chunk, message("two"), result()];
        for (number, update) in (1..).zip(updates) {
            opened.update(number, update).await;
        }
        opened.acked(4).await;
        id
    }

    /// All that anybody may read of a task.
    async fn read(&self, id: &TaskId) -> (pb::Task, pb::Task, Vec<pb::TaskEvent>, String) {
        let me = Arc::new(own());
        let (basic, _) = self.home.get(id, &me, false).await.unwrap();
        let (full, truncated) = self.home.get(id, &me, true).await.unwrap();
        assert!(!truncated);
        let mut updates = self.watch(id, 0).await.unwrap();
        assert_eq!(snapshot(&mut updates).await, basic);
        let mut events = Vec::new();
        while let Some(update) = updates.next().await {
            let Shown::Event(event) = update.unwrap().update.unwrap() else {
                panic!("only events")
            };
            events.push(event);
        }
        let artifact = self.home.read_artifact(id, &me, "a", 1).await.unwrap();
        let pieces: Vec<_> = artifact.collect().await;
        let pieces = pieces
            .into_iter()
            .map(|piece| said(&piece.unwrap()).to_owned());
        (basic, full, events, pieces.collect())
    }

    pub(super) async fn all(&self, limit: usize) -> Vec<String> {
        let mut query = ListQuery {
            viewer: Arc::new(own()),
            filter: pb::ListTasksRequest::default(),
            before: None,
            limit,
        };
        let mut seen = Vec::new();
        loop {
            let page = self.home.list(query.clone()).await.unwrap();
            seen.extend(page.tasks.into_iter().map(|task| task.id));
            query.before = page.next;
            if page.next.is_none() {
                return seen;
            }
        }
    }

    pub(super) fn in_memory(&self) -> usize {
        self.home.counts().iter().map(|shard| shard.ended).sum()
    }

    /// Waits until the archive has so many tasks, and memory none that has ended. What is told of
    /// memory is as of a shard's last turn: before the first, nothing.
    pub(super) async fn moved(&self, tasks: u64) {
        let archive = self.home.archive().expect("the bench has one");
        until("all that ended is in the archive", || {
            archive.stats().tasks == tasks && self.in_memory() == 0
        })
        .await;
    }

    pub(super) async fn stop(self) {
        self.home.drain().await;
        self.home.close(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn what_ended_reads_the_same_from_memory_from_the_archive_and_after_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::on_disk(dir.path(), &["i1"]);
    let mut ids = Vec::new();
    for size in [3, 100_000, 7] {
        ids.push(bench.finish(size).await);
    }
    let mut before = Vec::new();
    for id in &ids {
        before.push(bench.read(id).await);
    }
    let listed = bench.all(2).await;
    bench.stop().await;

    // It replays three finished tasks, and moves them.
    let mut bench = Bench::archived(dir.path(), &["i1"]);
    bench.moved(3).await;
    for (id, before) in ids.iter().zip(&before) {
        assert_eq!(&bench.read(id).await, before);
    }
    assert_eq!(bench.all(2).await, listed);
    check_refusals(&bench, &ids[0]).await;

    // One more, which leaves by itself; old and new make one list.
    let fresh = bench.finish(1).await;
    bench.route.set(&[], false);
    let open = bench.submit(pb::TaskOptions::default()).await;
    bench.moved(4).await;
    let mut all = vec![open.to_string(), fresh.to_string()];
    all.extend(listed);
    for limit in [1, 2, 10] {
        assert_eq!(bench.all(limit).await, all);
    }
    bench.stop().await;
    let bench = Bench::archived(dir.path(), &[]);
    assert_eq!(bench.all(2).await, all);
    assert_eq!(&bench.read(&ids[1]).await, &before[1]);
    bench.stop().await;
}

/// What is refused of a finished task is refused of an archived one in the same words.
async fn check_refusals(bench: &Bench, id: &TaskId) {
    // Not yours, or not there: the same answer as ever.
    let stranger: Arc<SpiffeId> = Arc::new(
        "spiffe://attache.local/ns/default/agent/other"
            .parse()
            .unwrap(),
    );
    let me = Arc::new(own());
    let missing = TaskId {
        uuid: uuid::Uuid::nil(),
        ..id.clone()
    };
    let hidden = bench.home.get(&missing, &me, true).await.unwrap_err();
    assert_eq!(hidden.reason, Reason::TaskNotFound);
    let faults = [
        bench.home.get(id, &stranger, true).await.err(),
        bench.home.watch(id, &stranger, 0, false).await.err(),
        bench.home.read_artifact(id, &stranger, "a", 0).await.err(),
        bench.home.cancel(id, &stranger, String::new()).await.err(),
    ];
    for fault in faults {
        assert_eq!(fault, Some(hidden.clone()));
    }
    let over = bench.home.cancel(id, &me, String::new()).await;
    assert_eq!(over.unwrap_err().reason, Reason::TaskNotCancelable);
    let ahead = bench.watch(id, 6).await.err().unwrap();
    assert_eq!(ahead.reason, Reason::SequenceAhead);
    let mut updates = bench.watch(id, 5).await.unwrap();
    snapshot(&mut updates).await;
    assert!(updates.next().await.is_none(), "it has seen all");
    let artifact = bench.home.read_artifact(id, &me, "b", 0).await;
    assert_eq!(artifact.err().unwrap().reason, Reason::ArtifactNotFound);
}

#[tokio::test]
async fn a_watcher_that_is_behind_sees_no_gap_when_its_task_moves() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::archived(dir.path(), &["i1"]);
    let mut updates = bench.run().await;
    let id: TaskId = snapshot(&mut updates).await.id.parse().unwrap();
    let mut opened = bench.next().await;
    assert!(matches!(opened.step().await, Step::Start(_)));
    opened.accept().await;
    for number in 1..=999 {
        opened
            .update(number, Update::Progress(pb::Progress::default()))
            .await;
    }
    // It has begun in memory, and has some of it.
    for seq in 1..=10 {
        assert_eq!(event(&mut updates).await.seq, seq);
    }
    opened.update(1000, result()).await;
    opened.acked(1000).await;
    bench.moved(1).await;
    for seq in 11..=1001 {
        assert_eq!(event(&mut updates).await.seq, seq);
    }
    assert!(updates.next().await.is_none(), "the end");
    let mut again = bench.watch(&id, 900).await.unwrap();
    assert_eq!(snapshot(&mut again).await.last_seq, 1001);
    for seq in 901..=1001 {
        assert_eq!(event(&mut again).await.seq, seq);
    }
    assert!(again.next().await.is_none(), "the end");
}

#[tokio::test]
async fn a_damaged_archive_loses_nothing_that_is_not_in_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("archive.redb"), vec![7; 9000]).unwrap();
    let mut bench = Bench::archived(dir.path(), &["i1"]);
    let id = bench.finish(10).await;
    until("it was tried", || {
        bench.home.archive().unwrap().stats().failures > 0
    })
    .await;
    let before = bench.read(&id).await;
    assert_eq!(bench.in_memory(), 1, "it stays");
    // Whether it has another task is not known, and that is what it says.
    let other = TaskId {
        uuid: uuid::Uuid::nil(),
        ..id.clone()
    };
    let fault = bench.home.get(&other, &Arc::new(own()), false).await;
    assert_eq!(fault.unwrap_err().reason, Reason::StorageFailed);
    bench.stop().await;
    std::fs::remove_file(dir.path().join("archive.redb")).unwrap();
    let bench = Bench::archived(dir.path(), &[]);
    bench.moved(1).await;
    assert_eq!(bench.read(&id).await, before);
    bench.stop().await;
}

#[tokio::test]
async fn a_log_shrinks_though_a_task_lives_long() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::archived(dir.path(), &["i1"]);
    let long = bench.submit(pb::TaskOptions::default()).await;
    let mut opened = bench.next().await;
    assert!(matches!(opened.step().await, Step::Start(_)));
    opened.accept().await;
    for number in 1..=100 {
        let message = pb::Message {
            parts: vec![text(&format!("{number}"))],
            ..Default::default()
        };
        opened.update(number, Update::Message(message)).await;
    }
    opened.acked(100).await;
    // Twenty segments, each of them with a task that ended.
    for _ in 0..20 {
        bench.finish(60 << 10).await;
    }
    let segments = || {
        let files = std::fs::read_dir(dir.path()).unwrap().flatten();
        let names = files.map(|file| file.file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.ends_with(".log")).collect();
        names.sort();
        names
    };
    until("old segments are gone", || {
        let names = segments();
        names.len() <= 4 && names[0] != "00000000000000000001.log"
    })
    .await;
    let me = Arc::new(own());
    let before = bench.home.get(&long, &me, true).await.unwrap();
    bench.stop().await;

    let mut bench = Bench::archived(dir.path(), &[]);
    assert_eq!(bench.home.get(&long, &me, true).await.unwrap(), before);
    let mut resumed = bench.next().await;
    assert!(matches!(resumed.step().await, Step::Resume(resume) if resume.after_update == 100));
    resumed.update(101, result()).await;
    let mut updates = bench.watch(&long, 0).await.unwrap();
    snapshot(&mut updates).await;
    for seq in 1..=102 {
        assert_eq!(event(&mut updates).await.seq, seq);
    }
    assert!(updates.next().await.is_none(), "the end");
    bench.stop().await;
}

#[tokio::test]
async fn after_a_crash_right_after_the_move_a_task_is_in_both_and_shown_once() {
    let dir = tempfile::tempdir().unwrap();
    let saved = tempfile::tempdir().unwrap();
    let mut bench = Bench::on_disk(dir.path(), &["i1"]);
    let ids = [bench.finish(10).await, bench.finish(70_000).await];
    let before = [bench.read(&ids[0]).await, bench.read(&ids[1]).await];
    let listed = bench.all(1).await;
    bench.stop().await;
    let copy = |from: &Path, to: &Path| {
        for file in std::fs::read_dir(from).unwrap().flatten() {
            if file.file_name().to_str().unwrap().ends_with(".log") {
                std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
    };
    copy(dir.path(), saved.path());
    let bench = Bench::archived(dir.path(), &[]);
    bench.moved(2).await;
    bench.stop().await;
    // The log as it was before it was told.
    for file in std::fs::read_dir(dir.path()).unwrap().flatten() {
        if file.file_name().to_str().unwrap().ends_with(".log") {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    copy(saved.path(), dir.path());
    for in_memory in [10, 0] {
        let bench = Bench::keeping(dir.path(), in_memory, &[]);
        until("they are where they belong", || {
            bench.in_memory() == in_memory.min(2)
        })
        .await;
        for limit in [1, 5] {
            assert_eq!(bench.all(limit).await, listed);
        }
        for (id, before) in ids.iter().zip(&before) {
            assert_eq!(&bench.read(id).await, before);
        }
        assert_eq!(bench.home.archive().unwrap().stats().tasks, 2);
        bench.stop().await;
    }
}
