//! Slots that executors grant to the tasks that wait for them: who gets one, and who waits. Pure.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::InstanceId;
use crate::task::doors::Pick;

use super::claims::{Key, Report};
use super::entry::Entry;
use super::lanes::Lane;
use super::machine::{Tasks, World};
use super::pick::pick;

/// Most tasks that are asked about for one slot: those with a past of their own may not fit.
const TASKS_MAX: usize = 32;
/// Most tasks that are passed over because they have been there before.
const PASSED_MAX: usize = 1024;
/// Most lanes that wait for one executor and are told of at once; the others are told of next.
pub(super) const LANES_MAX: usize = 256;
/// Most origins of a lane that are told of: those whose turns are next.
const ORIGINS_MAX: usize = 256;
/// Where that many entries are told of an executor, the other lanes are told of next.
const ENTRIES_MAX: usize = 1024;
/// How long an origin that could not use a slot somewhere is not told of there, unless another task
/// of it comes: what keeps its tasks from going there lasts longer than a way through the network.
const DECLINED: Duration = Duration::from_millis(250);
/// Origins of which this is known; those beyond are told of all the same.
const DECLINED_MAX: usize = 1024;

/// A slot that an executor has granted.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    pub(super) instance: InstanceId,
    /// As the executor knows it.
    pub(super) id: String,
    /// Counts up, over all executors and streams of the process.
    pub(super) number: u64,
    /// Whose tasks it is for, and which of them best.
    pub(super) origin: Arc<str>,
    pub(super) priority: u32,
    /// It is void after that.
    pub(super) until: Instant,
}

/// What is known of slots that executors grant.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Which grant was seen last, by who granted it.
    seen: BTreeMap<InstanceId, u64>,
    /// Which lane had the last one.
    lane: Option<Lane>,
    /// Until when it is not told who waits of an origin that had no use for one.
    declined: BTreeMap<(InstanceId, Arc<str>), Instant>,
    /// Where the last report ended that had no room for all lanes.
    told_up_to: BTreeMap<InstanceId, Lane>,
}

impl Slots {
    /// Another task of the origin waits: it may have a use for a slot.
    pub(super) fn waits(&mut self, origin: &str) {
        self.declined
            .retain(|(_, declined), _| **declined != *origin);
    }

    /// When something that is not told of is to be told of again.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.declined.values().min().copied()
    }

    /// Whether anything is to be told of again now.
    pub(super) fn wake(&mut self, now: Instant) -> bool {
        let before = self.declined.len();
        self.declined.retain(|_, until| *until > now);
        before > self.declined.len()
    }
}

impl Tasks {
    /// Gives a task of its origin the slot. Whether one goes there with it.
    pub(super) fn granted(&mut self, grant: &Granted, world: World<'_>) -> bool {
        let seen = self.slots.seen.entry(grant.instance.clone()).or_default();
        *seen = grant.number.max(*seen);
        self.lanes.moved = true;
        if self.holding || grant.until <= world.at.now {
            return false;
        }
        // Mostly the first one goes.
        for most in [1, TASKS_MAX] {
            for (lane, task) in self.meant(grant, most) {
                if self.give_there(task, grant, world) {
                    self.slots.lane = Some(lane);
                    self.settle(task);
                    return true;
                }
            }
        }
        if self.slots.declined.len() < DECLINED_MAX {
            let declined = (grant.instance.clone(), grant.origin.clone());
            let until = world.at.now + DECLINED;
            self.slots.declined.insert(declined, until);
        }
        false
    }

