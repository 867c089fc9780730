//! What is to be told, and what of a task stays until it is.

use std::time::Duration;

use uuid::Uuid;

use crate::domain::Reason;
use crate::pb;
use crate::pb::journal::record::Kind as Recorded;
use crate::pb::task_event::Kind;
use crate::task::callback::Outcome;

use super::attempt::Heard;
use super::machine::{Effect, Tasks};
use super::moving::Stay;
use super::tests::{Bench, callback, done};

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
    assert_eq!((bench.tasks.rooms.untold(), bench.tasks.ended.len()), (1, 1));
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
    assert_eq!((bench.tasks.rooms.untold(), bench.tasks.ended.len()), (1, 0));
    assert_eq!(progress(&bench, untold).tries, 0);
    bench.tell(untold, Outcome::Delivered);
    bench.all_on_disk();
    assert_eq!((bench.tasks.rooms.untold(), bench.tasks.ended.len()), (0, 1));
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
    assert_eq!((bench.tasks.rooms.untold(), bench.tasks.ended.len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_away_leaves_room_for_other_work() {
    let mut bench = Bench::new(&["i1"], false);
    for _ in 0..12 {
        end(&mut bench);
    }
    let new = bench.checked(told_of(&[]));
    let refused = bench
        .step(|tasks, world| tasks.submit(new, world))
        .unwrap_err();
    assert_eq!(refused.reason, Reason::QueueFull);
    assert!(refused.text.contains("without a callback"), "{refused}");
    bench.submit();
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
    bench.tell(task, Outcome::Delivered);
    let again = bench.replayed();
    assert_eq!(again.tasks[&task].kept, bench.tasks.tasks[&task].kept);
}
