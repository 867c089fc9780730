//! The archive on disk and on a disk that fails.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redb::{StorageBackend, backends::InMemoryBackend};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::pb;
use crate::pb::journal::{Snapshot, Submitted};

use super::store::{self, Bounds};
use super::*;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Task `number`, which ended at second `ended`; its events have `size` bytes each.
fn row(number: u128, ended: u64, events: u64, size: usize) -> Row {
    let task = pb::Task {
        id: format!("home.{}", Uuid::from_u128(number)),
        last_seq: events,
        ..Default::default()
    };
    let part = pb::Part {
        content: Some(pb::part::Content::Text("x".repeat(size))),
        ..Default::default()
    };
    let spec = pb::TaskSpec {
        input: vec![part],
        ..Default::default()
    };
    let event = |seq| {
        Arc::new(pb::TaskEvent {
            seq,
            task_id: "y".repeat(size),
            ..Default::default()
        })
    };
    Row {
        task: Uuid::from_u128(number),
        ended: at(ended),
        snapshot: Snapshot {
            submitted: Some(Submitted {
                task: Some(task),
                spec: Some(spec),
                ..Default::default()
            }),
            first_seq: 1,
            ..Default::default()
        },
        events: (1..=events).map(event).collect(),
    }
}

fn config(dir: &std::path::Path) -> ArchiveConfig {
    ArchiveConfig::new(dir.join("archive.redb"), Duration::from_secs(100))
}

async fn put(archive: &Archive, rows: Vec<Row>, now: u64) -> Result<(), ArchiveError> {
    let (answer, answered) = oneshot::channel();
    archive.put(rows.into_iter(), at(now), |outcome| {
        answer.send(outcome).unwrap();
    })?;
    answered.await.unwrap()
}

async fn seqs(archive: &Archive, number: u128) -> Option<Vec<(u64, usize)>> {
    let task = Uuid::from_u128(number);
    let read = move |view: &View| -> Result<_, ArchiveError> {
        let Some(filed) = view.task(task)? else {
            return Ok(None);
        };
        let last = filed
            .snapshot
            .submitted
            .clone()
            .unwrap()
            .task
            .unwrap()
            .last_seq;
        let spec = view.spec(&filed)?;
        assert_eq!(spec.input.len(), 1);
        let events = (1..=last).map(|seq| view.event(&filed, seq));
        let events: Vec<_> = events.collect::<Result<_, _>>()?;
        Ok(Some(
            events
                .iter()
                .map(|one| (one.seq, one.task_id.len()))
                .collect(),
        ))
    };
    archive.read(read).await.unwrap()
}

async fn listed(archive: &Archive, before: Option<u128>) -> Vec<u128> {
    let read = move |view: &View| -> Result<_, ArchiveError> {
        let older = view.older(before.map(Uuid::from_u128))?;
        older.map(|row| row.map(|(id, _)| id.as_u128())).collect()
    };
    archive.read(read).await.unwrap()
}

#[tokio::test]
async fn small_and_large_tasks_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::start(config(dir.path()), "home").unwrap();
    let rows = || {
        vec![
            row(1, 10, 2, 10),
            row(2, 11, 3, 20_000),
            row(3, 12, 0, 5000),
        ]
    };
    put(&archive, rows(), 20).await.unwrap();
    let before = archive.stats();
    // After a crash in between it comes again: nothing is counted or shown twice.
    put(&archive, rows(), 20).await.unwrap();
    assert_eq!(
        (archive.stats().tasks, archive.stats().bytes),
        (3, before.bytes)
    );
    archive.close();
    assert_eq!(
        archive.retire(at(20)),
        Err(ArchiveError::Closed),
        "nothing is taken any more"
    );

    let archive = Archive::start(config(dir.path()), "home").unwrap();
    assert_eq!(seqs(&archive, 1).await.unwrap(), [(1, 10), (2, 10)]);
    let large = [(1, 20_000), (2, 20_000), (3, 20_000)];
    assert_eq!(seqs(&archive, 2).await.unwrap(), large);
    assert_eq!(seqs(&archive, 3).await.unwrap(), []);
    assert_eq!(seqs(&archive, 4).await, None);
    assert_eq!(listed(&archive, None).await, [3, 2, 1]);
    assert_eq!(listed(&archive, Some(3)).await, [2, 1]);
    assert_eq!(
        (archive.stats().tasks, archive.stats().bytes),
        (3, before.bytes)
    );
    drop(archive);

    let stranger = Archive::start(config(dir.path()), "other").unwrap();
    let read = stranger.read(|view: &View| view.task(Uuid::nil())).await;
    assert!(
        read.unwrap_err().to_string().contains("home"),
        "not its file"
    );
}

#[tokio::test]
async fn the_oldest_go_when_their_time_is_over_or_there_are_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let mut bounded = config(dir.path());
    bounded.most_tasks = 3;
    let archive = Archive::start(bounded, "home").unwrap();
    // What ended first goes first, whenever it began.
    let rows = vec![row(1, 30, 1, 9000), row(2, 10, 1, 9000), row(3, 20, 1, 1)];
    put(&archive, rows, 40).await.unwrap();
    assert_eq!(listed(&archive, None).await, [3, 2, 1]);
    put(&archive, vec![row(4, 40, 1, 1)], 40).await.unwrap();
    // The answer comes before the oldest go; the next question comes after.
    put(&archive, vec![], 40).await.unwrap();
    assert_eq!(listed(&archive, None).await, [4, 3, 1]);
    put(&archive, vec![], 130).await.unwrap();
    put(&archive, vec![], 130).await.unwrap();
    assert_eq!(listed(&archive, None).await, [4, 1], "3 ended 110 s ago");
    put(&archive, vec![], 1000).await.unwrap();
    put(&archive, vec![], 1000).await.unwrap();
    let stats = archive.stats();
    assert_eq!((stats.tasks, stats.bytes, stats.retired), (0, 0, 4));
    assert_eq!(listed(&archive, None).await, []);
}

