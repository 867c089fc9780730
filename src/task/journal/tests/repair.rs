//! What a check says of damage, and what a repair makes of it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::pb::journal::record::Kind;
use crate::pb::journal::{Dispatched, Forgotten, Record, Submitted};
use crate::pb::{TaskEvent, TaskState};
use crate::task::journal::faulty::FaultyDisk;
use crate::task::journal::frame::{SEGMENT_HEADER, frame_len};
use crate::task::journal::repair::fates;
use crate::task::journal::{Fate, JournalConfig, Repaired, Survey};
use prost::Message;

use super::{fill, open, segments, settle};

fn id(task: u32) -> String {
    format!(
        "home.0193f000-0000-7000-8000-{:012x}",
        u64::from(task) * 0x0123_4567_89ab
    )
}

fn of(task: u32, kind: Kind) -> Record {
    Record {
        task_id: id(task),
        kind: Some(kind),
        ..Record::default()
    }
}

fn submitted(task: u32) -> Record {
    of(task, Kind::Submitted(Submitted::default()))
}

fn dispatched(task: u32) -> Record {
    let sent = Dispatched {
        attempt: 1,
        instance: "worker".into(),
        agent: "default/worker".into(),
        ..Dispatched::default()
    };
    of(task, Kind::Dispatched(sent))
}

fn event(task: u32, seq: u64, state: TaskState) -> Record {
    let event = TaskEvent {
        seq,
        attempt: 1,
        state: state.into(),
        ..TaskEvent::default()
    };
    of(task, Kind::Event(event))
}

/// Tasks 1, 2 and 3 run to their ends; 4 runs, 5 waits, 6 is forgotten. Event 2 of each is followed
/// by its third.
fn story() -> Vec<Record> {
    use TaskState::{Completed, Working};
    let mut records: Vec<Record> = (1..=6).map(submitted).collect();
    records.extend([1, 2, 3, 4, 6].map(dispatched));
    records.extend([1, 2, 3, 4, 6].map(|task| event(task, 1, Working)));
    records.extend([1, 2, 3, 4, 6].map(|task| event(task, 2, Working)));
    records.extend([1, 2, 3, 6].map(|task| event(task, 3, Completed)));
    records.push(of(6, Kind::Forgotten(Forgotten {})));
    records.push(event(4, 3, Working));
    records
}

/// A log of these records, each in a batch of its own, and where each of them begins.
fn written(records: &[Record]) -> (FaultyDisk, Vec<usize>) {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    let (mut starts, mut at) = (Vec::new(), SEGMENT_HEADER);
    for record in records {
        journal.append(std::slice::from_ref(record)).unwrap();
        settle(&mut writer);
        starts.push(at);
        at += frame_len(record.encoded_len());
    }
    assert_eq!(segments(&disk).len(), 1);
    starts.push(at);
    (disk, starts)
}

fn index(records: &[Record], wanted: &Record) -> usize {
    records.iter().position(|record| record == wanted).unwrap()
}

/// The first segment's name.
fn name(disk: &FaultyDisk) -> String {
    segments(disk).remove(0)
}

/// Fates other than whole, by the number of the task.
fn touched(disk: &FaultyDisk) -> BTreeMap<u32, Fate> {
    let (_, fates) = fates(disk).unwrap();
    let number = |task: &String| (1..100).find(|number| id(*number) == *task).unwrap();
    let touched = fates.iter().filter(|(_, fate)| **fate != Fate::Whole);
    touched.map(|(task, fate)| (number(task), *fate)).collect()
}

/// Repairs onto a new disk, and opens that.
fn repaired(disk: &FaultyDisk, keep_doubtful: bool) -> (Repaired, Vec<Record>) {
    let to = FaultyDisk::default();
    let found = fates(disk).unwrap();
    let target = std::sync::Arc::new(to.clone());
    let made = Repaired::copy(disk, target, found, Path::new("new"), keep_doubtful).unwrap();
    assert!(Survey::on(&to, &mut |_| Ok(())).unwrap().whole());
    let (_, _, seen) = open(&to).unwrap();
    assert_eq!(seen.len() as u64, made.records);
    let numbers = seen.iter().map(|(lsn, _)| *lsn);
    assert!(
        numbers.eq(made.survey.next()..made.survey.next() + made.records),
        "no number twice"
    );
    (made, seen.into_iter().map(|(_, record)| record).collect())
}

