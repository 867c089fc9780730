//! Submissions that come again: one key, one task, wherever that is by now.

use std::time::Duration;

use futures_util::{StreamExt, future::join_all};

use crate::domain::{Fault, Reason};
use crate::pb;
use crate::pb::execute_request::Step;

use super::config::{Held, Keeping, Submission};
use super::drive_tests::{Bench, event, result, snapshot, until};
use super::submit::Submitted;
use super::tests::{own, spec};

/// Asked again and again with the key `key`, now for `context`.
fn asked(key: &str, context: &str) -> Submission {
    let mut spec = spec(pb::TaskOptions::default());
    spec.idempotency_key = key.into();
    spec.context_id = context.into();
    Submission {
        spec,
        caller: own(),
        trace: None,
    }
}

impl Bench {
    async fn keyed(&self, key: &str, context: &str) -> Result<Submitted<pb::Task>, Fault> {
        self.home.submit(asked(key, context), 0).await
    }

    /// The task of this key is `id`, in this state; for something else there is none.
    async fn replays(&self, id: &str, state: pb::TaskState) {
        let again = Box::pin(self.keyed("k", "one")).await.unwrap();
        assert!(again.replayed);
        assert_eq!((again.task.id.as_str(), again.task.state()), (id, state));
        let other = Box::pin(self.keyed("k", "two")).await.unwrap_err();
        assert_eq!(other.reason, Reason::IdempotencyKeyReused);
        assert_eq!(other.field.as_deref(), Some("spec.idempotency_key"));
    }

    async fn complete(&mut self) {
        let mut opened = self.next().await;
        assert!(matches!(opened.step().await, Step::Start(_)));
        opened.accept().await;
        opened.update(1, result()).await;
        opened.acked(1).await;
    }
}

#[tokio::test]
async fn a_key_finds_its_task_in_memory_after_a_restart_and_in_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::on_disk(dir.path(), &["i1"]);
    let first = bench.keyed("k", "one").await.unwrap();
    assert!(!first.replayed);
    let id = first.task.id;
    bench.replays(&id, pb::TaskState::Submitted).await;
    let other = bench.keyed("l", "one").await.unwrap();
    assert!(!other.replayed && other.task.id != id);
    for _ in 0..2 {
        bench.complete().await;
    }
    bench.replays(&id, pb::TaskState::Completed).await;
    bench.stop().await;

    // The shards are others, and the key is where its task is.
    for threads in [1, 3, 5] {
        let bench = Bench::on_threads(threads, dir.path(), Keeping::default(), &[]);
        bench.replays(&id, pb::TaskState::Completed).await;
        bench.stop().await;
    }

    for _ in 0..2 {
        let bench = Bench::archived(dir.path(), &[]);
        bench.moved(2).await;
        bench.replays(&id, pb::TaskState::Completed).await;
        // The whole story again, for who runs it again.
        let mut run = bench.home.run(asked("k", "one"), 0).await.unwrap();
        assert!(run.replayed);
        assert_eq!(snapshot(&mut run.task).await.id, id);
        assert_eq!(event(&mut run.task).await.seq, 1);
        assert_eq!(event(&mut run.task).await.state(), pb::TaskState::Completed);
        assert!(run.task.next().await.is_none());
        bench.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_at_once_make_one_task_that_runs_once() {
    let mut bench = Bench::memory(&["i1"]);
    let all = join_all((0..50).map(|_| bench.keyed("k", "one"))).await;
    let all: Vec<_> = all.into_iter().map(Result::unwrap).collect();
    assert_eq!(all.iter().filter(|one| !one.replayed).count(), 1);
    assert!(all.iter().all(|one| one.task.id == all[0].task.id));
    bench.complete().await;
    assert!(bench.idle().await, "nothing else was given out");
}

#[tokio::test]
async fn a_key_is_known_after_the_deadline_of_its_task() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::archived(dir.path(), &["i1"]);
    let due = crate::runtime::clock::wall() + Duration::from_millis(900);
    let soon = || {
        let mut asked = asked("k", "one");
        asked.spec.options.get_or_insert_default().deadline = Some(due.into());
        asked
    };
    let first = bench.home.submit(soon(), 0).await.unwrap();
    bench.complete().await;
    until("the deadline passes", || {
        crate::runtime::clock::wall() > due
    })
    .await;
    let again = bench.home.submit(soon(), 0).await.unwrap();
    assert!(again.replayed && again.task.id == first.task.id);
    bench.moved(1).await;
    let again = bench.home.submit(soon(), 0).await.unwrap();
    assert!(again.replayed && again.task.id == first.task.id);
    bench.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_home_that_takes_nothing_new_still_tells_what_it_took() {
    let mut bench = Bench::memory(&["i1"]);
    let first = bench.keyed("k", "one").await.unwrap();
    bench.complete().await;
    bench.home.drain().await;
    let new = bench.keyed("l", "one").await.unwrap_err();
    assert_eq!(new.reason, Reason::Draining);
    bench
        .replays(&first.task.id, pb::TaskState::Completed)
        .await;
}

#[tokio::test]
async fn keys_hold_while_their_tasks_move() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::archived(dir.path(), &["i1"]);
    for number in 0..30 {
        let key = format!("k{number}");
        let first = bench.keyed(&key, "one").await.unwrap();
        assert!(!first.replayed);
        bench.complete().await;
        // At some time in here it goes from memory to the archive.
        for _ in 0..20 {
            let again = bench.keyed(&key, "one").await.unwrap();
            assert!(again.replayed && again.task.id == first.task.id, "{number}");
        }
    }
    bench.moved(30).await;
    tokio::time::timeout(Duration::from_secs(60), bench.stop())
        .await
        .unwrap();
}

#[tokio::test]
async fn what_no_longer_fits_is_refused_unless_it_was_taken_before() {
    let bench = Bench::memory(&[]);
    let held = |key: &str| Held {
        asked: asked(key, "one"),
        unfit: Some(Box::new(Fault::new(
            Reason::InputInvalid,
            "of another time",
        ))),
    };
    let first = bench.keyed("k", "one").await.unwrap();
    let again = bench.home.submit(held("k"), 0).await.unwrap();
    assert!(again.replayed);
    assert_eq!(again.task.id, first.task.id);
    let new = bench.home.submit(held("l"), 0).await.unwrap_err();
    assert_eq!(new.reason, Reason::InputInvalid);
    bench.stop().await;
}
