//! Tasks that outlive the segments that they began in are written to the log anew, so that those
//! can go. Pure.
//!
//! First the events of a task are copied, some in each turn; what happens meanwhile is recorded as
//! ever. Then one snapshot says the rest. A replay that has the old records passes over all of it;
//! one that has not puts the task together from the snapshot and the events before it. So a crash
//! in between costs nothing: the old segments are let go of only after the snapshot is on disk.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use prost::Message;
use tokio::time::Instant;
use uuid::Uuid;

use crate::pb;
use crate::pb::journal::{Record, Snapshot, record::Kind as Recorded};
use crate::task::journal::{Lsn, Segments};

use super::kept::{Kept, RecordError, holds_content};
use super::machine::{Entry, Tasks};
use super::snapshot::Numbered;

/// Segments that the log may have before anything is written anew.
const SEGMENTS: usize = 4;
/// Segments that must come free, at least: less is not worth the work.
const FREED: usize = 2;
/// Bytes that must come free for each byte that is written, at least: so the log is written a
/// quarter more at most, and is at most this much larger than what the tasks take.
const GAIN: u64 = 4;
/// Bytes that are written anew in one turn.
const TURN: usize = 256 << 10;
/// Pause between turns, so that other work of the shard gets in between.
const PAUSE: Duration = Duration::from_millis(10);

/// A task and the records that it needs.
#[derive(Clone, Copy, Debug)]
struct Held {
    task: Uuid,
    first: Lsn,
    /// Bytes of what would be written anew, about.
    bytes: u64,
}

/// What is being written anew.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    waiting: VecDeque<Uuid>,
    part: Option<Part>,
    /// When the next turn is.
    pub(super) at: Option<Instant>,
}

/// A task whose events are being copied.
#[derive(Debug)]
struct Part {
    task: Uuid,
    events: VecDeque<Arc<pb::TaskEvent>>,
}

/// What a log without its first segments says of tasks that began in those.
#[derive(Debug, Default)]
pub(super) struct Stash {
    tasks: HashMap<Uuid, Pieces>,
}

#[derive(Debug, Default)]
struct Pieces {
    /// First of the copies that the next snapshot names.
    copied: Option<Lsn>,
    events: Numbered,
    /// A snapshot that could not be read yet: a later one must come.
    missing: Option<RecordError>,
}

impl Tasks {
    /// Chooses what to write anew, unless it is at it.
    pub(super) fn compact(&mut self, segments: &Segments, now: Instant) {
        if self.compaction.at.is_some() || self.low_space || segments.firsts.len() <= SEGMENTS {
            return;
        }
        let Some(active) = segments.firsts.last() else {
            return;
        };
        let live = self.tasks.iter().filter(|(_, entry)| !entry.filed);
        let old = live.filter(|(_, entry)| entry.first_lsn < *active);
        let mut held: Vec<Held> = old
            .map(|(task, entry)| Held {
                task: *task,
                first: entry.first_lsn,
                bytes: entry.kept.written() as u64,
            })
            .collect();
        held.sort_unstable_by_key(|held| held.first);
        let ended = self.ended.iter().filter_map(|task| self.tasks.get(task));
        let limit = ended.map(|entry| entry.first_lsn).min();
        let count = choose(&held, segments, limit.unwrap_or(*active));
        if count > 0 {
            let tasks = held[..count].iter().map(|held| held.task);
            self.compaction.waiting.extend(tasks);
            self.compaction.at = Some(now);
        }
    }

    /// Writes the next of it.
    pub(super) fn compact_on(&mut self, now: Instant) {
        self.compact_part(now, TURN);
    }

    /// Writes about so many bytes of it.
    pub(super) fn compact_part(&mut self, now: Instant, bytes: usize) {
        self.compaction.at = None;
        if self.low_space {
            // The room that is left is for the ends of tasks.
            self.compaction = Compaction::default();
            return;
        }
        let mut room = bytes;
        while room > 0 {
            let Some(part) = self.next_part() else { return };
            room = self.copy(part, room);
        }
        self.compaction.at = Some(now + PAUSE);
    }

    /// A record of the task was appended: what it still needs begins there, or went on there.
    pub(super) fn logged(&mut self, lsn: Lsn, record: &Record) {
        let begins = match &record.kind {
            Some(Recorded::Submitted(_) | Recorded::Snapshot(_) | Recorded::Copied(_)) => record,
            _ => return,
        };
        let task = uuid_of(begins);
        if let Some(entry) = task.and_then(|task| self.tasks.get_mut(&task)) {
            entry.logged(lsn, begins);
        }
    }

    /// Takes in what a snapshot says of a task whose submission is no longer in the log.
    pub(super) fn replay_snapshot(
        &mut self,
        task: Uuid,
        lsn: Lsn,
        snapshot: &Snapshot,
    ) -> Result<(), RecordError> {
        let pieces = self.stash.tasks.entry(task).or_default();
        match Kept::restored(snapshot.clone(), &pieces.events) {
            Ok(kept) => {
                let first = pieces.copied.unwrap_or(lsn);
                let mut entry = Entry::new(kept, first, self.base);
                entry.shown = entry.kept.task.last_seq;
                self.stash.tasks.remove(&task);
                if entry.kept.over() {
                    self.ended.push_back(task);
                }
                self.insert(entry);
            }
            // Its copies were in segments that are gone: then a later one is in the log, or the
            // task was forgotten.
            Err(missing @ RecordError::Incomplete(..)) => pieces.missing = Some(missing),
            Err(wrong) => return Err(wrong),
        }
        Ok(())
    }

