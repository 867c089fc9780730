//! Counts of a home's tasks, and the line that tells how each of them ended.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use super::{Histogram, Sheet, Skills, Source, callbacks::Callbacks, family, skills::OTHER};
use crate::domain::Reason;
use crate::pb;
use crate::telemetry::call::milliseconds;

/// Reasons of ends that are none of [`Reason`]'s.
const NONE: &str = "none";
const UNCONFIRMED: &str = "CANCEL_UNCONFIRMED";

/// Terminal states and their labels.
const ENDS: [(pb::TaskState, &str); 4] = [
    (pb::TaskState::Completed, "completed"),
    (pb::TaskState::Failed, "failed"),
    (pb::TaskState::Canceled, "canceled"),
    (pb::TaskState::Rejected, "rejected"),
];

/// Labels of attempts.
const ATTEMPTS: [&str; 4] = ["first", "again", "resumed", "answered"];

/// What one shard has at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Tasks that have not ended.
    pub live: usize,
    /// Those of them that an agent works on.
    pub working: usize,
    /// Those of them whose agent waits for an answer.
    pub asking: usize,
    /// Those of them that wait for an executor with room.
    pub waiting: usize,
    /// Tasks that have ended and are in memory.
    pub ended: usize,
    /// Tasks with changes that are still to be told to whoever is called back.
    pub telling: usize,
}

/// How attempts leave a home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// A task's first.
    First,
    /// Another one: the one before was lost, or not taken.
    Again,
    /// The next one: the one before asked, and has its answer.
    Answered,
    /// One that an earlier life of this home had started.
    Resumed,
}

/// Counts of one home.
#[derive(Debug)]
pub struct Tasks {
    skills: Skills,
    shards: Box<[Shard]>,
    submitted: Mutex<Vec<u64>>,
    /// By place of the state in [`ENDS`], place of the skill, and reason.
    finished: Mutex<HashMap<(usize, usize, &'static str), u64>>,
    start: Histogram,
    /// By place in [`ENDS`].
    duration: [Histogram; ENDS.len()],
    attempts: [AtomicU64; ATTEMPTS.len()],
    watchers: AtomicI64,
    /// What whoever is called back was told.
    pub callbacks: Callbacks,
}

#[derive(Debug, Default)]
struct Shard {
    live: AtomicUsize,
    working: AtomicUsize,
    asking: AtomicUsize,
    waiting: AtomicUsize,
    ended: AtomicUsize,
    telling: AtomicUsize,
}

/// A stream that follows a task, until it is dropped.
#[derive(Debug)]
pub struct Watching(Arc<Tasks>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Relaxed);
    }
}

