use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::time::Instant;
use uuid::Uuid;

use crate::pb::journal::{Checkpoint, Forgotten, Record, record::Kind};
use crate::task::journal::faulty::{Fault, FaultyDisk};
use crate::task::journal::{Journal, JournalConfig, JournalError, RealDisk, Step, Survey, Writer};

use super::pack::{Entry, entries, head, head_len_of, name_of, number_of};
use super::shelf::Shelf;
use super::{Blob, BlobError, Blobs, Hash, Holder};

const SMALL: JournalConfig = JournalConfig {
    segment_bytes: 4 << 10,
    pending_bytes: 1 << 20,
    disk_reserve: 0,
    large_bytes: 16,
};

/// What a task's records say that it names, until it is forgotten.
type Named = BTreeMap<Uuid, Vec<Hash>>;

fn blob(number: u8, len: usize) -> Blob {
    Blob::new(Bytes::from(vec![number; len]))
}

fn task(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn names(task: Uuid, hash: Hash) -> Record {
    Record {
        task_id: task.to_string(),
        kind: Some(Kind::Checkpoint(Checkpoint {
            attempt: 1,
            data: hash.as_bytes().to_vec(),
        })),
        after_update: 0,
    }
}

fn forgets(task: Uuid) -> Record {
    Record {
        task_id: task.to_string(),
        kind: Some(Kind::Forgotten(Forgotten {})),
        after_update: 0,
    }
}

fn work(writer: &mut Writer) -> Step {
    loop {
        match writer.step(Instant::now()) {
            Step::Worked => {}
            end @ (Step::Idle { .. } | Step::Stopped) => return end,
        }
    }
}

/// Opens what a life before left, with everything named by whoever is not forgotten.
fn open(disk: &FaultyDisk) -> Result<(Journal, Writer, Named), JournalError> {
    let mut named = Named::new();
    let replay = |_, record: Record| {
        let task = record.task_id.parse().unwrap();
        match record.kind {
            Some(Kind::Checkpoint(saved)) => {
                let hash = Hash::parse(&saved.data).unwrap();
                named.entry(task).or_default().push(hash);
            }
            _ => drop(named.remove(&task)),
        }
    };
    let (journal, writer) = Journal::on_disk(Box::new(disk.clone()), SMALL, replay)?;
    let blobs = journal.blobs().unwrap();
    for (task, hashes) in &named {
        blobs.hold(Holder::in_log(*task), hashes.iter().copied());
    }
    blobs.settle();
    Ok((journal, writer, named))
}

fn store(journal: &Journal, task: Uuid, blob: &Blob) -> Result<(), JournalError> {
    let blobs = journal.blobs().unwrap();
    blobs.hold(Holder::in_log(task), [blob.hash]);
    let record = names(task, blob.hash);
    journal.append_with(&[record], std::slice::from_ref(blob))?;
    Ok(())
}

/// What is read under this name, from the disk.
fn read(blobs: &Blobs, hash: Hash) -> Result<Hash, BlobError> {
    // Of a task that has read nothing yet: none of it is at hand.
    let load = blobs.load(crate::runtime::chance::uuid(), hash);
    let read = futures_util::FutureExt::now_or_never(load).unwrap();
    read.map(|bytes| Hash::of(&bytes))
}

/// The packs on a disk, by their files.
fn packs(disk: &FaultyDisk) -> usize {
    use crate::task::journal::Disk;
    let names = disk.list().unwrap();
    assert!(
        names.iter().all(|name| name != super::pack::TEMP),
        "{names:?}"
    );
    names
        .iter()
        .filter(|name| number_of(name).is_some())
        .count()
}

/// Tasks come with contents that others have too, and go; what is acknowledged is in `named`.
fn live(journal: &Journal, writer: &mut Writer, named: &mut Named) -> Result<(), JournalError> {
    let blobs = journal.blobs().unwrap().clone();
    for turn in 0..9_u8 {
        let (number, content) = (task(turn.into()), blob(turn % 4, 600));
        store(journal, number, &content)?;
        store(journal, number, &blob(100 + turn, 40))?;
        let lsn = journal.append(&[])?;
        work(writer);
        if journal.synced().borrow().lsn < lsn {
            return Err(JournalError::Closed);
        }
        let both = vec![content.hash, blob(100 + turn, 40).hash];
        named.insert(number, both);
        if turn >= 3 {
            let old = task(u128::from(turn) - 3);
            let lsn = journal.append(&[forgets(old)])?;
            // From here on it may be forgotten, and until it is acknowledged may not.
            named.remove(&old);
            work(writer);
            if journal.synced().borrow().lsn < lsn {
                return Err(JournalError::Closed);
            }
            blobs.let_go(Holder::in_log(old));
            work(writer);
        }
    }
    Ok(())
}

#[test]
fn a_crash_at_any_operation_loses_nothing_that_is_named_and_leaves_nothing_else() {
    let mut longest = 0;
    for operation in 0.. {
        for (seed, fault) in [Fault::Crash, Fault::Error, Fault::Crash]
            .into_iter()
            .enumerate()
        {
            let disk = FaultyDisk::seeded(u64::from(operation) * 3 + seed as u64);
            disk.plan(operation, fault);
            let mut acknowledged = Named::new();
            let lived = open(&disk).and_then(|(journal, mut writer, _)| {
                live(&journal, &mut writer, &mut acknowledged)
            });
            // A failed try to reserve room ahead of need harms nobody.
            if lived.is_ok() && seed == 0 {
                longest = operation;
            }
            if seed == 0 {
                disk.restart();
            } else {
                disk.power_loss();
            }

            let (journal, mut writer, named) = open(&disk).unwrap();
            assert!(matches!(work(&mut writer), Step::Idle { .. }));
            for (task, hashes) in &acknowledged {
                assert_eq!(named.get(task), Some(hashes), "operation {operation}");
            }
            let blobs = journal.blobs().unwrap();
            let mut all: Vec<Hash> = named.values().flatten().copied().collect();
            for hash in &all {
                assert_eq!(read(blobs, *hash), Ok(*hash));
            }
            all.sort_unstable();
            all.dedup();
            let stats = blobs.stats();
            assert_eq!(stats.blobs, all.len(), "operation {operation}, {fault:?}");
            assert!(stats.disk_bytes <= 2 * stats.bytes + 4 * 16 * packs(&disk) as u64);
            for task in named.keys() {
                journal.append(&[forgets(*task)]).unwrap();
                work(&mut writer);
                blobs.let_go(Holder::in_log(*task));
            }
            work(&mut writer);
            assert_eq!((blobs.stats().blobs, packs(&disk)), (0, 0));
        }
        if longest > 0 {
            break;
        }
    }
    assert!(longest > 100, "{longest} operations are too few to tell");
}

#[test]
fn the_same_content_takes_the_disk_once_however_often_it_comes() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    let blobs = journal.blobs().unwrap();
    let content = blob(1, 10_000);
    // Half of them one by one, half together.
    for number in 0..50 {
        store(&journal, task(number), &content).unwrap();
        if number < 25 {
            work(&mut writer);
        }
    }
    work(&mut writer);
    let stats = blobs.stats();
    assert_eq!(
        (stats.blobs, stats.bytes, stats.disk_bytes),
        (1, 10_000, 10_000)
    );
    assert_eq!(packs(&disk), 1);
    for number in 0..49 {
        blobs.let_go(Holder::in_log(task(number)));
    }
    work(&mut writer);
    assert_eq!(read(blobs, content.hash), Ok(content.hash));
    blobs.let_go(Holder::in_log(task(49)));
    work(&mut writer);
    assert_eq!((blobs.stats().blobs, packs(&disk)), (0, 0));
    assert_eq!(
        read(blobs, content.hash),
        Err(BlobError::Missing(content.hash))
    );
}

