//! The journal as a whole, over a disk in memory and over a real one.

mod damage;
mod promises;
mod repair;

use std::time::Duration;

use tokio::time::Instant;

use crate::pb::journal::Record;
use crate::pb::journal::record::Kind;

use super::faulty::{Fault, FaultyDisk};
use super::*;

const SMALL: JournalConfig = JournalConfig {
    segment_bytes: 4096,
    pending_bytes: 0,
    disk_reserve: 0,
    large_bytes: 64 << 10,
};

fn record(text: impl Into<String>) -> Record {
    Record {
        task_id: text.into(),
        ..Record::default()
    }
}

fn large(bytes: usize) -> Record {
    let kind = crate::pb::journal::Checkpoint {
        attempt: 1,
        data: vec![7; bytes],
    };
    Record {
        kind: Some(Kind::Checkpoint(kind)),
        ..Record::default()
    }
}

type Opened = (Journal, Writer, Vec<(Lsn, Record)>);

fn open(disk: &FaultyDisk) -> Result<Opened, JournalError> {
    let mut seen = Vec::new();
    let replay = |lsn, record| seen.push((lsn, record));
    let (journal, writer) = Journal::on_disk(Box::new(disk.clone()), SMALL, replay)?;
    Ok((journal, writer, seen))
}

/// Steps until nothing is left to do.
fn settle(writer: &mut Writer) {
    while writer.step(Instant::now()) == Step::Worked {}
}

fn synced(journal: &Journal) -> Lsn {
    journal.synced().borrow().lsn
}

/// Appends and syncs `count` records of about 100 bytes, each in a batch of its own.
fn fill(journal: &Journal, writer: &mut Writer, count: u64) {
    for _ in 0..count {
        let next = synced(journal) + 1;
        assert_eq!(
            journal.append(&[record(format!("{next:0100}"))]).unwrap(),
            next
        );
        settle(writer);
        assert_eq!(synced(journal), next);
    }
}

fn segments(disk: &FaultyDisk) -> Vec<String> {
    let mut names = disk.list().unwrap();
    names.retain(|name| name.ends_with(".log"));
    names
}

#[test]
fn segments_rotate_and_go_when_they_are_not_needed() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    fill(&journal, &mut writer, 100);
    let names = segments(&disk);
    assert_eq!(names.len(), 4);
    let second: Lsn = names[1].trim_end_matches(".log").parse().unwrap();
    for (needed, left) in [(0, 4), (second - 1, 4), (second, 3), (1, 3), (Lsn::MAX, 1)] {
        journal.release(needed);
        settle(&mut writer);
        assert_eq!(
            (segments(&disk).len(), journal.stats().segments),
            (left, left)
        );
    }
    drop(writer);
    let (journal, mut writer, seen) = open(&disk).unwrap();
    assert_eq!((synced(&journal), seen.last().unwrap().0), (100, 100));
    fill(&journal, &mut writer, 1);
}

#[test]
fn a_missing_segment_is_refused() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    fill(&journal, &mut writer, 100);
    let names = segments(&disk);
    disk.remove(&names[1]).unwrap();
    let refused = open(&disk).unwrap_err();
    assert!(
        matches!(&refused, JournalError::Damaged { file, .. } if *file == names[0]),
        "{refused}"
    );
}

