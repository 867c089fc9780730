//! Tasks that are handed over, and what their trees may have made, in the machine and its records.

use std::time::Duration;

use uuid::Uuid;

use crate::domain::Reason;
use crate::pb;
use crate::pb::handle_response::Update;
use crate::task::descendants::{DESCENDANTS_MAX, FIRST, Wants, unsaid};
use crate::task::doors::Candidate;

use super::attempt::Heard;
use super::kept::Kept;
use super::machine::{Effect, Tasks, World};
use super::request::{Asker, Drawn, Maker};
use super::snapshot::{Numbered, submitted};
use super::tests::{Bench, callback, refused, text};

const IDEMPOTENT: bool = true;

/// Hands it over to `agent`/`skill`, with another input if one is given.
fn over(agent: &str, skill: &str, input: &str) -> Update {
    let input = (!input.is_empty()).then(|| text(input));
    Update::Delegation(pb::Delegation {
        to: Some(pb::AgentSkill {
            agent: agent.into(),
            skill: skill.into(),
        }),
        input: input.into_iter().collect(),
    })
}

/// Instances of agents: `default/AGENT` on instance `AGENT`.
fn there(bench: &Bench, agents: &[&str]) {
    let first = Bench::new(&["x"], IDEMPOTENT).route.all.lock().unwrap()[0].clone();
    let candidate = |name: &&str| Candidate {
        instance: name.parse().unwrap(),
        agent: name.parse().unwrap(),
        ..first.clone()
    };
    *bench.route.all.lock().unwrap() = agents.iter().map(candidate).collect();
}

/// A task on which the first of the agents works.
fn working(agents: &[&str]) -> (Bench, Uuid) {
    let mut bench = Bench::new(&[], IDEMPOTENT);
    there(&bench, agents);
    let task = bench.submit();
    bench.hear(task, Heard::Accepted);
    bench.update(
        task,
        1,
        Update::Checkpoint(pb::Checkpoint { data: vec![7; 9] }),
    );
    (bench, task)
}

fn starts(bench: &Bench) -> Vec<pb::Start> {
    let mut starts = Vec::new();
    for effect in &bench.effects {
        if let Effect::Start { start, .. } = effect {
            starts.push(start.as_ref().clone());
        }
    }
    starts
}

