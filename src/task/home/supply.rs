//! Tasks that an attempt may have made below it: given as it asks for them.
//!
//! The root's home counts, and has on disk what it gives before it says so. A home of any other task
//! passes the asking on to the attempt that made its task, which runs on this sidecar, and remembers
//! only what it got for the attempt under way: whatever is forgotten stays used up. Pure.

use uuid::Uuid;

use crate::domain::TaskId;
use crate::pb::journal::{Granted, record::Kind as Recorded};
#[cfg(any(test, feature = "sabotage"))]
use crate::task::controls::{self, Control};
use crate::task::descendants::{DESCENDANTS_MAX, FIRST, Given, RESERVE, Wants, for_attempt, lot};

use super::effect::Effect;
use super::entry::Entry;
use super::kept::Kept;
use super::machine::Tasks;
use super::request::{Asker, Drawn, Maker, SupplyWord};

/// What the attempt under way was given beyond what is in its task's records.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Supply {
    /// Got for it from the attempt that made the task.
    pub(super) lent: u32,
    /// What it asked for last.
    wants: Option<Wants>,
    /// The asking that is passed on just now.
    asking: Option<u64>,
    /// For the whole tree, as was heard last.
    left: u32,
}

impl Kept {
    /// Whether its home counts the tree.
    pub(super) fn is_root(&self) -> bool {
        self.task.parent_task_id.is_empty()
    }

    /// So much of what is left was given away.
    pub(super) fn granted(&mut self, granted: &Granted) {
        self.descendants = granted.left;
        let running = self.running.as_mut();
        if let Some(running) = running.filter(|one| one.attempt == granted.attempt) {
            running.descendants = granted.total;
        }
    }

    /// What its next attempt gets with its Start. `again`: yet another one may follow that; `asks`:
    /// it can ask for more.
    pub(super) fn first_supply(&self, again: bool, asks: bool) -> u32 {
        match (asks, self.is_root()) {
            (true, true) => FIRST.min(self.descendants),
            (true, false) => self.descendants,
            (false, _) => for_attempt(self.descendants, again),
        }
    }
}

impl Tasks {
    /// The attempt under way asks for more.
    pub(super) fn wanted(&mut self, task: Uuid, mut wants: Wants) {
        // Of another process: more than there are is all that there are.
        wants.total = wants.total.min(DESCENDANTS_MAX + RESERVE);
        if let Some(entry) = self.tasks.get_mut(&task) {
            entry.supply.wants = Some(wants);
            self.supply(task);
        }
    }

    /// What came of passing an asking of `attempt` on.
    pub(super) fn drawn(&mut self, task: Uuid, attempt: u32, drawn: Drawn) {
        let Drawn { from, got, left } = drawn;
        let current = self.tasks.get_mut(&task).filter(|entry| {
            let running = entry.kept.running.as_ref();
            running.is_some_and(|running| running.attempt == attempt)
        });
        let Some(entry) = current else {
            let back = Effect::GiveBack {
                to: from,
                count: got,
            };
            self.effects.push(back);
            return;
        };
        let asked = entry.supply.asking.take();
        entry.supply.lent += got;
        entry.supply.left = left;
        self.tell_given(task, asked.unwrap_or_default(), got == 0);
        // What was asked for meanwhile.
        self.supply(task);
    }

    /// Whoever is asked, or has asked, says so.
    pub(super) fn heed(&mut self, task: Uuid, word: SupplyWord) {
        match word {
            SupplyWord::Drawn { attempt, drawn } => self.drawn(task, attempt, drawn),
            SupplyWord::Draw { by, count } => self.lend(task, by, count),
            SupplyWord::GiveBack { count } => self.came_back(task, count),
        }
    }

    /// Somebody below a task that tells of this one needs so many.
    pub(super) fn lend(&mut self, task: Uuid, by: Asker, count: u32) {
        // What is about to be archived does not change any more.
        let entry = self.tasks.get_mut(&task).filter(|entry| !entry.filed);
        if let Some(from) = entry.as_ref().and_then(|entry| entry.maker.clone()) {
            return self.effects.push(Effect::Draw { by, from, count });
        }
        let root = entry.filter(|entry| entry.kept.is_root());
        let has = root.map_or(0, |entry| {
            // What its last attempt had beforehand and did not need is there, too.
            left_of(&entry.kept, count) + std::mem::take(&mut entry.unused)
        });
        let got = count.min(has);
        let left = has - got;
        if got > 0 {
            self.leaves(task, left);
        }
        let from = Maker::Task(task);
        let drawn = Drawn { from, got, left };
        self.effects.push(Effect::Drawn { by, drawn });
    }

