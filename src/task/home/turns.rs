//! Whose turn it is among tasks that want the same: equal shares for origins, by priority within
//! one, and by age within that. Pure.
//!
//! Self-clocked fair queueing (Golestani, INFOCOM 1994), twice: an origin is told when its next task
//! would be done, were all origins served at once; a task, when it would be, were all priorities of
//! its origin served by their weights. The smallest time goes first. Every time is reached, so
//! nothing starves: a task of priority 1 is passed by ten of priority 10 at most, however many more
//! come, and an origin with ten tasks does not wait for one with ten thousand.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use uuid::Uuid;

/// What a task costs in virtual time, before it is divided by its weight: fine enough for that.
const COST: u64 = 1 << 20;

/// Tasks of one origin and one priority, 1 to 10.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) origin: Arc<str>,
    pub(super) priority: u32,
}

/// When a task's turn is within its origin, in virtual time; it keeps it when it comes back.
pub(super) type Turn = u64;

/// Tasks that wait for the same.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Each origin by the time of its next task.
    order: BTreeSet<(u64, Arc<str>)>,
    origins: HashMap<Arc<str>, Origin>,
    waiting: HashMap<Uuid, (Turn, Flow)>,
    /// The time among origins.
    now: u64,
    /// The latest time within any origin that is gone.
    latest: Turn,
}

/// What waits of one origin.
#[derive(Debug)]
struct Origin {
    /// When its next task is done.
    next: u64,
    /// By priority.
    flows: BTreeMap<u32, Queue>,
    /// The time among its own.
    now: Turn,
}

/// What waits of one origin and one priority.
#[derive(Debug)]
struct Queue {
    /// The last turn that was given.
    last: Turn,
    tasks: BTreeSet<(Turn, Uuid)>,
}

/// Tasks that were looked at and cannot go now, by their origins: how many, and the last.
#[derive(Debug, Default)]
pub(super) struct Passed(BTreeMap<Arc<str>, (u64, (Turn, Uuid))>);

impl Turns {
    /// An empty queue; `latest`: what [`Turns::latest`] said of the one before.
    pub(super) fn since(latest: Turn) -> Self {
        Self {
            latest,
            ..Self::default()
        }
    }

    /// A task waits; `before`: the turn that it had. Gives its turn.
    pub(super) fn wait(&mut self, task: Uuid, flow: Flow, before: Option<Turn>) -> Turn {
        let (now, latest) = (self.now, self.latest);
        let origin = self.origins.entry(Arc::clone(&flow.origin));
        let origin = origin.or_insert_with(|| Origin {
            next: now + COST,
            flows: BTreeMap::new(),
            now: latest,
        });
        self.order.remove(&(origin.next, Arc::clone(&flow.origin)));
        let inner = origin.now;
        let queue = origin.flows.entry(flow.priority);
        let queue = queue.or_insert_with(|| Queue {
            last: inner,
            tasks: BTreeSet::new(),
        });
        let turn = before.unwrap_or_else(|| {
            queue.last = queue.last.max(inner) + COST / u64::from(flow.priority.max(1));
            queue.last
        });
        queue.tasks.insert((turn, task));
        if before.is_some() {
            // It was charged for a turn that came to nothing.
            origin.next = origin.next.saturating_sub(COST);
        }
        self.order.insert((origin.next, Arc::clone(&flow.origin)));
        self.waiting.insert(task, (turn, flow));
        turn
    }

    /// The task waits no more; `goes`: it was given out, in its turn or before. Whether it was here.
    pub(super) fn remove(&mut self, task: Uuid, goes: bool) -> bool {
        let Some((turn, flow)) = self.waiting.remove(&task) else {
            return false;
        };
        let Some(origin) = self.origins.get_mut(&flow.origin) else {
            return false;
        };
        self.order.remove(&(origin.next, Arc::clone(&flow.origin)));
        if goes {
            // Who goes before its turn moves no clock: the others' turns have not come.
            if self
                .order
                .first()
                .is_none_or(|(first, _)| origin.next <= *first)
            {
                self.now = self.now.max(origin.next);
            }
            if origin.first() == Some((turn, task)) {
                origin.now = origin.now.max(turn);
            }
            origin.next += COST;
        }
        if let Some(queue) = origin.flows.get_mut(&flow.priority) {
            queue.tasks.remove(&(turn, task));
            if queue.tasks.is_empty() {
                origin.flows.remove(&flow.priority);
            }
        }
        if origin.flows.is_empty() {
            self.latest = self.latest.max(origin.now);
            self.origins.remove(&flow.origin);
        } else {
            self.order.insert((origin.next, flow.origin));
        }
        true
    }