/// The records of these tasks.
fn only(records: &[Record], tasks: &[u32]) -> Vec<Record> {
    let ids: Vec<String> = tasks.iter().map(|task| id(*task)).collect();
    let kept = records
        .iter()
        .filter(|record| ids.contains(&record.task_id));
    kept.cloned().collect()
}

#[test]
fn a_whole_log_is_whole_and_its_repair_has_all_but_the_forgotten() {
    let records = story();
    let (disk, starts) = written(&records);
    let survey = Survey::on(&disk, &mut |_| Ok(())).unwrap();
    let segment = &survey.segments[0];
    let count = records.len() as u64;
    assert!(survey.whole() && segment.torn.is_none());
    assert_eq!(
        (
            segment.records,
            segment.batches,
            segment.first,
            segment.last
        ),
        (count, count, 1, count)
    );
    assert_eq!(segment.used, *starts.last().unwrap() as u64);
    assert_eq!(touched(&disk), BTreeMap::new());
    let (made, left) = repaired(&disk, false);
    assert_eq!(left, only(&records, &[1, 2, 3, 4, 5]));
    assert_eq!(
        (made.tasks, made.holed.len(), made.doubtful.len()),
        (5, 0, 0)
    );
}

#[test]
fn a_torn_end_is_no_damage() {
    let records = story();
    let (disk, starts) = written(&records);
    let last = starts[records.len() - 1];
    disk.damage(&name(&disk), |bytes| bytes[last + 40..].fill(0));
    let survey = Survey::on(&disk, &mut |_| Ok(())).unwrap();
    let torn = survey.segments[0].torn.unwrap();
    assert!(survey.whole());
    assert_eq!((torn.offset, torn.bytes), (last as u64, 40));
    assert_eq!(touched(&disk), BTreeMap::new());
}

