//! Crashes and damage: what is replayed after anything that may happen to the disk.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use crate::pb::journal::Record;
use crate::task::journal::faulty::FaultyDisk;
use crate::task::journal::{Cut, Journal, JournalError, Lsn, Writer};

use super::{fill, open, record, segments, settle, synced};

#[test]
fn what_was_acknowledged_is_replayed_whenever_the_machine_stops() {
    for seed in 0..400 {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = FaultyDisk::default();
        let (mut history, mut acknowledged, mut needed) = (Vec::new(), 0, 1);
        for life in 0..8 {
            let context = format!("seed {seed}, life {life}");
            let (journal, mut writer, seen) = open(&disk).expect(&context);
            let last = synced(&journal);
            assert!(last >= acknowledged, "{context}: {last} of {acknowledged}");
            assert_eq!(seen.last().map_or(last, |(lsn, _)| *lsn), last, "{context}");
            assert!(
                seen.first().is_none_or(|(lsn, _)| *lsn <= needed),
                "{context}"
            );
            assert!(acknowledged < needed || !seen.is_empty(), "{context}");
            history.truncate(usize::try_from(last).unwrap());
            for (index, (lsn, record)) in seen.iter().enumerate() {
                assert_eq!(*lsn, seen[0].0 + index as u64, "{context}");
                assert_eq!(
                    record,
                    &history[usize::try_from(*lsn).unwrap() - 1],
                    "{context}"
                );
            }
            acknowledged = live(
                &journal,
                &mut writer,
                &disk,
                &mut random,
                &mut history,
                &mut needed,
            );
            match random.random_bool(0.4) {
                true => disk.restart(),
                false => disk.power_loss(&mut random),
            }
        }
    }
}

/// One life of a process with random work; the last number that it was told to be on disk.
fn live(
    journal: &Journal,
    writer: &mut Writer,
    disk: &FaultyDisk,
    random: &mut StdRng,
    history: &mut Vec<Record>,
    needed: &mut Lsn,
) -> Lsn {
    if random.random_bool(0.3) {
        disk.fail_in(random.random_range(0..40));
    }
    for _ in 0..random.random_range(0..40) {
        let count = random.random_range(1..6);
        // Often of one length, so that what is left of a torn batch would fit behind new records.
        let size = [100, 100, 100, 200, 3000][random.random_range(0..5)];
        let fixed = size == 100 || random.random_bool(0.5);
        let mut next = || {
            let length = if fixed {
                size
            } else {
                random.random_range(0..size)
            };
            record(format!("{:0length$}", random.random_range(0..u64::MAX)))
        };
        let batch: Vec<Record> = (0..count).map(|_| next()).collect();
        match journal.append(&batch) {
            Ok(last) => {
                history.extend(batch);
                assert_eq!(last, history.len() as u64);
            }
            Err(error) => assert!(matches!(error, JournalError::Failed { .. }), "{error}"),
        }
        if random.random_bool(0.5) {
            let failed = journal.failed();
            let before = synced(journal);
            writer.step(Instant::now());
            assert!(!failed || (journal.failed() && synced(journal) == before));
        }
        if random.random_bool(0.1) {
            *needed = (*needed).max(random.random_range(0..=synced(journal)));
            journal.release(*needed);
        }
    }
    synced(journal)
}

#[test]
fn a_flipped_bit_in_what_was_synced_is_refused_with_file_and_offset() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    fill(&journal, &mut writer, 80);
    let names = segments(&disk);
    assert!(names.len() > 2);
    let mut random = StdRng::seed_from_u64(1);
    for round in 0..600 {
        let name = &names[round % names.len()];
        let content = disk.read(name);
        // Behind the last record the mark and zeros follow.
        let used = content.iter().rposition(|byte| *byte != 0).unwrap() + 1 - 24;
        let at = random.random_range(0..used);
        let copy = disk.copy();
        copy.damage(name, |bytes| bytes[at] ^= 1 << random.random_range(0..8));
        match open(&copy) {
            Err(JournalError::Damaged { file, offset, .. }) => {
                assert_eq!(&file, name);
                assert!(
                    offset <= at as u64 && at as u64 - offset < 24 + 112,
                    "{at}: {offset}"
                );
            }
            answer => panic!("{name} at {at}: {answer:?}"),
        }
    }
}

#[test]
fn a_cut_at_every_byte_of_the_last_records_keeps_the_whole_ones() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    fill(&journal, &mut writer, 3);
    let three = vec![record("a"), record("b".repeat(50)), record("c".repeat(9))];
    journal.append(&three).unwrap();
    settle(&mut writer);
    let name = &segments(&disk)[0];
    // A record of 100 and a few bytes takes 24 + 104, the last three 24 + 8, 56 and 16.
    let ends = [
        64 + 3 * 128,
        64 + 3 * 128 + 32,
        64 + 3 * 128 + 112,
        64 + 3 * 128 + 152,
    ];
    for cut in ends[0]..=ends[3] {
        let whole = 2 + ends.iter().filter(|end| **end <= cut).count() as u64;
        for zeros in [false, true] {
            let copy = disk.copy();
            copy.damage(name, |bytes| match zeros {
                true => bytes[cut..].fill(0),
                false => bytes.truncate(cut),
            });
            let (journal, mut writer, seen) = open(&copy).unwrap();
            // Filling that was zero anyway is not lost.
            let kept = if zeros { seen.len() as u64 } else { whole };
            assert!(kept >= whole && kept <= whole + 1);
            assert_eq!(
                (seen.len() as u64, synced(&journal)),
                (kept, kept),
                "cut at {cut}"
            );
            assert_eq!(
                journal.cut().is_some(),
                !ends.contains(&cut) && kept == whole,
                "at {cut}"
            );
            fill(&journal, &mut writer, 4);
            let (journal, _, _) = open(&copy).unwrap();
            assert_eq!((synced(&journal), journal.cut()), (kept + 4, None));
        }
    }
}

#[test]
fn nothing_of_a_torn_batch_is_left_behind_the_cut() {
    for seed in 0..20 {
        let disk = FaultyDisk::default();
        let (journal, mut writer, _) = open(&disk).unwrap();
        fill(&journal, &mut writer, 1);
        let torn: Vec<Record> = (2..9).map(|n| record(format!("{n:0100}"))).collect();
        journal.append(&torn).unwrap();
        settle(&mut writer);
        let name = segments(&disk).remove(0);
        let (first, last) = (64 + 128, 64 + 8 * 128);
        disk.damage(&name, |bytes| {
            bytes[first] ^= 1;
            bytes[last..].fill(0);
        });
        let (journal, _, seen) = open(&disk).unwrap();
        // The last record ends in two bytes of filling, which are zero.
        let cut = Cut {
            file: name.clone(),
            offset: 192,
            bytes: last as u64 - 194,
        };
        assert_eq!((seen.len(), journal.cut()), (1, Some(&cut)));
        disk.power_loss(&mut StdRng::seed_from_u64(seed));
        let left = disk.read(&name).split_off(first + 24);
        assert!(left.iter().all(|byte| *byte == 0), "seed {seed}");
    }
}
