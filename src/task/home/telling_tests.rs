//! What is to be told, and what of a task stays until it is.

use std::time::Duration;

use prost::Message;
use uuid::Uuid;

use crate::domain::Reason;
use crate::pb;
use crate::pb::callback::Target;
use crate::pb::handle_response::Update;
use crate::pb::journal::record::Kind as Recorded;
use crate::pb::task_event::Kind;
use crate::task::callback::{Outcome, Target as To, Tells};
use crate::task::spec::NewTask;
use crate::telemetry::metrics::callbacks::{GivenUp, Told};

use super::attempt::Heard;
use super::machine::{Effect, Tasks};
use super::moving::Stay;
use super::places::OUT_MAX;
use super::tests::{Bench, callback, done, text};

fn told_of(states: &[pb::TaskState]) -> pb::TaskOptions {
    pb::TaskOptions {
        callback: Some(callback(states)),
        ..Default::default()
    }
}

fn away() -> Outcome {
    Outcome::Later {
        why: "away\n".into(),
        wait: None,
    }
}

/// How often something was sent on its way.
fn sent(bench: &Bench) -> usize {
    let tells = |effect: &&Effect| matches!(effect, Effect::Tell(_));
    bench.effects.iter().filter(tells).count()
}

fn progress(bench: &Bench, task: Uuid) -> pb::CallbackProgress {
    let task = bench.tasks.tasks[&task].basic();
    *task.callback.unwrap()
}

fn end(bench: &mut Bench) -> Uuid {
    let task = bench.submit_with(told_of(&[]));
    bench.update(task, 1, done());
    task
}