impl Tasks {
    /// Nothing has happened yet, on so many shards.
    pub fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self {
            skills: Skills::default(),
            shards: (0..shards).map(|_| Shard::default()).collect(),
            submitted: Mutex::default(),
            finished: Mutex::default(),
            start: Histogram::tasks(),
            duration: std::array::from_fn(|_| Histogram::tasks()),
            attempts: Default::default(),
            watchers: AtomicI64::new(0),
            callbacks: Callbacks::default(),
        })
    }

    /// Skills that are told apart.
    pub fn skills(&self) -> &Skills {
        &self.skills
    }

    /// How a shard stands now.
    pub fn stands(&self, shard: usize, now: Standing) {
        let Some(shard) = self.shards.get(shard) else {
            return;
        };
        shard.live.store(now.live, Relaxed);
        shard.working.store(now.working, Relaxed);
        shard.asking.store(now.asking, Relaxed);
        shard.waiting.store(now.waiting, Relaxed);
        shard.ended.store(now.ended, Relaxed);
        shard.telling.store(now.telling, Relaxed);
    }

    /// A task was taken in.
    pub fn submitted(&self, skill: &str) {
        let place = self.skills.place(skill);
        let mut submitted = self.submitted.lock();
        if submitted.len() <= place {
            submitted.resize(place + 1, 0);
        }
        submitted[place] += 1;
    }

    /// An attempt goes to an executor.
    pub fn attempt(&self, kind: Attempt) {
        let place = match kind {
            Attempt::First => 0,
            Attempt::Again => 1,
            Attempt::Resumed => 2,
            Attempt::Answered => 3,
        };
        self.attempts[place].fetch_add(1, Relaxed);
    }

    /// An agent took a task for the first time, so long after its submission.
    pub fn started(&self, after: Duration) {
        self.start.took(after);
    }

    /// A stream follows a task from here on.
    pub fn watching(self: &Arc<Self>) -> Watching {
        self.watchers.fetch_add(1, Relaxed);
        Watching(Arc::clone(self))
    }

    /// A task has ended, and that is on disk: counts it and tells it in one line.
    pub fn finished(&self, task: &pb::Task) {
        let place = ENDS.iter().position(|(state, _)| *state == task.state());
        let Some(place) = place else { return };
        let (_, state) = ENDS[place];
        let took = between(task.created_at, task.ended_at);
        self.duration[place].took(took);
        let failure = task.failure.as_ref();
        tracing::info!(
            target: "attache::tasks",
            task = task.id.as_str(),
            skill = task.skill.as_str(),
            caller = task.caller.as_str(),
            executor = present(&task.executor_instance),
            correlation = present(&task.correlation_id),
            state,
            // As the agent said it, not the label; bounded by what an event may hold.
            reason = failure.map(|failure| cut(&failure.reason)),
            attempts = task.attempt,
            duration_ms = milliseconds(took),
            worked_ms = task.execution_ms,
            "task"
        );
        // In this order: what is counted has been told.
        let key = (place, self.skills.place(&task.skill), reason(task));
        *self.finished.lock().entry(key).or_insert(0) += 1;
    }

    /// How each shard stands, as of its last turn.
    pub fn standings(&self) -> Vec<Standing> {
        let shards = self.shards.iter();
        let read = shards.map(|shard| Standing {
            live: shard.live.load(Relaxed),
            working: shard.working.load(Relaxed),
            asking: shard.asking.load(Relaxed),
            waiting: shard.waiting.load(Relaxed),
            ended: shard.ended.load(Relaxed),
            telling: shard.telling.load(Relaxed),
        });
        read.collect()
    }
}

impl Source for Arc<Tasks> {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let now = self.standings();
        let sum = |of: fn(&Standing) -> usize| now.iter().map(of).sum::<usize>();
        let (live, working) = (sum(|now| now.live), sum(|now| now.working));
        let asking = sum(|now| now.asking);
        let submitted = live.saturating_sub(working + asking);
        let states = [
            ("submitted", submitted),
            ("working", working),
            ("asking", asking),
        ];
        let states = states.map(|(state, count)| ([state], count as f64));
        sheet.gauge(&family::TASKS, states);
        sheet.gauge(
            &family::TASKS_WAITING,
            [([], sum(|now| now.waiting) as f64)],
        );
        sheet.gauge(&family::TASKS_ENDED, [([], sum(|now| now.ended) as f64)]);

        let names = self.skills.names();
        let taken = self.submitted.lock().clone();
        let taken = names.iter().zip(&taken);
        let taken = taken.map(|(name, count)| ([name.as_str()], *count as f64));
        sheet.counter(&family::TASKS_SUBMITTED, taken);

        let finished = self.finished.lock().clone();
        let mut rows: Vec<_> = finished
            .iter()
            .filter_map(|((state, skill, reason), count)| {
                let skill = names.get(*skill)?.as_str();
                Some(([ENDS[*state].1, skill, *reason], *count as f64))
            })
            .collect();
        rows.sort_by_key(|(labels, _)| *labels);
        sheet.counter(&family::TASKS_FINISHED, rows);

        sheet.histogram(&family::TASK_START, [([], &self.start)]);
        let durations = ENDS.iter().zip(&self.duration);
        let durations = durations.map(|((_, state), took)| ([*state], took));
        sheet.histogram(&family::TASK_DURATION, durations);
        let kinds = ATTEMPTS.iter().zip(&self.attempts);
        let kinds = kinds.map(|(kind, count)| ([*kind], count.load(Relaxed) as f64));
        sheet.counter(&family::ATTEMPTS, kinds);
        let watchers = self.watchers.load(Relaxed);
        sheet.gauge(&family::TASK_WATCHERS, [([], watchers as f64)]);
        self.callbacks.write(sheet, sum(|now| now.telling));
    }
}

