//! Tasks that wait for an executor, in lanes of those that want the same, the oldest first.
//!
//! What keeps the front of a lane waiting keeps all of it waiting, so a look at the fronts is enough.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::Bound,
    sync::Arc,
};

use uuid::Uuid;

use crate::pb;

/// Names what a task wants; equal for tasks that fit the same instances.
pub(super) type Lane = Arc<str>;

/// Which tasks wait where. UUIDs of version 7 sort by age.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<Lane, BTreeSet<Uuid>>,
    /// Tasks in all of them.
    waiting: usize,
    /// Tasks in none, that come back by themselves.
    resting: HashSet<Uuid>,
}

impl Lanes {
    /// The lane of a task of `namespace` that wants `selector`.
    /// Those that fail fast have their own: they end where the others wait.
    pub(super) fn name(namespace: &str, selector: &pb::Selector, hasty: bool) -> Lane {
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
        format!(
            "{namespace:?}{skill:?}{agent:?}{version:?}{agent_version:?}{tags:?}{labels:?}{hasty}"
        )
        .into()
    }

    pub(super) fn insert(&mut self, lane: Lane, task: Uuid) {
        let new = self.lanes.entry(lane).or_default().insert(task);
        self.waiting += usize::from(new);
    }

    pub(super) fn remove(&mut self, lane: &Lane, task: Uuid) {
        if let Some(waiting) = self.lanes.get_mut(lane) {
            self.waiting -= usize::from(waiting.remove(&task));
            if waiting.is_empty() {
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

    /// The oldest task of the lane, or the oldest of those that came after `after`.
    pub(super) fn first(&self, lane: &Lane, after: Option<Uuid>) -> Option<Uuid> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.lanes
            .get(lane)?
            .range((from, Bound::Unbounded))
            .next()
            .copied()
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
