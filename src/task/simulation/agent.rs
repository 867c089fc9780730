//! The agent beside each sidecar: a process of its own, whose handlers say what they are, so that
//! every event can be traced back to the run that made it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tonic::Status;

use crate::domain::Reason;
use crate::pb;
use crate::pb::handle_response::Update;
use crate::pb::part::Content;
use crate::runtime::Stop;
use crate::task::executor::{CANCEL_GRACE, HandleStream, HandlerError, HandlerLink};
use crate::telemetry::TraceContext;

use super::{World, callbacks, load};

/// Work that may not run twice, work that may, work that has others work, and being told of work.
pub(super) const SKILLS: [&str; 4] = ["work.once", "work.again", "work.tree", "work.told"];

/// Most questions of a task.
const QUESTIONS: usize = 3;

/// How far a timer may be off, and how long a handler that is not heard yet may take.
const SLACK: Duration = Duration::from_secs(1);

/// Whether the work may run twice.
pub(super) fn is_idempotent(skill: &str) -> bool {
    skill == SKILLS[1]
}

/// What a handler says at one step of its work: which run it is, and which of its words this is.
pub(super) fn words(run: usize, word: usize) -> String {
    format!("run {run} word {word}")
}

/// How inputs begin; all of them are large.
pub(super) const WANTED: &str = "what is wanted";

/// The same read back.
pub(super) fn read(words: &str) -> Option<(usize, usize)> {
    let (run, word) = words.strip_prefix("run ")?.split_once(" word ")?;
    Some((run.parse().ok()?, word.parse().ok()?))
}

/// An agent's process.
pub(super) struct Agent {
    world: Weak<World>,
    node: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Cancelled when the process ends; `None` while there is none.
    alive: Option<Stop>,
    /// How running handlers are told to stop, where they listen.
    listening: BTreeMap<(String, u32), Stop>,
}

/// One handler at work.
struct Working {
    world: Arc<World>,
    run: usize,
    alive: Stop,
    asked: Stop,
    obeys: bool,
    steps: VecDeque<(Duration, Next)>,
    _over: Over,
}

/// What comes after a pause.
enum Next {
    Say(Update),
    /// Has a child work.
    Delegate(Box<pb::HandleRequest>),
    Fail(HandlerError),
}

impl Agent {
    pub(super) fn new(world: Weak<World>, node: usize) -> Self {
        let state = State {
            alive: Some(Stop::new()),
            listening: BTreeMap::new(),
        };
        Self {
            world,
            node,
            state: Mutex::new(state),
        }
    }

    /// The process ends, and all that it works on is lost.
    pub(super) fn die(&self) {
        if let Some(alive) = self.state.lock().alive.take() {
            alive.cancel();
        }
    }

    /// It is there again.
    pub(super) fn come_back(&self) {
        self.state.lock().alive.get_or_insert_default();
    }

    /// Cancelled when the process ends; `None`: it has.
    pub(super) fn lives(&self) -> Option<Stop> {
        self.state.lock().alive.clone()
    }

    fn alive(&self) -> Result<Stop, HandlerError> {
        self.lives()
            .ok_or_else(|| HandlerError::Unreachable("connection refused".into()))
    }
}

#[tonic::async_trait]
impl HandlerLink for Agent {
    async fn handle(
        &self,
        request: pb::HandleRequest,
        remaining: Duration,
        _: Option<&TraceContext>,
    ) -> Result<HandleStream, HandlerError> {
        let Some(world) = self.world.upgrade() else {
            return Err(HandlerError::Unreachable("the run is over".into()));
        };
        let alive = self.alive()?;
        let task = request.task.clone().unwrap_or_default();
        let run = world
            .history
            .lock()
            .begin(self.node, &task.id, request.attempt);
        let talk = request.inputs.iter().skip(1);
        let talk = talk.map(|said| said.message_id.clone()).collect();
        world.history.lock().runs[run].talk = talk;
        let given = request.inputs.iter().flat_map(|said| &said.parts);
        for part in given {
            match &part.content {
                Some(Content::Blob(_)) => {
                    let how = format!("I1: run {run} was given a reference for what was said");
                    world.history.lock().breach(how);
                }
                Some(Content::Text(said))
                    if said.starts_with(WANTED)
                        && *said != format!("{WANTED} in {}", task.context_id) =>
                {
                    let how = format!("I1: run {run} was given {said:?}");
                    world.history.lock().breach(how);
                }
                _ => {}
            }
        }
        let over = Over {
            world: Arc::clone(&world),
            run,
            due: Instant::now() + remaining + CANCEL_GRACE + SLACK,
        };
        if world.chance(0.03) {
            world.history.lock().runs[run].void = true;
            return Err(HandlerError::Status(not_begun()));
        }
        let late = world.chance(0.05);
        sleep(world.within(0, if late { 2000 } else { 5 })).await;
        if alive.is_cancelled() {
            return Err(HandlerError::Lost("the connection was reset".into()));
        }
        let asked = Stop::new();
        let name = (task.id.clone(), request.attempt);
        if world.chance(0.8) {
            self.state.lock().listening.insert(name, asked.clone());
        }
        let working = Working {
            run,
            alive,
            asked,
            obeys: world.chance(0.75),
            steps: plan(&world, run, &task.skill, request),
            _over: over,
            world,
        };
        Ok(Box::pin(stream::unfold(Some(working), next)))
    }

    async fn cancel(&self, request: pb::CancelRequest) -> Result<(), Status> {
        let name = (request.task_id, request.attempt);
        let asked = self.state.lock().listening.remove(&name);
        match asked {
            Some(asked) => {
                asked.cancel();
                Ok(())
            }
            None => Err(Status::unimplemented("this handler cannot be asked")),
        }
    }

