//! Tasks in memory only: the same stream, no disk, and an end with their caller.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::time::sleep;

use crate::domain::{Reason, TaskId};
use crate::pb;
use crate::pb::execute_request::Step;
use crate::runtime::clock;
use crate::task::journal::{Journal, JournalConfig};

use super::config::Submission;
use super::drive_tests::{Bench, event, result, snapshot, until};
use super::ephemeral::{RETENTION, is_marked};
use super::respond_tests::question;
use super::tests::{own, spec};

fn asked(key: &str) -> Submission {
    let options = pb::TaskOptions {
        durability: pb::Durability::Ephemeral.into(),
        ..Default::default()
    };
    let mut spec = spec(options);
    spec.idempotency_key = key.into();
    Submission {
        spec,
        caller: own(),
        trace: None,
    }
}

fn id(task: &pb::Task) -> TaskId {
    task.id.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn it_shows_the_same_as_one_that_lasts() {
    let mut bench = Bench::memory(&["i1"]);
    let mut updates = bench.home.run(asked(""), 0).await.unwrap().task;
    let task = snapshot(&mut updates).await;
    assert!(is_marked(id(&task).uuid));
    let options = task.options.clone().unwrap();
    assert_eq!(options.durability(), pb::Durability::Ephemeral);
    let mut opened = bench.next().await;
    assert!(matches!(opened.step().await, Step::Start(_)));
    opened.accept().await;
    opened.update(1, result()).await;
    opened.acked(1).await;
    assert_eq!(event(&mut updates).await.state(), pb::TaskState::Working);
    assert_eq!(event(&mut updates).await.state(), pb::TaskState::Completed);
    assert!(updates.next().await.is_none());
    // Read to its end, so nothing is cancelled by that.
    drop(updates);
    let me = Arc::new(own());
    let (seen, _) = bench.home.get(&id(&task), &me, true).await.unwrap();
    assert_eq!(seen.state(), pb::TaskState::Completed);
    assert_eq!(bench.all(10).await, std::slice::from_ref(&task.id));
}

#[tokio::test(start_paused = true)]
async fn it_can_be_asked_for_as_long_after_its_end_however_the_clock_is_set() {
    let hour = Duration::from_secs(3600);
    for ahead in [true, false] {
        let mut bench = Bench::memory(&["i1"]);
        let task = bench.home.submit(asked(""), 0).await.unwrap().task;
        let mut opened = bench.next().await;
        assert!(matches!(opened.step().await, Step::Start(_)));
        opened.accept().await;
        opened.update(1, result()).await;
        opened.acked(1).await;
        let now = clock::wall();
        clock::set::to(Some(if ahead { now + hour } else { now - hour }));
        let me = Arc::new(own());
        sleep(RETENTION - Duration::from_secs(5)).await;
        let seen = bench.home.get(&id(&task), &me, false).await;
        assert_eq!(seen.unwrap().0.state(), pb::TaskState::Completed);
        sleep(Duration::from_secs(20)).await;
        let gone = bench.home.get(&id(&task), &me, false).await;
        clock::set::to(None);
        assert_eq!(gone.unwrap_err().reason, Reason::TaskNotFound, "{ahead}");
    }
}

#[tokio::test]
async fn nothing_of_it_reaches_the_disk_and_nothing_is_left_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::on_disk(dir.path(), &["i1"]);
    let fleeting = bench.home.submit(asked(""), 0).await.unwrap().task;
    let lasting = Submission {
        spec: spec(pb::TaskOptions::default()),
        ..asked("")
    };
    let lasting = bench.home.submit(lasting, 0).await.unwrap().task;
    let _opened = [bench.next().await, bench.next().await];
    bench.stop().await;
    let mut logged = Vec::new();
    let journal = Journal::open(dir.path(), JournalConfig::default(), |_, record| {
        logged.push(record.task_id);
    });
    drop(journal.unwrap());
    assert!(logged.contains(&lasting.id));
    assert!(!logged.contains(&fleeting.id));

    let bench = Bench::on_disk(dir.path(), &[]);
    let me = Arc::new(own());
    let gone = bench.home.get(&id(&fleeting), &me, false).await;
    assert_eq!(gone.unwrap_err().reason, Reason::TaskNotFound);
    assert!(bench.home.get(&id(&lasting), &me, false).await.is_ok());
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_while_it_is_asked_takes_it_along() {
    let mut bench = Bench::memory(&["i1"]);
    let mut run = bench.home.run(asked(""), 0).await.unwrap().task;
    let task = snapshot(&mut run).await;
    let mut opened = bench.next().await;
    assert!(matches!(opened.step().await, Step::Start(_)));
    opened.accept().await;
    opened.update(1, question("q1")).await;
    while event(&mut run).await.state() != pb::TaskState::InputRequired {}
    drop(run);
    let mut updates = bench.watch(&id(&task), 2).await.unwrap();
    snapshot(&mut updates).await;
    while event(&mut updates).await.state() != pb::TaskState::Canceled {}
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_takes_it_along_and_one_that_watches_does_not() {
    let mut bench = Bench::memory(&["i1"]);
    let me = Arc::new(own());
    let mut run = bench.home.run(asked("k"), 0).await.unwrap();
    let task = snapshot(&mut run.task).await;
    let mut opened = bench.next().await;
    assert!(matches!(opened.step().await, Step::Start(_)));
    opened.accept().await;
    // Neither a watch nor the same call again is its caller.
    drop(bench.watch(&id(&task), 0).await.unwrap());
    let again = bench.home.run(asked("k"), 0).await.unwrap();
    assert!(again.replayed);
    drop(again);
    let (seen, _) = bench.home.get(&id(&task), &me, false).await.unwrap();
    assert!(!seen.cancel_requested);
    drop(run);
    let Step::Abort(abort) = opened.step().await else {
        panic!("it goes on")
    };
    assert_eq!(abort.reason, "CALLER_GONE");

    // One that lasts goes on.
    let lasting = Submission {
        spec: spec(pb::TaskOptions::default()),
        ..asked("")
    };
    let mut run = bench.home.run(lasting, 0).await.unwrap().task;
    let task = snapshot(&mut run).await;
    drop(run);
    let mut opened = bench.next().await;
    assert!(matches!(opened.step().await, Step::Start(_)));
    opened.accept().await;
    opened.update(1, result()).await;
    until("it completes", || bench.in_memory() > 0).await;
    let (seen, _) = bench.home.get(&id(&task), &me, false).await.unwrap();
    assert_eq!(seen.state(), pb::TaskState::Completed);
}