/// A replay of all records, and one of a snapshot, give the same task.
fn is_durable(bench: &Bench, task: Uuid) {
    let kept = |tasks: &Tasks| (*tasks.tasks[&task].kept).clone();
    let live = kept(&bench.tasks);
    assert_eq!(kept(&bench.replayed()), live, "by its records");
    let events: Numbered = live
        .all_events()
        .map(|event| (event.seq, event.clone()))
        .collect();
    assert_eq!(
        Kept::restored(live.snapshot(), &events).unwrap(),
        live,
        "by a snapshot"
    );
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_handed_over_goes_on_as_the_same() {
    let (mut bench, task) = working(&["worker"]);
    let before = bench.task(task);
    there(&bench, &["other"]);
    bench.update(task, 2, over("other", "other.do", "instead"));
    is_durable(&bench, task);
    let start = starts(&bench).pop().unwrap();
    let handle = start.handle.unwrap();
    let named = handle.task.unwrap();
    assert_eq!(
        (handle.attempt, &*named.skill, &*named.id),
        (2, "other.do", &*before.id)
    );
    assert_eq!(handle.inputs[0].parts, [text("instead")]);
    assert!(handle.checkpoint.is_empty(), "that was the other's");
    assert_eq!(start.chain.len(), 1);
    assert_eq!(
        (&*start.chain[0].skill, start.chain[0].attempt),
        ("work.do", 1)
    );
    let shown = bench.task(task);
    assert_eq!(
        (&*shown.skill, &*shown.delegated_to),
        ("work.do", "default/other")
    );
    assert_eq!(shown.options, before.options, "deadline and all");
    // The old attempt is over, whatever it says.
    assert!(bench.effects.iter().any(|effect| {
        matches!(
            effect,
            Effect::Release {
                attempt: 1,
                abort: None,
                ..
            }
        )
    }));
    bench.hear(task, Heard::Accepted);
    is_durable(&bench, task);
    // Handed on with what it got.
    there(&bench, &["third"]);
    bench.update(task, 1, over("", "third.do", ""));
    is_durable(&bench, task);
    let start = starts(&bench).pop().unwrap();
    assert_eq!(start.handle.unwrap().inputs[0].parts, [text("instead")]);
    assert_eq!(start.chain.len(), 2);
    bench.update(task, 1, Update::Result(pb::TaskResult::default()));
    is_durable(&bench, task);
    let done = bench.task(task);
    assert_eq!(done.state(), pb::TaskState::Completed);
    assert_eq!(done.delegated_to, "default/third");
    assert_eq!(
        (done.executor.unwrap().skill, done.attempt),
        ("third.do".into(), 3)
    );
    let seqs: Vec<u64> = bench.tasks.tasks[&task]
        .kept
        .events
        .iter()
        .map(|e| e.seq)
        .collect();
    assert_eq!(seqs, (1..=done.last_seq).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_was_handed_over_asks_for_slots_under_the_skill_that_it_has_now() {
    let (mut bench, task) = working(&["worker"]);
    there(&bench, &["other"]);
    bench.update(task, 2, over("other", "other.do", ""));
    bench.hear(task, refused(Reason::SlotsFull));
    let (other, now) = ("other".parse().unwrap(), bench.at.now);
    bench.step(|tasks, _| tasks.set_grants(&other, true, now));
    let report = bench.step(|tasks, _| tasks.report());
    let skills: Vec<_> = report.waiting[&other].keys().map(|key| &*key.2).collect();
    assert_eq!(skills, ["other.do"]);
}

#[tokio::test(start_paused = true)]
async fn who_may_not_get_it_does_not() {
    let deep = |bench: &mut Bench, task: Uuid| {
        for hop in 0..9 {
            bench.hear(task, Heard::Accepted);
            let skill = format!("deep.n{hop}");
            bench.update(task, 1, over("worker", &skill, ""));
        }
    };
    for (update, reason) in [
        (over("worker", "work.do", ""), Reason::DelegationLoop),
        (
            over("default/worker", "work.do", ""),
            Reason::DelegationLoop,
        ),
        (
            over("elsewhere/other", "other.do", ""),
            Reason::PermissionDenied,
        ),
        (over("other", "", ""), Reason::InvalidField),
        (
            over("no such/name/at all", "other.do", ""),
            Reason::InvalidField,
        ),
        (
            over("other", "other.do", &"x".repeat(2 << 20)),
            Reason::InvalidField,
        ),
    ] {
        let (mut bench, task) = working(&["worker"]);
        bench.update(task, 2, update);
        assert_eq!(bench.failure(task), reason.label());
        is_durable(&bench, task);
    }
    let (mut bench, task) = working(&["worker"]);
    bench.update(task, 2, over("worker", "deep", ""));
    deep(&mut bench, task);
    assert_eq!(bench.failure(task), "INVALID_FIELD", "too deep");
    assert_eq!(bench.tasks.tasks[&task].kept.task.chain.len(), 8);
    let mut bench = Bench::new(&["i1"], false);
    let mut new = bench.checked(pb::TaskOptions::default());
    new.task.scope = vec![pb::AgentSkill {
        agent: "default/this".into(),
        skill: "this.do".into(),
    }];
    let task = bench.step(|tasks, world| tasks.submit(new, world)).unwrap();
    bench.update(task, 1, over("other", "this.do", ""));
    assert_eq!(bench.failure(task), "OUT_OF_SCOPE");
}

#[tokio::test(start_paused = true)]
async fn cancellation_deadline_and_loss_hold_after_it() {
    // While it waits for somebody.
    let (mut bench, task) = working(&["worker"]);
    there(&bench, &[]);
    bench.update(task, 2, over("other", "other.do", ""));
    assert_eq!(bench.state(task), pb::TaskState::Submitted);
    is_durable(&bench, task);
    bench.tasks = bench.replayed();
    there(&bench, &["other"]);
    bench.step(Tasks::recovered);
    assert_eq!(
        bench.started().last().unwrap(),
        &("other".to_owned(), 2),
        "after a restart"
    );
    // Its tries are its own: three in all.
    for attempt in 2..=4 {
        assert_eq!(bench.task(task).attempt, attempt);
        bench.hear(task, Heard::Accepted);
        bench.hear(
            task,
            Heard::Unknown {
                never_begun_in: None,
            },
        );
        bench.pass(Duration::from_secs(2));
    }
    assert_eq!(bench.failure(task), "RETRIES_EXHAUSTED");

    let (mut bench, task) = working(&["worker", "other"]);
    bench.update(task, 2, over("other", "other.do", ""));
    bench.pass(Duration::from_secs(3601));
    assert_eq!(bench.failure(task), "DEADLINE_EXCEEDED");

    let (mut bench, task) = working(&["worker", "other"]);
    let at = bench.at;
    bench
        .step(|tasks, _| tasks.cancel(task, "me", "enough", at))
        .unwrap();
    bench.update(task, 2, over("other", "other.do", ""));
    let shown = bench.task(task);
    assert!(
        shown.state() == pb::TaskState::Canceled && shown.cancel_confirmed,
        "not any more"
    );
    assert_eq!(bench.started().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn it_outlives_the_segments_and_the_events_that_it_began_in() {
    let (mut bench, task) = working(&["worker"]);
    there(&bench, &[]);
    bench.update(task, 2, over("other", "other.do", "instead"));
    let delegation = bench.task(task).last_seq;
    there(&bench, &["other"]);
    bench.step(Tasks::pump);
    bench.hear(task, Heard::Accepted);
    for number in 1..=10_050 {
        bench.update(task, number, Update::Progress(pb::Progress::default()));
    }
    let kept = &bench.tasks.tasks[&task].kept;
    assert!(
        kept.first_seq() > delegation,
        "watchers cannot see it any more"
    );
    is_durable(&bench, task);
    bench.compact(255);
    while bench.tasks.compaction.at.is_some() {
        bench.step(|tasks, world| tasks.compact_part(world.at.now, 1 << 20));
    }
    let again = bench.replayed_from(bench.needed());
    let kept = &again.tasks[&task].kept;
    assert_eq!(kept.skill(), "other.do");
    assert_eq!(kept.input_now().parts, [text("instead")]);
    assert_eq!(kept, &bench.tasks.tasks[&task].kept);
}

#[tokio::test(start_paused = true)]
async fn the_result_has_to_fit_what_the_first_agent_promised() {
    let (mut bench, task) = working(&["worker"]);
    let text_only = crate::contract::Contract::of(&pb::Skill {
        output_schema: r#"{"type":"object"}"#.into(),
        ..Default::default()
    });
    // The route holds that it is asked for the promise of the first.
    bench.route.promised = Some(std::sync::Arc::new(text_only.unwrap()));
    there(&bench, &["other"]);
    bench.update(task, 2, over("other", "other.do", ""));
    is_durable(&bench, task);
    bench.hear(task, Heard::Accepted);
    // Its home was away meanwhile, and the first agent is gone.
    bench.route.promised = None;
    bench.tasks = bench.replayed();
    bench.step(Tasks::recovered);
    let number = prost_types::value::Kind::NumberValue(1.0);
    let part = pb::Part {
        content: Some(pb::part::Content::Data(prost_types::Value {
            kind: Some(number),
        })),
        ..Default::default()
    };
    let result = pb::TaskResult {
        parts: vec![part],
        ..Default::default()
    };
    bench.update(task, 1, Update::Result(result));
    assert_eq!(bench.failure(task), "OUTPUT_INVALID");
}

/// What the attempts that were sent may have made below them.
fn given(bench: &Bench) -> Vec<u32> {
    starts(bench)
        .iter()
        .map(|start| start.descendants_left.unwrap())
        .collect()
}

/// What attempts were told that they have been given in all, and whether there was no more.
fn told(bench: &Bench) -> Vec<(u32, bool)> {
    let mut told = Vec::new();
    for effect in &bench.effects {
        if let Effect::Give { given, .. } = effect {
            told.push((given.total, given.exhausted));
        }
    }
    told
}

/// What came back, by the tokens of those whom it came back to.
fn back(bench: &Bench) -> Vec<(&str, u32)> {
    let mut back = Vec::new();
    for effect in &bench.effects {
        if let Effect::GiveBack {
            to: Maker::Attempt(token),
            count,
        } = effect
        {
            back.push((token.as_str(), *count));
        }
    }
    back
}

fn wants(bench: &mut Bench, task: Uuid, turn: u64, total: u32) {
    bench.hear(task, Heard::Wanted(Wants { turn, total }));
}

/// The last word of an attempt that made so many.
fn last(number: u64, said: Update, used: Option<u32>) -> Heard {
    Heard::Update(pb::NumberedUpdate {
        number,
        update: Some(pb::HandleResponse { update: Some(said) }),
        descendants_used: used,
        ..Default::default()
    })
}

fn left(bench: &Bench, task: Uuid) -> u32 {
    bench.tasks.tasks[&task].kept.descendants
}

#[tokio::test(start_paused = true)]
async fn a_root_gives_what_is_asked_for_and_never_more_than_it_may() {
    let (mut bench, task) = working(&["worker", "other"]);
    assert_eq!(given(&bench), [FIRST]);
    wants(&mut bench, task, 1, FIRST + 1);
    assert_eq!(told(&bench), [(2 * FIRST, false)], "some ahead");
    is_durable(&bench, task);
    // Asked again after its stream broke: it has that already.
    wants(&mut bench, task, 2, FIRST + 1);
    assert_eq!(told(&bench)[1], (2 * FIRST, false));
    // It is on disk before it is told, and a restart knows of it.
    bench.tasks = bench.replayed();
    bench.step(Tasks::recovered);
    wants(&mut bench, task, 3, 2 * FIRST);
    assert_eq!(told(&bench)[2], (2 * FIRST, false));
    wants(&mut bench, task, 4, DESCENDANTS_MAX + 1);
    assert_eq!(told(&bench)[3], (DESCENDANTS_MAX, true));
    // Handed over, with what was made: the rest is the next one's.
    bench.hear(task, last(2, over("other", "other.do", ""), Some(200)));
    is_durable(&bench, task);
    assert_eq!(left(&bench, task), DESCENDANTS_MAX - 200 - FIRST);
    bench.hear(task, Heard::Accepted);
    wants(&mut bench, task, 1, 300);
    assert_eq!(told(&bench)[4], (300, false));
    // Lost with all that it had: that stays used up.
    let unknown = Heard::Unknown {
        never_begun_in: None,
    };
    bench.hear(task, unknown);
    bench.pass(Duration::from_secs(2));
    assert_eq!(left(&bench, task), DESCENDANTS_MAX - 500 - FIRST);
    // One that did not start has used nothing.
    bench.hear(task, Heard::NotSent);
    bench.pass(Duration::from_secs(2));
    assert_eq!(given(&bench)[3..], [FIRST]);
    is_durable(&bench, task);
    wants(&mut bench, task, 1, DESCENDANTS_MAX);
    assert_eq!(told(&bench)[5], (500, true), "in all attempts");
    assert_eq!(left(&bench, task), 0);
    is_durable(&bench, task);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_ask_gets_its_share_beforehand() {
    let (mut bench, task) = working(&[]);
    for (idempotent, share) in [(IDEMPOTENT, 875), (!IDEMPOTENT, 1000)] {
        bench = Bench::new(&["i1"], idempotent);
        bench.route.all.lock().unwrap()[0].wants_descendants = false;
        bench.submit();
        assert_eq!(given(&bench), [share]);
    }
    // An older version leaves a zero out.
    let task = *bench.tasks.tasks.keys().next().unwrap_or(&task);
    bench.hear(task, Heard::Accepted);
    let asks = Update::Question(pb::Question {
        question_id: "q".into(),
        message: Some(pb::Message {
            parts: vec![text("?")],
            ..Default::default()
        }),
        ..Default::default()
    });
    bench.hear(task, last(1, asks, None));
    assert_eq!(left(&bench, task), DESCENDANTS_MAX);
}

/// A task that the attempt with the token "token" has made, with so many beforehand.
fn child(bench: &mut Bench, descendants: u32) -> Uuid {
    let mut new = bench.checked(pb::TaskOptions::default());
    new.task.parent_task_id = "home.00000000-0000-0000-0000-00000000ffff".into();
    (new.maker, new.ends_with_maker) = (Some("token".into()), true);
    new.descendants = descendants;
    bench.step(|tasks, world| tasks.submit(new, world)).unwrap()
}

fn drawn(bench: &mut Bench, task: Uuid, attempt: u32, got: u32) {
    let drawn = Drawn {
        from: Maker::Attempt("token".into()),
        got,
        left: 77,
    };
    bench.step(|tasks, _| tasks.drawn(task, attempt, drawn));
}

#[tokio::test(start_paused = true)]
async fn a_child_asks_who_made_it_and_gives_back_what_it_has_not_used() {
    let mut bench = Bench::new(&["i1"], false);
    let task = child(&mut bench, 5);
    is_durable(&bench, task);
    assert_eq!(given(&bench), [5]);
    bench.hear(task, Heard::Accepted);
    let asked = |bench: &Bench| {
        let mut asked = Vec::new();
        for effect in &bench.effects {
            if let Effect::Draw {
                from: Maker::Attempt(token),
                count,
                ..
            } = effect
            {
                asked.push((token.clone(), *count));
            }
        }
        asked
    };
    wants(&mut bench, task, 1, 8);
    // Meanwhile it wants more: one asking at a time.
    wants(&mut bench, task, 2, 10);
    assert_eq!(asked(&bench), [("token".to_owned(), 3)]);
    assert!(told(&bench).is_empty());
    drawn(&mut bench, task, 1, 3);
    assert_eq!(told(&bench), [(8, false)]);
    assert_eq!(asked(&bench)[1], ("token".to_owned(), 2));
    drawn(&mut bench, task, 1, 0);
    assert_eq!(told(&bench)[1], (8, true));
    let result = || Update::Result(pb::TaskResult::default());
    bench.hear(task, last(1, result(), Some(6)));
    assert_eq!(back(&bench), [("token", 2)]);
    // What comes too late goes back, too.
    drawn(&mut bench, task, 1, 4);
    assert_eq!(back(&bench)[1], ("token", 4));
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_attempt_was_lent_is_not_given_back() {
    let mut bench = Bench::new(&["i1"], IDEMPOTENT);
    let task = child(&mut bench, 0);
    bench.hear(task, Heard::Accepted);
    wants(&mut bench, task, 1, 2);
    drawn(&mut bench, task, 1, 2);
    let unknown = Heard::Unknown {
        never_begun_in: None,
    };
    bench.hear(task, unknown);
    bench.pass(Duration::from_secs(2));
    bench.hear(task, Heard::Accepted);
    let result = Update::Result(pb::TaskResult::default());
    bench.hear(task, last(1, result, Some(0)));
    assert_eq!(back(&bench), []);
}

#[tokio::test(start_paused = true)]
async fn what_tells_of_a_root_has_what_is_left_for_its_tree() {
    let (mut bench, task) = working(&["worker"]);
    let by = Asker {
        task: Uuid::from_u128(77),
        attempt: 1,
    };
    let lend = |bench: &mut Bench, count: u32| {
        bench.step(|tasks, _| tasks.lend(task, by, count));
        let drawn = bench.effects.iter().rev().find_map(|effect| {
            let Effect::Drawn { drawn, .. } = effect else {
                return None;
            };
            Some((drawn.got, drawn.left))
        });
        drawn.unwrap()
    };
    let most = DESCENDANTS_MAX - FIRST;
    assert_eq!(lend(&mut bench, 5), (5, most - 5));
    bench.step(|tasks, _| tasks.came_back(task, 2));
    assert_eq!(lend(&mut bench, 2000), (most - 3, 0));
    assert_eq!(lend(&mut bench, 1), (0, 0));
    is_durable(&bench, task);
    // What is below another task goes on to who made that.
    let mut bench = Bench::new(&["i1"], false);
    let task = child(&mut bench, 0);
    bench.step(|tasks, _| tasks.lend(task, by, 3));
    bench.step(|tasks, _| tasks.came_back(task, 2));
    assert!(bench.effects.iter().any(|effect| matches!(
        effect,
        Effect::Draw { by: asker, from: Maker::Attempt(_), count: 3 } if asker.task == by.task
    )));
    assert_eq!(back(&bench), [("token", 2)]);
}

#[tokio::test(start_paused = true)]
async fn who_tells_of_an_ended_child_still_draws_on_its_tree() {
    let mut bench = Bench::new(&["i1"], false);
    let mut new = bench.checked(pb::TaskOptions {
        callback: Some(callback(&[])),
        detached: true,
        ..Default::default()
    });
    new.task.parent_task_id = "home.00000000-0000-0000-0000-00000000ffff".into();
    (new.maker, new.descendants) = (Some("token".into()), 5);
    let task = bench.step(|tasks, world| tasks.submit(new, world)).unwrap();
    bench.hear(task, Heard::Accepted);
    let result = Update::Result(pb::TaskResult::default());
    bench.hear(task, last(1, result, Some(2)));
    assert_eq!(back(&bench), [("token", 3)], "it has ended");
    assert!(!bench.tasks.tasks[&task].filed, "and is not told of yet");
    let by = Asker {
        task: Uuid::from_u128(77),
        attempt: 1,
    };
    bench.step(|tasks, _| tasks.lend(task, by, 3));
    let draws = |effect: &Effect| matches!(effect, Effect::Draw { from: Maker::Attempt(token), count: 3, .. } if token == "token");
    assert!(bench.effects.iter().any(draws), "{:?}", bench.effects);
}

#[tokio::test(start_paused = true)]
async fn what_a_child_gave_back_at_its_end_is_not_given_back_by_every_restart() {
    let mut bench = Bench::new(&["i1"], false);
    let root = bench.submit();
    let mut new = bench.checked(pb::TaskOptions {
        callback: Some(callback(&[])),
        detached: true,
        ..Default::default()
    });
    let id = bench.task(root).id;
    (new.task.parent_task_id, new.task.root_task_id) = (id.clone(), id);
    new.descendants = 5;
    let child = bench.step(|tasks, world| tasks.submit(new, world)).unwrap();
    let at = bench.at;
    bench
        .step(|tasks, _| tasks.cancel(child, "me", "", at))
        .unwrap();
    assert!(!bench.tasks.tasks[&child].filed, "it is not told of yet");
    for _ in 0..2 {
        let mut again = bench.replayed();
        again.recovered(World {
            at: bench.at,
            route: &bench.route,
            chance: 0.5,
        });
        let gives = |effect: &&Effect| matches!(effect, Effect::GiveBack { .. });
        assert_eq!(again.effects.iter().filter(gives).count(), 0);
    }
}

#[test]
fn a_zero_is_told_from_what_was_not_said() {
    let mut bench = Bench::new(&[], false);
    let new = bench.checked(pb::TaskOptions::default());
    let said = |parent: &str, hops: usize, descendants: Option<u32>| {
        let mut task = new.task.clone();
        task.parent_task_id = parent.into();
        task.chain = vec![pb::ChainLink::default(); hops];
        let submitted = pb::journal::Submitted {
            descendants,
            ..submitted(task, new.spec.clone(), None, None)
        };
        let kept = Kept::submitted(submitted, &new.task.id).unwrap();
        let again = |left| pb::journal::Snapshot {
            descendants_left: left,
            ..kept.snapshot()
        };
        let restored = |left| Kept::restored(again(left), &Numbered::new()).unwrap();
        assert_eq!(restored(Some(0)).descendants, 0);
        assert_eq!(restored(None).descendants, unsaid(hops));
        kept.descendants
    };
    // As versions before wrote it.
    assert_eq!(said("", 0, None), DESCENDANTS_MAX);
    assert_eq!(said("p", 1, Some(31)), 31);
    let few = said("p", 1, None);
    assert!(few > 0 && few < 20, "{few}");
    assert_eq!((said("p", 1, Some(0)), said("", 0, Some(7))), (0, 7));
}