    /// Whose turn it is, but for those that were `passed`.
    pub(super) fn first(&self, passed: &Passed) -> Option<Uuid> {
        let new = self
            .order
            .iter()
            .find(|(_, name)| !passed.0.contains_key(name));
        let new = new.and_then(|(next, name)| Some((*next, self.origins.get(name)?.first()?)));
        let rest = passed.0.iter().filter_map(|(name, (count, last))| {
            let origin = self.origins.get(name)?;
            Some((origin.next + count * COST, origin.after(*last)?))
        });
        let first = rest.chain(new).min_by_key(|(next, _)| *next);
        first.map(|(_, (_, task))| task)
    }

    /// How many wait, by origin and priority: of at most `most` origins, those first whose turns are
    /// next.
    pub(super) fn counts(&self, most: usize) -> impl Iterator<Item = (&Arc<str>, u32, usize)> {
        let first = self.order.iter().take(most);
        first.flat_map(|(_, name)| {
            let origin = self.origins.get(name).into_iter();
            let flows = origin.flat_map(|origin| &origin.flows);
            flows.map(move |(priority, queue)| (name, *priority, queue.tasks.len()))
        })
    }

    /// Tasks of an origin that have this priority, by their turns.
    pub(super) fn of(&self, origin: &str, priority: u32) -> impl Iterator<Item = Uuid> {
        let queue = self.origins.get(origin);
        let queue = queue.and_then(|origin| origin.flows.get(&priority));
        let tasks = queue.into_iter().flat_map(|queue| &queue.tasks);
        tasks.map(|(_, task)| *task)
    }

    /// Tasks of an origin that have other priorities, the highest first.
    pub(super) fn others_of(&self, origin: &str, priority: u32) -> impl Iterator<Item = Uuid> {
        let flows = self.origins.get(origin).into_iter();
        let flows = flows.flat_map(|origin| origin.flows.iter().rev());
        let others = flows.filter(move |(one, _)| **one != priority);
        others.flat_map(|(_, queue)| queue.tasks.iter().map(|(_, task)| *task))
    }

    /// The task stays, and those behind it are looked at.
    pub(super) fn pass(&self, task: Uuid, passed: &mut Passed) {
        if let Some((turn, flow)) = self.waiting.get(&task) {
            let seen = passed.0.entry(Arc::clone(&flow.origin)).or_default();
            *seen = (seen.0 + 1, (*turn, task));
        }
    }

