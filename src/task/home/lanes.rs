//! Tasks that wait for an executor, in lanes of those that want the same, each in its turn.
//!
//! What keeps the front of a lane waiting keeps all of it waiting, so a look at the fronts is enough.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Bound,
    sync::Arc,
};

use uuid::Uuid;

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
    lanes: BTreeMap<Lane, Turns>,
    /// The latest turn in lanes that are gone: who has one of there comes before whoever is new.
    latest: Turn,
    /// Tasks in all of them.
    waiting: usize,
    /// Tasks in none, that come back by themselves.
    resting: HashSet<Uuid>,
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
        let turns = self.lanes.entry(lane);
        let turns = turns.or_insert_with(|| Turns::since(latest));
        self.waiting += 1;
        turns.wait(task, flow, before)
    }

    /// The task waits no more; `goes`: since its turn has come.
    pub(super) fn remove(&mut self, lane: &Lane, task: Uuid, goes: bool) {
        if let Some(turns) = self.lanes.get_mut(lane) {
            self.waiting -= usize::from(turns.remove(task, goes));
            if turns.is_empty() {
                self.latest = self.latest.max(turns.latest());
                self.lanes.remove(lane);
            }
        }
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
        self.lanes.get(lane)?.first(passed)
    }

    /// The task stays where it is, and those behind it are looked at.
    pub(super) fn pass(&self, lane: &Lane, task: Uuid, passed: &mut Passed) {
        if let Some(turns) = self.lanes.get(lane) {
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
