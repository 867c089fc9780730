//! The promises of the log, whatever the disk does: by seed, a history of lives, crashes and faults.
//!
//! What was acknowledged is there after opening, in order, without a gap, and nothing is invented;
//! what was not may be there, but only as the first part of it. At rest, a flipped bit or a record
//! in another one's place is refused with file and offset.
//!
//! `tests/soak/journal` runs many more cases; a seed that fails is printed as a command.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use crate::pb::journal::Record;
use crate::task::controls::{Control, without};
use crate::task::journal::faulty::{Fault, FaultyDisk};
use crate::task::journal::frame::{SEGMENT_HEADER, frame_len};
use crate::task::journal::{Journal, JournalError, Lsn, Step, Writer};
use crate::task::seeds::{first_broken, setting};

use super::{open, record, segments, settle, synced};

/// Cases in `tests/run`.
const CASES: u64 = 1000;

/// What must hold, or how it did not.
type Promise = Result<(), String>;

/// Checks a promise.
macro_rules! must {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}

/// One history of a directory.
struct Case {
    random: StdRng,
    disk: FaultyDisk,
    /// Every record that was taken, from number 1 on; cut to what a restart has kept.
    history: Vec<Record>,
    acknowledged: Lsn,
    /// First record that is not released.
    needed: Lsn,
    now: Instant,
}

/// Records that come in during syncs, and those that were taken of them.
#[derive(Clone, Default)]
struct Meanwhile {
    waiting: Arc<Mutex<VecDeque<Vec<Record>>>>,
    taken: Arc<Mutex<Vec<Record>>>,
    /// What was acknowledged before the step that syncs.
    told: Arc<AtomicU64>,
    early: Arc<AtomicBool>,
}

/// A case from its beginning to its end.
fn case(seed: u64) -> Promise {
    let mut case = Case {
        random: StdRng::seed_from_u64(seed),
        disk: FaultyDisk::seeded(seed),
        history: Vec::new(),
        acknowledged: 0,
        needed: 1,
        now: Instant::now(),
    };
    for life in 0..case.random.random_range(2..7) {
        let lived = case.life();
        lived.map_err(|broken| format!("life {life}: {broken}"))?;
    }
    case.rest().map_err(|broken| format!("at rest: {broken}"))
}

impl Case {
    fn life(&mut self) -> Promise {
        let (journal, mut writer) = self.open()?;
        let meanwhile = Meanwhile::default();
        meanwhile.watch(&journal, &self.disk);
        if self.random.random_bool(0.4) {
            let fault = [Fault::Error, Fault::Full, Fault::Crash][self.random.random_range(0..3)];
            self.disk.plan(self.random.random_range(0..40), fault);
        }
        for _ in 0..self.random.random_range(0..30) {
            self.append(&journal)?;
            if self.random.random_bool(0.5) {
                if self.random.random_bool(0.3) {
                    let batch = self.batch();
                    meanwhile.waiting.lock().push_back(batch);
                }
                self.step(&journal, &mut writer, &meanwhile)?;
            }
            if self.random.random_bool(0.1) {
                let needed = self.random.random_range(0..=synced(&journal));
                self.needed = self.needed.max(needed);
                journal.release(self.needed);
            }
            if self.random.random_bool(0.1) {
                let room = self.disk.used() + self.random.random_range(0..8192);
                let full = self.random.random_bool(0.5);
                self.disk.set_room(full.then_some(room));
            }
        }
        let ended = self.end(&journal, &mut writer, &meanwhile);
        self.disk.during_sync(None);
        ended
    }

    /// Opens, after as many tries as faults need, and checks what is there.
    fn open(&mut self) -> Result<(Journal, Writer), String> {
        for tries in 0.. {
            let faults = tries < 3 && self.random.random_bool(0.3);
            if faults {
                let fault =
                    [Fault::Error, Fault::Full, Fault::Crash][self.random.random_range(0..3)];
                self.disk.plan(self.random.random_range(0..12), fault);
            } else {
                self.disk.set_room(None);
            }
            match open(&self.disk) {
                Ok((journal, writer, seen)) => {
                    self.check(&seen, synced(&journal))?;
                    return Ok((journal, writer));
                }
                Err(JournalError::Io { .. }) if faults => self.crash(),
                Err(refused) => return Err(format!("does not open: {refused}")),
            }
        }
        Err("was never opened".to_owned())
    }

