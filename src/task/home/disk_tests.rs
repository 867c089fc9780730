//! A home on a disk that fails or is full.

use std::{path::Path, thread::JoinHandle, time::Duration};

use crate::domain::Reason;
use crate::pb;
use crate::pb::execute_request::Step as Said;
use crate::pb::handle_response::Update;
use crate::task::journal::faulty::{Fault, FaultyDisk};
use crate::task::journal::{Journal, JournalConfig, JournalError, Repaired, Step};

use super::config::Submission;
use super::drive_tests::{Bench, result};
use super::replay::Replay;
use super::tests::{own, spec, text};

/// How long a condition may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

/// A home over this disk, and the thread that writes to it.
fn home(disk: &FaultyDisk, disk_reserve: u64) -> (Bench, Journal, JoinHandle<()>) {
    let mut replay = Replay::new(&"home".parse().unwrap(), 2);
    let config = JournalConfig {
        segment_bytes: 64 << 10,
        disk_reserve,
        ..JournalConfig::default()
    };
    let opened = Journal::on_disk(Box::new(disk.clone()), config, |lsn, record| {
        replay.record(lsn, &record);
    });
    let (journal, mut writer) = opened.unwrap();
    while writer.step(tokio::time::Instant::now()) == Step::Worked {}
    let thread = std::thread::spawn(move || writer.run());
    let bench = Bench::over(journal.clone(), replay, &["i1"]);
    (bench, journal, thread)
}

async fn submit(bench: &Bench) -> Result<pb::Task, Reason> {
    let asked = Submission {
        spec: spec(pb::TaskOptions::default()),
        caller: own(),
        trace: None,
    };
    let submitted = bench.home.submit(asked, 0).await;
    submitted
        .map(|submitted| submitted.task)
        .map_err(|fault| fault.reason)
}

/// Submits until the answer is this one.
async fn submit_until(bench: &Bench, wanted: Result<(), Reason>) {
    let trying = async {
        loop {
            match (submit(bench).await, wanted) {
                (Ok(_), Ok(())) => return,
                (Err(found), Err(wanted)) if found == wanted => return,
                (Ok(_) | Err(Reason::DiskFull), _) => tokio::task::yield_now().await,
                (Err(found), _) => panic!("{found}"),
            }
        }
    };
    tokio::time::timeout(LIMIT, trying).await.unwrap();
}

#[tokio::test]
async fn after_a_failed_write_or_sync_nothing_is_acknowledged_and_a_restart_has_all_that_was() {
    for operation in 0..16 {
        let disk = FaultyDisk::seeded(operation.into());
        let (bench, journal, thread) = home(&disk, 0);
        disk.plan(operation, Fault::Error);
        let mut acknowledged = Vec::new();
        let refused = loop {
            match submit(&bench).await {
                Ok(task) => acknowledged.push(task.id),
                Err(reason) => break reason,
            }
        };
        assert_eq!(refused, Reason::StorageFailed, "operation {operation}");
        tokio::time::timeout(LIMIT, bench.home.failed().cancelled())
            .await
            .expect("the process is told to end");
        let syncs = disk.syncs();
        disk.restart();
        assert_eq!(submit(&bench).await.map(|_| ()), Err(Reason::StorageFailed));
        assert_eq!(disk.syncs(), syncs, "no sync is tried again");
        bench.home.close(LIMIT).await;
        thread.join().unwrap();
        drop((bench, journal));
        if operation % 2 == 0 {
            disk.power_loss();
        }

        let (bench, _, thread) = home(&disk, 0);
        for id in &acknowledged {
            let viewer = std::sync::Arc::new(own());
            let (task, _) = bench
                .home
                .get(&id.parse().unwrap(), &viewer, true)
                .await
                .unwrap();
            assert_eq!(&task.id, id, "operation {operation}");
        }
        submit(&bench).await.unwrap();
        bench.home.close(LIMIT).await;
        thread.join().unwrap();
    }
}