#[test]
fn bytes_are_bounded_too_and_pieces_go_with_their_task() {
    let database = store::open_on(InMemoryBackend::new(), "home").unwrap();
    let rows = (1..=10).map(|number| row(number, 5, 2, 10_000));
    let held = store::put(&database, rows).unwrap();
    let bounds = Bounds {
        tasks: 100,
        bytes: held.bytes / 2,
        ended_before: 0,
    };
    let (left, went) = store::retire(&database, bounds, 2).unwrap();
    let went = went.len();
    assert_eq!((left.tasks, went), (8, 2), "some at a time");
    let (left, went) = store::retire(&database, bounds, 100).unwrap();
    let went = went.len();
    assert_eq!((left.tasks, left.bytes, went), (5, held.bytes / 2, 3));
    let view = View::of(&database).unwrap();
    let older: Vec<_> = view
        .older(None)
        .unwrap()
        .map(|row| row.unwrap().0)
        .collect();
    assert_eq!(older.len(), 5);
    let gone = Filed::bare(Uuid::from_u128(1));
    assert!(view.event(&gone, 1).is_err(), "its pieces are gone");
}

/// A disk that has no room while it is told so.
#[derive(Debug)]
struct Full {
    inside: Arc<InMemoryBackend>,
    full: Arc<AtomicBool>,
}

impl Full {
    fn check(&self) -> Result<(), io::Error> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

impl StorageBackend for Full {
    fn len(&self) -> Result<u64, io::Error> {
        self.inside.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.inside.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.check()?;
        self.inside.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.check()?;
        self.inside.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.check()?;
        self.inside.write(offset, data)
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_next_write_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, full) = (
        Arc::new(InMemoryBackend::new()),
        Arc::new(AtomicBool::new(false)),
    );
    let switch = full.clone();
    let opener = move || {
        let disk = Full {
            inside: inside.clone(),
            full: full.clone(),
        };
        store::open_on(disk, "home")
    };
    let archive = Archive::with(config(dir.path()), Box::new(opener)).unwrap();
    put(&archive, vec![row(1, 10, 1, 10)], 20).await.unwrap();
    switch.store(true, Ordering::SeqCst);
    let refused = put(&archive, vec![row(2, 10, 1, 10)], 20).await;
    assert!(
        matches!(refused, Err(ArchiveError::Failed(_))),
        "{refused:?}"
    );
    let again = put(&archive, vec![row(2, 10, 1, 10)], 20).await;
    assert!(matches!(again, Err(ArchiveError::Failed(_))), "{again:?}");
    assert!(archive.stats().last_error.is_some() && archive.stats().failures >= 2);
    switch.store(false, Ordering::SeqCst);
    put(&archive, vec![row(2, 10, 1, 10)], 20).await.unwrap();
    assert_eq!(archive.stats().last_error, None);
    assert_eq!(listed(&archive, None).await, [2, 1], "nothing was lost");
}

#[tokio::test]
async fn a_file_that_is_no_archive_is_told_not_used_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    std::fs::write(&config.path, vec![7; 10_000]).unwrap();
    let archive = Archive::start(config.clone(), "home").unwrap();
    let read = archive.read(|view: &View| view.task(Uuid::nil())).await;
    assert!(matches!(read, Err(ArchiveError::Failed(_))));
    assert!(put(&archive, vec![row(1, 1, 1, 1)], 1).await.is_err());
    archive.close();
    assert_eq!(std::fs::read(&config.path).unwrap(), vec![7; 10_000]);
}

#[tokio::test]
async fn a_key_is_known_as_long_as_its_newest_task() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::start(config(dir.path()), "home").unwrap();
    let keyed = |age: u128, ended| {
        let mut row = row(age << 64 | 7, ended, 1, 10);
        let submitted = row.snapshot.submitted.as_mut().unwrap();
        (submitted.key_scope, submitted.key_payload) = (vec![1; 32], vec![2; 32]);
        row
    };
    let found = async |place: u64| {
        let found = archive.read(move |view: &View| view.keyed(place)).await;
        found.unwrap().map(|filed| filed.task.as_u128() >> 64)
    };
    let unkeyed = row(1 << 64 | 8, 10, 1, 10);
    put(&archive, vec![keyed(2, 30), keyed(1, 10), unkeyed], 40)
        .await
        .unwrap();
    assert_eq!((found(7).await, found(8).await), (Some(2), None));
    // The older one goes, and takes nothing along. What is too old goes after the answer.
    for _ in 0..2 {
        put(&archive, Vec::new(), 111).await.unwrap();
    }
    assert_eq!((archive.stats().tasks, found(7).await), (1, Some(2)));
    for _ in 0..2 {
        put(&archive, Vec::new(), 131).await.unwrap();
    }
    assert_eq!((archive.stats().tasks, found(7).await), (0, None));
}