    fn check(&mut self, seen: &[(Lsn, Record)], last: Lsn) -> Promise {
        let acknowledged = self.acknowledged;
        must!(
            last >= acknowledged,
            "{last} of {acknowledged} records are left"
        );
        let taken = self.history.len() as u64;
        must!(last <= taken, "{last} records, only {taken} were taken");
        let first = seen.first().map_or(last + 1, |(lsn, _)| *lsn);
        let needed = self.needed;
        must!(
            first <= needed.min(last + 1),
            "record {first} is the first, {needed} is needed"
        );
        for ((lsn, record), expected) in seen.iter().zip(first..) {
            must!(*lsn == expected, "record {lsn} in the place of {expected}");
            let index = usize::try_from(expected).unwrap() - 1;
            must!(
                self.history.get(index) == Some(record),
                "record {lsn} was invented"
            );
        }
        let there = first + seen.len() as u64 - 1;
        must!(there == last, "the records end with {there}, not {last}");
        self.history.truncate(usize::try_from(last).unwrap());
        // Who replayed it acts on it: from here on it has to stay.
        self.acknowledged = last;
        Ok(())
    }

    /// Some records; often of one length, so that what is left of a torn batch, or of another
    /// place, would fit.
    fn batch(&mut self) -> Vec<Record> {
        let size = [100, 100, 100, 200, 3000][self.random.random_range(0..5)];
        let fixed = size == 100 || self.random.random_bool(0.5);
        let count = self.random.random_range(1..6);
        let random = &mut self.random;
        let records = (0..count).map(|_| {
            let length = if fixed {
                size
            } else {
                random.random_range(0..size)
            };
            record(format!("{:0length$}", random.random_range(0..u64::MAX)))
        });
        records.collect()
    }

    fn append(&mut self, journal: &Journal) -> Promise {
        let batch = self.batch();
        match journal.append(&batch) {
            Ok(last) => {
                must!(!journal.failed(), "records were taken after a failure");
                self.history.extend(batch);
                let taken = self.history.len() as u64;
                must!(last == taken, "record {taken} got the number {last}");
            }
            Err(JournalError::Failed { .. }) => {}
            Err(refused) => return Err(format!("nothing is taken: {refused}")),
        }
        Ok(())
    }

    fn step(&mut self, journal: &Journal, writer: &mut Writer, meanwhile: &Meanwhile) -> Promise {
        let (failed, before) = (journal.failed(), synced(journal));
        self.now += Duration::from_millis(self.random.random_range(0..1500));
        meanwhile.told.store(before, Ordering::Relaxed);
        writer.step(self.now);
        let after = synced(journal);
        must!(
            !meanwhile.early.load(Ordering::Relaxed),
            "acknowledged before its sync"
        );
        must!(
            after >= before,
            "{after} records acknowledged, then {before}"
        );
        must!(!failed || after == before, "acknowledged after a failure");
        must!(!failed || journal.failed(), "a failure passed");
        let taken = std::mem::take(&mut *meanwhile.taken.lock());
        let written = self.history.len() as u64;
        must!(
            after <= written,
            "record {after} is acknowledged, written were {written}"
        );
        self.history.extend(taken);
        self.acknowledged = after;
        Ok(())
    }

    fn end(&mut self, journal: &Journal, writer: &mut Writer, meanwhile: &Meanwhile) -> Promise {
        if self.random.random_bool(0.2) {
            journal.close();
            for _ in 0..100 {
                self.step(journal, writer, meanwhile)?;
            }
            must!(writer.step(self.now) == Step::Stopped, "closing has no end");
            let all = self.history.len() as u64;
            let there = synced(journal);
            must!(
                journal.failed() || there == all,
                "{there} of {all} records after closing"
            );
        }
        self.crash();
        Ok(())
    }

    fn crash(&mut self) {
        if self.random.random_bool(0.4) {
            self.disk.restart();
        } else {
            self.disk.power_loss();
        }
    }