    /// At most `most` tasks of the origin that may go there: those of that very priority first, one
    /// lane after the other; those that have been there before at last.
    fn meant(&self, grant: &Granted, most: usize) -> Vec<(Lane, Uuid)> {
        let last = self.slots.lane.as_ref();
        let lanes = || self.lanes.waiting_for(&grant.instance, last, LANES_MAX);
        let (origin, priority) = (&*grant.origin, grant.priority);
        let of = lanes().flat_map(|lane| {
            let turns = self.lanes.turns(lane).into_iter();
            turns.flat_map(move |turns| turns.of(origin, priority).map(move |task| (lane, task)))
        });
        let others = lanes().flat_map(|lane| {
            let turns = self.lanes.turns(lane).into_iter();
            turns.flat_map(move |turns| {
                let others = turns.others_of(origin, priority);
                others.map(move |task| (lane, task))
            })
        });
        let mut before = Vec::new();
        let mut meant = Vec::new();
        for (lane, task) in of.chain(others).take(PASSED_MAX) {
            if meant.len() == most {
                return meant;
            }
            let entry = self.tasks.get(&task);
            if entry.is_some_and(|entry| entry.was_at(&grant.instance)) {
                before.push((lane.clone(), task));
            } else {
                meant.push((lane.clone(), task));
            }
        }
        let room = most - meant.len();
        meant.extend(before.into_iter().take(room));
        meant
    }

    /// Whether those who wait for this executor are granted its slots: without one nothing goes there
    /// then.
    pub(super) fn set_grants(&mut self, instance: &InstanceId, grants: bool, now: Instant) {
        self.gates.set_grants(instance, grants);
        if !grants {
            self.slots.seen.remove(instance);
            self.look_again(now);
        }
    }

    /// Gives nothing more out.
    pub(super) fn hold(&mut self) {
        self.holding = true;
        self.lanes.moved = true;
    }

    /// Who waits for which executor, since somebody asks once it has changed.
    pub(super) fn report(&mut self) -> Report {
        self.lanes.moved = false;
        let mut report = Report {
            waiting: BTreeMap::new(),
            seen: self.slots.seen.clone(),
            partial: false,
        };
        if self.holding {
            return report;
        }
        let mut told_up_to = BTreeMap::new();
        for instance in self.lanes.full() {
            let last = self.slots.told_up_to.get(instance);
            let lanes = self.lanes.waiting_for(instance, last, usize::MAX);
            let mut waiting: BTreeMap<Key, u32> = BTreeMap::new();
            for (place, lane) in lanes.enumerate() {
                if place >= LANES_MAX || waiting.len() >= ENTRIES_MAX {
                    report.partial = true;
                    break;
                }
                self.count(instance, lane, &mut waiting);
                told_up_to.insert(instance.clone(), lane.clone());
            }
            if !waiting.is_empty() {
                report.waiting.insert(instance.clone(), waiting);
            }
        }
        self.slots.told_up_to = told_up_to;
        // The others are told of as soon as it is time again.
        self.lanes.moved = report.partial;
        report
    }

    /// Adds who waits in a lane and may go there.
    fn count(&self, instance: &InstanceId, lane: &Lane, waiting: &mut BTreeMap<Key, u32>) {
        let Some(turns) = self.lanes.turns(lane) else {
            return;
        };
        let first = turns.first(&Default::default());
        let Some(first) = first.and_then(|first| self.tasks.get(&first)) else {
            return;
        };
        let skill: Arc<str> = first.kept.skill().into();
        let declined = &self.slots.declined;
        for (origin, priority, count) in turns.counts(ORIGINS_MAX) {
            if !declined.is_empty() && declined.contains_key(&(instance.clone(), origin.clone())) {
                continue;
            }
            let key = (origin.clone(), priority, skill.clone());
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            let sum = waiting.entry(key).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    fn give_there(&mut self, task: Uuid, grant: &Granted, world: World<'_>) -> bool {
        let Some(entry) = self.tasks.get(&task) else {
            return false;
        };
        let again = entry.again.as_ref();
        let not_yet = again.filter(|again| again.not_before > world.at.now);
        if not_yet.is_some_and(|again| again.anywhere || again.instance == grant.instance) {
            return false;
        }
        let there = |instance: &InstanceId| *instance == grant.instance;
        match pick(entry, &there, world) {
            Pick::Go(to, call) => {
                self.send(task, &to, call, &grant.id, world.at);
                true
            }
            Pick::Busy(_) | Pick::Ejected(_) | Pick::OverBudget(_) | Pick::Nobody => false,
        }
    }
}

impl Entry {
    /// Whether an attempt of it ended there without an end.
    fn was_at(&self, instance: &InstanceId) -> bool {
        let again = self.again.as_ref();
        self.kept.tried.contains(instance) || again.is_some_and(|again| again.instance == *instance)
    }
}