    async fn describe(&self) -> Result<Option<pb::AgentCard>, Status> {
        Ok(None)
    }
}

type Said = (Result<pb::HandleResponse, HandlerError>, Option<Working>);

async fn next(working: Option<Working>) -> Option<Said> {
    let mut working = working?;
    loop {
        let (pause, next) = working.steps.pop_front()?;
        tokio::select! {
            biased;
            () = working.alive.cancelled() => {
                let lost = HandlerError::Lost("the connection was reset".into());
                return Some((Err(lost), None));
            }
            () = working.asked.cancelled(), if working.obeys => {
                let canceled = Update::Canceled(pb::Canceled::default());
                return Some((Ok(response(canceled)), None));
            }
            () = sleep(pause) => {}
        }
        match next {
            Next::Say(update) => return Some((Ok(response(update)), Some(working))),
            Next::Fail(error) => return Some((Err(error), None)),
            Next::Delegate(request) => {
                let (world, run) = (Arc::clone(&working.world), working.run);
                let node = world.history.lock().runs[run].node;
                load::child(&world, node, &request);
            }
        }
    }
}

/// What a run will do.
fn plan(
    world: &World,
    run: usize,
    skill: &str,
    request: pb::HandleRequest,
) -> VecDeque<(Duration, Next)> {
    let mut steps = VecDeque::new();
    // Nobody asks for ever.
    let asks = request.inputs.len() < 2 * QUESTIONS && world.chance(0.15);
    let pause = || {
        if world.chance(0.06) {
            world.within(20_000, 75_000)
        } else if world.chance(0.5) {
            world.within(0, 20)
        } else {
            world.within(0, 3000)
        }
    };
    if skill == SKILLS[3] {
        callbacks::heard(world, &request);
        steps.push_back((pause(), taken_note(world, run)));
        return steps;
    }
    if skill == SKILLS[2] {
        for _ in 0..world.roll(1..5) {
            steps.push_back((pause(), Next::Delegate(Box::new(request.clone()))));
        }
    }
    let mut word = 0;
    for _ in 0..world.roll(0..6) {
        let update = match world.roll(0..10) {
            0 => Update::Transient(text(&words(run, 0))),
            1 => Update::Checkpoint(pb::Checkpoint {
                data: words(run, word).into_bytes(),
            }),
            2 | 3 => {
                word += 1;
                Update::Message(pb::Message {
                    parts: vec![text(&words(run, word))],
                    ..Default::default()
                })
            }
            _ => {
                word += 1;
                Update::Progress(pb::Progress {
                    message: words(run, word),
                    ..Default::default()
                })
            }
        };
        steps.push_back((pause(), Next::Say(update)));
    }
    let end = last_word(world, (run, word + 1), asks);
    steps.push_back((pause(), end));
    steps
}

/// How a run ends that is told of something: it never says no, but not always yes. With its process it
/// may be lost as any other.
fn taken_note(world: &World, run: usize) -> Next {
    match world.roll(0..10) {
        0 | 1 => Next::Say(Update::Failure(pb::Failure {
            message: words(run, 1),
            retryable: true,
            ..Default::default()
        })),
        _ => Next::Say(Update::Result(pb::TaskResult {
            parts: vec![text(&words(run, 1))],
            ..Default::default()
        })),
    }
}

fn question(run: usize, word: usize) -> Update {
    Update::Question(pb::Question {
        question_id: format!("of run {run}"),
        message: Some(pb::Message {
            parts: vec![text(&words(run, word))],
            ..Default::default()
        }),
        auth: run.is_multiple_of(2),
        ..Default::default()
    })
}

/// How a run ends, which says its word number `word`.
fn last_word(world: &World, (run, word): (usize, usize), asks: bool) -> Next {
    match world.roll(0..20) {
        _ if asks => Next::Say(question(run, word)),
        0 => Next::Say(Update::Failure(pb::Failure {
            message: words(run, word),
            ..Default::default()
        })),
        1 => Next::Say(Update::Failure(pb::Failure {
            reason: Reason::AgentUnavailable.label().into(),
            code: tonic::Code::Unavailable.into(),
            message: words(run, word),
            ..Default::default()
        })),
        2 => Next::Fail(HandlerError::Status(Status::internal("it fell over"))),
        3 => Next::Fail(HandlerError::Lost("it fell over".into())),
        4 => Next::Say(Update::Delegation(pb::Delegation {
            to: Some(pb::AgentSkill {
                // Whoever has not had it yet.
                agent: String::new(),
                skill: SKILLS[world.roll(0..2)].into(),
            }),
            input: Vec::new(),
        })),
        _ => Next::Say(Update::Result(pb::TaskResult {
            parts: vec![text(&words(run, word))],
            ..Default::default()
        })),
    }
}

/// Notes that a run is over, however it ends.
struct Over {
    world: Arc<World>,
    run: usize,
    /// No run lasts longer than its deadline and the grace of one that is asked to stop.
    due: Instant,
}

impl Drop for Over {
    fn drop(&mut self) {
        let mut history = self.world.history.lock();
        history.runs[self.run].over = true;
        history.note(format_args!("run {} is over", self.run));
        if Instant::now() > self.due {
            let how = format!("I11: run {} lasted beyond its deadline", self.run);
            history.breach(how);
        }
    }
}

fn response(update: Update) -> pb::HandleResponse {
    pb::HandleResponse {
        update: Some(update),
    }
}

pub(super) fn text(words: &str) -> pb::Part {
    pb::Part {
        content: Some(Content::Text(words.into())),
        ..Default::default()
    }
}

fn not_begun() -> Status {
    let mut status = Status::unavailable("not now");
    let metadata = status.metadata_mut();
    metadata.insert("attache-not-processed", "1".parse().unwrap());
    status
}