    /// Nothing runs; the disk alone spoils what it holds.
    fn rest(&mut self) -> Promise {
        let (journal, mut writer) = self.open()?;
        self.disk.restart();
        self.disk.set_room(None);
        settle(&mut writer);
        must!(!journal.failed(), "a sound disk failed");
        for _ in 0..3 {
            self.append(&journal)?;
            settle(&mut writer);
        }
        let all = self.history.len() as u64;
        must!(
            synced(&journal) == all,
            "not all of {all} records are acknowledged"
        );
        let places = self.places();
        let names = segments(&self.disk);
        for _ in 0..3 {
            // A bit anywhere, with its record, or with the header.
            let name = names
                .choose(&mut self.random)
                .ok_or("there is no segment")?;
            let here: Vec<&Place> = places.iter().filter(|place| place.file == *name).collect();
            let end = here
                .last()
                .map_or(SEGMENT_HEADER, |last| last.start + last.length);
            let at = self.random.random_range(0..end);
            let bit = 1 << self.random.random_range(0..8);
            let hit = here.iter().find(|place| at < place.start + place.length);
            let start = hit
                .filter(|_| at >= SEGMENT_HEADER)
                .map_or(0, |place| place.start);
            self.refused(name, start, |bytes| bytes[at] ^= bit)
                .map_err(|broken| format!("bit {bit} at {at} of {name}: {broken}"))?;
        }
        for _ in 0..3 {
            // A record in the place of another one.
            let Some(to) = places.choose(&mut self.random) else {
                break;
            };
            let fits = |from: &&Place| {
                from.file == to.file && from.length == to.length && from.start != to.start
            };
            let Some(from) = places.iter().find(fits) else {
                continue;
            };
            let (from, length) = (from.start, to.length);
            self.refused(&to.file, to.start, |bytes| {
                bytes.copy_within(from..from + length, to.start);
            })
            .map_err(|broken| format!("{from} at {} of {}: {broken}", to.start, to.file))?;
        }
        Ok(())
    }

    /// Where every acknowledged record lies, as the format says.
    fn places(&self) -> Vec<Place> {
        let names = segments(&self.disk);
        let firsts = names
            .iter()
            .map(|name| name.trim_end_matches(".log").parse::<usize>());
        let firsts: Vec<usize> = firsts.map(Result::unwrap).collect();
        let mut places = Vec::new();
        for (index, (file, first)) in names.iter().zip(&firsts).enumerate() {
            let following = firsts.get(index + 1).copied();
            let mut start = SEGMENT_HEADER;
            for record in &self.history[first - 1..following.map_or(self.history.len(), |n| n - 1)]
            {
                let length = frame_len(record.encoded_len());
                places.push(Place {
                    file: file.clone(),
                    start,
                    length,
                });
                start += length;
            }
        }
        places
    }

    /// Damages a file, and sees it refused there.
    fn refused(&self, name: &str, start: usize, change: impl FnOnce(&mut Vec<u8>)) -> Promise {
        let copy = self.disk.copy();
        copy.damage(name, change);
        match open(&copy) {
            Err(JournalError::Damaged { file, offset, .. }) => {
                must!(
                    file == name && offset == start as u64,
                    "refused as damage of {file} at {offset}, it is at {start}"
                );
                Ok(())
            }
            Err(refused) => Err(format!("refused, but not as damage: {refused}")),
            Ok((_, _, seen)) => Err(format!("{} records were replayed", seen.len())),
        }
    }
}

struct Place {
    file: String,
    start: usize,
    length: usize,
}

impl Meanwhile {
    /// Has records come in while a sync lasts, and looks whether what it syncs is acknowledged
    /// before it is over.
    fn watch(&self, journal: &Journal, disk: &FaultyDisk) {
        let (journal, meanwhile) = (journal.clone(), self.clone());
        disk.during_sync(Some(Box::new(move || {
            if synced(&journal) > meanwhile.told.load(Ordering::Relaxed) {
                meanwhile.early.store(true, Ordering::Relaxed);
            }
            let batch = meanwhile.waiting.lock().pop_front();
            if let Some(batch) = batch
                && journal.append(&batch).is_ok()
            {
                meanwhile.taken.lock().extend(batch);
            }
        })));
    }
}

#[test]
fn the_promises_hold_whatever_the_disk_does() {
    let (first, end) = match setting("ATTACHE_JOURNAL_SEED") {
        Some(seed) => (seed, seed + 1),
        None => (0, setting("ATTACHE_JOURNAL_CASES").unwrap_or(CASES)),
    };
    if let Some((seed, how)) = first_broken(first..end, case) {
        panic!(
            "{how}\n\nagain:  ATTACHE_JOURNAL_SEED={seed} cargo test --lib \
             the_promises_hold_whatever_the_disk_does\n"
        );
    }
}

#[test]
fn without_its_controls_the_log_breaks_its_promises() {
    let replayed = ["records were replayed"].as_slice();
    for (control, expected) in [
        (
            Control::Sync,
            ["records are left", "does not open"].as_slice(),
        ),
        (Control::Record, replayed),
        (Control::Number, replayed),
    ] {
        let found = without(control, || {
            (0..CASES).find_map(|seed| case(seed).err().map(|broken| (seed, broken)))
        });
        let (seed, how) = found.unwrap_or_else(|| panic!("nobody misses the {control:?} check"));
        let fits = expected.iter().any(|expected| how.contains(expected));
        assert!(fits, "{control:?}, seed {seed}: {how}");
    }
}