/// How much is written and synced does not depend on what others have stored.
#[test]
fn what_is_there_already_is_written_as_what_is_new() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    let cost = |number: u128, content: &Blob, writer: &mut Writer| {
        let before = (disk.syncs(), disk.written());
        store(&journal, task(number), content).unwrap();
        // The step that acknowledges it; what comes after is no part of the answer.
        let lsn = journal.append(&[]).unwrap();
        while journal.synced().borrow().lsn < lsn {
            writer.step(Instant::now());
        }
        (disk.syncs() - before.0, disk.written() - before.1)
    };
    let first = cost(1, &blob(1, 5000), &mut writer);
    work(&mut writer);
    let (again, other) = (
        cost(2, &blob(1, 5000), &mut writer),
        cost(3, &blob(2, 5000), &mut writer),
    );
    assert_eq!(again, other);
    assert_eq!(first.0, again.0);
}

#[test]
fn damage_is_told_with_its_file_and_never_given_out() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    let blobs = journal.blobs().unwrap();
    let (good, bad) = (blob(1, 3000), blob(2, 3000));
    store(&journal, task(1), &good).unwrap();
    work(&mut writer);
    store(&journal, task(2), &bad).unwrap();
    work(&mut writer);
    let (first, second) = (name_of(1), name_of(2));
    disk.damage(&second, |bytes| {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
    });
    let refused = read(blobs, bad.hash).unwrap_err();
    assert!(matches!(&refused, BlobError::Damaged { file, .. } if *file == second));
    assert!(
        refused.to_string().contains("restore that file"),
        "{refused}"
    );
    assert_eq!(read(blobs, good.hash), Ok(good.hash));
    assert_eq!(blobs.stats().damaged, 1);
    // Whoever sends it again heals it.
    store(&journal, task(3), &bad).unwrap();
    work(&mut writer);
    assert_eq!(read(blobs, bad.hash), Ok(bad.hash));

    // A head that does not check costs what is in that file, and nothing else; it stays.
    drop((journal, writer));
    disk.damage(&first, |bytes| bytes[20] ^= 1);
    let (journal, mut writer, _) = open(&disk).unwrap();
    work(&mut writer);
    let blobs = journal.blobs().unwrap();
    assert_eq!(read(blobs, good.hash), Err(BlobError::Missing(good.hash)));
    assert_eq!(read(blobs, bad.hash), Ok(bad.hash));
    assert_eq!(packs(&disk), 2);
    let checked = super::Checked::on(&disk).unwrap();
    assert_eq!((checked.packs, checked.blobs), (2, 1));
    assert_eq!(checked.damage[0].0, first);
}