#[tokio::test]
async fn an_attempt_is_resumed_after_what_is_on_disk_and_not_after_what_was_heard() {
    let disk = FaultyDisk::seeded(1);
    let (mut bench, _journal, thread) = home(&disk, 0);
    submit(&bench).await.unwrap();
    let mut opened = bench.next().await;
    assert!(matches!(opened.step().await, Said::Start(_)));
    opened.accept().await;
    let progress = || Update::Progress(pb::Progress::default());
    opened.update(1, progress()).await;
    opened.acked(1).await;
    let (go, wait) = std::sync::mpsc::channel::<()>();
    // Ends at once when `go` is dropped.
    disk.during_sync(Some(Box::new(move || wait.recv().unwrap_or_default())));
    opened.update(2, result()).await;
    opened.breaks().await;
    let mut again = bench.next().await;
    // What the executor is told of it forgets, and a crash now would take the second one back.
    assert!(matches!(again.step().await, Said::Resume(resume) if resume.after_update == 1));
    again.update(2, result()).await;
    drop(go);
    again.acked(2).await;
    bench.home.close(LIMIT).await;
    thread.join().unwrap();
}

#[tokio::test]
async fn a_full_disk_takes_no_task_and_lets_those_under_way_end() {
    let disk = FaultyDisk::default();
    let (mut bench, journal, thread) = home(&disk, 1 << 20);
    let running = submit(&bench).await.unwrap().id.parse().unwrap();
    let mut opened = bench.next().await;
    assert!(matches!(opened.step().await, Said::Start(_)));
    opened.accept().await;
    disk.set_room(Some(disk.used() + (1 << 20) - 1));
    submit_until(&bench, Err(Reason::DiskFull)).await;

    // Not a byte is left: the end of what runs goes where room was reserved for it.
    disk.set_room(Some(0));
    let message = Update::Message(pb::Message {
        parts: vec![text(&"m".repeat(40 << 10))],
        ..pb::Message::default()
    });
    opened.update(1, message).await;
    opened.acked(1).await;
    opened.update(2, result()).await;
    opened.acked(2).await;
    let viewer = std::sync::Arc::new(own());
    let (task, _) = bench.home.get(&running, &viewer, false).await.unwrap();
    assert_eq!(task.state(), pb::TaskState::Completed);
    assert!(!journal.failed());

    disk.set_room(None);
    submit_until(&bench, Ok(())).await;
    bench.home.close(LIMIT).await;
    thread.join().unwrap();
}

#[tokio::test]
async fn a_repaired_journal_is_replayed_without_the_task_that_lost_a_record() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, into) = (temp.path().join("journal"), temp.path().join("new"));
    let open = |dir: &Path| {
        let mut replay = Replay::new(&"home".parse().unwrap(), 2);
        let config = JournalConfig {
            disk_reserve: 0,
            ..JournalConfig::default()
        };
        let journal = Journal::open(dir, config, |lsn, record| replay.record(lsn, &record))?;
        Ok::<_, JournalError>(Bench::over(journal, replay, &["i1"]))
    };
    let mut bench = open(&dir).unwrap();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(submit(&bench).await.unwrap().id);
        let mut opened = bench.next().await;
        assert!(matches!(opened.step().await, Said::Start(_)));
        opened.accept().await;
        opened
            .update(1, Update::Progress(pb::Progress::default()))
            .await;
        opened.update(2, result()).await;
        opened.acked(2).await;
    }
    bench.home.close(LIMIT).await;

    // The input of the second task, in its submission: the first time that its id is on disk.
    let file = dir.join("00000000000000000001.log");
    let mut bytes = std::fs::read(&file).unwrap();
    let id = bytes
        .windows(ids[1].len())
        .position(|window| window == ids[1].as_bytes());
    bytes[id.unwrap() + ids[1].len() + 20] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let refused = open(&dir).map(|_| ()).unwrap_err();
    assert!(matches!(refused, JournalError::Damaged { .. }), "{refused}");

    let made = Repaired::make(&dir, &into, false).unwrap();
    assert_eq!(
        (made.tasks, &made.holed[..], &made.doubtful[..]),
        (2, &ids[1..2], &[][..])
    );
    let bench = open(&into).unwrap();
    let viewer = std::sync::Arc::new(own());
    for (place, id) in ids.iter().enumerate() {
        let task = bench.home.get(&id.parse().unwrap(), &viewer, true).await;
        match task {
            Ok((task, _)) => {
                assert_eq!((place != 1, task.state()), (true, pb::TaskState::Completed));
            }
            Err(fault) => assert_eq!((place, fault.reason), (1, Reason::TaskNotFound)),
        }
    }
    bench.home.close(LIMIT).await;
}