    fn next_part(&mut self) -> Option<Part> {
        if let Some(part) = self.compaction.part.take() {
            return Some(part);
        }
        while let Some(task) = self.compaction.waiting.pop_front() {
            if let Some(entry) = self.tasks.get(&task).filter(|entry| !entry.filed) {
                let events = entry.kept.all_events().cloned().collect();
                return Some(Part { task, events });
            }
        }
        None
    }

    /// Copies events while there is room, then writes the snapshot. Gives the room that is left.
    fn copy(&mut self, mut part: Part, mut room: usize) -> usize {
        let live = self.tasks.get(&part.task).filter(|entry| !entry.filed);
        let Some(entry) = live else { return room };
        let (id, first) = (entry.kept.task.id.clone(), entry.kept.first_seq());
        let snapshot = entry.kept.clone();
        while let Some(event) = part.events.pop_front() {
            // It may have been forgotten meanwhile.
            if event.seq >= first || holds_content(&event) || snapshot.owes(event.seq) {
                let event = Arc::unwrap_or_clone(event);
                room = room.saturating_sub(event.encoded_len().max(1));
                self.log(id.clone(), Recorded::Copied(event), 0);
            }
            if room == 0 {
                self.compaction.part = Some(part);
                return 0;
            }
        }
        let snapshot = snapshot.snapshot();
        room = room.saturating_sub(snapshot.encoded_len());
        self.log(id, Recorded::Snapshot(snapshot), 0);
        room
    }
}

impl Entry {
    /// A record of it is number `lsn`, now or in an earlier life.
    pub(super) fn logged(&mut self, lsn: Lsn, record: &Record) {
        match &record.kind {
            Some(Recorded::Submitted(_)) => self.first_lsn = lsn,
            Some(Recorded::Copied(_)) => {
                self.copied_lsn.get_or_insert(lsn);
            }
            Some(Recorded::Snapshot(_)) => self.first_lsn = self.copied_lsn.take().unwrap_or(lsn),
            _ => {}
        }
    }
}

impl Stash {
    /// Keeps an event of a task that is not known; `copied`: the record that says it again.
    pub(super) fn keep(&mut self, task: Uuid, event: &pb::TaskEvent, copied: Option<Lsn>) {
        let pieces = self.tasks.entry(task).or_default();
        pieces.copied = pieces.copied.or(copied);
        pieces.events.insert(event.seq, Arc::new(event.clone()));
    }

    /// The task is forgotten, whatever was said of it.
    pub(super) fn forget(&mut self, task: Uuid) {
        self.tasks.remove(&task);
    }

    /// The replay is over: what is left belongs to tasks that were forgotten before.
    ///
    /// # Errors
    /// `Incomplete`: a task's snapshot is there, and not all that it names.
    pub(super) fn over(&mut self) -> Result<(), RecordError> {
        let mut left = std::mem::take(&mut self.tasks).into_values();
        left.find_map(|pieces| pieces.missing).map_or(Ok(()), Err)
    }
}

/// How many of the tasks, which are sorted by their first records, are written anew. `limit`: the
/// first record that somebody needs who is not among them.
fn choose(held: &[Held], segments: &Segments, limit: Lsn) -> usize {
    let Some(oldest) = held.first() else { return 0 };
    let (mut chosen, mut bytes) = (0, 0_u64);
    let free = |needed: Lsn| {
        let following = segments.firsts.iter().skip(1);
        following.take_while(|first| **first <= needed).count()
    };
    let before = free(oldest.first);
    for (place, task) in held.iter().enumerate() {
        bytes = bytes.saturating_add(task.bytes);
        let next = held.get(place + 1).map_or(limit, |next| next.first);
        let freed = free(next.min(limit)).saturating_sub(before);
        let gain = segments.bytes.saturating_mul(freed as u64);
        if freed >= FREED && bytes.saturating_mul(GAIN) <= gain {
            chosen = place + 1;
        }
    }
    chosen
}

fn uuid_of(record: &Record) -> Option<Uuid> {
    let (_, uuid) = record.task_id.split_once('.')?;
    Uuid::try_parse(uuid).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(count: u64) -> Segments {
        Segments {
            firsts: (0..count).map(|place| 1 + place * 100).collect(),
            bytes: 1000,
        }
    }

    fn held(tasks: &[(Lsn, u64)]) -> Vec<Held> {
        let held = tasks.iter().map(|(first, bytes)| Held {
            task: Uuid::nil(),
            first: *first,
            bytes: *bytes,
        });
        held.collect()
    }

    #[test]
    fn what_is_written_anew_is_worth_it() {
        let active = 901;
        for (tasks, limit, chosen) in [
            // One small task holds all; one large one is left alone.
            (vec![(5, 100)], active, 1),
            (vec![(5, 2250)], active, 1),
            (vec![(5, 2251)], active, 0),
            // The next one is near: it has to come along to free anything.
            (vec![(5, 100), (6, 100)], active, 2),
            (vec![(5, 100), (6, 5000)], active, 0),
            (vec![(5, 100), (450, 5000)], active, 1),
            // Less than two segments.
            (vec![(5, 1), (150, 5000)], active, 0),
            (vec![(5, 1), (205, 5000)], active, 1),
            // Somebody else holds them too.
            (vec![(5, 1)], 150, 0),
            (vec![], active, 0),
        ] {
            let found = choose(&held(&tasks), &segments(10), limit);
            assert_eq!(found, chosen, "{tasks:?} below {limit}");
        }
    }
}