/// Makes a segment one of this format.
fn turn_into(disk: &FaultyDisk, segment: &str, format: u8) {
    disk.damage(segment, |bytes| {
        bytes[8] = format;
        bytes[12..16].fill(0);
        let crc = crc32fast::hash(&bytes[..64]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    });
}

fn format_of(disk: &FaultyDisk, segment: &str) -> u32 {
    let mut bytes = [0; 4];
    disk.open(segment).unwrap().read_at(8, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn a_log_of_an_earlier_format_is_read_and_goes_on_in_segments_of_the_present_one() {
    for count in [0, 1, 100] {
        let disk = FaultyDisk::default();
        let (journal, mut writer, _) = open(&disk).unwrap();
        fill(&journal, &mut writer, count);
        drop(writer);
        let old = segments(&disk);
        for segment in &old {
            assert_eq!(format_of(&disk, segment), 2);
            turn_into(&disk, segment, 1);
        }
        let (journal, mut writer, seen) = open(&disk).unwrap();
        assert_eq!(seen.len() as u64, count);
        assert!(old.iter().all(|segment| format_of(&disk, segment) == 1));
        fill(&journal, &mut writer, 3);
        drop(writer);
        let formats: Vec<_> = segments(&disk)
            .iter()
            .map(|segment| format_of(&disk, segment))
            .collect();
        // One without records is replaced.
        let mut expected = vec![1; if count == 0 { 0 } else { old.len() }];
        expected.push(2);
        assert_eq!(formats, expected);
        let survey = Survey::on(&disk, &mut |_| Ok(())).unwrap();
        let told: Vec<_> = survey.segments.iter().map(|one| one.format).collect();
        assert_eq!(told, formats);
        let (_, _, seen) = open(&disk).unwrap();
        let numbers: Vec<_> = seen.iter().map(|(lsn, _)| *lsn).collect();
        assert_eq!(numbers, (1..=count + 3).collect::<Vec<_>>());
    }
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    fill(&journal, &mut writer, 1);
    turn_into(&disk, &segments(&disk)[0], 3);
    let refused = open(&disk).unwrap_err().to_string();
    assert!(refused.contains("00000000000000000001.log"), "{refused}");
    assert!(
        refused.contains("journal format 3, this version reads up to 2"),
        "{refused}"
    );
}

#[test]
fn after_an_error_nothing_is_acknowledged_and_no_sync_is_tried() {
    // A batch is a write, zeros ahead, a sync and a mark.
    for operation in 0..4 {
        let disk = FaultyDisk::default();
        let (journal, mut writer, _) = open(&disk).unwrap();
        settle(&mut writer);
        journal.append(&[record("a")]).unwrap();
        disk.fail_in(operation);
        assert_eq!(writer.step(Instant::now()), Step::Stopped);
        let (told, syncs) = (synced(&journal), disk.syncs());
        assert_eq!(
            told,
            u64::from(operation == 3),
            "only the mark comes after the sync"
        );
        assert!(journal.failed());
        let refused = journal.append(&[record("b")]).unwrap_err();
        assert!(
            refused.to_string().contains("the disk gave up"),
            "{refused}"
        );
        assert_eq!(writer.step(Instant::now()), Step::Stopped);
        journal.close();
        assert_eq!(writer.step(Instant::now()), Step::Stopped);
        assert_eq!((synced(&journal), disk.syncs()), (told, syncs));
    }
}

#[test]
fn a_full_disk_is_told_before_it_hurts_and_passes() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    disk.set_room(Some(100));
    let now = Instant::now();
    let Step::Idle { until: Some(retry) } = writer.step(now) else {
        panic!("asks again later")
    };
    assert!(journal.stats().low_space && journal.no_space() && !journal.failed());
    assert!(!segments(&disk).is_empty() && disk.list().unwrap().len() == 1);
    journal
        .append(&[record("what is in work goes on")])
        .unwrap();
    assert_eq!(writer.step(now), Step::Worked);
    assert_eq!(synced(&journal), 1);
    disk.set_room(None);
    assert_eq!(writer.step(retry), Step::Worked);
    assert!(!journal.stats().low_space && !journal.no_space());

    // What does not fit into the segments that are there waits for room, and is not lost.
    disk.set_room(Some(100));
    let big = vec![record("x".repeat(2000)); 2];
    while writer.step(now) == Step::Worked || synced(&journal) == journal.append(&big).unwrap() - 2
    {
    }
    let (before, taken) = (synced(&journal), journal.append(&[record("late")]).unwrap());
    assert!(before < taken && !journal.failed());
    assert!(journal.low_space() && journal.no_space());
    let Step::Idle { until: Some(retry) } = writer.step(now) else {
        panic!("asks again later")
    };
    disk.set_room(None);
    assert!(
        matches!(writer.step(now), Step::Idle { .. }),
        "not before its time"
    );
    assert_eq!(writer.step(retry), Step::Worked);
    settle(&mut writer);
    assert_eq!((synced(&journal), journal.low_space()), (taken, false));
}

#[test]
fn a_disk_that_fails_where_the_next_segment_is_to_be_is_not_taken_for_a_full_one() {
    // The file is made, then gets its room.
    for operation in 0..2 {
        for fault in [Fault::Error, Fault::Crash] {
            let disk = FaultyDisk::default();
            let (journal, mut writer, _) = open(&disk).unwrap();
            disk.plan(operation, fault);
            assert_eq!(writer.step(Instant::now()), Step::Stopped);
            assert!(journal.failed() && !journal.low_space());
            let refused = journal.append(&[record("a")]).unwrap_err();
            let why = refused.to_string();
            assert!(why.contains("spare.tmp: the disk gave up"), "{why}");
        }
        let disk = FaultyDisk::default();
        let (journal, mut writer, _) = open(&disk).unwrap();
        disk.plan(operation, Fault::Full);
        let Step::Idle { until: Some(retry) } = writer.step(Instant::now()) else {
            panic!("asks again later")
        };
        assert!(journal.low_space() && !journal.failed());
        assert_eq!(writer.step(retry), Step::Worked);
        assert!(!journal.low_space());
    }
}

#[test]
fn closing_does_not_wait_for_room() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    settle(&mut writer);
    disk.set_room(Some(100));
    let big = vec![record("x".repeat(2000)); 10];
    journal.append(&big).unwrap();
    assert!(matches!(writer.step(Instant::now()), Step::Idle { .. }));
    journal.close();
    assert_eq!(writer.step(Instant::now()), Step::Stopped);
    assert!(journal.failed() && synced(&journal) == 0);
}

#[test]
fn less_free_space_than_the_reserve_is_told_and_passes() {
    let disk = FaultyDisk::default();
    let config = JournalConfig {
        disk_reserve: 1 << 20,
        ..SMALL
    };
    let opened = Journal::on_disk(Box::new(disk.clone()), config, |_, _| ());
    let (journal, mut writer) = opened.unwrap();
    let mut now = Instant::now();
    let mut at = |room: Option<u64>| {
        disk.set_room(room.map(|free| disk.used() + free));
        now += Duration::from_secs(1);
        while writer.step(now) == Step::Worked {}
        let stats = journal.stats();
        assert_eq!(stats.low_space, journal.low_space());
        assert!(!journal.no_space(), "the next segment has its room");
        (stats.low_space, stats.free_bytes)
    };
    assert_eq!(at(None), (false, Some(u64::MAX)));
    assert_eq!(at(Some(1 << 20)), (false, Some(1 << 20)));
    assert_eq!(at(Some((1 << 20) - 1)), (true, Some((1 << 20) - 1)));
    journal
        .append(&[record("what is in work goes on")])
        .unwrap();
    assert_eq!(at(Some(0)), (true, Some(0)));
    assert_eq!(synced(&journal), 1);
    assert_eq!(at(Some(2 << 20)), (false, Some(2 << 20)));
}

#[test]
fn records_of_any_legal_size_are_taken_and_others_refused() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    let legal = large(MAX_RECORD_BYTES - 16);
    journal
        .append(&[Record::default(), legal.clone()])
        .unwrap_err();
    assert_eq!(journal.append(std::slice::from_ref(&legal)).unwrap(), 1);
    let refused = journal.append(&[large(1 << 20)]).unwrap_err();
    assert!(matches!(refused, JournalError::Full { .. }), "{refused}");
    let refused = journal.append(&[large(MAX_RECORD_BYTES)]).unwrap_err();
    assert!(
        matches!(refused, JournalError::TooLarge { .. }),
        "{refused}"
    );
    settle(&mut writer);
    assert_eq!(
        journal
            .append(&[Record::default(), record("small")])
            .unwrap(),
        3
    );
    settle(&mut writer);
    assert_eq!(journal.append(&[]).unwrap(), 3);
    let (_, _, seen) = open(&disk).unwrap();
    assert_eq!(
        seen,
        [(1, legal), (2, Record::default()), (3, record("small"))]
    );
}