#[tokio::test(start_paused = true)]
async fn a_change_is_told_after_its_event_and_the_next_one_after_that_was_taken() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit_with(told_of(&[pb::TaskState::Working, pb::TaskState::Completed]));
    assert_eq!(sent(&bench), 0);
    bench.hear(task, Heard::Accepted);
    let place = |wanted: fn(&Effect) -> bool| bench.effects.iter().position(wanted);
    let shown = place(|effect| matches!(effect, Effect::Shown { seq: 1, .. }));
    let told = place(|effect| matches!(effect, Effect::Tell(_)));
    assert!(shown.is_some() && told > shown, "{:?}", bench.effects);
    bench.update(task, 1, done());
    assert_eq!(
        (sent(&bench), progress(&bench, task).waiting),
        (1, 2),
        "one at a time"
    );
    bench.tell(task, away());
    let said = progress(&bench, task);
    assert_eq!((said.tries, said.trouble.as_str()), (1, "away"));
    bench.pass(Duration::from_millis(1499));
    assert_eq!(sent(&bench), 1);
    bench.pass(Duration::from_millis(1));
    assert_eq!(sent(&bench), 2);
    assert_eq!(bench.tries(task).unwrap().event.seq, 1);
    bench.tell(task, Outcome::Delivered);
    assert_eq!(sent(&bench), 3);
    assert_eq!(bench.tries(task).unwrap().event.seq, 2);
    // An answer that comes twice, or of an earlier try.
    let old = (1, bench.ticket(task).unwrap().1);
    bench.step(|tasks, world| tasks.told(task, old, Outcome::Delivered, world));
    assert_eq!(progress(&bench, task).delivered_seq, 1);
    bench.tell(task, Outcome::Delivered);
    let said = progress(&bench, task);
    assert_eq!(
        (said.delivered_seq, said.waiting, said.waiting_since),
        (2, 0, None)
    );
    assert!(bench.tries(task).is_none());
    assert_eq!(bench.tasks.telling, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_told_yet_stays_in_memory_and_log_and_holds_no_old_records() {
    let mut bench = Bench::new(&["i1"], false);
    let untold = end(&mut bench);
    let plain = bench.submit();
    bench.update(plain, 1, done());
    bench.all_on_disk();
    assert_eq!(
        (bench.tasks.rooms.untold(), bench.tasks.ended.len()),
        (1, 1)
    );
    let stay = Stay { tasks: 0, bytes: 0 };
    let chosen = |bench: &Bench| -> Vec<Uuid> {
        let chosen = bench.tasks.to_move(stay, bench.at).into_iter();
        chosen.map(|(task, _)| task).collect()
    };
    assert_eq!(chosen(&bench), [plain], "the other waits for nobody");
    bench.step(|tasks, _| tasks.moved(&[plain], None));
    for _ in 0..20 {
        bench.tell(untold, away());
        bench.pass(Duration::from_secs(3600));
        bench.tasks.archived = false;
    }
    assert!(bench.tasks.tasks.contains_key(&untold));
    let before = bench.needed();
    bench.compact(u8::MAX);
    assert!(bench.needed() > before, "it is written anew");
    let snapshot = |record: &Recorded| matches!(record, Recorded::Snapshot(_));
    assert!(
        bench
            .log
            .iter()
            .any(|(_, record)| record.kind.as_ref().is_some_and(snapshot))
    );

    // The home dies, and what it has left is the end of its log.
    let before = sent(&bench);
    bench.tasks = bench.replayed_from(bench.needed());
    bench.step(Tasks::recovered);
    assert_eq!(sent(&bench), before + 1, "a restart tells at once");
    assert_eq!(
        (bench.tasks.rooms.untold(), bench.tasks.ended.len()),
        (1, 0)
    );
    assert_eq!(progress(&bench, untold).tries, 0);
    bench.tell(untold, Outcome::Delivered);
    bench.all_on_disk();
    assert_eq!(
        (bench.tasks.rooms.untold(), bench.tasks.ended.len()),
        (0, 1)
    );
    assert_eq!(chosen(&bench), [untold]);
    let again = bench.replayed_from(bench.needed());
    assert_eq!(again.tasks[&untold].kept, bench.tasks.tasks[&untold].kept);
    assert_eq!(again.ended.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_day_it_is_given_up_and_a_restart_does_not_lengthen_it() {
    let mut bench = Bench::new(&["i1"], false);
    let task = end(&mut bench);
    for _ in 0..3 {
        bench.pass(Duration::from_secs(7 * 3600));
        bench.tell(task, away());
        bench.tasks = bench.replayed();
        bench.step(Tasks::recovered);
    }
    bench.tell(task, away());
    assert_eq!(progress(&bench, task).waiting, 1);
    bench.tasks.archived = true;
    bench.tasks.limits.retention = Duration::from_secs(48 * 3600);
    bench.pass(Duration::from_secs(3 * 3600));
    let said = progress(&bench, task);
    assert_eq!((said.given_up_seq, said.waiting), (2, 0));
    assert!(said.given_up.contains("24 h"), "{said:?}");
    assert_eq!(given_up(&bench), [(2, GivenUp::Expired)]);
    assert_eq!(
        (bench.tasks.rooms.untold(), bench.tasks.ended.len()),
        (0, 1)
    );
}

/// Somebody to be told at this host.
fn at(host: &str) -> pb::TaskOptions {
    let mut options = told_of(&[]);
    let url = format!("https://{host}/hook");
    options.callback.as_mut().unwrap().target = Some(Target::Url(url));
    options
}

fn at_agent() -> pb::TaskOptions {
    let mut options = told_of(&[]);
    options.callback.as_mut().unwrap().target = Some(Target::Agent(pb::AgentSkill {
        agent: "default/desk".into(),
        skill: "desk.told".into(),
    }));
    options
}

/// What a task may tell an agent of.
fn tells(bench: &mut Bench, of: Uuid) -> NewTask {
    let mut new = bench.checked(pb::TaskOptions::default());
    let task = bench.tasks.tasks[&of].kept.id.clone();
    new.tells = Some(Tells {
        task,
        seq: 2,
        round: 0,
    });
    new
}

fn try_to(bench: &mut Bench, new: NewTask) -> Result<Uuid, Reason> {
    let taken = bench.step(|tasks, world| tasks.submit(new, world));
    taken.map_err(|fault| fault.reason)
}

/// Why changes were given up, so far.
fn given_up(bench: &Bench) -> Vec<(u64, GivenUp)> {
    let reports = bench.effects.iter().filter_map(|effect| {
        let Effect::Told(report) = effect else {
            return None;
        };
        match report.came {
            Told::GivenUp(why) => Some((report.seq, why)),
            Told::Delivered | Told::Failed => None,
        }
    });
    reports.collect()
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_away_leaves_room_for_other_work() {
    // 50 tasks in all, 12 of them with callbacks, 6 of them for one place.
    let mut bench = Bench::new(&["i1"], false);
    for _ in 0..6 {
        let task = bench.submit_with(at("dead.example"));
        bench.update(task, 1, done());
    }
    let new = bench.checked(at("dead.example"));
    let refused = bench
        .step(|tasks, world| tasks.submit(new, world))
        .unwrap_err();
    assert_eq!(refused.reason, Reason::QueueFull);
    assert!(refused.text.contains("at dead.example"), "{refused}");
    for number in 0..6 {
        // Also those that have not ended.
        bench.submit_with(at(&format!("well{number}.example")));
    }
    let new = bench.checked(at("other.example"));
    let refused = bench
        .step(|tasks, world| tasks.submit(new, world))
        .unwrap_err();
    assert!(refused.text.contains("6 have ended"), "{refused}");
    let plain = bench.submit();
    // Restarts change nothing of it, and what is told makes room.
    bench.tasks = bench.replayed();
    bench.step(Tasks::recovered);
    let new = bench.checked(at("other.example"));
    assert_eq!(try_to(&mut bench, new), Err(Reason::QueueFull));
    let first = *bench.tasks.tasks.keys().next().unwrap();
    bench.tell(first, Outcome::Delivered);
    let new = bench.checked(at("other.example"));
    assert!(try_to(&mut bench, new).is_ok());
    bench.update(plain, 1, done());
}

#[tokio::test(start_paused = true)]
async fn tasks_that_tell_agents_have_room_when_nothing_else_has() {
    let mut bench = Bench::new(&[], false);
    let told = bench.submit();
    while let new = bench.checked(pb::TaskOptions::default())
        && try_to(&mut bench, new).is_ok()
    {}
    assert_eq!(bench.tasks.tasks.len(), 50);
    for number in 0..7 {
        let new = tells(&mut bench, told);
        let taken = try_to(&mut bench, new);
        assert_eq!(taken.is_ok(), number < 6, "{taken:?}");
    }
    // Nor do they take the room of others.
    let at = bench.at;
    bench
        .step(|tasks, _| tasks.cancel(told, "me", "", at))
        .unwrap();
    bench.submit();
}

#[tokio::test(start_paused = true)]
async fn tasks_that_tell_agents_are_taken_while_the_next_segment_has_its_room() {
    let mut bench = Bench::new(&[], false);
    let told = bench.submit();
    let (disk, queue) = (Some(Reason::DiskFull), Some(Reason::QueueFull));
    // Whether the disk is low, full, or holds too much; why others and those that tell are refused.
    for (low, full, stored, others, telling) in [
        (false, false, false, None, None),
        (true, false, false, disk, None),
        (true, true, false, disk, disk),
        (false, false, true, queue, None),
    ] {
        bench.tasks.low_space = low;
        bench.tasks.no_space = full;
        bench.tasks.stored_full = stored;
        let new = bench.checked(pb::TaskOptions::default());
        assert_eq!(try_to(&mut bench, new).err(), others);
        let new = tells(&mut bench, told);
        assert_eq!(try_to(&mut bench, new).err(), telling);
    }
}

#[tokio::test(start_paused = true)]
async fn what_tells_an_agent_stays_until_the_task_it_tells_of_knows() {
    let mut bench = Bench::new(&["i1"], false);
    let told = bench.submit();
    let new = tells(&mut bench, told);
    let teller = try_to(&mut bench, new).unwrap();
    bench.update(teller, 1, done());
    bench.tasks = bench.replayed();
    bench.tasks.limits.retention = Duration::from_secs(60);
    bench.step(Tasks::recovered);
    bench.all_on_disk();
    bench.pass(Duration::from_secs(3600));
    assert!(bench.tasks.tasks.contains_key(&teller), "nobody knows yet");
    let delivery = bench.tries(teller).unwrap();
    let To::Task(tells) = delivery.target else {
        panic!("{delivery:?}");
    };
    assert_eq!((tells.seq, tells.round), (2, 0));
    bench.tell(teller, Outcome::Delivered);
    bench.all_on_disk();
    bench.pass(Duration::from_secs(61));
    assert!(!bench.tasks.tasks.contains_key(&teller));
    assert!(given_up(&bench).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_tells_an_agent_asks_nobody() {
    let mut bench = Bench::new(&["i1"], false);
    let told = bench.submit();
    let new = tells(&mut bench, told);
    let teller = try_to(&mut bench, new).unwrap();
    let question = pb::Question {
        question_id: "why".into(),
        message: Some(pb::Message {
            parts: vec![text("why?")],
            ..Default::default()
        }),
        ..Default::default()
    };
    bench.update(teller, 1, Update::Question(question));
    let failure = bench.task(teller).failure.unwrap();
    assert_eq!(failure.reason, "AGENT_ERROR");
    assert!(failure.message.contains("nobody answers"), "{failure:?}");
}

#[tokio::test(start_paused = true)]
async fn what_takes_too_much_memory_is_given_up_after_a_while_the_oldest_first() {
    // 1 MiB in all, an eighth of it for what has ended and could not be told of.
    let mut bench = Bench::new(&["i1"], false);
    let mut ended = Vec::new();
    for number in 0..3 {
        let task = bench.submit_with(at(&format!("dead{number}.example")));
        let result = pb::TaskResult {
            parts: vec![text(&"x".repeat(60 << 10))],
            ..Default::default()
        };
        bench.update(task, 1, Update::Result(result));
        bench.pass(Duration::from_secs(10));
        ended.push(task);
    }
    bench.tell(ended[1], away());
    bench.pass(Duration::from_secs(200));
    assert!(given_up(&bench).is_empty(), "its receiver may be there");
    bench.pass(Duration::from_secs(100));
    assert_eq!(given_up(&bench), [(2, GivenUp::TooLarge)]);
    let said = progress(&bench, ended[0]);
    assert_eq!((said.given_up_seq, said.waiting), (2, 0));
    bench.pass(Duration::from_secs(600));
    assert_eq!(
        progress(&bench, ended[1]).waiting,
        1,
        "there is room for two"
    );
    let again = bench.replayed();
    assert_eq!(
        again.tasks[&ended[0]].kept,
        bench.tasks.tasks[&ended[0]].kept
    );
}

#[tokio::test(start_paused = true)]
async fn a_try_that_was_taken_for_lost_changes_nothing_any_more() {
    let mut bench = Bench::new(&["i1"], false);
    let task = end(&mut bench);
    let first = bench.ticket(task).unwrap();
    // It waits at the courier for longer than anything should.
    bench.pass(Duration::from_secs(3600));
    let second = bench.ticket(task).unwrap();
    assert_ne!(first, second);
    let begun = bench.step(|tasks, world| tasks.try_telling(task, first, world.at));
    assert!(begun.is_none(), "the second copy would come late");
    assert!(bench.tries(task).is_some());
    assert!(bench.tries(task).is_none(), "once");
    bench.step(|tasks, world| tasks.told(task, first, Outcome::Delivered, world));
    assert_eq!(progress(&bench, task).waiting, 1, "of an older try");
    // The courier is lost with it.
    bench.pass(Duration::from_secs(60));
    assert_eq!(progress(&bench, task).tries, 1);
    bench.pass(Duration::from_secs(2));
    bench.tell(task, Outcome::Delivered);
    assert_eq!(progress(&bench, task).waiting, 0);
    let told = bench.ticket(task).unwrap();
    bench.pass(Duration::from_secs(7200));
    let begun = bench.step(|tasks, world| tasks.try_telling(task, told, world.at));
    assert!(begun.is_none(), "told already");
}

#[tokio::test(start_paused = true)]
async fn nothing_overtakes_what_is_under_way_though_that_was_given_up() {
    let both = [pb::TaskState::Working, pb::TaskState::InputRequired];
    for given in [false, true] {
        let mut bench = Bench::new(&[], false);
        let task = bench.submit_with(told_of(&both));
        let change = |bench: &mut Bench, number: usize| {
            let at = bench.at;
            let kind = Kind::StateChanged(pb::StateChanged::default());
            bench.step(|tasks, _| tasks.emit(task, kind, both[number % 2], 0, at));
        };
        change(&mut bench, 0);
        assert_eq!(bench.tries(task).unwrap().event.seq, 1);
        if given {
            bench.tell(task, Outcome::Given("home.x".into()));
        }
        let before = sent(&bench);
        for number in 1..300 {
            change(&mut bench, number);
        }
        assert_eq!(progress(&bench, task).given_up_seq, 44);
        assert_eq!(sent(&bench), before, "the first may come at any moment");
        if given {
            let tells = Tells {
                task: bench.tasks.tasks[&task].kept.id.clone(),
                seq: 1,
                round: 0,
            };
            bench.step(|tasks, world| tasks.answered(task, &tells, Outcome::Delivered, world));
        } else {
            bench.tell(task, away());
        }
        assert_eq!(bench.ticket(task).unwrap().0, 45);
        let many = given_up(&bench);
        assert_eq!(many.len(), 44, "each is counted and said");
        assert!(many.iter().all(|(_, why)| *why == GivenUp::TooMany));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_owed_is_told_in_the_same_words_whatever_comes_after_it() {
    let mut bench = Bench::new(&["i1"], false);
    let options = told_of(&[pb::TaskState::Working, pb::TaskState::Completed]);
    let task = bench.submit_with(options);
    bench.hear(task, Heard::Accepted);
    // More than are kept.
    for number in 1..=10_050 {
        bench.update(task, number, Update::Progress(pb::Progress::default()));
    }
    let kept = |bench: &Bench, task: Uuid| bench.tasks.tasks[&task].kept.clone();
    assert!(kept(&bench, task).first_seq() > 1);
    let words = bench.tries(task).unwrap().event;
    assert!(words.kind.is_some(), "{words:?}");
    let again = bench.replayed();
    assert_eq!(again.tasks[&task].kept, kept(&bench, task));
    bench.compact(0);
    while bench.tasks.compaction.at.is_some() {
        bench.step(|tasks, world| tasks.compact_part(world.at.now, 1 << 20));
    }
    let from = bench.needed();
    assert!(from > 10_000, "{from}");
    bench.tasks = bench.replayed_from(from);
    bench.step(Tasks::recovered);
    assert_eq!(bench.tries(task).unwrap().event, words);
    let before = kept(&bench, task).bytes;
    bench.tell(task, Outcome::Delivered);
    let freed = before - kept(&bench, task).bytes;
    assert!(freed > words.encoded_len(), "{freed} bytes are free again");
}

#[tokio::test(start_paused = true)]
async fn an_agents_task_that_fails_for_now_is_followed_by_another() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit_with(at_agent());
    bench.update(task, 1, done());
    let tells = |bench: &mut Bench| bench.tries(task).unwrap().above.unwrap().tells;
    let first = tells(&mut bench);
    assert_eq!(first.round, 0);
    bench.tell(task, Outcome::Given("home.x".into()));
    assert_eq!(sent(&bench), 1);
    // It is looked after, and that is no new try.
    bench.pass(Duration::from_secs(300));
    assert_eq!(tells(&mut bench), first);
    bench.tell(task, Outcome::Given("home.x".into()));
    let lost = Outcome::Anew("AGENT_LOST".into());
    bench.step(|tasks, world| tasks.answered(task, &first, lost.clone(), world));
    assert_eq!(progress(&bench, task).tries, 1);
    // The same word once more changes nothing.
    bench.step(|tasks, world| tasks.answered(task, &first, lost, world));
    assert_eq!(progress(&bench, task).tries, 1);
    bench.tasks = bench.replayed();
    bench.step(Tasks::recovered);
    let second = tells(&mut bench);
    assert_eq!(second.round, 1, "a restart knows of it");
    bench.step(|tasks, world| tasks.answered(task, &first, Outcome::Delivered, world));
    assert_eq!(progress(&bench, task).waiting, 1, "of the one before");
    // It may end before its submission is answered.
    bench.step(|tasks, world| tasks.answered(task, &second, Outcome::Delivered, world));
    let said = progress(&bench, task);
    assert_eq!((said.delivered_seq, said.waiting), (2, 0));
    bench.tell(task, Outcome::Given("home.y".into()));
    assert_eq!(bench.tasks.telling, 0);
}

#[tokio::test(start_paused = true)]
async fn few_tasks_tell_one_agent_at_once_and_the_others_have_their_turn() {
    let mut bench = Bench::new(&["i1"], false);
    bench.tasks.limits.live = 400;
    let tasks: Vec<_> = (0..OUT_MAX + 2)
        .map(|_| {
            let task = bench.submit_with(at_agent());
            bench.update(task, 1, done());
            task
        })
        .collect();
    assert_eq!(sent(&bench), OUT_MAX);
    for task in &tasks[..OUT_MAX] {
        bench.tell(*task, Outcome::Given("home.x".into()));
    }
    assert_eq!(sent(&bench), OUT_MAX);
    let well = bench.submit_with(at("well.example"));
    bench.update(well, 1, done());
    assert_eq!(sent(&bench), OUT_MAX + 1, "others do not wait for them");
    let tells = Tells {
        task: bench.tasks.tasks[&tasks[3]].kept.id.clone(),
        seq: 2,
        round: 0,
    };
    bench.step(|all, world| all.answered(tasks[3], &tells, Outcome::Delivered, world));
    assert!(bench.ticket(tasks[OUT_MAX]).is_some());
    assert!(bench.ticket(tasks[OUT_MAX + 1]).is_none());
    // One that rests between two tries is in nobody's way either.
    bench.tell(tasks[OUT_MAX], away());
    assert!(bench.ticket(tasks[OUT_MAX + 1]).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_ahead_while_the_home_was_away_gives_nothing_up() {
    let mut bench = Bench::new(&["i1"], false);
    let (task, other) = (end(&mut bench), end(&mut bench));
    bench.tasks = bench.replayed();
    bench.at.wall += Duration::from_secs(72 * 3600);
    bench.step(Tasks::recovered);
    assert!(given_up(&bench).is_empty());
    bench.pass(Duration::from_secs(60));
    assert!(bench.tries(task).is_some() && bench.tries(other).is_some());
    bench.tell(task, Outcome::Delivered);
    bench.tell(other, away());
    for _ in 0..20 {
        bench.pass(Duration::from_secs(30));
        bench.tell(other, away());
    }
    assert_eq!(given_up(&bench), [(2, GivenUp::Expired)]);
}

#[tokio::test(start_paused = true)]
async fn of_too_many_changes_the_oldest_are_given_up() {
    let mut bench = Bench::new(&[], false);
    let both = [pb::TaskState::Working, pb::TaskState::InputRequired];
    let task = bench.submit_with(told_of(&both));
    for number in 0..300 {
        let at = bench.at;
        let kind = Kind::StateChanged(pb::StateChanged::default());
        bench.step(|tasks, _| tasks.emit(task, kind, both[number % 2], 0, at));
    }
    let said = progress(&bench, task);
    assert_eq!((said.waiting, said.given_up_seq), (256, 44));
    assert_eq!(bench.tries(task).unwrap().event.seq, 45);
    assert_eq!(given_up(&bench).len(), 44);
    bench.tell(task, Outcome::Delivered);
    let again = bench.replayed();
    assert_eq!(again.tasks[&task].kept, bench.tasks.tasks[&task].kept);
}