#[test]
fn every_flipped_bit_is_found_and_leaves_out_one_task_or_none_of_the_others_wrongly() {
    let records = story();
    let (disk, starts) = written(&records);
    for (place, record) in records.iter().enumerate() {
        for at in starts[place]..starts[place + 1] {
            let copy = disk.copy();
            copy.damage(&name(&disk), |bytes| bytes[at] ^= 0x10);
            let survey = Survey::on(&copy, &mut |_| Ok(())).unwrap();
            let damage = &survey.segments[0].damage;
            assert_eq!(damage.len(), 1, "byte {at}: {damage:?}");
            assert_eq!(damage[0].offset, starts[place] as u64, "byte {at}");
            let number = place as u64 + 1;
            let (made, left) = repaired(&copy, false);
            let owner = &record.task_id;
            match damage[0].lost {
                // Only the frame was hit, or what it lost is known to be nothing.
                None => assert_eq!(left, only(&records, &[1, 2, 3, 4, 5]), "byte {at}"),
                Some(lost) => {
                    assert_eq!(lost, (number, number), "byte {at}");
                    // Nothing of a task that lost a record is replayed, unless that is no loss.
                    let harmless = matches!(record.kind, Some(Kind::Forgotten(_)));
                    let replayed = left.iter().any(|record| record.task_id == *owner);
                    assert!(!replayed || harmless, "byte {at} of {record:?}: {made:?}");
                    // And every task that is there is there as it was.
                    for task in 1..=6 {
                        let whole = only(&records, &[task]);
                        let there = only(&left, &[task]);
                        assert!(
                            there.is_empty() || there == whole || harmless,
                            "byte {at}, task {task}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_loss_that_shows_leaves_every_other_task_in() {
    let records = story();
    let (disk, starts) = written(&records);
    // The second event of a running task, all of its bytes: the third one shows the gap.
    let place = index(&records, &event(4, 2, TaskState::Working));
    disk.damage(&name(&disk), |bytes| {
        bytes[starts[place]..starts[place + 1]].fill(0);
    });
    assert_eq!(touched(&disk), BTreeMap::from([(4, Fate::Holed)]));
    let (made, left) = repaired(&disk, false);
    assert_eq!(left, only(&records, &[1, 2, 3, 5]));
    assert_eq!(
        (made.tasks, made.holed, made.doubtful),
        (4, vec![id(4)], vec![])
    );
}

#[test]
fn a_loss_that_may_be_anybodys_is_said_so() {
    let records = story();
    let (disk, starts) = written(&records);
    // The last event of the running task and the end of task 3, without a trace.
    let place = index(&records, &event(3, 3, TaskState::Completed));
    disk.damage(&name(&disk), |bytes| {
        bytes[starts[place]..starts[place + 1]].fill(0);
    });
    // 1 and 2 had ended before; 3 did not; 6 is forgotten; 4 and 5 were under way.
    let doubtful = [3, 4, 5].map(|task| (task, Fate::Doubtful));
    assert_eq!(touched(&disk), BTreeMap::from(doubtful));
    let (made, left) = repaired(&disk, false);
    assert_eq!(left, only(&records, &[1, 2]));
    assert_eq!((made.holed.len(), made.doubtful.len()), (0, 3));
    let (made, left) = repaired(&disk, true);
    let lost = index(&records, &event(3, 3, TaskState::Completed));
    let mut all = records;
    all.remove(lost);
    assert_eq!(left, only(&all, &[1, 2, 3, 4, 5]));
    assert_eq!((made.tasks, made.doubtful.len()), (5, 3));
}

#[test]
fn a_segment_without_its_header_is_told_from_its_records() {
    let records = story();
    let (disk, _) = written(&records);
    disk.damage(&name(&disk), |bytes| bytes[..SEGMENT_HEADER].fill(0xff));
    let survey = Survey::on(&disk, &mut |_| Ok(())).unwrap();
    let segment = &survey.segments[0];
    assert_eq!(
        (segment.records, segment.damage.len()),
        (records.len() as u64, 1)
    );
    assert_eq!(
        (segment.damage[0].offset, segment.damage[0].lost),
        (0, None)
    );
    let (_, left) = repaired(&disk, false);
    assert_eq!(left, only(&records, &[1, 2, 3, 4, 5]));
}

#[test]
fn what_is_gone_in_whole_files_is_counted() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    fill(&journal, &mut writer, 100);
    let names = segments(&disk);
    assert_eq!(names.len(), 4);
    let firsts: Vec<u64> = names
        .iter()
        .map(|name| name.trim_end_matches(".log").parse().unwrap())
        .collect();
    crate::task::journal::Disk::remove(&disk, &names[1]).unwrap();
    disk.damage(&names[3], |bytes| bytes.fill(0xab));
    let survey = Survey::on(&disk, &mut |_| Ok(())).unwrap();
    let lost: Vec<_> = survey
        .segments
        .iter()
        .flat_map(|segment| &segment.damage)
        .map(|damage| damage.lost)
        .collect();
    assert_eq!(
        lost,
        [
            Some((firsts[1], firsts[2] - 1)),
            Some((firsts[3], firsts[3]))
        ]
    );
    assert_eq!(
        survey
            .segments
            .iter()
            .map(|segment| segment.records)
            .sum::<u64>(),
        firsts[1] - 1 + firsts[3] - firsts[2]
    );
}

#[test]
fn a_real_directory_is_repaired_beside_itself_and_not_touched() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, into) = (temp.path().join("journal"), temp.path().join("new"));
    let config = JournalConfig {
        segment_bytes: 4096,
        ..JournalConfig::default()
    };
    let journal = crate::task::journal::Journal::open(&dir, config, |_, _| ()).unwrap();
    journal.append(&story()).unwrap();
    let locked = Survey::of(&dir).unwrap_err().to_string();
    assert!(locked.contains("in use by process"), "{locked}");
    drop(journal);
    let file = dir.join("00000000000000000001.log");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[SEGMENT_HEADER + 30] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    assert!(!Survey::of(&dir).unwrap().whole());
    let made = Repaired::make(&dir, &into, false).unwrap();
    assert!(made.records > 0 && Survey::of(&into).unwrap().whole());
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    let occupied = Repaired::make(&dir, &into, false).unwrap_err().to_string();
    assert!(occupied.contains("is not empty"), "{occupied}");
    let none = Survey::of(temp.path()).unwrap_err().to_string();
    assert!(none.contains("holds no journal"), "{none}");
    crate::task::journal::Journal::open(&into, config, |_, _| ()).unwrap();
}