#[test]
fn what_came_in_together_is_synced_once() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    let append = || (0..200).map(|n| journal.append(&[record(format!("{n}"))]).unwrap());
    let mut numbers: Vec<Lsn> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| append().collect::<Vec<_>>()))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=800).collect::<Vec<_>>());
    settle(&mut writer);
    let stats = journal.stats();
    assert_eq!(
        (synced(&journal), stats.records, stats.syncs),
        (800, 800, 1)
    );
    assert_eq!((stats.mean_batch, stats.pending_bytes), (800.0, 0));
}

#[tokio::test]
async fn a_real_directory_is_opened_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    for life in 0..20 {
        let mut seen = 0;
        let journal = Journal::open(dir.path(), SMALL, |lsn, replayed| {
            seen += 1;
            assert_eq!((lsn, replayed), (seen, record(format!("{seen:0200}"))));
        });
        let journal = journal.unwrap();
        assert_eq!((seen, journal.cut()), (life * 10, None));
        let refused = Journal::open(dir.path(), SMALL, |_, _| ()).unwrap_err();
        assert!(matches!(refused, JournalError::Locked { .. }), "{refused}");
        for _ in 0..10 {
            seen += 1;
            assert_eq!(
                journal.append(&[record(format!("{seen:0200}"))]).unwrap(),
                seen
            );
        }
        if life % 2 == 0 {
            let mut synced = journal.synced();
            assert!(
                !synced
                    .wait_for(|synced| synced.lsn == seen)
                    .await
                    .unwrap()
                    .failed
            );
            drop(journal);
        } else {
            journal.close();
            journal.close();
            assert_eq!(synced(&journal), seen);
            assert!(matches!(journal.append(&[]), Err(JournalError::Closed)));
        }
    }
}

#[tokio::test]
async fn a_writer_that_goes_away_fails_the_journal() {
    let (journal, writer, _) = open(&FaultyDisk::default()).unwrap();
    let mut watched = journal.synced();
    drop(writer);
    assert!(watched.wait_for(|synced| synced.failed).await.is_ok());
    assert!(matches!(
        journal.append(&[record("a")]),
        Err(JournalError::Failed { .. })
    ));
}

#[test]
fn memory_acknowledges_at_once() {
    let journal = Journal::memory();
    assert_eq!(journal.append(&[record("a"), record("b")]).unwrap(), 2);
    assert_eq!((synced(&journal), journal.stats().records), (2, 2));
    journal.close();
    assert!(matches!(
        journal.append(&[record("c")]),
        Err(JournalError::Closed)
    ));
}