#[test]
fn a_file_that_is_cut_short_at_any_byte_gives_no_wrong_bytes() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    let contents = [blob(1, 70), blob(2, 60)];
    for content in &contents {
        store(&journal, task(1), content).unwrap();
    }
    work(&mut writer);
    let whole = disk.read(&name_of(1));
    for length in 0..whole.len() {
        let cut = disk.copy();
        cut.damage(&name_of(1), |bytes| bytes.truncate(length));
        let (journal, _, _) = open(&cut).unwrap();
        for content in &contents {
            let found = read(journal.blobs().unwrap(), content.hash);
            assert!(found.is_err() || found == Ok(content.hash), "{length}");
        }
    }
}

#[test]
fn a_full_disk_makes_it_wait_and_loses_nothing() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    work(&mut writer);
    disk.set_room(Some(disk.used() + 5000));
    let content = blob(1, 9000);
    store(&journal, task(1), &content).unwrap();
    let lsn = journal.append(&[forgets(task(9))]).unwrap();
    assert!(matches!(work(&mut writer), Step::Idle { until: Some(_) }));
    assert!(journal.low_space() && !journal.failed());
    assert!(journal.synced().borrow().lsn < lsn);
    assert!(
        matches!(work(&mut writer), Step::Idle { until: Some(_) }),
        "it does not spin"
    );
    disk.set_room(None);
    let later = Instant::now() + std::time::Duration::from_secs(2);
    while writer.step(later) == Step::Worked {}
    assert_eq!(journal.synced().borrow().lsn, lsn);
    assert!(!journal.low_space());
    assert_eq!(
        read(journal.blobs().unwrap(), content.hash),
        Ok(content.hash)
    );
}

#[test]
fn who_reads_keeps_it() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    let blobs = journal.blobs().unwrap();
    let content = blob(1, 2000);
    store(&journal, task(1), &content).unwrap();
    work(&mut writer);
    let pin = blobs.pin(content.hash).unwrap();
    blobs.let_go(Holder::in_log(task(1)));
    work(&mut writer);
    assert_eq!(read(blobs, content.hash), Ok(content.hash));
    drop(pin);
    work(&mut writer);
    assert_eq!(packs(&disk), 0);
    assert!(blobs.pin(content.hash).is_none());
}

