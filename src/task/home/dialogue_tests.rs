//! Questions and answers: every way that they may go, in memory, after a restart and in a snapshot.

use super::*;
use crate::task::home::dialogue::{
    DIALOGUE_MAX, QUESTION_MAX, QUESTIONS_MAX, RESPONSE_MAX, Response, may_answer, withheld_from,
    withhold,
};
use crate::task::home::kept::Parties;

/// What is asked for by most of these tests.
const SCHEMA: &str =
    r#"{"type":"object","properties":{"size":{"type":"integer"}},"required":["size"]}"#;

fn question(id: &str) -> pb::Question {
    pb::Question {
        question_id: id.into(),
        message: Some(pb::Message {
            parts: vec![text("how large?")],
            ..pb::Message::default()
        }),
        ..pb::Question::default()
    }
}

pub(super) fn asking(id: &str) -> Update {
    Update::Question(question(id))
}

fn answer(id: &str, said: &str) -> Response {
    Response {
        question_id: id.into(),
        parts: vec![text(said)],
    }
}

fn data(value: serde_json::Value) -> pb::Part {
    pb::Part {
        content: Some(pb::part::Content::Data(crate::wire::json::to_value(value))),
        ..pb::Part::default()
    }
}

/// Answers what the task asks, if it does.
pub(super) fn answer_any(tasks: &mut Tasks, task: Uuid, world: World<'_>) {
    let entry = tasks.tasks.get(&task);
    let open = entry.and_then(|entry| entry.kept.open_question());
    let id = open.map_or_else(|| "q0".to_owned(), |open| open.question_id.clone());
    let asks = open.is_some();
    let late = entry.is_some_and(|entry| entry.deadline <= world.at.now);
    let taken = tasks.respond(task, &own(), answer(&id, "x"), world);
    assert!(taken.is_ok() || !asks || late, "{taken:?}");
}

/// What is said in the last Start that went out, of everybody.
fn told(bench: &Bench) -> Vec<(String, pb::Role, String)> {
    let start = bench.effects.iter().rev().find_map(|effect| match effect {
        Effect::Start { start, .. } => start.handle.clone(),
        Effect::Shown { .. }
        | Effect::Transient { .. }
        | Effect::Tell(_)
        | Effect::Told(_)
        | Effect::Resume { .. }
        | Effect::Ack { .. }
        | Effect::Abort { .. }
        | Effect::Give { .. }
        | Effect::Draw { .. }
        | Effect::Drawn { .. }
        | Effect::LeaveParent { .. }
        | Effect::GiveBack { .. }
        | Effect::LetGo { .. }
        | Effect::Release { .. } => None,
    });
    let inputs = start.unwrap().inputs.into_iter();
    let said = inputs.map(|message| {
        let words = message.parts.iter().map(|part| match &part.content {
            Some(pb::part::Content::Text(text)) => text.clone(),
            other => format!("{other:?}"),
        });
        (message.message_id.clone(), message.role(), words.collect())
    });
    said.collect()
}

impl Bench {
    fn respond(&mut self, task: Uuid, response: Response) -> Result<bool, crate::domain::Fault> {
        self.step(|tasks, world| tasks.respond(task, &own(), response, world))
    }

    /// Why an answer is not taken.
    fn refuses(&mut self, task: Uuid, response: Response) -> Reason {
        let before = self.log.len();
        let refused = self.respond(task, response).unwrap_err();
        assert_eq!(self.log.len(), before, "a refusal changes nothing");
        refused.reason
    }

    /// The running attempt asks.
    fn asked(names: &[&str], idempotent: bool) -> (Self, Uuid) {
        let mut bench = Self::new(names, idempotent);
        let task = bench.submit();
        bench.hear(task, Heard::Accepted);
        bench.update(task, 1, asking("q1"));
        (bench, task)
    }