/// Between two of a task's times; none where the wall clock was set back between them.
pub fn between(
    from: Option<prost_types::Timestamp>,
    to: Option<prost_types::Timestamp>,
) -> Duration {
    let read = |at: Option<prost_types::Timestamp>| SystemTime::try_from(at?).ok();
    let (Some(from), Some(to)) = (read(from), read(to)) else {
        return Duration::ZERO;
    };
    to.duration_since(from).unwrap_or_default()
}

/// Why a task ended, from a closed list: an agent's own words are [`OTHER`].
fn reason(task: &pb::Task) -> &'static str {
    match (&task.failure, task.state()) {
        (Some(failure), pb::TaskState::Failed | pb::TaskState::Rejected) => {
            let known = Reason::ALL.iter().map(|reason| reason.label());
            let mut known = known.filter(|label| *label == failure.reason);
            known.next().unwrap_or(OTHER)
        }
        (_, pb::TaskState::Canceled) if !task.cancel_confirmed => UNCONFIRMED,
        _ => NONE,
    }
}

fn present(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// An agent's reason may be as long as an event.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(256)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{Format, Metrics};

    fn task(state: pb::TaskState, reason: &str) -> pb::Task {
        let failure = pb::Failure {
            reason: reason.to_owned(),
            ..Default::default()
        };
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        pb::Task {
            state: state.into(),
            skill: "a".into(),
            failure: (!reason.is_empty()).then_some(failure),
            created_at: at(10),
            ended_at: at(12),
            ..Default::default()
        }
    }

    #[test]
    fn ends_are_counted_by_what_is_known_of_them() {
        let tasks = Tasks::new(2);
        tasks.skills().know(["a"]);
        tasks.submitted("a");
        tasks.submitted("b");
        tasks.finished(&task(pb::TaskState::Completed, ""));
        tasks.finished(&task(pb::TaskState::Failed, "NO_ROUTE"));
        tasks.finished(&task(pb::TaskState::Failed, "whatever\nthe agent says"));
        tasks.finished(&task(pb::TaskState::Canceled, ""));
        tasks.finished(&task(pb::TaskState::Working, ""));
        tasks.stands(
            1,
            Standing {
                live: 5,
                working: 2,
                asking: 1,
                waiting: 1,
                ended: 9,
                telling: 3,
            },
        );
        let watching = tasks.watching();
        let metrics = Metrics::new("sidecar");
        metrics.add(Arc::clone(&tasks));
        let page = metrics.page(Format::Text);
        for row in [
            "attache_tasks{state=\"submitted\"} 2",
            "attache_tasks{state=\"asking\"} 1",
            "attache_tasks{state=\"working\"} 2",
            "attache_tasks_submitted_total{skill=\"a\"} 1",
            "attache_tasks_submitted_total{skill=\"other\"} 1",
            "attache_tasks_finished_total{state=\"completed\",skill=\"a\",reason=\"none\"} 1",
            "attache_tasks_finished_total{state=\"failed\",skill=\"a\",reason=\"NO_ROUTE\"} 1",
            "attache_tasks_finished_total{state=\"failed\",skill=\"a\",reason=\"other\"} 1",
            "attache_tasks_finished_total{state=\"canceled\",skill=\"a\",reason=\"CANCEL_UNCONFIRMED\"} 1",
            "attache_task_duration_seconds_sum{state=\"failed\"} 4.0",
            "attache_callbacks_waiting 3",
            "attache_task_watchers 1",
        ] {
            assert!(page.lines().any(|line| line == row), "{row}\n{page}");
        }
        drop(watching);
        assert!(
            metrics
                .page(Format::Text)
                .contains("attache_task_watchers 0")
        );
    }
}
