//! Slots that executors grant to the tasks that wait for them: who gets one, and who waits. Pure.

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::InstanceId;
use crate::task::doors::Pick;

use super::claims::{Key, Report};
use super::machine::{Tasks, World};
use super::pick::pick;

/// Most tasks that are looked at for one slot: those with a past of their own may not fit.
const TASKS_MAX: usize = 32;
/// Most lanes that wait for one executor and are told of; others come as these are served.
const LANES_MAX: usize = 256;

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

impl Tasks {
    /// Gives a task of its origin the slot. Whether one goes there with it.
    pub(super) fn granted(&mut self, grant: &Granted, world: World<'_>) -> bool {
        let seen = self.granted.entry(grant.instance.clone()).or_default();
        *seen = grant.number.max(*seen);
        self.lanes.moved = true;
        if self.holding || grant.until <= world.at.now {
            return false;
        }
        let last = self.granted_lane.as_ref();
        let lanes = self.lanes.waiting_for(&grant.instance, last, LANES_MAX);
        let meant = |lane| {
            let turns = self.lanes.turns(lane)?;
            let of = turns.of(&grant.origin, grant.priority, TASKS_MAX);
            Some((lane, of)).filter(|(_, of)| !of.is_empty())
        };
        let mut waiting: Vec<_> = lanes.iter().filter_map(meant).collect();
        // First where a task of that very priority waits, one lane after the other.
        let is = |task: &Uuid| {
            let entry = self.tasks.get(task);
            entry.is_some_and(|entry| entry.kept.flow().priority == grant.priority)
        };
        waiting.sort_by_key(|(_, of)| !of.first().is_some_and(is));
        let all = waiting
            .into_iter()
            .flat_map(|(lane, of)| of.into_iter().map(move |task| (lane, task)));
        for (lane, task) in all.take(TASKS_MAX) {
            if self.give_there(task, grant, world) {
                self.granted_lane = Some(lane.clone());
                self.settle(task);
                return true;
            }
        }
        false
    }

    /// Whether those who wait for this executor are granted its slots: without one nothing goes there
    /// then.
    pub(super) fn set_grants(&mut self, instance: &InstanceId, grants: bool, now: Instant) {
        self.gates.set_grants(instance, grants);
        if !grants {
            self.granted.remove(instance);
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
            seen: self.granted.clone(),
        };
        if self.holding {
            return report;
        }
        for (instance, lanes) in self.lanes.by_full(LANES_MAX) {
            let mut waiting: BTreeMap<Key, u32> = BTreeMap::new();
            for turns in lanes.filter_map(|lane| self.lanes.turns(lane)) {
                let first = turns.first(&Default::default());
                let Some(first) = first.and_then(|first| self.tasks.get(&first)) else {
                    continue;
                };
                let skill: Arc<str> = first.kept.skill().into();
                for (origin, priority, count) in turns.counts() {
                    let key = (origin.clone(), priority, skill.clone());
                    let count = u32::try_from(count).unwrap_or(u32::MAX);
                    let sum = waiting.entry(key).or_default();
                    *sum = sum.saturating_add(count);
                }
            }
            report.waiting.insert(instance.clone(), waiting);
        }
        report
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