    /// Who comes back with a turn of this queue comes before whoever is new in one since then.
    pub(super) fn latest(&self) -> Turn {
        self.latest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

impl Origin {
    /// Its next task.
    fn first(&self) -> Option<(Turn, Uuid)> {
        let first = self.flows.values();
        first.filter_map(|queue| queue.tasks.first()).min().copied()
    }

    /// The one that follows.
    fn after(&self, last: (Turn, Uuid)) -> Option<(Turn, Uuid)> {
        let behind = (Bound::Excluded(last), Bound::Unbounded);
        let next = self.flows.values();
        let next = next.filter_map(|queue| queue.tasks.range(behind).next());
        next.min().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flow(origin: &str, priority: u32) -> Flow {
        Flow {
            origin: origin.into(),
            priority,
        }
    }

    fn task(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn first(turns: &Turns) -> Option<Uuid> {
        turns.first(&Passed::default())
    }

    /// Everybody goes; in which order, as numbers.
    fn all(turns: &mut Turns) -> Vec<u128> {
        let mut gone = Vec::new();
        while let Some(next) = first(turns) {
            assert!(turns.remove(next, true));
            gone.push(next.as_u128());
        }
        assert!(turns.order.is_empty() && turns.origins.is_empty() && turns.waiting.is_empty());
        gone
    }

    #[test]
    fn the_oldest_of_a_flow_goes_first() {
        let mut turns = Turns::default();
        for number in [1, 2, 3] {
            turns.wait(task(number), flow("a", 5), None);
        }
        assert_eq!(all(&mut turns), [1, 2, 3]);
    }

    #[test]
    fn an_origin_with_few_does_not_wait_for_one_with_many() {
        let mut turns = Turns::default();
        for number in 0..10_000 {
            turns.wait(task(number), flow("many", 5), None);
        }
        for number in 20_000..20_010 {
            turns.wait(task(number), flow("few", 5), None);
        }
        let gone = all(&mut turns);
        let last = gone.iter().rposition(|number| *number >= 20_000);
        assert!(last < Some(21), "{last:?}");
    }

    #[test]
    fn priorities_of_an_origin_share_by_their_weight_in_whatever_order_they_come() {
        for order in [[10, 1], [1, 10]] {
            let mut turns = Turns::default();
            for priority in order {
                for number in 0..100 {
                    let task = task(number * 100 + u128::from(priority));
                    turns.wait(task, flow("a", priority), None);
                }
            }
            let gone = all(&mut turns);
            let urgent = gone[..110]
                .iter()
                .filter(|number| *number % 100 == 10)
                .count();
            assert!((99..=100).contains(&urgent), "{order:?}: {urgent}");
        }
    }

    #[test]
    fn no_origin_gets_more_by_its_priorities() {
        let falling: Vec<u32> = (1..=10).rev().collect();
        for priorities in [(1..=10).collect(), falling, vec![10]] {
            let mut turns = Turns::default();
            let mut number = 0;
            for priority in priorities {
                for _ in 0..100 {
                    number += 1;
                    turns.wait(task(number), flow("sly", priority), None);
                }
            }
            for number in 0..100 {
                turns.wait(task(10_000 + number), flow("plain", 1), None);
            }
            let gone = all(&mut turns);
            let plain = gone[..100]
                .iter()
                .filter(|number| **number >= 10_000)
                .count();
            assert!((49..=51).contains(&plain), "{plain}");
        }
        // Nor by coming one at a time, whatever its name.
        for sly in ["a", "z"] {
            let mut turns = Turns::default();
            for number in 0..100 {
                turns.wait(task(number), flow("m", 5), None);
            }
            turns.wait(task(1000), flow(sly, 5), None);
            let mut gone = 0;
            for _ in 0..50 {
                let next = first(&turns).unwrap();
                turns.remove(next, true);
                if next == task(1000) {
                    gone += 1;
                    turns.wait(task(1000), flow(sly, 5), None);
                }
            }
            assert!((24..=26).contains(&gone), "{gone}");
        }
    }

    #[test]
    fn the_least_priority_goes_though_ever_more_important_ones_come() {
        let mut turns = Turns::default();
        for number in 1..50 {
            turns.wait(task(number), flow("a", 10), None);
        }
        turns.wait(task(0), flow("a", 1), None);
        for number in 50.. {
            let next = first(&turns).unwrap();
            if next == task(0) {
                break;
            }
            assert!(number < 70, "it starves");
            turns.remove(next, true);
            turns.wait(task(number), flow("a", 10), None);
        }
    }

    #[test]
    fn one_that_comes_back_has_its_old_turn_also_in_a_new_queue() {
        let mut turns = Turns::default();
        for number in 0..10 {
            turns.wait(task(number), flow("a", 5), None);
            turns.wait(task(100 + number), flow("b", 5), None);
        }
        let next = first(&turns).unwrap();
        assert_eq!(next, task(0));
        let (turn, _) = turns.waiting[&next];
        turns.remove(next, true);
        turns.wait(next, flow("a", 5), Some(turn));
        assert_eq!(first(&turns), Some(task(0)));
        all(&mut turns);
        let mut turns = Turns::since(turns.latest());
        turns.wait(task(50), flow("a", 10), None);
        turns.wait(task(0), flow("a", 5), Some(turn));
        assert_eq!(all(&mut turns), [0, 50]);
    }

    #[test]
    fn who_goes_before_its_turn_takes_nobody_elses() {
        let mut turns = Turns::default();
        for number in 0..1000 {
            turns.wait(task(number), flow("m", 5), None);
        }
        turns.remove(task(999), true);
        turns.wait(task(5000), flow("f", 5), None);
        let gone = all(&mut turns);
        assert!(gone.iter().position(|number| *number == 5000) < Some(2));
    }

    #[test]
    fn those_that_cannot_go_hold_nobody_back() {
        let mut turns = Turns::default();
        for number in 0..300 {
            turns.wait(task(number), flow("a", 5), None);
        }
        turns.wait(task(1000), flow("b", 5), None);
        let mut passed = Passed::default();
        let mut seen = Vec::new();
        while let Some(next) = turns.first(&passed) {
            seen.push(next.as_u128());
            turns.pass(next, &mut passed);
        }
        assert!(seen.iter().position(|number| *number == 1000) < Some(2));
        assert_eq!(seen.len(), 301);
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 301);
    }

    proptest! {
        /// Whatever comes and goes: everybody goes once, and nothing is left behind.
        #[test]
        fn everybody_goes_once(steps in prop::collection::vec((0..3_u32, 1..=10_u32, any::<bool>()), 1..200)) {
            let mut turns = Turns::default();
            let (mut waiting, mut gone) = (BTreeSet::new(), 0);
            for (number, (origin, priority, goes)) in steps.iter().enumerate() {
                let number = number as u128;
                turns.wait(task(number), flow(&origin.to_string(), *priority), None);
                waiting.insert(number);
                if *goes {
                    let next = first(&turns).unwrap();
                    prop_assert!(waiting.remove(&next.as_u128()));
                    prop_assert!(turns.remove(next, true));
                    gone += 1;
                }
            }
            let rest = all(&mut turns);
            prop_assert_eq!(rest.len() + gone, steps.len());
            prop_assert_eq!(rest.into_iter().collect::<BTreeSet<_>>(), waiting);
        }
    }
}
