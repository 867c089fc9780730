//! The machine under tables and under any order of inputs.

#[path = "dialogue_tests.rs"]
mod dialogue;
#[path = "slots_tests.rs"]
mod slots;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use crate::contract;
use crate::domain::{Reason, SpiffeId, TaskId};
use crate::pb;
use crate::pb::handle_response::Update;
use crate::pb::journal::{Anew, GaveUp, Record, Told, record::Kind as Recorded};
use crate::task::callback::{Delivery, Outcome};
use crate::task::descendants::{DESCENDANTS_MAX, Wants};
use crate::task::doors::{Call, Candidate, Contract, Pick, Promise, Route, Want};
use crate::task::journal::Segments;
use crate::task::spec::{Asked, Moment, NewTask};

use super::attempt::Heard;
use super::kept::{EVENTS_BYTES, ended};
use super::machine::{Effect, Limits, Tasks, World};
use super::moving::Stay;
use super::update::SAID_MAX;

/// An executor that cannot say that it never had the attempt.
const UNKNOWN: Heard = Heard::Unknown {
    never_begun_in: None,
};

/// Instances to route to; all offer everything.
#[derive(Debug, Default)]
pub(super) struct FakeRoute {
    pub(super) all: Mutex<Vec<Candidate>>,
    /// What is answered instead of one of them.
    pub(super) instead: Mutex<Option<Instead>>,
    /// What all of them promise, where it is at hand.
    pub(super) promised: Option<Arc<contract::Contract>>,
    /// How long a rule lets executors take for their first word.
    pub(super) patience: Mutex<Option<Duration>>,
    /// Only those of the name fit that a selector names; otherwise all do.
    pub(super) heeds_names: AtomicBool,
    pub(super) changed: watch::Sender<u64>,
}

/// An answer other than one of those who are there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Instead {
    /// Everybody has failed too often.
    Ejected(Instant),
    /// There is no budget for second tries.
    OverBudget(Instant),
}

impl FakeRoute {
    pub(super) fn of(names: &[&str], idempotent: bool) -> Self {
        let route = Self::default();
        route.set(names, idempotent);
        route
    }

    /// A name may bring the version of its skill, as in `i1@2.0.0`.
    pub(super) fn set(&self, names: &[&str], idempotent: bool) {
        let candidate = |name: &&str| {
            let (name, version) = name.split_once('@').unwrap_or((*name, "1.0.0"));
            Candidate {
                wants_descendants: true,
                instance: name.parse().unwrap(),
                agent: "default/worker".parse().unwrap(),
                idempotent,
                boot_id: "boot".into(),
                contract: Contract {
                    version: version.parse().ok(),
                    schemas: vec![1],
                },
            }
        };
        *self.all.lock().unwrap() = names.iter().map(candidate).collect();
        self.changed.send_modify(|generation| *generation += 1);
    }
}

impl Route for FakeRoute {
    fn pick(&self, want: &Want<'_>, _: Instant) -> Pick {
        match *self.instead.lock().unwrap() {
            Some(Instead::Ejected(until)) => return Pick::Ejected(Some(until)),
            Some(Instead::OverBudget(until)) if want.again => return Pick::OverBudget(until),
            Some(Instead::OverBudget(_)) | None => {}
        }
        let all = self.all.lock().unwrap().clone();
        let promises = |one: &Candidate| want.contract.is_none_or(|kept| one.contract.fits(kept));
        let name = Some(&want.selector.agent).filter(|name| !name.is_empty());
        let name = name.filter(|_| self.heeds_names.load(Ordering::Relaxed));
        let named = |one: &Candidate| name.is_none_or(|name| one.agent.to_string() == *name);
        let admitted = |one: &Candidate| promises(one) && named(one) && (want.admits)(&one.agent);
        let fits: Vec<_> = all.into_iter().filter(admitted).collect();
        if fits.is_empty() {
            return Pick::Nobody;
        }
        let excluded = |one: &Candidate| want.exclude.contains(&one.instance);
        let others = fits.iter().any(|one| !excluded(one));
        let chosen = fits
            .into_iter()
            .find(|one| !(others && excluded(one)) && (want.allows)(&one.instance));
        match chosen {
            Some(chosen) => {
                let call = Call {
                    patience: *self.patience.lock().unwrap(),
                    ..Call::default()
                };
                Pick::Go(Arc::new(chosen), Box::new(call))
            }
            None => Pick::Busy(None),
        }
    }

