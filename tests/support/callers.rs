//! Callers at a fixed pace: a call goes out when it is due, however long those before it take, so that
//! a slow instance shows in latency and not in fewer calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use attache::{
    pb::{self, TaskState, codec::Protobuf, part::Content, task_event::Kind, task_update::Update},
    wire::status::reason_of,
};
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tonic::{Request, Status, client::Grpc, metadata::MetadataValue};

use super::{
    client::{self, Local, Way},
    wait::eventually,
};

/// Instead of a skill: no task, but a call that passes to the agent [`WORKER`].
pub const PASSING: &str = "/test.v1.Plain/Work";
const WORKER: &str = "worker";

/// What the calls ask for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Asked for in turn.
    pub skills: &'static [&'static str],
    /// Calls in a second, all skills together.
    pub pace: u32,
    /// How long the agent works on each.
    pub work: Duration,
    /// Bound of each, in seconds.
    pub bound: i64,
}

/// One call that has ended.
#[derive(Clone, Debug)]
pub struct Call {
    /// Counted from 0 in the order in which they go out.
    pub number: usize,
    pub skill: &'static str,
    /// When it was to go out.
    pub due: Instant,
    /// From then to its end.
    pub took: Duration,
    /// Why it failed; `None`: it did not.
    pub failed: Option<String>,
    /// How often it was given to an executor; 0 for one that passes, which does not learn it.
    pub attempts: u32,
}

impl Call {
    pub fn ended(&self) -> Instant {
        self.due + self.took
    }
}

/// Callers at work. Dropped, they stop at once.
pub struct Callers {
    all: Arc<All>,
    _clock: JoinSet<()>,
}

struct All {
    homes: Vec<Way>,
    plan: Plan,
    /// Calls in a second; 0: none.
    pace: AtomicU32,
    begun: AtomicUsize,
    ended: Mutex<Vec<Call>>,
}

impl Callers {
    /// Calls over these connections in turn; each carries 100 calls at a time at most.
    pub fn start(homes: Vec<Way>, plan: Plan) -> Self {
        let all = Arc::new(All {
            homes,
            pace: AtomicU32::new(plan.pace),
            plan,
            begun: AtomicUsize::new(0),
            ended: Mutex::default(),
        });
        let mut clock = JoinSet::new();
        clock.spawn(keep_pace(Arc::clone(&all)));
        Self { all, _clock: clock }
    }

    /// Calls in a second from now on.
    pub fn pace(&self, per_second: u32) {
        self.all.pace.store(per_second, Relaxed);
    }

    /// Those that have ended, in the order of their ends.
    pub fn ended(&self) -> Vec<Call> {
        self.all.ended.lock().clone()
    }

    /// Calls that went out, and those of them that have ended.
    pub fn count(&self) -> (usize, usize) {
        (self.all.begun.load(Relaxed), self.all.ended.lock().len())
    }

    /// Waits until all that have gone out by now have ended.
    pub async fn settle(&self) {
        let (begun, _) = self.count();
        eventually("these calls have ended", || async {
            let calls = self.all.ended.lock();
            let ended = calls.iter().filter(|call| call.number < begun).count();
            (ended == begun)
                .then_some(())
                .ok_or_else(|| format!("{ended} of {begun}"))
        })
        .await;
    }

    /// Begins nothing more, and waits until all has ended.
    pub async fn stop(self) -> Vec<Call> {
        self.pace(0);
        // One may be going out.
        sleep(Duration::from_millis(100)).await;
        self.settle().await;
        self.ended()
    }
}

async fn keep_pace(all: Arc<All>) {
    let mut calls = JoinSet::new();
    let mut due = Instant::now();
    loop {
        let pace = all.pace.load(Relaxed);
        if pace == 0 {
            due = Instant::now() + Duration::from_millis(10);
            sleep_until(due).await;
            continue;
        }
        // A machine that is busy makes calls late, never fewer.
        due += Duration::from_secs(1) / pace;
        sleep_until(due).await;
        if all.pace.load(Relaxed) == 0 {
            continue;
        }
        let number = all.begun.fetch_add(1, Relaxed);
        calls.spawn(call(Arc::clone(&all), number, due));
        while calls.try_join_next().is_some() {}
    }
}

async fn call(all: Arc<All>, number: usize, due: Instant) {
    let plan = &all.plan;
    let skill = plan.skills[number % plan.skills.len()];
    let text = format!("{} {number}", plan.work.as_millis());
    let way = all.homes[number % all.homes.len()].clone();
    let mut attempts = 0;
    let failed = if skill == PASSING {
        pass(way, &text, plan.bound).await.err()
    } else {
        let spec = client::bounded(skill, &text, plan.bound);
        let mut home = Local::new(way);
        run(&mut home, spec, &text, &mut attempts).await.err()
    };
    let took = due.elapsed();
    all.ended.lock().push(Call {
        number,
        skill,
        due,
        took,
        failed,
        attempts,
    });
}

/// Has a call pass, and checks its answer.
async fn pass(way: Way, text: &str, bound: i64) -> Result<(), String> {
    let said = |status: Status| format!("{:?}: {}", status.code(), status.message());
    let mut client = Grpc::new(way);
    client.ready().await.map_err(|error| error.to_string())?;
    let mut request = Request::new(pb::Part {
        content: Some(Content::Text(text.to_owned())),
        ..Default::default()
    });
    request.set_timeout(Duration::from_secs(bound.unsigned_abs()));
    let worker = MetadataValue::from_static(WORKER);
    request.metadata_mut().insert("attache-agent", worker);
    let codec = Protobuf::<pb::Part, pb::Part>::default();
    let answer = client.unary(request, PathAndQuery::from_static(PASSING), codec);
    let answer = answer.await.map_err(said)?.into_inner();
    let same = answer.content == Some(Content::Text(text.to_owned()));
    same.then_some(())
        .ok_or_else(|| "another's answer".to_owned())
}

/// Has a task run, and checks its result.
async fn run(
    home: &mut Local,
    spec: pb::TaskSpec,
    text: &str,
    attempts: &mut u32,
) -> Result<(), String> {
    let said = |status: Status| {
        reason_of(&status).unwrap_or_else(|| format!("{:?}: {}", status.code(), status.message()))
    };
    let request = pb::RunTaskRequest { spec: Some(spec) };
    let mut stream = home.run_task(request).await.map_err(said)?.into_inner();
    let mut last = None;
    while let Some(response) = stream.message().await.map_err(said)? {
        if let Some(Update::Event(event)) = response.update.and_then(|update| update.update) {
            *attempts = event.attempt.max(*attempts);
            last = Some(event);
        }
    }
    let last = last.ok_or("no event")?;
    let state = last.state();
    match last.kind {
        Some(Kind::Result(result)) if state == TaskState::Completed => {
            let same = client::text_of(&result.parts) == text;
            same.then_some(())
                .ok_or_else(|| "another's result".to_owned())
        }
        Some(Kind::Failure(failure)) => Err(format!("{}: {}", failure.reason, failure.message)),
        other => Err(format!("{state:?}: {other:?}")),
    }
}
