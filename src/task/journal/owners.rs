//! Which tasks have lost a record, which may have, and which have not: by what is left. Pure.
//!
//! A record belongs to one task. What a task has lost shows in what is left of it: its events are
//! numbered without a gap, an attempt is dispatched before it says anything, and a submission comes
//! first. How many records are lost is known from their numbers. Where the tasks that show a loss
//! account for all of them, every other task is whole. Where they do not, the rest may be of any
//! task that had not ended at that place: its end, or a dispatch, may be among them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::pb::TaskState;
use crate::pb::journal::{Record, Snapshot, record::Kind};

use super::survey::{Damage, Seen};

/// So many characters may a flipped bit or two have changed in the id of a damaged record.
const MISREAD: usize = 4;

/// How a task came out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// None of its records is lost, or none that matters.
    Whole,
    /// It may have lost a record: how many of the lost ones are its own cannot be known.
    Doubtful,
    /// It has lost a record.
    Holed,
}

/// Follows a journal from its first record to its last.
#[derive(Debug, Default)]
pub(super) struct Owners {
    tasks: HashMap<String, Track>,
    /// Records lost at each hole, and how many of them each task is known to have owned.
    holes: Vec<Hole>,
    /// Tasks that were forgotten after holes.
    forgotten: HashSet<String>,
}

#[derive(Debug)]
struct Hole {
    lost: u64,
    known: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Track {
    submitted: bool,
    ended: bool,
    holed: bool,
    last_seq: u64,
    attempt: u32,
    /// Events that were copied, or came after them, while the submission is not in the log.
    pieces: BTreeSet<u64>,
    /// Holes before the first record that was seen of it.
    born: usize,
    /// Holes before its last record.
    seen: usize,
    /// Holes while it had not ended, by their place in `holes`.
    passed: BTreeSet<usize>,
}

impl Owners {
    /// Takes the next thing in.
    pub(super) fn take(&mut self, seen: &Seen<'_>) {
        match seen {
            Seen::Record(record) => self.record(record),
            Seen::Lost(damage) => self.lost(damage),
        }
    }

    /// What became of every task that is not forgotten.
    pub(super) fn fates(mut self) -> BTreeMap<String, Fate> {
        self.submissions();
        self.named();
        let open: BTreeSet<usize> = (0..self.holes.len())
            .filter(|hole| {
                let hole = &self.holes[*hole];
                hole.known.values().sum::<u64>() < hole.lost
            })
            .collect();
        let fates = self.tasks.into_iter().map(|(id, task)| {
            let fate = if task.holed {
                Fate::Holed
            } else if task.ended || task.passed.is_disjoint(&open) {
                Fate::Whole
            } else {
                Fate::Doubtful
            };
            (id, fate)
        });
        fates.collect()
    }

    fn record(&mut self, record: &Record) {
        let id = &record.task_id;
        if let Some(Kind::Forgotten(_)) = &record.kind {
            self.tasks.remove(id);
            if !self.holes.is_empty() {
                self.forgotten.insert(id.clone());
            }
            return;
        }
        let holes = self.holes.len();
        let task = self.tasks.entry(id.clone()).or_insert_with(|| Track {
            born: holes,
            seen: holes,
            ..Track::default()
        });
        // Lost between the record before and this one, at the least.
        let mut lost = 0;
        match &record.kind {
            Some(Kind::Submitted(_)) => task.submitted = true,
            Some(Kind::Dispatched(sent)) => {
                lost = u64::from(sent.attempt.saturating_sub(task.attempt + 1));
                task.attempt = task.attempt.max(sent.attempt);
            }
            Some(Kind::Event(event)) => {
                lost = event.seq.saturating_sub(task.last_seq + 1);
                task.last_seq = event.seq;
                if !task.pieces.is_empty() {
                    task.pieces.insert(event.seq);
                }
                lost += u64::from(event.attempt > task.attempt);
                task.attempt = task.attempt.max(event.attempt);
                task.ended = ended(event.state());
            }
            Some(Kind::Copied(event)) => {
                task.pieces.insert(event.seq);
            }
            Some(Kind::Snapshot(snapshot)) => lost = task.snapshot(snapshot, holes > 0),
            Some(Kind::Checkpoint(_) | Kind::NotStarted(_) | Kind::Forgotten(_)) | None => {}
        }
        let between = task.seen..holes;
        task.seen = holes;
        // Without a submission its first records are gone, with or without damage.
        if lost > 0 && task.submitted {
            task.holed = true;
            if let [hole] = between.collect::<Vec<_>>()[..] {
                self.holes[hole].knows(id, lost);
            }
        }
    }

