//! Tasks that wait for an executor, in lanes of those that want the same, each in its turn.
//!
//! What keeps the front of a lane waiting keeps all of it waiting, so a look at the fronts is enough.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::Bound,
    sync::Arc,
};

use uuid::Uuid;

use crate::domain::InstanceId;
use crate::pb;
use crate::task::lineage::Bounds;
use crate::task::spec::PRIORITY;

use super::kept::Kept;
use super::turns::{Flow, Passed, Turn, Turns};

/// Names what a task wants; equal for tasks that fit the same instances.
pub(super) type Lane = Arc<str>;

/// Which tasks wait where.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<Lane, Queue>,
    /// Lanes by the instances that would take their tasks if they had room.
    by_full: BTreeMap<InstanceId, BTreeSet<Lane>>,
    /// Who waits for those has changed.
    pub(super) moved: bool,
    /// The latest turn in lanes that are gone: who has one of there comes before whoever is new.
    latest: Turn,
    /// Tasks in all of them.
    waiting: usize,
    /// Tasks in none, that come back by themselves.
    resting: HashSet<Uuid>,
}

/// One lane.
#[derive(Debug)]
struct Queue {
    turns: Turns,
    /// Who would take its tasks, and has no room.
    full: BTreeSet<InstanceId>,
}

impl Lanes {
    /// The lane of a task of `namespace` that wants `selector`.
    /// Those that fail fast have their own: they end where the others wait.
    pub(super) fn name(
        namespace: &str,
        selector: &pb::Selector,
        bounds: &Bounds,
        hasty: bool,
    ) -> Lane {
        let mut labels: Vec<_> = selector.labels.iter().collect();
        labels.sort();
        let pb::Selector {
            skill,
            agent,
            tags,
            version,
            agent_version,
            ..
        } = selector;
        let mut name = format!(
            "{namespace:?}{skill:?}{agent:?}{version:?}{agent_version:?}{tags:?}{labels:?}{hasty}"
        );
        if !bounds.is_free() {
            name += &format!("{bounds:?}");
        }
        name.into()
    }

    /// A task waits; `before`: the turn that it had. Gives its turn.
    pub(super) fn insert(
        &mut self,
        lane: Lane,
        task: Uuid,
        flow: Flow,
        before: Option<Turn>,
    ) -> Turn {
        let latest = self.latest;
        let queue = self.lanes.entry(lane).or_insert_with(|| Queue {
            turns: Turns::since(latest),
            full: BTreeSet::new(),
        });
        self.waiting += 1;
        self.moved |= !queue.full.is_empty();
        queue.turns.wait(task, flow, before)
    }

    /// The task waits no more; `goes`: since its turn has come.
    pub(super) fn remove(&mut self, lane: &Lane, task: Uuid, goes: bool) {
        if let Some(queue) = self.lanes.get_mut(lane) {
            self.waiting -= usize::from(queue.turns.remove(task, goes));
            self.moved |= !queue.full.is_empty();
            if queue.turns.is_empty() {
                self.latest = self.latest.max(queue.turns.latest());
                self.found_full(lane, BTreeSet::new());
                self.lanes.remove(lane);
            }
        }
    }

    /// Who has no room for the tasks of a lane, in place of who had none before.
    pub(super) fn found_full(&mut self, lane: &Lane, full: BTreeSet<InstanceId>) {
        let Some(queue) = self.lanes.get_mut(lane) else {
            return;
        };
        if queue.full == full {
            return;
        }
        self.moved = true;
        let before = std::mem::replace(&mut queue.full, full.clone());
        for instance in before.difference(&full) {
            if let Some(lanes) = self.by_full.get_mut(instance) {
                lanes.remove(lane);
                if lanes.is_empty() {
                    self.by_full.remove(instance);
                }
            }
        }
        for instance in full.difference(&before) {
            let lanes = self.by_full.entry(instance.clone()).or_default();
            lanes.insert(lane.clone());
        }
    }

    /// Whether any task waits until the instance has room.
    pub(super) fn waits_for(&self, instance: &InstanceId) -> bool {
        self.by_full.contains_key(instance)
    }

    /// Instances without room that any task waits for.
    pub(super) fn full(&self) -> impl Iterator<Item = &InstanceId> {
        self.by_full.keys()
    }

    /// At most `most` lanes that wait for the instance, from behind `last` on in a circle.
    pub(super) fn waiting_for(
        &self,
        instance: &InstanceId,
        last: Option<&Lane>,
        most: usize,
    ) -> impl Iterator<Item = &Lane> {
        let from = last.map_or(Bound::Unbounded, |lane| Bound::Excluded(lane.clone()));
        let lanes = self.by_full.get(instance).into_iter();
        lanes.flat_map(move |lanes| {
            let rest = lanes.range::<Lane, _>((from.clone(), Bound::Unbounded));
            rest.chain(lanes).take(most.min(lanes.len()))
        })
    }

    /// Who waits in a lane.
    pub(super) fn turns(&self, lane: &Lane) -> Option<&Turns> {
        self.lanes.get(lane).map(|queue| &queue.turns)
    }

    /// The task waits on its own account, in no lane.
    pub(super) fn rest(&mut self, task: Uuid) {
        self.resting.insert(task);
    }

    /// It does not any more.
    pub(super) fn wake(&mut self, task: Uuid) {
        self.resting.remove(&task);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    /// How many tasks wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting + self.resting.len()
    }

    /// Whose turn it is in the lane, but for those that were `passed`.
    pub(super) fn first(&self, lane: &Lane, passed: &Passed) -> Option<Uuid> {
        self.turns(lane)?.first(passed)
    }

    /// The task stays where it is, and those behind it are looked at.
    pub(super) fn pass(&self, lane: &Lane, task: Uuid, passed: &mut Passed) {
        if let Some(turns) = self.turns(lane) {
            turns.pass(task, passed);
        }
    }

    /// At most `most` lanes that follow `last` in a circle.
    pub(super) fn round(&self, last: Option<&Lane>, most: usize) -> Vec<Lane> {
        let from = last.map_or(Bound::Unbounded, |lane| Bound::Excluded(lane.clone()));
        let rest = self.lanes.range::<Lane, _>((from, Bound::Unbounded));
        let front = self.lanes.iter();
        let most = most.min(self.lanes.len());
        rest.chain(front)
            .map(|(lane, _)| lane.clone())
            .take(most)
            .collect()
    }
}

impl Kept {
    /// Among whom it waits for its turn.
    pub(super) fn flow(&self) -> Flow {
        let options = self.task.options.as_ref();
        let priority = options.map_or(0, |options| options.priority);
        Flow {
            origin: self.task.origin.as_str().into(),
            // One of an earlier version may say nothing.
            priority: if priority == 0 { PRIORITY } else { priority },
        }
    }
}