#[test]
fn nothing_goes_before_everybody_has_said_what_they_name() {
    let disk = FaultyDisk::default();
    let (journal, mut writer, _) = open(&disk).unwrap();
    let content = blob(1, 2000);
    store(&journal, task(1), &content).unwrap();
    work(&mut writer);
    drop((journal, writer));
    let opened = Journal::on_disk(Box::new(disk.clone()), SMALL, |_, _| ());
    let (journal, mut writer) = opened.unwrap();
    let blobs = journal.blobs().unwrap();
    blobs.let_go(Holder::in_log(task(1)));
    work(&mut writer);
    assert_eq!(packs(&disk), 1);
    blobs.hold(Holder::in_archive(task(1)), [content.hash]);
    blobs.settle();
    work(&mut writer);
    assert_eq!(read(blobs, content.hash), Ok(content.hash));
    blobs.let_go(Holder::in_archive(task(1)));
    work(&mut writer);
    assert_eq!(packs(&disk), 0);
}

#[tokio::test]
async fn a_real_directory_is_the_owners_alone_and_is_given_free() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let config = JournalConfig {
        segment_bytes: 4 << 10,
        ..JournalConfig::default()
    };
    let journal = Journal::open(&path, config, |_, _| ()).unwrap();
    let blobs = journal.blobs().unwrap().clone();
    blobs.settle();
    let content = blob(7, 300_000);
    store(&journal, task(1), &content).unwrap();
    let lsn = journal.append(&[]).unwrap();
    let mut synced = journal.synced();
    while synced.borrow_and_update().lsn < lsn {
        synced.changed().await.unwrap();
    }
    let read = blobs.load(task(2), content.hash).await;
    assert_eq!(read.map(|bytes| Hash::of(&bytes)), Ok(content.hash));
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join(name_of(1))), 0o600);
    journal.close();
    assert_eq!(
        blobs.load(task(3), content.hash).await,
        Err(BlobError::Closed)
    );
    // Though somebody still has a handle.
    drop(RealDisk::open(&path).unwrap());
    let survey = Survey::of(&path).unwrap();
    assert_eq!((survey.blobs.blobs, survey.blobs.bytes), (1, 300_000));
    assert!(survey.whole());
}

proptest! {
    /// Whatever is held, stored and let go of: what is named and was stored is found, the sums are
    /// right, and nothing else stays.
    #[test]
    fn the_shelf_knows_what_is_named(steps in prop::collection::vec((0..4_u8, 0..6_u8, 0..4_u128), 1..80)) {
        let mut shelf = Shelf::new(100);
        shelf.settle();
        let (mut held, mut stored) = (BTreeMap::<u128, Vec<u8>>::new(), Vec::new());
        let mut next = 1;
        for (what, content, holder) in steps {
            let hash = Hash::of(&[content]);
            match what {
                0 => {
                    shelf.hold(Holder::in_log(task(holder)), hash);
                    held.entry(holder).or_default().push(content);
                    let entry = Entry { hash, offset: 9, len: 50 + u32::from(content) };
                    shelf.add(next, &[entry]);
                    stored.push(content);
                    next += 1;
                }
                1 => {
                    shelf.hold(Holder::in_log(task(holder)), hash);
                    held.entry(holder).or_default().push(content);
                }
                _ => {
                    shelf.let_go(Holder::in_log(task(holder)));
                    held.remove(&holder);
                    stored.retain(|one| held.values().flatten().any(|kept| kept == one));
                }
            }
            while let Some(pack) = shelf.needless() {
                shelf.removed(pack);
            }
            let mut there = stored.clone();
            there.sort_unstable();
            there.dedup();
            for content in 0..6 {
                let found = shelf.find(Hash::of(&[content])).is_some();
                prop_assert_eq!(found, there.contains(&content));
            }
            let bytes: u64 = there.iter().map(|content| 50 + u64::from(*content)).sum();
            prop_assert_eq!(shelf.sums(), (there.len(), bytes, bytes));
        }
    }

    /// No bytes are taken for the head of a pack that is none, and none make it fall over.
    #[test]
    fn a_head_reads_as_it_was_written(lens in prop::collection::vec(0..300_usize, 0..20), flip in any::<prop::sample::Index>()) {
        let blobs: Vec<Blob> = lens.iter().enumerate().map(|(place, len)| blob(u8::try_from(place).unwrap(), *len)).collect();
        let (mut head, written) = head(&blobs);
        prop_assert_eq!(head_len_of(head[..12].try_into().unwrap()), Some(head.len()));
        prop_assert_eq!(entries(&head), Some(written));
        let at = flip.index(head.len());
        head[at] ^= 1;
        let len = head_len_of(head[..12].try_into().unwrap());
        prop_assert!(len.is_none_or(|len| len > head.len()) || entries(&head).is_none() || len != Some(head.len()));
    }
}