    fn promised(&self, promise: &Promise) -> Option<Arc<contract::Contract>> {
        assert_eq!(
            (&*promise.agent, &*promise.schemas),
            ("default/worker", &[1_u8][..])
        );
        self.promised.clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

pub(super) fn own() -> SpiffeId {
    "spiffe://attache.local/ns/default/agent/caller"
        .parse()
        .unwrap()
}

pub(super) fn spec(options: pb::TaskOptions) -> pb::TaskSpec {
    pb::TaskSpec {
        selector: Some(pb::Selector {
            skill: "work.do".into(),
            ..pb::Selector::default()
        }),
        input: vec![text("go")],
        options: Some(options),
        ..pb::TaskSpec::default()
    }
}

pub(super) fn text(text: &str) -> pb::Part {
    pb::Part {
        content: Some(pb::part::Content::Text(text.into())),
        ..pb::Part::default()
    }
}

const LIMITS: Limits = Limits {
    live: 50,
    live_bytes: 1 << 20,
    ended: 5,
    ended_bytes: 1 << 20,
    retention: Duration::from_secs(24 * 3600),
};

/// A machine, its world, and everything that it ever recorded.
pub(super) struct Bench {
    pub(super) tasks: Tasks,
    pub(super) route: FakeRoute,
    pub(super) at: Moment,
    pub(super) log: Vec<(u64, Record)>,
    pub(super) effects: Vec<Effect>,
    next: u128,
}

/// Whoever is to be told of these states.
pub(super) fn callback(states: &[pb::TaskState]) -> pb::Callback {
    pb::Callback {
        target: Some(pb::callback::Target::Url("https://a.example/hook".into())),
        states: states.iter().map(|state| (*state).into()).collect(),
    }
}

impl Bench {
    pub(super) fn new(names: &[&str], idempotent: bool) -> Self {
        let now = Instant::now();
        Self {
            tasks: Tasks::new("home".parse().unwrap(), LIMITS, now),
            route: FakeRoute::of(names, idempotent),
            at: Moment {
                now,
                wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
            },
            log: Vec::new(),
            effects: Vec::new(),
            next: 0,
        }
    }

    pub(super) fn step<R>(&mut self, act: impl FnOnce(&mut Tasks, World<'_>) -> R) -> R {
        let world = World {
            at: self.at,
            route: &self.route,
            chance: 1.0,
        };
        let answer = act(&mut self.tasks, world);
        for record in std::mem::take(&mut self.tasks.records) {
            let lsn = self.log.len() as u64 + 1;
            self.tasks.logged(lsn, &record);
            self.log.push((lsn, record));
        }
        self.effects.append(&mut self.tasks.effects);
        answer
    }

    pub(super) fn submit_with(&mut self, options: pb::TaskOptions) -> Uuid {
        let new = self.checked(options);
        self.step(|tasks, world| tasks.submit(new, world)).unwrap()
    }

    pub(super) fn checked(&mut self, options: pb::TaskOptions) -> NewTask {
        self.next += 1;
        let asked = Asked {
            id: TaskId {
                home: "home".parse().unwrap(),
                uuid: Uuid::from_u128(self.next),
            },
            spec: spec(options),
            caller: own(),
            namespace: "default".parse().unwrap(),
            own: own(),
            key: None,
            parent: None,
        };
        NewTask {
            descendants: DESCENDANTS_MAX,
            ..NewTask::check(asked, &self.at).unwrap()
        }
    }

    pub(super) fn submit(&mut self) -> Uuid {
        self.submit_with(pb::TaskOptions::default())
    }

    pub(super) fn hear(&mut self, task: Uuid, heard: Heard) {
        let attempt = self.task(task).attempt;
        self.step(|tasks, world| tasks.heard(task, attempt, heard, world));
    }

    pub(super) fn update(&mut self, task: Uuid, number: u64, update: Update) {
        let update = Some(pb::HandleResponse {
            update: Some(update),
        });
        self.hear(
            task,
            Heard::Update(pb::NumberedUpdate {
                number,
                update,
                ..Default::default()
            }),
        );
    }

    /// What became of telling the oldest change that is to be told.
    pub(super) fn tell(&mut self, task: Uuid, outcome: Outcome) {
        self.tries(task);
        if let Some(tried) = self.ticket(task) {
            self.step(|tasks, world| tasks.told(task, tried, outcome, world));
        }
    }

    /// The last ticket of the task: which event, and which try.
    pub(super) fn ticket(&self, task: Uuid) -> Option<(u64, u64)> {
        self.effects.iter().rev().find_map(|effect| {
            let Effect::Tell(ticket) = effect else {
                return None;
            };
            (ticket.id.uuid == task).then_some((ticket.seq, ticket.number))
        })
    }

    /// The courier begins with the last ticket of the task.
    pub(super) fn tries(&mut self, task: Uuid) -> Option<Delivery> {
        let tried = self.ticket(task)?;
        self.step(|tasks, world| tasks.try_telling(task, tried, world.at))
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.at = Moment {
            now: self.at.now + time,
            wall: self.at.wall + time,
        };
        self.step(Tasks::tick);
    }

    pub(super) fn task(&self, task: Uuid) -> pb::Task {
        self.tasks.tasks[&task].kept.basic()
    }

    pub(super) fn state(&self, task: Uuid) -> pb::TaskState {
        self.task(task).state()
    }

    pub(super) fn started(&self) -> Vec<(String, u32)> {
        let mut started = Vec::new();
        for effect in &self.effects {
            if let Effect::Start { to, .. } = effect {
                started.push((to.instance.to_string(), to.attempt));
            }
        }
        started
    }

    fn instead(&self, instead: Option<Instead>) {
        *self.route.instead.lock().unwrap() = instead;
    }

    /// For a second everybody is broken, or nobody has a budget; or all is well again.
    fn turn(&self, what: u8) {
        let until = self.at.now + Duration::from_secs(1);
        let all = [Instead::Ejected(until), Instead::OverBudget(until)];
        self.instead(all.get(usize::from(what)).copied());
    }

    /// Where attempts were sent so far.
    fn went(&self) -> Vec<String> {
        self.started().into_iter().map(|(to, _)| to).collect()
    }

    pub(super) fn failure(&self, task: Uuid) -> String {
        self.task(task)
            .failure
            .map(|failure| failure.reason)
            .unwrap_or_default()
    }

    pub(super) fn replayed(&self) -> Tasks {
        self.replayed_from(0)
    }

    /// What a log gives back that has let go of its records before this one.
    pub(super) fn replayed_from(&self, first: u64) -> Tasks {
        let mut tasks = Tasks::new("home".parse().unwrap(), LIMITS, self.at.now);
        for (lsn, record) in self.log.iter().filter(|(lsn, _)| *lsn >= first) {
            let id: TaskId = record.task_id.parse().unwrap();
            tasks.replay(id.uuid, *lsn, record).unwrap();
        }
        tasks.stash.over().unwrap();
        tasks
    }

    /// What may be let go of now.
    pub(super) fn needed(&self) -> u64 {
        let none = self.log.len() as u64 + 1;
        self.tasks.first_needed().unwrap_or(none)
    }

    /// A log in which a segment is a record, so that everything is worth it; some turns of it.
    pub(super) fn compact(&mut self, turns: u8) {
        let firsts = (1..=self.log.len() as u64 + 1).collect();
        let bytes = u64::MAX;
        let (segments, now) = (Segments { firsts, bytes }, self.at.now);
        self.step(|tasks, _| tasks.compact(&segments, now));
        for _ in 0..turns {
            if self.tasks.compaction.at.is_some() {
                self.step(|tasks, world| tasks.compact_part(world.at.now, 1));
            }
        }
    }
}

/// An agent that cannot be used now.
fn unavailable() -> Update {
    Update::Failure(pb::Failure {
        reason: Reason::AgentError.label().into(),
        code: tonic::Code::Unavailable.into(),
        ..Default::default()
    })
}

pub(super) fn done() -> Update {
    Update::Result(pb::TaskResult {
        parts: vec![text("done")],
        artifact_ids: vec![],
    })
}

#[tokio::test(start_paused = true)]
async fn a_task_runs_to_its_result() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit();
    assert_eq!(
        bench.log.len(),
        2,
        "submission and dispatch go to disk together"
    );
    assert_eq!(bench.started(), [("i1".to_owned(), 1)]);
    bench.hear(task, Heard::Accepted);
    assert_eq!(bench.state(task), pb::TaskState::Working);
    bench.update(task, 1, done());
    let shown = bench.task(task);
    assert_eq!(
        (shown.state(), shown.last_seq),
        (pb::TaskState::Completed, 2)
    );
    assert!(shown.ended_at.is_some());
    assert_eq!(bench.log.last().unwrap().1.after_update, 1);
    assert!(
        bench.tasks.next_wake().is_none(),
        "nothing is left to wait for"
    );
    bench.update(task, 2, done());
    assert_eq!(bench.task(task).last_seq, 2, "one terminal state, once");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_started_goes_elsewhere_and_what_was_lost_only_where_it_may() {
    for (idempotent, loss, end) in [
        (false, pb::OnAgentLoss::Unspecified, pb::TaskState::Failed),
        (true, pb::OnAgentLoss::Fail, pb::TaskState::Failed),
        (true, pb::OnAgentLoss::Unspecified, pb::TaskState::Submitted),
    ] {
        let mut bench = Bench::new(&["i1", "i2", "i3"], idempotent);
        let task = bench.submit_with(pb::TaskOptions {
            on_agent_loss: loss.into(),
            ..pb::TaskOptions::default()
        });
        bench.hear(task, Heard::NotSent);
        assert_eq!(bench.started().last().unwrap(), &("i2".to_owned(), 2));
        bench.hear(
            task,
            Heard::Refused {
                reason: "SLOTS_FULL".into(),
                wait: None,
                failure: None,
            },
        );
        assert_eq!(bench.started().last().unwrap(), &("i3".to_owned(), 3));
        bench.hear(task, Heard::Accepted);
        bench.hear(task, UNKNOWN);
        assert_eq!(bench.state(task), end);
        if end == pb::TaskState::Failed {
            assert_eq!(bench.failure(task), "AGENT_LOST");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_executor_that_refuses_the_input_says_why_and_nobody_else_is_asked() {
    let mut bench = Bench::new(&["i1", "i2"], true);
    let task = bench.submit();
    let failure = pb::Failure {
        reason: "INPUT_INVALID".into(),
        message: "at /a".into(),
        ..pb::Failure::default()
    };
    bench.hear(
        task,
        Heard::Refused {
            reason: "INPUT_INVALID".into(),
            wait: None,
            failure: Some(Box::new(failure.clone())),
        },
    );
    assert_eq!(bench.state(task), pb::TaskState::Failed);
    assert_eq!(bench.task(task).failure, Some(failure));
    assert_eq!(bench.started().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_breaks_the_promise_ends_the_task_and_is_not_shown() {
    let skill = pb::Skill {
        output_schema: r#"{"required":["sum"]}"#.into(),
        ..pb::Skill::default()
    };
    let promised = Arc::new(contract::Contract::of(&skill).unwrap());
    let result = |json: &str| {
        let part = pb::Part {
            content: Some(pb::part::Content::Text(json.into())),
            media_type: "application/json".into(),
            ..pb::Part::default()
        };
        Update::Result(pb::TaskResult {
            parts: vec![part],
            ..pb::TaskResult::default()
        })
    };
    for (at_hand, json, end) in [
        (true, r#"{"sum":1}"#, pb::TaskState::Completed),
        (true, "{}", pb::TaskState::Failed),
        (false, "{}", pb::TaskState::Completed),
    ] {
        let mut bench = Bench::new(&["i1"], true);
        bench.route.promised = at_hand.then(|| promised.clone());
        let task = bench.submit();
        bench.hear(task, Heard::Accepted);
        bench.update(task, 1, result(json));
        assert_eq!(bench.state(task), end, "{json}");
        if end == pb::TaskState::Failed {
            let ended = bench.task(task);
            assert!(ended.result.is_none());
            let failure = ended.failure.unwrap();
            assert_eq!(failure.reason, "OUTPUT_INVALID");
            assert!(failure.message.contains("required"), "{}", failure.message);
            assert!(failure.details.unwrap().fields.contains_key("expected"));
            // Its executor is told to stop, and nobody else is asked.
            let stops = |effect: &Effect| matches!(effect, Effect::Release { abort: Some(_), .. });
            assert!(bench.effects.iter().any(stops));
            assert_eq!(bench.started().len(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_alone_is_tried_again_after_a_while_that_grows() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit();
    for wait in [100, 200, 400, 800, 1600, 2000, 2000] {
        let before = bench.started().len();
        bench.hear(task, Heard::NotSent);
        assert_eq!(bench.tasks.lanes.waiting(), 1);
        bench.pass(Duration::from_millis(wait - 2));
        assert_eq!(bench.started().len(), before, "not before {wait} ms");
        // Others need not wait for it.
        let other = bench.submit();
        assert_eq!(bench.started().len(), before + 1);
        bench.update(other, 1, done());
        bench.pass(Duration::from_millis(2));
        assert_eq!(bench.started().len(), before + 2, "after {wait} ms");
    }
    bench.hear(task, Heard::Accepted);
    assert_eq!(
        bench.state(task),
        pb::TaskState::Working,
        "it never fails for it"
    );
    assert_eq!(bench.tasks.lanes.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_three_tries_in_a_row_the_next_one_waits_wherever_it_goes() {
    let mut bench = Bench::new(&["i1", "i2", "i3", "i4", "i5"], false);
    let task = bench.submit();
    bench.hear(task, Heard::NotSent);
    bench.hear(task, Heard::NotSent);
    assert_eq!(bench.went(), ["i1", "i2", "i1"], "the last one is left out");
    bench.hear(task, Heard::NotSent);
    assert_eq!(bench.went().len(), 3);
    bench.pass(Duration::from_millis(399));
    assert_eq!(bench.went().len(), 3);
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.went().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_nobody_answers_is_made_elsewhere_only_where_that_does_no_harm() {
    for idempotent in [true, false] {
        let mut bench = Bench::new(&["i1", "i2"], idempotent);
        let task = bench.submit();
        bench.hear(task, Heard::Silent(bench.at.now));
        if idempotent {
            assert_eq!(bench.went(), ["i1", "i2"]);
            continue;
        }
        assert_eq!(bench.went(), ["i1"], "it may be at work");
        bench.pass(Duration::from_secs(45));
        assert_eq!(bench.failure(task), "AGENT_LOST");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_a_second_try_rests_and_first_ones_pass_it() {
    let mut bench = Bench::new(&["i1", "i2"], false);
    let task = bench.submit();
    let until = bench.at.now + Duration::from_millis(300);
    bench.instead(Some(Instead::OverBudget(until)));
    bench.hear(task, Heard::NotSent);
    let first = bench.submit();
    assert_eq!(bench.went(), ["i1", "i1"], "the second one is another task");
    bench.hear(first, Heard::Accepted);
    assert_eq!(bench.tasks.next_wake(), Some(until));
    bench.pass(Duration::from_millis(300));
    assert_eq!(bench.tasks.lanes.waiting(), 1, "there is none yet");
    bench.instead(None);
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.went(), ["i1", "i1", "i2"]);
    // One that rests is cancelled like any other.
    let at = bench.at;
    bench.instead(Some(Instead::OverBudget(at.now + Duration::from_secs(9))));
    bench.hear(task, Heard::NotSent);
    bench
        .step(|tasks, _| tasks.cancel(task, "me", "", at))
        .unwrap();
    assert_eq!(bench.state(task), pb::TaskState::Canceled);
    assert_eq!(bench.tasks.lanes.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn while_everybody_is_broken_tasks_wait_for_the_probe_and_hasty_ones_do_not() {
    let mut bench = Bench::new(&["i1"], false);
    let until = bench.at.now + Duration::from_secs(4);
    bench.instead(Some(Instead::Ejected(until)));
    let patient = bench.submit();
    assert_eq!(bench.tasks.next_wake(), Some(until));
    let hasty = pb::TaskOptions {
        fail_fast: true,
        ..Default::default()
    };
    let hasty = bench.submit_with(hasty);
    assert_eq!(bench.failure(hasty), "NO_ROUTE");
    let text = bench.task(hasty).failure.unwrap().message;
    assert!(text.contains("for another 4.0 s"), "{text}");
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.tasks.next_wake(), Some(until), "it is remembered");
    bench.instead(None);
    bench.pass(Duration::from_secs(3));
    assert_eq!(bench.went(), ["i1"]);
    bench.hear(patient, Heard::Accepted);
}

/// Of a slot that is taken, or of an agent that is away.
pub(super) fn refused(reason: Reason) -> Heard {
    Heard::Refused {
        reason: reason.label().into(),
        wait: None,
        failure: None,
    }
}

#[tokio::test(start_paused = true)]
async fn hasty_tasks_end_though_patient_ones_wait_before_them() {
    let mut bench = Bench::new(&["i1"], false);
    let taken = bench.submit();
    bench.hear(taken, refused(Reason::SlotsFull));
    let patient = bench.submit();
    let hasty = bench.submit_with(pb::TaskOptions {
        fail_fast: true,
        ..Default::default()
    });
    assert_eq!(bench.state(hasty), pb::TaskState::Submitted, "it is busy");
    let until = bench.at.now + Duration::from_secs(4);
    bench.instead(Some(Instead::Ejected(until)));
    bench.step(Tasks::pump);
    assert_eq!(bench.failure(hasty), "NO_ROUTE");
    assert_eq!(bench.state(patient), pb::TaskState::Submitted);
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_and_given_back_counts_as_not_started_in_every_book() {
    let unknown = || Heard::Unknown {
        never_begun_in: Some("boot".into()),
    };
    let words: [&dyn Fn() -> Heard; 3] = [
        &|| refused(Reason::SlotsFull),
        &|| refused(Reason::AgentUnavailable),
        &unknown,
    ];
    for given_back in words {
        let mut bench = Bench::new(&["i1"], false);
        let task = bench.submit();
        bench.hear(task, Heard::Accepted);
        bench.route.set(&[], false);
        let (mark, first) = (bench.log.len(), "i1".parse().unwrap());
        assert_eq!(bench.tasks.gates.in_flight(&first), 1);
        bench.hear(task, given_back());
        let word = format!("{:?}", given_back());
        let kinds = bench.log[mark..].iter().map(|(_, record)| &record.kind);
        let kinds: Vec<_> = kinds.collect();
        assert!(
            matches!(
                kinds[..],
                [Some(Recorded::NotStarted(_)), Some(Recorded::Event(_))]
            ),
            "{word}: {kinds:?}"
        );
        let kept = &bench.tasks.tasks[&task].kept;
        assert_eq!(kept.state(), pb::TaskState::Submitted, "{word}");
        assert_eq!((kept.started, &kept.tried[..]), (0, &[][..]), "{word}");
        assert_eq!(bench.tasks.gates.in_flight(&first), 0, "{word}");
        // Who may run once only is tried again.
        bench.route.set(&["i1"], false);
        bench.pass(Duration::from_secs(1));
        bench.step(Tasks::pump);
        assert_eq!(bench.went(), ["i1", "i1"], "{word}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_contract_under_which_nothing_was_started_holds_nobody_back() {
    let mut bench = Bench::new(&["i1@1.2.0", "i2@2.0.0"], false);
    let task = bench.submit();
    bench.hear(task, refused(Reason::SlotsFull));
    assert_eq!(bench.went(), ["i1", "i2"], "the other one has room");
    // What was begun waits for who promises the same.
    let mut bench = Bench::new(&["i1@1.2.0", "i2@2.0.0"], true);
    let task = bench.submit();
    bench.hear(task, Heard::Accepted);
    bench.hear(task, UNKNOWN);
    bench.pass(Duration::from_millis(50));
    assert_eq!(bench.went(), ["i1"]);
}

#[tokio::test(start_paused = true)]
async fn many_that_cannot_go_are_looked_at_in_peace() {
    let mut bench = Bench::new(&["i1", "i2", "i3"], true);
    bench.tasks.limits.live = 1000;
    let tasks: Vec<Uuid> = (0..130).map(|_| bench.submit()).collect();
    assert_eq!(bench.went().len(), 130);
    bench.route.set(&[], true);
    for task in &tasks {
        bench.hear(*task, Heard::Accepted);
        bench.hear(*task, UNKNOWN);
    }
    let due = |bench: &Bench| {
        let due = bench.tasks.pump_at.unwrap();
        due.saturating_duration_since(bench.at.now)
    };
    bench.step(Tasks::pump);
    assert_eq!(due(&bench), Duration::from_millis(250), "nobody could go");
    // Once some of them can, the rest is looked at soon.
    bench.route.set(&["i4", "i5", "i6"], true);
    bench.step(Tasks::pump);
    assert_eq!(due(&bench), Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_goes_elsewhere_at_once_and_what_is_silent_out_of_the_budget() {
    let mut bench = Bench::new(&["i1", "i2", "i3", "i4"], true);
    let task = bench.submit();
    let until = bench.at.now + Duration::from_secs(60);
    bench.instead(Some(Instead::OverBudget(until)));
    // Its process is gone, or has not been heard of for too long.
    bench.hear(task, Heard::Accepted);
    bench.hear(task, UNKNOWN);
    assert_eq!(bench.went(), ["i1", "i2"]);
    bench.hear(task, Heard::Accepted);
    bench.hear(task, Heard::Broken(bench.at.now));
    bench.pass(Duration::from_secs(45));
    assert_eq!(bench.went(), ["i1", "i2", "i3"]);

    // Here somebody is there, who may have too much to do.
    let mut bench = Bench::new(&["i1", "i2"], true);
    let task = bench.submit();
    let until = bench.at.now + Duration::from_millis(300);
    bench.instead(Some(Instead::OverBudget(until)));
    bench.hear(task, Heard::Accepted);
    bench.hear(task, Heard::Silent(bench.at.now));
    assert_eq!(bench.state(task), pb::TaskState::Submitted);
    assert_eq!(bench.went(), ["i1"]);
    assert_eq!(bench.tasks.next_wake(), Some(until));
    bench.instead(None);
    bench.pass(Duration::from_millis(300));
    assert_eq!(bench.went(), ["i1", "i2"]);
}

#[tokio::test(start_paused = true)]
async fn a_rule_may_give_an_executor_longer_than_it_takes_to_be_lost() {
    for (patience, lost) in [(None, 45), (Some(3), 45), (Some(60), 71)] {
        let mut bench = Bench::new(&["i1", "i2"], true);
        *bench.route.patience.lock().unwrap() = patience.map(Duration::from_secs);
        let task = bench.submit();
        bench.step(|tasks, world| tasks.sent(task, 1, world.at.now));
        bench.pass(Duration::from_secs(lost - 1));
        assert_eq!(bench.went(), ["i1"], "{patience:?}");
        bench.pass(Duration::from_secs(1));
        assert_eq!(bench.went(), ["i1", "i2"], "{patience:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_a_restart_gets_three_attempts_whatever_the_skill_says() {
    let mut bench = Bench::new(&["i1", "i2", "i3", "i4"], false);
    let task = bench.submit_with(pb::TaskOptions {
        on_agent_loss: pb::OnAgentLoss::Restart.into(),
        ..Default::default()
    });
    for _ in 0..3 {
        assert_eq!(bench.state(task), pb::TaskState::Submitted);
        bench.hear(task, Heard::Accepted);
        bench.hear(task, UNKNOWN);
    }
    assert_eq!(bench.failure(task), "RETRIES_EXHAUSTED");
    assert_eq!(bench.went(), ["i1", "i2", "i3"]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_unavailable_before_its_first_word_is_one_of_three_attempts() {
    for (idempotent, loss, again) in [
        (true, pb::OnAgentLoss::Unspecified, true),
        (true, pb::OnAgentLoss::Fail, false),
        (false, pb::OnAgentLoss::Unspecified, false),
    ] {
        let mut bench = Bench::new(&["i1", "i2", "i3", "i4"], idempotent);
        let options = pb::TaskOptions {
            on_agent_loss: loss.into(),
            ..Default::default()
        };
        let task = bench.submit_with(options);
        bench.hear(task, Heard::Accepted);
        bench.update(task, 1, unavailable());
        if !again {
            assert_eq!(bench.failure(task), "AGENT_ERROR");
            continue;
        }
        assert_eq!(bench.state(task), pb::TaskState::Submitted);
        bench.hear(task, Heard::Accepted);
        bench.update(task, 1, unavailable());
        bench.update(task, 1, unavailable());
        assert_eq!(bench.failure(task), "AGENT_ERROR", "as the agent told it");
        assert_eq!(bench.went(), ["i1", "i2", "i3"]);
    }
    // Not once it has said anything, and no other code.
    for said in [
        Update::Transient(text("a token")),
        Update::Progress(pb::Progress::default()),
    ] {
        let mut bench = Bench::new(&["i1", "i2"], true);
        let task = bench.submit();
        let number = u64::from(matches!(said, Update::Progress(_)));
        bench.update(task, number, said);
        bench.update(task, number + 1, unavailable());
        assert_eq!(bench.failure(task), "AGENT_ERROR");
    }
    let mut bench = Bench::new(&["i1", "i2"], true);
    let task = bench.submit();
    bench.update(task, 1, Update::Failure(pb::Failure::default()));
    assert_eq!(bench.state(task), pb::TaskState::Failed);
}

#[tokio::test(start_paused = true)]
async fn a_task_moves_only_to_who_promises_the_same() {
    let mut bench = Bench::new(&["i1@1.2.0", "i2@2.0.0", "i3@1.9.0"], true);
    let task = bench.submit();
    bench.hear(task, Heard::NotSent);
    assert_eq!(bench.went(), ["i1", "i3"]);
    // Nothing was started, and nobody is left who promises that: the next one is like a first one.
    bench.route.set(&["i2@2.0.0"], true);
    bench.hear(task, Heard::NotSent);
    assert_eq!(bench.went(), ["i1", "i3", "i2"]);
    bench.hear(task, Heard::Accepted);
    // What was begun is another matter, also after a restart.
    bench.route.set(&["i1@1.2.0"], true);
    bench.hear(task, UNKNOWN);
    assert_eq!(bench.state(task), pb::TaskState::Submitted);
    bench.tasks = bench.replayed();
    bench.step(Tasks::recovered);
    assert_eq!(bench.went().len(), 3);
    bench.route.set(&["i1@1.2.0", "i4@2.7.0"], true);
    bench.step(Tasks::pump);
    assert_eq!(bench.went().last().unwrap(), "i4");
}

#[tokio::test(start_paused = true)]
async fn an_idempotent_task_is_tried_three_times_and_elsewhere_while_there_is_one() {
    let mut bench = Bench::new(&["i1", "i2", "i3", "i4"], true);
    let task = bench.submit();
    for _ in 0..3 {
        bench.hear(task, Heard::Accepted);
        bench.hear(task, UNKNOWN);
    }
    assert_eq!(bench.failure(task), "RETRIES_EXHAUSTED");
    let where_to: Vec<String> = bench.started().into_iter().map(|(to, _)| to).collect();
    assert_eq!(where_to, ["i1", "i2", "i3"]);
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_alone_is_no_loss() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit();
    bench.hear(task, Heard::Accepted);
    bench.hear(task, Heard::Broken(bench.at.now));
    bench.pass(Duration::from_secs(44));
    assert_eq!(bench.state(task), pb::TaskState::Working);
    bench.hear(task, Heard::Alive);
    bench.pass(Duration::from_secs(600));
    assert_eq!(bench.state(task), pb::TaskState::Working);
    bench.hear(task, Heard::Broken(bench.at.now));
    bench.pass(Duration::from_secs(45));
    assert_eq!(bench.failure(task), "AGENT_LOST");
}

#[tokio::test(start_paused = true)]
async fn without_an_agent_a_task_waits_or_fails_fast() {
    let mut bench = Bench::new(&[], false);
    let hasty = bench.submit_with(pb::TaskOptions {
        fail_fast: true,
        ..Default::default()
    });
    assert_eq!(bench.failure(hasty), "NO_ROUTE");
    let (first, second) = (bench.submit(), bench.submit());
    let hasty = bench.submit_with(pb::TaskOptions {
        fail_fast: true,
        ..Default::default()
    });
    assert_eq!(bench.failure(hasty), "NO_ROUTE");
    bench.pass(Duration::from_secs(10));
    bench.route.set(&["i1"], false);
    bench.step(Tasks::pump);
    assert_eq!(bench.started().len(), 2);
    bench.hear(first, Heard::Accepted);
    bench.pass(Duration::from_secs(3600));
    for task in [first, second] {
        assert_eq!(bench.failure(task), "DEADLINE_EXCEEDED");
    }
    assert!(bench.effects.iter().any(
        |effect| matches!(effect, Effect::Release { abort: Some(why), .. } if why == "DEADLINE_EXCEEDED")
    ));
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_given_out_by_turns() {
    let mut bench = Bench::new(&[], false);
    let mut wait = |priority: u32, origin: Option<&str>| {
        let mut new = bench.checked(pb::TaskOptions {
            priority,
            ..Default::default()
        });
        if let Some(origin) = origin {
            new.task.origin = origin.into();
        }
        bench.step(|tasks, world| tasks.submit(new, world)).unwrap()
    };
    let low: Vec<_> = (0..10).map(|_| wait(1, None)).collect();
    let high: Vec<_> = (0..10).map(|_| wait(10, None)).collect();
    let other = "spiffe://attache.local/ns/default/agent/other";
    let others: Vec<_> = (0..2).map(|_| wait(1, Some(other))).collect();
    bench.route.set(&["i1"], false);
    bench.step(Tasks::pump);
    let sent = bench
        .log
        .iter()
        .filter(|(_, record)| matches!(record.kind, Some(Recorded::Dispatched(_))));
    let sent: Vec<Uuid> = sent
        .map(|(_, record)| record.task_id.parse::<TaskId>().unwrap().uuid)
        .collect();
    assert_eq!(sent.len(), 22);
    let place = |task: &Uuid| sent.iter().position(|one| one == task).unwrap();
    assert!(
        others.iter().all(|task| place(task) < 4),
        "{others:?} in {sent:?}"
    );
    assert!(
        high.iter().all(|task| place(task) < place(&low[1])),
        "{sent:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn lanes_that_want_the_same_instance_take_turns() {
    let mut bench = Bench::new(&["i1"], false);
    let mut named = |agent: &str| {
        let mut new = bench.checked(pb::TaskOptions::default());
        new.spec.selector.get_or_insert_default().agent = agent.into();
        bench.step(|tasks, world| tasks.submit(new, world)).unwrap()
    };
    // One slot, and two that wait for it in lanes of their own.
    let first = named("");
    let waiting: Vec<_> = (0..4)
        .flat_map(|_| [named(""), named("default/worker")])
        .collect();
    let running = |bench: &Bench, task: &Uuid| bench.tasks.tasks[task].kept.running.is_some();
    for task in &waiting {
        if running(&bench, task) {
            bench.hear(*task, refused(Reason::SlotsFull));
        }
    }
    bench.hear(first, Heard::Accepted);
    let mut served = vec![0, 0];
    let mut runs = first;
    for _ in 0..6 {
        bench.update(runs, 1, done());
        bench.pass(Duration::from_secs(6));
        let next = waiting.iter().position(|task| running(&bench, task));
        let Some(next) = next else { continue };
        served[next % 2] += 1;
        for task in &waiting {
            if running(&bench, task) && *task != waiting[next] {
                bench.hear(*task, refused(Reason::SlotsFull));
            }
        }
        runs = waiting[next];
        bench.hear(runs, Heard::Accepted);
    }
    assert!(served.iter().all(|count| *count > 1), "{served:?}");
}

#[tokio::test(start_paused = true)]
async fn what_comes_too_late_is_refused_and_what_ended_makes_room_at_once() {
    let mut bench = Bench::new(&["i1"], false);
    let mut late = bench.checked(pb::TaskOptions::default());
    late.due = bench.at.now;
    let refused = bench.step(|tasks, world| tasks.submit(late, world));
    assert_eq!(refused.unwrap_err().reason, Reason::DeadlineExceeded);

    bench.tasks.limits = super::ephemeral::limits(1);
    let task = bench.submit();
    bench.hear(task, Heard::Accepted);
    bench.update(task, 1, done());
    bench.step(|tasks, _| tasks.shown(task, 2));
    let nearly = super::ephemeral::RETENTION - Duration::from_secs(1);
    bench.at.now += nearly;
    bench.at.wall += nearly;
    bench.submit();
    assert!(bench.tasks.tasks.contains_key(&task));
    bench.at.now += Duration::from_secs(2);
    bench.at.wall += Duration::from_secs(2);
    bench.submit();
    assert!(
        !bench.tasks.tasks.contains_key(&task),
        "a minute has passed"
    );
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_moves_no_deadline() {
    let hours = Duration::from_secs(2 * 3600);
    let set = |bench: &mut Bench, ahead: bool| {
        let wall = bench.at.wall;
        bench.at.wall = if ahead { wall + hours } else { wall - hours };
    };
    for ahead in [true, false] {
        let mut bench = Bench::new(&[], false);
        let new = bench.checked(pb::TaskOptions {
            timeout: Some(prost_types::Duration {
                seconds: 60,
                nanos: 0,
            }),
            ..Default::default()
        });
        // After the check and before the task has its place; and back again while it waits.
        set(&mut bench, ahead);
        let task = bench.step(|tasks, world| tasks.submit(new, world)).unwrap();
        bench.pass(Duration::from_secs(29));
        set(&mut bench, !ahead);
        bench.pass(Duration::from_secs(29));
        assert_eq!(bench.state(task), pb::TaskState::Submitted, "{ahead}");
        bench.pass(Duration::from_secs(3));
        assert_eq!(bench.failure(task), "DEADLINE_EXCEEDED", "{ahead}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_is_confirmed_or_ends_by_itself() {
    let mut bench = Bench::new(&["i1"], false);
    let cancel = |bench: &mut Bench, task| {
        let at = bench.at;
        bench.step(|tasks, _| tasks.cancel(task, "me", "why", at))
    };
    let confirmed = bench.submit();
    bench.hear(confirmed, Heard::Accepted);
    cancel(&mut bench, confirmed).unwrap();
    cancel(&mut bench, confirmed).unwrap();
    assert_eq!(bench.task(confirmed).last_seq, 2, "asked once");
    bench.update(confirmed, 1, Update::Canceled(pb::Canceled::default()));
    let shown = bench.task(confirmed);
    assert!(shown.state() == pb::TaskState::Canceled && shown.cancel_confirmed);
    cancel(&mut bench, confirmed).unwrap();

    let silent = bench.submit();
    bench.hear(silent, Heard::Accepted);
    cancel(&mut bench, silent).unwrap();
    bench.pass(Duration::from_secs(10));
    let shown = bench.task(silent);
    assert!(shown.state() == pb::TaskState::Canceled && !shown.cancel_confirmed);

    let cut = bench.submit();
    bench.hear(cut, Heard::Accepted);
    cancel(&mut bench, cut).unwrap();
    let update = Some(Update::Canceled(pb::Canceled::default()));
    let update = Some(pb::HandleResponse { update });
    bench.hear(
        cut,
        Heard::Update(pb::NumberedUpdate {
            number: 1,
            update,
            cut: true,
            ..Default::default()
        }),
    );
    let shown = bench.task(cut);
    assert!(shown.state() == pb::TaskState::Canceled && !shown.cancel_confirmed);

    let finished = bench.submit();
    bench.update(finished, 1, done());
    assert_eq!(
        cancel(&mut bench, finished).unwrap_err().reason,
        Reason::TaskNotCancelable
    );
    bench.route.set(&[], false);
    let waiting = bench.submit();
    cancel(&mut bench, waiting).unwrap();
    assert_eq!(bench.state(waiting), pb::TaskState::Canceled);
}

impl Bench {
    /// All events so far are on disk.
    pub(super) fn all_on_disk(&mut self) {
        let all: Vec<Uuid> = self.tasks.tasks.keys().copied().collect();
        for task in all {
            let last = self.tasks.tasks[&task].kept.task.last_seq;
            self.tasks.shown(task, last);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bounds_hold() {
    let mut bench = Bench::new(&["i1"], false);
    let chunk = |append, size| {
        Update::Artifact(pb::ArtifactChunk {
            artifact_id: "a".into(),
            part: Some(text(&"x".repeat(size))),
            append,
            ..Default::default()
        })
    };
    for (update, reason) in [
        (chunk(true, 1), "AGENT_ERROR"),
        (chunk(false, (128 << 10) + 1), "AGENT_ERROR"),
        (
            Update::Checkpoint(pb::Checkpoint {
                data: vec![0; (1 << 20) + 1],
            }),
            "AGENT_ERROR",
        ),
        (Update::Question(pb::Question::default()), "AGENT_ERROR"),
        (Update::Rejection(pb::Failure::default()), "AGENT_ERROR"),
    ] {
        let task = bench.submit();
        bench.update(task, 1, update);
        assert_eq!(bench.failure(task), reason);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_memory_is_bounded() {
    let mut bench = Bench::new(&["i1"], false);
    for _ in 0..15 {
        let task = bench.submit();
        bench.update(task, 1, done());
        bench.pass(Duration::from_secs(1));
    }
    assert_eq!(bench.tasks.tasks.len(), 15, "their ends are not on disk");
    bench.all_on_disk();
    bench.tasks.archived = true;
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.tasks.tasks.len(), 15, "the archive takes them");
    bench.tasks.archived = false;
    bench.pass(Duration::from_secs(1));
    assert_eq!(
        bench.tasks.tasks.len(),
        5,
        "the oldest finished ones are forgotten"
    );
    bench.route.set(&[], false);
    for _ in 0..50 {
        bench.submit();
    }
    let asked = Asked {
        id: TaskId {
            home: "home".parse().unwrap(),
            uuid: Uuid::from_u128(999),
        },
        spec: spec(pb::TaskOptions::default()),
        caller: own(),
        namespace: "default".parse().unwrap(),
        own: own(),
        key: None,
        parent: None,
    };
    let new = NewTask::check(asked, &bench.at).unwrap();
    let refused = bench
        .step(|tasks, world| tasks.submit(new, world))
        .unwrap_err();
    assert_eq!(refused.reason, Reason::QueueFull);
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_with_what_ran_and_what_waited() {
    let mut bench = Bench::new(&["i1"], false);
    let runs = bench.submit();
    bench.update(runs, 1, Update::Progress(pb::Progress::default()));
    bench.update(runs, 2, Update::Progress(pb::Progress::default()));
    bench.route.set(&[], false);
    let waits = bench.submit();
    bench.tasks = bench.replayed();
    bench.effects.clear();
    bench.step(Tasks::recovered);
    let resumed = bench.effects.iter().any(|effect| {
        matches!(effect, Effect::Resume { to, after_update: 2 } if to.task == runs && to.attempt == 1)
    });
    assert!(resumed);
    bench.route.set(&["i2"], false);
    bench.step(Tasks::pump);
    assert_eq!(bench.started(), [("i2".to_owned(), 1)]);
    bench.update(waits, 1, done());
    bench.pass(Duration::from_secs(45));
    assert_eq!(bench.failure(runs), "AGENT_LOST");
}

#[derive(Clone, Debug)]
enum Act {
    Submit { fail_fast: bool, told: u8 },
    Told(usize, u8),
    Cancel(usize),
    Respond(usize),
    Hear(usize, u8, u32),
    Update(usize, u8, u64),
    Pass(u64),
    Instead(u8),
    Route(u8),
    Compact(u8),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (any::<bool>(), 0..4_u8).prop_map(|(fail_fast, told)| Act::Submit { fail_fast, told }),
        3 => (any::<usize>(), 0..7_u8).prop_map(|(t, o)| Act::Told(t, o)),
        1 => any::<usize>().prop_map(Act::Cancel),
        2 => any::<usize>().prop_map(Act::Respond),
        4 => (any::<usize>(), 0..9_u8, 0..3_u32).prop_map(|(t, h, a)| Act::Hear(t, h, a)),
        6 => (any::<usize>(), 0..13_u8, 0..6_u64).prop_map(|(t, u, n)| Act::Update(t, u, n)),
        2 => (0..4000_u64).prop_map(Act::Pass),
        1 => (0..3_u8).prop_map(Act::Instead),
        2 => (0..4_u8).prop_map(Act::Route),
        2 => any::<u8>().prop_map(Act::Compact),
        1 => Just(Act::Restart),
    ]
}

fn word(what: u8, now: Instant) -> Heard {
    match what {
        0 => Heard::Alive,
        1 | 2 => Heard::Accepted,
        3 => Heard::Refused {
            reason: "SLOTS_FULL".into(),
            wait: None,
            failure: None,
        },
        4 => Heard::NotSent,
        5 => UNKNOWN,
        6 => Heard::Silent(now),
        7 => Heard::Wanted(Wants { turn: 1, total: 40 }),
        _ => Heard::Broken(now),
    }
}

fn said(what: u8) -> Update {
    match what {
        0 => done(),
        1 => Update::Failure(pb::Failure::default()),
        2 => Update::Canceled(pb::Canceled::default()),
        3 => Update::Checkpoint(pb::Checkpoint {
            data: vec![1, 2, 3],
        }),
        4 => Update::Usage(pb::Usage {
            input_tokens: 5,
            ..Default::default()
        }),
        5 => Update::Message(pb::Message {
            parts: vec![text("hi")],
            ..Default::default()
        }),
        6 => Update::Artifact(pb::ArtifactChunk {
            artifact_id: "a".into(),
            part: Some(text("x")),
            ..Default::default()
        }),
        7 => Update::Transient(text("t")),
        8 => unavailable(),
        _ => Update::Progress(pb::Progress::default()),
    }
}

/// An update as the executor tells it; every question is another one.
fn told(bench: &Bench, what: u8, number: u64) -> Heard {
    let update = match what {
        11.. => dialogue::asking(&format!("q{}", bench.log.len())),
        _ => said(what),
    };
    Heard::Update(pb::NumberedUpdate {
        number,
        update: Some(pb::HandleResponse {
            update: Some(update),
        }),
        cut: number.is_multiple_of(2),
        descendants_used: Some(u32::try_from(number % 3).unwrap()),
    })
}

fn some_callback(told: u8) -> Option<pb::Callback> {
    let states = [
        pb::TaskState::Working,
        pb::TaskState::Submitted,
        pb::TaskState::InputRequired,
        pb::TaskState::Failed,
    ];
    match told {
        0 | 1 => None,
        2 => Some(callback(&[])),
        _ => Some(callback(&states)),
    }
}

fn came_of_it(what: u8) -> Outcome {
    match what {
        0 | 1 => Outcome::Delivered,
        2 => Outcome::Refused("no".into()),
        3 => Outcome::Busy,
        4 => Outcome::Anew("lost".into()),
        5 => Outcome::Given("home.x".into()),
        _ => Outcome::Later {
            why: "away".into(),
            wait: None,
        },
    }
}

#[allow(clippy::too_many_lines, reason = "one arm for each act")]
fn play(bench: &mut Bench, act: &Act, known: &mut Vec<Uuid>) {
    let pick =
        |place: usize, known: &[Uuid]| (!known.is_empty()).then(|| known[place % known.len()]);
    let attempt_of = |bench: &Bench, task: Uuid, back: u32| {
        let entry = bench.tasks.tasks.get(&task);
        entry.map_or(1, |entry| entry.kept.task.attempt.saturating_sub(back))
    };
    match act {
        Act::Submit { fail_fast, told } => {
            let new = bench.checked(pb::TaskOptions {
                fail_fast: *fail_fast,
                callback: some_callback(*told),
                ..Default::default()
            });
            // There may be too much to tell already.
            known.extend(bench.step(|tasks, world| tasks.submit(new, world)));
        }
        Act::Told(place, what) => {
            let Some(task) = pick(*place, known) else {
                return;
            };
            bench.tell(task, came_of_it(*what));
        }
        Act::Cancel(place) => {
            let Some(task) = pick(*place, known) else {
                return;
            };
            let at = bench.at;
            drop(bench.step(|tasks, _| tasks.cancel(task, "me", "", at)));
        }
        Act::Respond(place) => {
            let Some(task) = pick(*place, known) else {
                return;
            };
            bench.step(|tasks, world| dialogue::answer_any(tasks, task, world));
        }
        Act::Hear(place, what, back) => {
            let Some(task) = pick(*place, known) else {
                return;
            };
            let heard = word(*what, bench.at.now);
            let attempt = attempt_of(bench, task, *back);
            bench.step(|tasks, world| tasks.heard(task, attempt, heard, world));
        }
        Act::Update(place, what, number) => {
            let Some(task) = pick(*place, known) else {
                return;
            };
            let attempt = attempt_of(bench, task, 0);
            let heard = told(bench, *what, *number);
            bench.step(|tasks, world| tasks.heard(task, attempt, heard, world));
        }
        Act::Pass(seconds) => bench.pass(Duration::from_secs(*seconds)),
        Act::Instead(what) => bench.turn(*what),
        Act::Route(count) => {
            bench
                .route
                .set(&["i1", "i2", "i3"][..usize::from(*count)], count % 2 == 0);
            bench.step(Tasks::pump);
        }
        Act::Compact(turns) => bench.compact(*turns),
        Act::Restart => {
            bench.tasks = bench.replayed_from(bench.needed());
            bench.step(Tasks::recovered);
        }
    }
}

/// What any log must hold, whatever led to it.
fn check_log(log: &[(u64, Record)]) {
    let mut last: std::collections::HashMap<&str, (u64, u32, bool)> = Default::default();
    let mut asking = std::collections::HashSet::new();
    for (_, record) in log {
        let id = record.task_id.as_str();
        match record.kind.as_ref().unwrap() {
            Recorded::Submitted(_) => assert!(last.insert(id, (0, 0, false)).is_none()),
            Recorded::Event(event) => {
                let known = last.get_mut(id).unwrap();
                assert!(!known.2, "an event after the end");
                assert_eq!(event.seq, known.0 + 1);
                assert_eq!(event.attempt, known.1);
                *known = (event.seq, known.1, ended(event.state()));
                asking.remove(id);
                if super::dialogue::asks(event.state()) {
                    asking.insert(id);
                }
            }
            Recorded::Dispatched(sent) => {
                let known = last.get_mut(id).unwrap();
                assert!(!known.2, "a dispatch after the end");
                assert!(!asking.contains(id), "a dispatch before the answer");
                assert_eq!(sent.attempt, known.1 + 1);
                known.1 = sent.attempt;
            }
            Recorded::Checkpoint(_)
            | Recorded::NotStarted(_)
            | Recorded::Granted(_)
            | Recorded::Promised(_)
            | Recorded::Returned(_) => {
                assert!(!last[id].2);
            }
            Recorded::Copied(event) => assert!(event.seq <= last[id].0),
            // What is still to be told keeps it where it is.
            Recorded::Snapshot(snapshot) => assert!(
                !last[id].2 || !snapshot.owed.is_empty(),
                "a snapshot after the end"
            ),
            Recorded::Told(Told { seq, .. })
            | Recorded::GaveUp(GaveUp { seq, .. })
            | Recorded::Anew(Anew { seq }) => {
                assert!(*seq > 0 && *seq <= last[id].0);
            }
            Recorded::Forgotten(_) => assert!(last.remove(id).unwrap().2),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_order_of_inputs_keeps_the_promises(acts in prop::collection::vec(act(), 1..45)) {
        let mut bench = Bench::new(&["i1", "i2"], true);
        let mut known = Vec::new();
        for act in &acts {
            let (mark, seen) = (bench.log.len(), bench.effects.len());
            play(&mut bench, act, &mut known);
            for effect in &bench.effects[seen..] {
                let fresh = &bench.log[mark..];
                if let Effect::Start { to, .. } = effect {
                    let named = |(_, record): &&(u64, Record)| {
                        matches!(&record.kind, Some(Recorded::Dispatched(sent))
                            if sent.attempt == to.attempt && record.task_id == to.task_id)
                    };
                    prop_assert!(fresh.iter().any(|entry| named(&entry)), "a start without its record");
                }
            }
            let kept = |tasks: &Tasks| -> Vec<_> {
                tasks.tasks.iter().map(|(id, entry)| (*id, entry.kept.clone())).collect()
            };
            let (live, needed) = (kept(&bench.tasks), bench.needed());
            // A crash may come while segments are deleted: any part of what may go is gone.
            for first in [0, needed / 2, needed] {
                let again = bench.replayed_from(first);
                prop_assert_eq!(&live, &kept(&again), "a replay gives the same tasks");
                prop_assert!(again.first_needed() <= bench.tasks.first_needed());
            }
        }
        check_log(&bench.log);
        // Whatever happened, every task ends.
        bench.pass(Duration::from_secs(8000));
        for task in bench.tasks.tasks.values() {
            prop_assert!(task.kept.ended());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_stops_fills_neither_memory_nor_disk() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit();
    bench.hear(task, Heard::Accepted);
    let large = pb::Progress {
        message: "x".repeat(200 << 10),
        ..Default::default()
    };
    let mut number = 0;
    while bench.tasks.tasks[&task].kept.said <= SAID_MAX {
        number += 1;
        bench.update(task, number, Update::Progress(large.clone()));
        // What goes to disk would be kept by the bench.
        bench.log.clear();
    }
    assert_eq!(bench.state(task), pb::TaskState::Working);
    let kept = bench.tasks.tasks[&task].kept.bytes;
    assert!(kept <= EVENTS_BYTES + (1 << 20), "{kept} bytes in memory");
    bench.update(task, number + 1, Update::Progress(large));
    assert_eq!(bench.failure(task), "CONTENT_TOO_LARGE");
}

#[tokio::test(start_paused = true)]
async fn many_lanes_that_nobody_serves_are_looked_at_once() {
    let mut bench = Bench::new(&[], false);
    for number in 0..200 {
        let at = bench.at;
        let mut asked = spec(pb::TaskOptions::default());
        asked.selector.as_mut().unwrap().tags = vec![format!("t{number}")];
        let asked = Asked {
            id: TaskId {
                home: "home".parse().unwrap(),
                uuid: Uuid::from_u128(1000 + number),
            },
            spec: asked,
            caller: own(),
            namespace: "default".parse().unwrap(),
            own: own(),
            key: None,
            parent: None,
        };
        let new = NewTask::check(asked, &at).unwrap();
        // The bench takes 50 at once; the lanes are what counts.
        bench.tasks.limits.live = 1000;
        bench.step(|tasks, world| tasks.submit(new, world)).unwrap();
    }
    for _ in 0..10 {
        bench.pass(Duration::from_millis(10));
    }
    let next = bench.tasks.next_wake().unwrap();
    assert!(next > bench.at.now + Duration::from_secs(60), "it looks on");
    bench.route.set(&["i1"], false);
    bench.step(Tasks::pump);
    for _ in 0..10 {
        bench.pass(Duration::from_millis(10));
    }
    assert_eq!(
        bench.started().len(),
        65,
        "64 and one that looks for more room"
    );
}

#[tokio::test(start_paused = true)]
async fn a_long_lived_task_is_written_anew_and_holds_no_old_records() {
    let mut bench = Bench::new(&["i1"], false);
    let long = bench.submit();
    bench.hear(long, Heard::Accepted);
    for number in 1..=20 {
        bench.update(long, number, said(if number % 2 == 0 { 5 } else { 6 }));
    }
    for _ in 0..5 {
        let short = bench.submit();
        bench.update(short, 1, done());
    }
    assert_eq!(bench.tasks.first_needed(), Some(1));
    let copies = |bench: &Bench| {
        let records = bench.log.iter();
        records
            .filter(|(_, record)| matches!(record.kind, Some(Recorded::Copied(_))))
            .count()
    };
    // Finished tasks leave by themselves: they are not written anew, and hold what they hold.
    bench.compact(u8::MAX);
    let first_ended = bench.tasks.tasks[&bench.tasks.ended[0]].first_lsn;
    assert_eq!(
        (bench.tasks.first_needed(), copies(&bench)),
        (Some(first_ended), 21)
    );
    let ended: Vec<Uuid> = bench.tasks.ended.iter().copied().collect();
    bench.step(|tasks, _| tasks.moved(&ended, None));
    let before = bench.needed();
    bench.compact(3);
    bench.update(long, 21, said(5));
    assert_eq!(bench.needed(), before, "it is not over yet");
    bench.compact(u8::MAX);
    assert_eq!(copies(&bench), 42, "each event once");
    let needed = bench.needed();
    assert!(needed > before, "{needed}");
    let again = bench.replayed_from(needed);
    assert_eq!(again.tasks[&long].kept, bench.tasks.tasks[&long].kept);
    bench.tasks.low_space = true;
    bench.compact(u8::MAX);
    assert_eq!(bench.tasks.first_needed(), Some(needed), "no room for it");
}

#[tokio::test(start_paused = true)]
async fn only_what_is_on_disk_is_moved_and_the_oldest_first() {
    let mut bench = Bench::new(&["i1"], false);
    let stay = Stay {
        tasks: 1,
        bytes: 1 << 20,
    };
    let tasks = [bench.submit(), bench.submit(), bench.submit()];
    for task in tasks {
        bench.update(task, 1, done());
    }
    let chosen = |bench: &Bench| -> Vec<Uuid> {
        let chosen = bench.tasks.to_move(stay, bench.at).into_iter();
        chosen.map(|(task, _)| task).collect()
    };
    // The log may still lose how they ended: the archive must not know more.
    assert!(chosen(&bench).is_empty());
    bench.tasks.shown(tasks[1], 2);
    let none = chosen(&bench);
    assert!(
        none.is_empty(),
        "in the order in which they ended: {none:?}"
    );
    bench.tasks.shown(tasks[0], 2);
    bench.tasks.shown(tasks[2], 2);
    assert_eq!(chosen(&bench), tasks[..2], "one stays");
    assert!(bench.tasks.worth_moving(stay));
    bench.step(|all, _| all.moved(&tasks[..2], None));
    assert!(!bench.tasks.worth_moving(stay));
    assert!(chosen(&bench).is_empty());
    bench.pass(Duration::from_secs(61));
    assert_eq!(chosen(&bench), tasks[2..], "none stays for long");
    let again = bench.replayed();
    assert_eq!((again.tasks.len(), again.ended.len()), (1, 1));
}
