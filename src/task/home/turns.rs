//! Whose turn it is among tasks that want the same: fair between origins, by priority within one,
//! and by age within that. Pure.
//!
//! Self-clocked fair queueing (Golestani, INFOCOM 1994): a task is told on arrival when it would be
//! done, were all origins served at once and each priority by its weight; the smallest time goes
//! first. Every time is reached, so nothing starves: a task of priority 1 waits for ten of priority
//! 10 at most, however many more come, and an origin with ten tasks does not wait for one with ten
//! thousand.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use uuid::Uuid;

/// What a task costs in virtual time, times the share of others in its origin: fine enough for a
/// division by any priority.
const COST: u64 = 1 << 20;

/// Tasks of one origin and one priority, 1 to 10.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) origin: Arc<str>,
    pub(super) priority: u32,
}

/// When a task's turn is, in virtual time; it keeps it when it comes back.
pub(super) type Turn = u64;

/// Tasks that wait for the same.
#[derive(Debug, Default)]
pub(super) struct Turns {
    order: BTreeSet<(Turn, Uuid)>,
    waiting: HashMap<Uuid, (Turn, Flow)>,
    /// By priority: the last turn that was given, and how many wait.
    origins: HashMap<Arc<str>, BTreeMap<u32, (Turn, usize)>>,
    /// The turn of whoever went last.
    now: Turn,
}

impl Turns {
    /// An empty queue in which it is `now`.
    pub(super) fn at(now: Turn) -> Self {
        Self {
            now,
            ..Self::default()
        }
    }

    /// A task waits; `before`: the turn that it had. Gives its turn.
    pub(super) fn wait(&mut self, task: Uuid, flow: Flow, before: Option<Turn>) -> Turn {
        let now = self.now;
        let origin = self.origins.entry(Arc::clone(&flow.origin)).or_default();
        origin.entry(flow.priority).or_insert((now, 0)).1 += 1;
        // What its origin gets is shared by the weights of those that wait.
        let all: u64 = origin.keys().map(|priority| u64::from(*priority)).sum();
        let turn = before.unwrap_or_else(|| {
            let (last, _) = origin.entry(flow.priority).or_default();
            *last = (*last).max(now) + COST * all / u64::from(flow.priority.max(1));
            *last
        });
        self.order.insert((turn, task));
        self.waiting.insert(task, (turn, flow));
        turn
    }

    /// The task waits no more; `goes`: since its turn has come. Whether it was here.
    pub(super) fn remove(&mut self, task: Uuid, goes: bool) -> bool {
        let Some((turn, flow)) = self.waiting.remove(&task) else {
            return false;
        };
        self.order.remove(&(turn, task));
        if goes {
            self.now = self.now.max(turn);
        }
        if let Some(origin) = self.origins.get_mut(&flow.origin) {
            if let Some((_, count)) = origin.get_mut(&flow.priority) {
                *count -= 1;
                if *count == 0 {
                    origin.remove(&flow.priority);
                }
            }
            if origin.is_empty() {
                self.origins.remove(&flow.origin);
            }
        }
        true
    }

    /// Whose turn is first, or first after that of `passed`.
    pub(super) fn first(&self, passed: Option<Uuid>) -> Option<Uuid> {
        let passed = passed.and_then(|task| Some((self.waiting.get(&task)?.0, task)));
        let next = match passed {
            Some(passed) => self.order.range(passed..).nth(1),
            None => self.order.first(),
        };
        next.map(|(_, task)| *task)
    }

    /// What time it is.
    pub(super) fn now(&self) -> Turn {
        self.now
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
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

    /// Everybody goes; in which order, as numbers.
    fn all(turns: &mut Turns) -> Vec<u128> {
        let mut gone = Vec::new();
        while let Some(first) = turns.first(None) {
            assert!(turns.remove(first, true));
            gone.push(first.as_u128());
        }
        gone
    }

    #[test]
    fn the_oldest_of_a_flow_goes_first() {
        let mut turns = Turns::default();
        for number in [1, 2, 3] {
            turns.wait(task(number), flow("a", 5), None);
        }
        assert_eq!(turns.first(Some(task(1))), Some(task(2)));
        assert_eq!(turns.first(Some(task(3))), None);
        assert_eq!(all(&mut turns), [1, 2, 3]);
        assert!(turns.origins.is_empty() && turns.waiting.is_empty());
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
    fn priorities_of_an_origin_share_by_their_weight_and_no_origin_wins_by_them() {
        let mut turns = Turns::default();
        for number in 0..1000 {
            for (kind, flow) in [flow("a", 10), flow("a", 1), flow("b", 1)]
                .into_iter()
                .enumerate()
            {
                turns.wait(task(number * 10 + kind as u128), flow, None);
            }
        }
        let gone = all(&mut turns);
        let count = |kind| {
            gone[..440]
                .iter()
                .filter(|number| *number % 10 == kind)
                .count()
        };
        let counts = [count(0), count(1), count(2)];
        assert!((195..=205).contains(&counts[0]), "{counts:?}");
        assert!((15..=25).contains(&counts[1]), "{counts:?}");
        assert!((215..=225).contains(&counts[2]), "{counts:?}");
    }

    #[test]
    fn the_least_priority_goes_though_ever_more_important_ones_come() {
        let mut turns = Turns::default();
        for number in 1..50 {
            turns.wait(task(number), flow("a", 10), None);
        }
        turns.wait(task(0), flow("a", 1), None);
        for number in 50.. {
            let first = turns.first(None).unwrap();
            if first == task(0) {
                break;
            }
            assert!(number < 70, "it starves");
            turns.remove(first, true);
            turns.wait(task(number), flow("a", 10), None);
        }
    }

    #[test]
    fn an_important_one_overtakes_and_one_that_comes_back_has_its_old_turn() {
        let mut turns = Turns::default();
        for number in 0..100 {
            turns.wait(task(number), flow("a", 1), None);
        }
        turns.wait(task(1000), flow("a", 10), None);
        assert!(all(&mut turns).iter().position(|number| *number == 1000) < Some(3));

        let mut turns = Turns::at(7 * COST);
        let turn = turns.wait(task(1), flow("a", 5), None);
        assert!(turn > 7 * COST);
        turns.remove(task(1), true);
        turns.wait(task(2), flow("a", 5), None);
        turns.wait(task(1), flow("a", 5), Some(turn));
        assert_eq!(all(&mut turns), [1, 2]);
        assert!(turns.now() > turn);
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
                    let first = turns.first(None).unwrap();
                    prop_assert!(waiting.remove(&first.as_u128()));
                    prop_assert!(turns.remove(first, true));
                    gone += 1;
                }
            }
            let rest = all(&mut turns);
            prop_assert_eq!(rest.len() + gone, steps.len());
            prop_assert_eq!(rest.into_iter().collect::<BTreeSet<_>>(), waiting);
            prop_assert!(turns.origins.is_empty() && turns.waiting.is_empty());
        }
    }
}