    fn same_after_a_restart(&self, task: Uuid) {
        let again = self.replayed();
        assert_eq!(again.tasks[&task].kept, self.tasks.tasks[&task].kept);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_lets_the_same_task_go_on_with_all_that_was_said() {
    let (mut bench, task) = Bench::asked(&["i1"], false);
    let shown = bench.task(task);
    assert_eq!(shown.state(), pb::TaskState::InputRequired);
    assert_eq!(shown.question.unwrap().question_id, "q1");
    assert!(bench.tasks.tasks[&task].kept.running.is_none());
    let released = |effect: &Effect| matches!(effect, Effect::Release { abort: None, .. });
    assert!(bench.effects.iter().any(released), "its attempt is over");
    let gate = &"i1".parse().unwrap();
    assert_eq!(bench.tasks.gates.in_flight(gate), 0);
    assert_eq!(bench.tasks.working, 0);
    bench.same_after_a_restart(task);
    let deadline = bench.tasks.tasks[&task].deadline;
    assert_eq!(
        bench.tasks.next_wake(),
        Some(deadline),
        "nothing else is due"
    );
    // What the attempt says after it changes nothing.
    bench.update(task, 2, done());
    assert_eq!(bench.state(task), pb::TaskState::InputRequired);

    assert!(bench.respond(task, answer("q1", "large")).unwrap());
    assert_eq!(bench.state(task), pb::TaskState::Submitted);
    assert_eq!(bench.task(task).question, None);
    assert_eq!(bench.started().last().unwrap(), &("i1".to_owned(), 2));
    let all = [
        ("input", pb::Role::User, "go"),
        ("q1", pb::Role::Agent, "how large?"),
        ("q1", pb::Role::User, "large"),
    ];
    let all = all.map(|(id, role, said)| (id.to_owned(), role, said.to_owned()));
    assert_eq!(told(&bench), all);
    bench.same_after_a_restart(task);
    bench.hear(task, Heard::Accepted);
    assert_eq!(bench.state(task), pb::TaskState::Working);
    bench.update(task, 1, asking("q2"));
    assert!(bench.respond(task, answer("q2", "now")).unwrap());
    assert_eq!(told(&bench).len(), 5);
    bench.hear(task, Heard::Accepted);
    bench.update(task, 1, done());
    let shown = bench.task(task);
    assert_eq!(shown.state(), pb::TaskState::Completed);
    let kept = &bench.tasks.tasks[&task].kept;
    let seqs: Vec<_> = kept.events.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, (1..=shown.last_seq).collect::<Vec<_>>());
    let whole = crate::task::home::view::full(kept);
    let (full, truncated) = (whole.task, whole.truncated);
    assert_eq!((full.messages.len(), truncated), (5, false));
    assert!(full.messages.iter().skip(1).all(|said| said.at.is_some()));
    assert_eq!(full.messages[2].by, own().to_string());
}

#[tokio::test(start_paused = true)]
async fn answers_are_idempotent_and_what_does_not_fit_the_moment_is_refused_by_name() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit();
    assert_eq!(
        bench.refuses(task, answer("q1", "x")),
        Reason::TaskAsksNothing
    );
    bench.hear(task, Heard::Accepted);
    assert_eq!(
        bench.refuses(task, answer("q1", "x")),
        Reason::TaskAsksNothing
    );
    bench.update(task, 1, asking("q1"));
    assert_eq!(
        bench.refuses(task, answer("q2", "x")),
        Reason::QuestionNotFound
    );
    assert!(bench.respond(task, answer("q1", "x")).unwrap());
    let known = |bench: &mut Bench| {
        assert!(!bench.respond(task, answer("q1", "x")).unwrap(), "again");
        assert_eq!(
            bench.refuses(task, answer("q1", "y")),
            Reason::QuestionAnswered
        );
    };
    known(&mut bench);
    bench.hear(task, Heard::Accepted);
    known(&mut bench);
    assert_eq!(
        bench.refuses(task, answer("q2", "x")),
        Reason::TaskAsksNothing
    );
    bench.update(task, 1, done());
    known(&mut bench);
    assert_eq!(bench.refuses(task, answer("q2", "x")), Reason::TaskEnded);
    let gone = Uuid::from_u128(99);
    assert_eq!(bench.refuses(gone, answer("q1", "x")), Reason::TaskNotFound);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_held_against_the_schema_of_its_question() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit();
    let mut asked = question("size");
    asked.answer_schema = SCHEMA.into();
    bench.update(task, 1, Update::Question(asked));
    let given = |parts: Vec<pb::Part>| Response {
        question_id: "size".into(),
        parts,
    };
    let wrong = data(serde_json::json!({"size": "large"}));
    let refused = bench
        .respond(task, given(vec![text("so"), wrong]))
        .unwrap_err();
    assert_eq!(refused.reason, Reason::InputInvalid);
    assert_eq!(refused.field.as_deref(), Some("parts[1].data"));
    let facts: std::collections::BTreeMap<_, _> = refused.metadata.iter().cloned().collect();
    assert_eq!(facts["question_id"], "size");
    assert_eq!((&*facts["pointer"], &*facts["rule"]), ("/size", "type"));
    assert_eq!(facts["expected"], r#"{"type":"integer"}"#);
    assert!(
        refused
            .text
            .ends_with("correct the answer and send it again"),
        "{refused}"
    );
    assert_eq!(
        bench.refuses(task, given(vec![text("3")])),
        Reason::InputInvalid
    );
    assert_eq!(
        bench.state(task),
        pb::TaskState::InputRequired,
        "it still asks"
    );
    let right = data(serde_json::json!({"size": 3}));
    assert!(bench.respond(task, given(vec![right])).unwrap());
    assert_eq!(bench.tasks.answers.count(), 1, "it is kept compiled");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_breaks_a_rule_fails_its_task_and_says_which() {
    type Spoil = fn(&mut pb::Question);
    let spoilt: [(&str, Spoil); 8] = [
        ("1 to 128 bytes", |q| q.question_id.clear()),
        ("1 to 128 bytes", |q| q.question_id = "x".repeat(129)),
        ("without a message", |q| q.message = None),
        ("at most 65536", |q| {
            q.message = Some(pb::Message {
                parts: vec![text(&"x".repeat(QUESTION_MAX))],
                ..pb::Message::default()
            });
        }),
        ("empty", |q| {
            q.message.as_mut().unwrap().parts.push(pb::Part::default());
        }),
        ("answer_schema", |q| q.answer_schema = "{".into()),
        ("answer_schema", |q| {
            q.answer_schema = r#"{"type":"sice"}"#.into();
        }),
        ("answer_schema", |q| {
            q.answer_schema = r#"{"$ref":"https://a/b"}"#.into();
        }),
    ];
    for (said, spoil) in spoilt {
        let mut bench = Bench::new(&["i1"], false);
        let task = bench.submit();
        let mut asked = question("q1");
        spoil(&mut asked);
        bench.update(task, 1, Update::Question(asked));
        let failure = bench.task(task).failure.unwrap();
        assert_eq!(failure.reason, "AGENT_ERROR");
        assert!(
            failure.message.contains(said),
            "{said}: {}",
            failure.message
        );
    }
    let (mut bench, task) = Bench::asked(&["i1"], false);
    bench.respond(task, answer("q1", "x")).unwrap();
    bench.update(task, 1, asking("q1"));
    assert_eq!(bench.failure(task), "AGENT_ERROR", "it has that answer");
}

#[tokio::test(start_paused = true)]
async fn questions_and_their_bytes_are_bounded() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit();
    for number in 0..QUESTIONS_MAX {
        let id = format!("q{number}");
        bench.update(task, 1, asking(&id));
        assert!(bench.respond(task, answer(&id, "yes")).unwrap());
    }
    bench.same_after_a_restart(task);
    bench.update(task, 1, asking("one more"));
    assert_eq!(bench.failure(task), "AGENT_ERROR");

    let task = bench.submit();
    let large = "x".repeat(RESPONSE_MAX - 1024);
    for number in 0..4 {
        let id = format!("q{number}");
        bench.update(task, 1, asking(&id));
        assert!(bench.respond(task, answer(&id, &large)).unwrap());
    }
    let start = bench.tasks.tasks[&task]
        .kept
        .start(&"home".parse().unwrap());
    let size = prost::Message::encoded_len(&start);
    assert!(size < DIALOGUE_MAX + (64 << 10), "{size}");
    bench.update(task, 1, asking("q4"));
    let left = bench.refuses(task, answer("q4", &large));
    assert_eq!(left, Reason::PayloadTooLarge);
    let small = "x".repeat(10 << 10);
    assert!(bench.respond(task, answer("q4", &small)).unwrap());
    bench.update(task, 1, asking("q5"));
    assert_eq!(bench.failure(task), "AGENT_ERROR", "no room for an answer");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_asks_is_cancelled_at_once_and_its_deadline_goes_on() {
    let (mut bench, task) = Bench::asked(&["i1"], false);
    bench
        .step(|tasks, world| tasks.cancel(task, "me", "enough", world.at))
        .unwrap();
    let shown = bench.task(task);
    assert_eq!(shown.state(), pb::TaskState::Canceled);
    assert!(shown.cancel_confirmed, "nothing runs");
    assert_eq!(shown.question, None);
    assert_eq!(bench.refuses(task, answer("q1", "x")), Reason::TaskEnded);

    for (idle, answered) in [(3599, true), (3600, false)] {
        let (mut bench, task) = Bench::asked(&["i1"], false);
        // The answer comes before anybody has looked at the time.
        bench.at.now += Duration::from_secs(idle);
        bench.at.wall += Duration::from_secs(idle);
        let taken = bench.respond(task, answer("q1", "x"));
        assert_eq!(taken.is_ok(), answered, "{taken:?}");
        if !answered {
            assert_eq!(taken.unwrap_err().reason, Reason::TaskEnded);
            assert_eq!(bench.failure(task), "DEADLINE_EXCEEDED");
        }
    }
    let (mut bench, task) = Bench::asked(&["i1"], false);
    bench.pass(Duration::from_secs(3600));
    assert_eq!(bench.failure(task), "DEADLINE_EXCEEDED");
}

#[tokio::test(start_paused = true)]
async fn whoever_is_being_cancelled_asks_nobody_any_more() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit();
    bench.hear(task, Heard::Accepted);
    bench
        .step(|tasks, world| tasks.cancel(task, "me", "", world.at))
        .unwrap();
    bench.update(task, 1, asking("q1"));
    let shown = bench.task(task);
    assert_eq!(shown.state(), pb::TaskState::Canceled);
    assert!(shown.cancel_confirmed);
    bench.same_after_a_restart(task);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_asked_is_none_of_the_three_and_a_loss_keeps_what_was_said() {
    let (mut bench, task) = Bench::asked(&["i1", "i2", "i3", "i4"], true);
    for number in 2..6 {
        bench
            .respond(task, answer(&format!("q{}", number - 1), "x"))
            .unwrap();
        bench.hear(task, Heard::Accepted);
        bench.update(task, 1, asking(&format!("q{number}")));
    }
    bench.respond(task, answer("q5", "x")).unwrap();
    for lost in 1..=3 {
        assert_eq!(told(&bench).len(), 11, "after {lost} losses");
        assert_eq!(told(&bench)[10].2, "x");
        bench.hear(task, Heard::Accepted);
        bench.hear(task, UNKNOWN);
        bench.pass(Duration::from_secs(30));
    }
    assert_eq!(bench.failure(task), "RETRIES_EXHAUSTED");
    let went = bench.went();
    assert_eq!(went[..6], ["i1"; 6]);
    assert_eq!(went[6..], ["i2", "i3"]);

    // Work that may not run twice is lost with its executor, answered or not.
    let (mut bench, task) = Bench::asked(&["i1", "i2"], false);
    bench.respond(task, answer("q1", "x")).unwrap();
    bench.hear(task, Heard::Accepted);
    bench.hear(task, UNKNOWN);
    assert_eq!(bench.failure(task), "AGENT_LOST");
}

#[tokio::test(start_paused = true)]
async fn what_an_attempt_left_behind_is_there_for_the_next_one() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit();
    let chunk = |said: &str, append, last_chunk| {
        Update::Artifact(pb::ArtifactChunk {
            artifact_id: "a".into(),
            part: Some(text(said)),
            append,
            last_chunk,
            ..Default::default()
        })
    };
    let data = b"half way".to_vec();
    bench.update(task, 1, Update::Checkpoint(pb::Checkpoint { data }));
    bench.update(task, 2, chunk("one", false, false));
    bench.update(task, 3, asking("q1"));
    bench.respond(task, answer("q1", "x")).unwrap();
    let kept = bench.tasks.tasks[&task].kept.clone();
    assert_eq!(kept.checkpoint, b"half way");
    let start = kept.start(&"home".parse().unwrap());
    assert_eq!(start.handle.unwrap().checkpoint, b"half way");
    bench.update(task, 1, chunk(" two", true, false));
    assert_eq!(bench.task(task).artifacts[0].size, 7);
    // The next attempt may make it anew, open or complete.
    for (question, made) in [("q2", "three"), ("q3", "fourth"), ("q4", "5")] {
        bench.update(task, 2, asking(question));
        bench.respond(task, answer(question, "x")).unwrap();
        bench.update(task, 1, chunk(made, false, made != "three"));
    }
    let artifacts = bench.task(task).artifacts;
    let stands: Vec<_> = artifacts.iter().map(|a| (a.size, a.superseded)).collect();
    assert_eq!(stands, [(7, true), (5, true), (6, true), (1, false)]);
    bench.same_after_a_restart(task);
    bench.update(task, 2, chunk("6", false, true));
    assert_eq!(bench.failure(task), "AGENT_ERROR", "only the next one may");
}

#[tokio::test(start_paused = true)]
async fn a_loss_takes_what_the_lost_attempt_made_and_nothing_of_those_that_asked() {
    let mut bench = Bench::new(&["i1", "i2"], true);
    let task = bench.submit();
    let whole = |id: &str| {
        Update::Artifact(pb::ArtifactChunk {
            artifact_id: id.into(),
            part: Some(text("x")),
            last_chunk: true,
            ..Default::default()
        })
    };
    bench.hear(task, Heard::Accepted);
    bench.update(task, 1, whole("first"));
    bench.update(task, 2, asking("q1"));
    bench.respond(task, answer("q1", "x")).unwrap();
    bench.hear(task, Heard::Accepted);
    bench.update(task, 1, whole("second"));
    bench.hear(task, UNKNOWN);
    let artifacts = bench.task(task).artifacts;
    let stands: Vec<_> = artifacts
        .iter()
        .map(|a| (a.artifact_id.as_str(), a.superseded))
        .collect();
    assert_eq!(stands, [("first", false), ("second", true)]);
    bench.same_after_a_restart(task);
    bench.pass(Duration::from_secs(30));
    let named = |id: &str| {
        Update::Result(pb::TaskResult {
            artifact_ids: vec![id.into()],
            ..Default::default()
        })
    };
    let mut other = bench.replayed();
    bench.update(task, 1, named("first"));
    assert_eq!(bench.state(task), pb::TaskState::Completed);
    std::mem::swap(&mut bench.tasks, &mut other);
    bench.update(task, 1, named("second"));
    assert_eq!(bench.failure(task), "AGENT_ERROR", "it was lost");
}

#[tokio::test(start_paused = true)]
async fn a_right_that_was_given_goes_with_no_other_agent() {
    let mut bench = Bench::new(&["i1"], true);
    let task = bench.submit();
    let right = || {
        let mut asked = question("deploy");
        asked.auth = true;
        Update::Question(asked)
    };
    bench.hear(task, Heard::Accepted);
    bench.update(task, 1, asking("size"));
    bench.respond(task, answer("size", "large")).unwrap();
    bench.hear(task, Heard::Accepted);
    bench.update(task, 1, right());
    bench.respond(task, answer("deploy", "secret")).unwrap();
    assert_eq!(told(&bench).len(), 5, "the agent that asked knows");
    bench.hear(task, Heard::Accepted);
    // It is lost, and an agent of another name offers the same.
    bench.route.all.lock().unwrap()[0].agent = "default/other".parse().unwrap();
    bench.hear(task, UNKNOWN);
    bench.pass(Duration::from_secs(30));
    assert_eq!(bench.task(task).executor.unwrap().agent, "default/other");
    assert_eq!(told(&bench).len(), 3, "the other one does not");
    let shown = bench.task(task);
    let id = |name: &str| -> SpiffeId {
        let text = format!("spiffe://attache.local/{name}");
        text.parse().unwrap()
    };
    for (who, parts) in [
        ("ns/default/agent/other", 0),
        ("ns/default/agent/worker", 1),
        ("ns/default/agent/caller", 1),
        ("operator/ops", 1),
    ] {
        let kept = &bench.tasks.tasks[&task].kept;
        let mut message = crate::task::home::view::full(kept).task.messages.remove(4);
        let agent = withheld_from(&id(who), &shown);
        withhold(agent.as_deref(), &mut message);
        assert_eq!(message.parts.len(), parts, "{who}");
    }
    // It asks for itself, by the same name, and the first answer is not taken for its own.
    bench.hear(task, Heard::Accepted);
    bench.update(task, 1, right());
    let open = bench.task(task).question.unwrap().question_id;
    assert_ne!(open, "deploy");
    assert!(!bench.respond(task, answer("deploy", "secret")).unwrap());
    assert_eq!(bench.state(task), pb::TaskState::AuthRequired);
    assert!(bench.respond(task, answer(&open, "yours")).unwrap());
    let told = told(&bench);
    assert_eq!(told.len(), 5);
    assert_eq!(
        (told[4].0.as_str(), told[4].2.as_str()),
        ("deploy", "yours")
    );
    bench.same_after_a_restart(task);
    bench.hear(task, Heard::Accepted);
    bench.update(task, 1, right());
    assert_eq!(bench.failure(task), "AGENT_ERROR", "it has its answer");
}

#[tokio::test(start_paused = true)]
async fn who_was_given_a_right_is_known_until_it_goes_on() {
    for auth in [false, true] {
        let mut bench = Bench::new(&["i1"], false);
        let task = bench.submit();
        let granted = |bench: &Bench| {
            let kept = &bench.tasks.tasks[&task].kept;
            kept.granted_to().map(ToOwned::to_owned)
        };
        bench.hear(task, Heard::Accepted);
        bench.update(
            task,
            1,
            Update::Question(pb::Question {
                auth,
                ..question("q1")
            }),
        );
        assert_eq!(granted(&bench), None, "nobody has answered");
        bench.route.set(&[], false);
        bench.respond(task, answer("q1", "you may")).unwrap();
        let worker = auth.then(|| "default/worker".to_owned());
        assert_eq!(granted(&bench), worker, "whether it is one: {auth}");
        bench.same_after_a_restart(task);
        bench.route.set(&["i1"], false);
        bench.step(Tasks::pump);
        assert_eq!(granted(&bench), worker, "sent to it, and not taken");
        bench.hear(task, Heard::Accepted);
        assert_eq!(granted(&bench), None, "it goes on");
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_given_a_right_is_the_first_to_go_on_and_another_one_where_it_is_gone() {
    for (there, first) in [(&["i2", "i1"][..], "i1"), (&["i2"], "i2")] {
        let mut bench = Bench::new(&["i1"], false);
        bench.route.heeds_names.store(true, Ordering::Relaxed);
        let task = bench.submit();
        bench.hear(task, Heard::Accepted);
        let mut right = question("q1");
        right.auth = true;
        bench.update(task, 1, Update::Question(right));
        bench.route.set(there, false);
        bench.route.all.lock().unwrap()[0].agent = "default/other".parse().unwrap();
        bench.respond(task, answer("q1", "you may")).unwrap();
        assert_eq!(bench.started().last().unwrap().0, first);
    }
}

#[tokio::test(start_paused = true)]
async fn who_asked_is_known_until_an_agent_goes_on_and_nobody_fails_fast_after_an_answer() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit_with(pb::TaskOptions {
        fail_fast: true,
        ..Default::default()
    });
    bench.hear(task, Heard::Accepted);
    bench.update(task, 1, asking("q1"));
    bench.route.set(&[], false);
    bench.respond(task, answer("q1", "x")).unwrap();
    assert_eq!(bench.state(task), pb::TaskState::Submitted, "it waits");
    let asked_at = |bench: &Bench| {
        let kept = &bench.tasks.tasks[&task].kept;
        kept.asked_at.as_ref().map(ToString::to_string)
    };
    bench.route.set(&["i2"], false);
    bench.step(Tasks::pump);
    assert_eq!(bench.started().last().unwrap(), &("i2".to_owned(), 2));
    bench.hear(task, refused(Reason::SlotsFull));
    assert_eq!(asked_at(&bench).as_deref(), Some("i1"));
    bench.same_after_a_restart(task);
    bench.pass(Duration::from_secs(10));
    bench.hear(task, Heard::Accepted);
    assert_eq!(asked_at(&bench), None);
}

#[test]
fn what_can_be_no_answer_is_refused_before_anybody_looks_at_the_task() {
    let nothing = Response {
        question_id: "q1".into(),
        parts: vec![],
    };
    let hollow = Response {
        parts: vec![pb::Part::default()],
        ..nothing.clone()
    };
    let huge = answer("q1", &"x".repeat(RESPONSE_MAX));
    for (response, reason) in [
        (answer("", "x"), Reason::InvalidField),
        (nothing, Reason::InvalidField),
        (hollow, Reason::InvalidField),
        (huge, Reason::PayloadTooLarge),
    ] {
        assert_eq!(response.check().unwrap_err().reason, reason);
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_between_question_and_answer_changes_nothing() {
    let (bench, task) = Bench::asked(&["i1"], false);
    let mut after = Bench::new(&["i1"], false);
    after.at = bench.at;
    after.at.now += Duration::from_secs(5);
    after.at.wall += Duration::from_secs(5);
    after.tasks = bench.replayed();
    after.step(Tasks::recovered);
    assert!(
        after.started().is_empty(),
        "nobody is given a task that asks"
    );
    assert_eq!(after.state(task), pb::TaskState::InputRequired);
    assert!(after.respond(task, answer("q1", "x")).unwrap());
    assert_eq!(after.started(), [("i1".to_owned(), 2)]);
    assert_eq!(told(&after).len(), 3);

    // And between answer and dispatch.
    let (mut bench, task) = Bench::asked(&["i1"], false);
    bench.route.set(&[], false);
    bench.respond(task, answer("q1", "x")).unwrap();
    let mut after = Bench::new(&["i1"], false);
    after.at = bench.at;
    after.tasks = bench.replayed();
    after.step(Tasks::recovered);
    assert_eq!(after.started(), [("i1".to_owned(), 2)]);
    assert_eq!(told(&after).len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_has_what_was_asked_though_its_events_are_old() {
    let (mut bench, task) = Bench::asked(&["i1"], false);
    bench.respond(task, answer("q1", "x")).unwrap();
    let mut number = 1;
    while bench.tasks.tasks[&task].kept.first_seq() < 6 {
        bench.update(task, number, Update::Progress(pb::Progress::default()));
        number += 1;
    }
    bench.update(task, number, asking("q2"));
    bench.compact(200);
    while bench.tasks.compaction.at.is_some() {
        bench.compact(200);
    }
    let again = bench.replayed_from(bench.needed());
    // Not shown where it fails: these are megabytes.
    assert!(again.tasks[&task].kept == bench.tasks.tasks[&task].kept);
    let kept = &bench.tasks.tasks[&task].kept;
    let snapshot = kept.snapshot();
    let all: Vec<_> = kept.all_events().map(|event| event.seq).collect();
    assert!(snapshot.dialogue.iter().all(|seq| all.contains(seq)));
    assert_eq!(snapshot.dialogue.len(), 3);
    bench.respond(task, answer("q2", "y")).unwrap();
    assert_eq!(told(&bench).len(), 5);
}

#[test]
fn callers_answer_and_agents_do_not_answer_themselves() {
    let id = |name: &str| -> SpiffeId {
        let text = format!("spiffe://attache.local/{name}");
        text.parse().unwrap()
    };
    let parties = Parties {
        caller: id("ns/default/agent/caller"),
        origin: id("ns/default/agent/origin"),
        executor: Some(id("ns/default/agent/worker")),
    };
    for (who, may) in [
        ("ns/default/agent/caller", true),
        ("ns/default/agent/origin", true),
        ("operator/ops", true),
        ("ns/default/agent/worker", false),
        ("ns/default/agent/other", false),
    ] {
        assert_eq!(may_answer(&id(who), &parties), may, "{who}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_of_a_right_is_told_apart() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit();
    let mut asked = question("q1");
    asked.auth = true;
    bench.update(task, 1, Update::Question(asked));
    assert_eq!(bench.state(task), pb::TaskState::AuthRequired);
    let before = bench.task(task);
    assert!(bench.respond(task, answer("q1", "you may")).unwrap());
    let after = bench.task(task);
    assert_eq!((before.caller, before.origin), (after.caller, after.origin));
}