    /// So many of those were not needed.
    pub(super) fn came_back(&mut self, task: Uuid, count: u32) {
        let Some(entry) = self.tasks.get(&task).filter(|entry| !entry.filed) else {
            return;
        };
        if let Some(to) = entry.maker.clone() {
            self.effects.push(Effect::GiveBack { to, count });
        } else if entry.kept.is_root() {
            let left = entry.kept.descendants + count;
            self.leaves(task, left);
        }
    }

    /// A root has so many left, whoever has the others.
    fn leaves(&mut self, root: Uuid, left: u32) {
        if let Some(entry) = self.tasks.get(&root) {
            let id = entry.kept.task.id.clone();
            let granted = Granted {
                left,
                ..Granted::default()
            };
            self.log(id, Recorded::Granted(granted), 0);
            self.follow(root);
        }
    }

    /// A task was made by the attempt with this token; without one: it may tell of a task of here.
    pub(super) fn made_by(&mut self, task: Uuid, token: Option<String>) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let above = entry.kept.task.parent_task_id.parse::<TaskId>().ok();
        let here = above.filter(|above| above.home == self.own);
        let told = || here.map(|above| Maker::Task(above.uuid));
        entry.maker = token.map(Maker::Attempt).or_else(told);
        // What it did not need it has given back at its end, in an earlier life.
        entry.left_maker = entry.kept.ended();
    }

    /// Gives what is asked for, or asks for it in turn.
    fn supply(&mut self, task: Uuid) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let (kept, supply) = (&entry.kept, &mut entry.supply);
        let (Some(running), Some(wants)) = (&kept.running, supply.wants) else {
            return;
        };
        if supply.asking.is_some() {
            return;
        }
        supply.wants = None;
        let got = running.descendants + supply.lent;
        let short = wants.total.saturating_sub(got);
        let more = match short {
            0 => 0,
            _ if kept.is_root() => lot(short, got, left_of(kept, short)),
            _ => short.min(kept.descendants),
        };
        let attempt = running.attempt;
        let missing = short.saturating_sub(more);
        let maker = entry.maker.clone().filter(|_| missing > 0);
        if maker.is_some() {
            supply.asking = Some(wants.turn);
        }
        if more > 0 {
            let id = entry.kept.task.id.clone();
            let granted = Granted {
                attempt,
                total: running.descendants + more,
                left: kept.descendants.saturating_sub(more),
            };

            self.log(id, Recorded::Granted(granted), 0);
            self.follow(task);
        }
        match maker {
            Some(from) => self.effects.push(Effect::Draw {
                by: Asker { task, attempt },
                from,
                count: missing,
            }),
            None => self.tell_given(task, wants.turn, missing > 0),
        }
    }

    /// Tells the attempt what it has in all.
    fn tell_given(&mut self, task: Uuid, turn: u64, exhausted: bool) {
        let Some(entry) = self.tasks.get(&task) else {
            return;
        };
        let (kept, supply) = (&entry.kept, &entry.supply);
        let Some(running) = &kept.running else {
            return;
        };
        let left = if kept.is_root() {
            kept.descendants
        } else {
            supply.left
        };
        let given = Given {
            turn,
            total: running.descendants + supply.lent,
            left,
            exhausted,
        };
        let attempt = running.attempt;
        self.effects.push(Effect::Give {
            task,
            attempt,
            given,
        });
    }
}

impl Entry {
    /// The task has ended: what it did not need is free, told or not.
    pub(super) fn leave_maker(&mut self, effects: &mut Vec<Effect>) {
        let count = self.kept.descendants + self.unused;
        // It stays known: whoever tells of this task draws on the same tree.
        let Some(to) = self.maker.clone() else {
            return;
        };
        if std::mem::replace(&mut self.left_maker, true) {
            return;
        }
        let leaves = match &to {
            Maker::Attempt(token) if !self.kept.ends_with_parent() => Some(token.clone()),
            Maker::Attempt(_) | Maker::Task(_) => None,
        };
        if count > 0 {
            effects.push(Effect::GiveBack { to, count });
        }
        effects.extend(leaves.map(|token| Effect::LeaveParent { token }));
    }
}

/// The control that no tree gets more than its root may have.
fn left_of(kept: &Kept, short: u32) -> u32 {
    #[cfg(any(test, feature = "sabotage"))]
    if controls::removed(Control::Descendants) {
        return kept.descendants.max(short);
    }
    let _ = short;
    kept.descendants
}
