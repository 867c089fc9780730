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
    /// Events that were seen of a task whose submission is gone: a snapshot names what it needs.
    events: HashSet<u64>,
    /// Events of it were copied for a snapshot that is still to come.
    copied: bool,
    /// A snapshot of it names events that were not seen, and no later one is whole.
    torn: bool,
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
                lost += u64::from(event.attempt > task.attempt);
                task.attempt = task.attempt.max(event.attempt);
                task.ended = ended(event.state());
            }
            Some(Kind::Snapshot(snapshot)) => lost = task.snapshot(snapshot),
            Some(
                Kind::Checkpoint(_)
                | Kind::NotStarted(_)
                | Kind::Returned(_)
                | Kind::Granted(_)
                | Kind::Promised(_)
                | Kind::Copied(_)
                | Kind::Forgotten(_)
                | Kind::Told(_)
                | Kind::GaveUp(_)
                | Kind::Anew(_),
            )
            | None => {}
        }
        if let (false, Some(Kind::Event(event) | Kind::Copied(event))) =
            (task.submitted, &record.kind)
        {
            task.events.insert(event.seq);
            task.copied |= matches!(record.kind, Some(Kind::Copied(_)));
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
        self.tasks
            .retain(|_, task| task.submitted || task.born > 0 || task.torn || task.is_cut());
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
    /// Its copies are there, and the snapshot that they were made for may be among what is lost.
    fn is_cut(&self) -> bool {
        self.copied && !self.passed.is_empty()
    }

    /// Takes a snapshot in: it stands for a submission, and tells what is missing before it.
    fn snapshot(&mut self, snapshot: &Snapshot) -> u64 {
        let submitted = snapshot.submitted.as_ref();
        let Some(task) = submitted.and_then(|submitted| submitted.task.as_ref()) else {
            return 0;
        };
        let lost = task.last_seq.saturating_sub(self.last_seq)
            + u64::from(task.attempt.saturating_sub(self.attempt));
        self.last_seq = self.last_seq.max(task.last_seq);
        self.attempt = self.attempt.max(task.attempt);
        if self.submitted {
            return lost;
        }
        let chunks = snapshot.artifacts.iter().flat_map(|kept| &kept.chunks);
        let handed = snapshot.handover.iter().map(|handover| &handover.seq);
        let mut content = snapshot.messages.iter().chain(chunks).chain(handed);
        let mut watched = snapshot.first_seq..=task.last_seq;
        self.submitted = watched.all(|seq| self.events.contains(&seq))
            && content.all(|seq| self.events.contains(seq));
        self.torn = !self.submitted;
        self.copied = false;
        // Its copies may have been among what was lost before the first that was seen.
        self.passed.extend(0..self.born);
        0
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