    fn lost(&mut self, damage: &Damage) {
        let Some((first, last)) = damage.lost else {
            return;
        };
        let place = self.holes.len();
        let mut hole = Hole {
            lost: last - first + 1,
            known: BTreeMap::new(),
        };
        if let Some(owner) = &damage.owner {
            hole.knows(owner, 1);
        }
        self.holes.push(hole);
        for task in self.tasks.values_mut().filter(|task| !task.ended) {
            task.passed.insert(place);
        }
    }

    /// A task that was seen first after a hole and has no submission has lost it there: whose
    /// submission was let go has been forgotten since, though that may be lost.
    fn submissions(&mut self) {
        self.tasks.retain(|_, task| {
            // Its copies are there, and the snapshot that they are for is not.
            let cut = !task.pieces.is_empty() && !task.passed.is_empty();
            task.submitted || task.born > 0 || cut
        });
        for (id, task) in &mut self.tasks {
            if task.submitted {
                continue;
            }
            task.holed = true;
            if task.born == 1 {
                self.holes[0].knows(id, 1);
            }
        }
    }

    /// Holds the names that damaged records bear against the tasks that there are.
    fn named(&mut self) {
        for hole in &mut self.holes {
            let there =
                |name: &String| self.tasks.contains_key(name) || self.forgotten.contains(name);
            let misread = |name: &String| {
                let mut all = self.tasks.keys().chain(&self.forgotten);
                !there(name) && all.any(|id| close(id, name))
            };
            hole.known.retain(|name, _| !misread(name));
            for name in hole.known.keys() {
                if self.forgotten.contains(name) {
                    continue;
                }
                let task = self.tasks.entry(name.clone()).or_default();
                // Nothing but damage may be left of it: then it is told by its name alone.
                task.holed = true;
            }
        }
    }
}

impl Track {
    /// Takes in a snapshot, which stands for all before it. Gives how many events that it names are
    /// neither in the log behind the submission nor among the copies.
    fn snapshot(&mut self, snapshot: &Snapshot, damage: bool) -> u64 {
        let named = snapshot.submitted.as_ref();
        let Some(task) = named.and_then(|submitted| submitted.task.as_ref()) else {
            return 0;
        };
        let lost = if self.submitted {
            task.last_seq.saturating_sub(self.last_seq)
        } else {
            let chunks = snapshot.artifacts.iter().flat_map(|kept| &kept.chunks);
            let content = snapshot.messages.iter().chain(chunks).copied();
            let watched = snapshot.first_seq.max(1)..=task.last_seq;
            let all: BTreeSet<u64> = content.chain(watched).collect();
            all.difference(&self.pieces).count() as u64
        };
        if lost > 0 && !self.submitted && !damage {
            // A crash came while its old segments were let go: a later snapshot is whole.
            return 0;
        }
        self.submitted = true;
        self.pieces.clear();
        self.last_seq = task.last_seq;
        self.attempt = self.attempt.max(task.attempt);
        self.ended = ended(task.state());
        lost
    }
}

impl Hole {
    /// Takes in that a task lost at least so many records here.
    fn knows(&mut self, id: &str, lost: u64) {
        let known = self.known.entry(id.to_owned()).or_default();
        *known = lost.max(*known);
    }
}

fn close(left: &str, right: &str) -> bool {
    let differing = left.bytes().zip(right.bytes()).filter(|(a, b)| a != b);
    left.len() == right.len() && differing.count() <= MISREAD
}

fn ended(state: TaskState) -> bool {
    use TaskState::{Canceled, Completed, Failed, Rejected};
    matches!(state, Completed | Failed | Canceled | Rejected)
}
