//! Crashes and damage: what is replayed after anything that may happen to the disk.

use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::pb::journal::Record;
use crate::task::journal::faulty::FaultyDisk;
use crate::task::journal::frame::{SEGMENT_HEADER, frame_len};
use crate::task::journal::{Cut, Journal, JournalConfig, JournalError};

use super::{fill, open, record, segments, settle, synced};

/// Where the records of a segment begin, by the format; the last number is where they end.
fn starts(records: &[Record]) -> Vec<usize> {
    let lengths = records.iter().map(|record| frame_len(record.encoded_len()));
    let mut starts = vec![SEGMENT_HEADER];
    starts.extend(lengths.scan(SEGMENT_HEADER, |at, length| {
        *at += length;
        Some(*at)
    }));
    starts
}

/// Flips a bit, sees it refused at `start`, and flips it back.
fn flip(disk: &FaultyDisk, name: &str, at: usize, bit: u8, start: usize) {
    disk.damage(name, |bytes| bytes[at] ^= 1 << bit);
    match open(disk) {
        Err(JournalError::Damaged { file, offset, .. }) => {
            let expected = (name, start as u64);
            assert_eq!((file.as_str(), offset), expected, "bit {bit} at {at}");
        }
        answer => panic!("bit {bit} at {at} of {name}: {answer:?}"),
    }
    disk.damage(name, |bytes| bytes[at] ^= 1 << bit);
}

#[test]
fn every_flipped_bit_in_a_small_log_is_refused_with_file_and_offset() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    // Batches of several records too: the last one is told from a torn one by its mark alone.
    for count in [1, 3, 2, 9, 1, 3] {
        let batch: Vec<Record> = (0..count).map(|n| record("r".repeat(n * 5))).collect();
        journal.append(&batch).unwrap();
        settle(&mut writer);
    }
    let (_, _, seen) = open(&disk).unwrap();
    let name = segments(&disk).remove(0);
    let records: Vec<Record> = seen.iter().map(|(_, record)| record.clone()).collect();
    let starts = starts(&records);
    for at in 0..*starts.last().unwrap() {
        let start = starts.iter().rev().find(|start| **start <= at);
        (0..8).for_each(|bit| flip(&disk, &name, at, bit, start.map_or(0, |start| *start)));
    }
    // And after all that it is as it was.
    assert_eq!(open(&disk).unwrap().2, seen);
}

#[test]
fn flipped_bits_in_a_large_log_are_refused_with_file_and_offset() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    fill(&journal, &mut writer, 400);
    let big: Vec<Record> = (0..40).map(|n| record("b".repeat(n * 200))).collect();
    journal.append(&big).unwrap();
    settle(&mut writer);
    let (_, _, seen) = open(&disk).unwrap();
    let names = segments(&disk);
    assert!(names.len() > 10, "{}", names.len());
    let firsts = names
        .iter()
        .map(|name| name.trim_end_matches(".log").parse::<usize>().unwrap());
    let firsts: Vec<usize> = firsts.collect();
    let mut random = StdRng::seed_from_u64(1);
    for round in 0..1000 {
        let index = round % names.len();
        let end = firsts
            .get(index + 1)
            .map_or(seen.len(), |following| following - 1);
        let here = seen[firsts[index] - 1..end]
            .iter()
            .map(|(_, record)| record.clone());
        let starts = starts(&here.collect::<Vec<_>>());
        let at = random.random_range(0..*starts.last().unwrap());
        let start = starts
            .iter()
            .rev()
            .find(|start| **start <= at)
            .map_or(0, |start| *start);
        flip(&disk, &names[index], at, random.random_range(0..8), start);
    }
}

#[test]
fn a_cut_at_every_byte_of_the_last_4_kib_keeps_what_was_acknowledged() {
    const ACKNOWLEDGED: u64 = 20;
    let config = JournalConfig {
        segment_bytes: 16 << 10,
        ..super::SMALL
    };
    let opened = |disk: &FaultyDisk| {
        let mut seen = Vec::new();
        let replay = |_, record| seen.push(record);
        let (journal, writer) = Journal::on_disk(Box::new(disk.clone()), config, replay).unwrap();
        (journal, writer, seen)
    };
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = opened(&disk);
    fill(&journal, &mut writer, ACKNOWLEDGED);
    // What is being written when the machine stops: on disk in any part, and not acknowledged.
    let last: Vec<Record> = (0..48)
        .map(|n| record(format!("{n:0width$}", width = n * 3)))
        .collect();
    journal.append(&last).unwrap();
    settle(&mut writer);
    let (_, _, all) = opened(&disk);
    let name = segments(&disk).remove(0);
    let starts = starts(&all);
    let (acknowledged, end) = (starts[20], *starts.last().unwrap());
    assert!(end - acknowledged >= 4096, "{acknowledged} to {end}");
    let mut whole = disk.read(&name);
    // The mark comes after the sync, which has not been.
    whole[end..].fill(0);
    for cut in end - 4096..=end {
        let records = starts.iter().skip(1).filter(|start| **start <= cut).count();
        for kind in 0..3 {
            disk.damage(&name, |bytes| {
                bytes.clone_from(&whole);
                match kind {
                    0 => bytes.truncate(cut),
                    1 => bytes[cut..].fill(0),
                    _ => bytes[cut..end].iter_mut().for_each(|byte| *byte = !*byte),
                }
            });
            let (journal, _, seen) = opened(&disk);
            let kept = synced(&journal);
            assert_eq!(seen.len() as u64, kept);
            assert!(kept >= ACKNOWLEDGED, "cut at {cut}: {kept}");
            assert_eq!(seen, all[..seen.len()], "cut at {cut}");
            // Filling that was zero anyway is not lost.
            let zeros = whole[cut..].iter().position(|byte| *byte != 0);
            let lucky = kind == 1 && zeros.is_none_or(|zeros| zeros > 0);
            assert!(
                seen.len() == records || (lucky && seen.len() == records + 1),
                "at {cut}"
            );
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
        let disk = FaultyDisk::seeded(seed);
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
        disk.power_loss();
        let left = disk.read(&name).split_off(first + 24);
        assert!(left.iter().all(|byte| *byte == 0), "seed {seed}");
    }
}
