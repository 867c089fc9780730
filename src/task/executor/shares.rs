//! Whose turn it is when a slot comes free: deficit round robin over origins, within an origin by
//! the weight of the priorities, and within a priority one home after the other. Pure.
//!
//! Every slot costs the same, so an origin's quantum is one slot, and a deficit is left only where a
//! slot came back unused (Shreedhar and Varghese, SIGCOMM 1995). Priorities are served by the time
//! at which their next task would be done, were all served by their weights at once, as a home does
//! among its own. Whoever waits gets its turn, so nothing starves, however much more comes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

/// Who claims: one home's stream.
pub(super) type Claimant = u64;

/// What a claim is of: an origin, and a priority from 1 to 10.
pub(super) type Key = (Arc<str>, u32);

/// What a slot costs in virtual time, before it is divided by its weight: fine enough for that.
const COST: u64 = 1 << 20;

/// All that is claimed and not granted.
#[derive(Debug, Default)]
pub(super) struct Shares {
    origins: BTreeMap<Arc<str>, Origin>,
    /// Whose turn it was last.
    current: Option<Arc<str>>,
    /// What each has claimed.
    by: HashMap<Claimant, BTreeMap<Key, u32>>,
    waiting: u64,
}

#[derive(Debug, Default)]
struct Origin {
    /// Slots that it may still have in this turn.
    deficit: u32,
    ranks: BTreeMap<u32, Rank>,
    /// The time among its priorities.
    now: u64,
}

/// What waits of one origin and one priority.
#[derive(Debug)]
struct Rank {
    /// When its next task is done.
    next: u64,
    claims: BTreeMap<Claimant, u32>,
    /// Whose turn it was last.
    last: Claimant,
}

impl Shares {
    /// What `who` claims now, in place of what it claimed before.
    pub(super) fn claim(&mut self, who: Claimant, mut claims: BTreeMap<Key, u32>) {
        claims.retain(|_, count| *count > 0);
        let before = self.by.remove(&who).unwrap_or_default();
        for key in before.keys().filter(|key| !claims.contains_key(*key)) {
            self.set(who, key, 0);
        }
        for (key, count) in &claims {
            self.set(who, key, *count);
        }
        if !claims.is_empty() {
            self.by.insert(who, claims);
        }
    }

    /// Takes the claim out whose turn it is.
    pub(super) fn next(&mut self) -> Option<(Claimant, Key)> {
        let name = self.turn()?;
        let origin = self.origins.get_mut(&name)?;
        origin.deficit -= 1;
        let (priority, who, left) = origin.next()?;
        let key = (name, priority);
        self.set(who, &key, left);
        if let Some(claims) = self.by.get_mut(&who) {
            match claims.get_mut(&key).filter(|_| left > 0) {
                Some(count) => *count = left,
                None => drop(claims.remove(&key)),
            }
        }
        Some((who, key))
    }

    /// Tasks that are claimed for.
    pub(super) fn waiting(&self) -> u64 {
        self.waiting
    }

    /// The origin whose turn it is, with something left to spend.
    fn turn(&mut self) -> Option<Arc<str>> {
        let current = self.current.take();
        if let Some(name) = &current
            && self.origins.get(name).is_some_and(|one| one.deficit > 0)
        {
            self.current.clone_from(&current);
            return current;
        }
        let behind = match &current {
            Some(name) => (Bound::Excluded(name.clone()), Bound::Unbounded),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let next = self.origins.range::<Arc<str>, _>(behind).next();
        let (name, _) = next.or_else(|| self.origins.iter().next())?;
        let name = name.clone();
        self.origins.get_mut(&name)?.deficit += 1;
        self.current = Some(name.clone());
        Some(name)
    }

    /// How many tasks of `key` the claimant has; none: it goes.
    fn set(&mut self, who: Claimant, (name, priority): &Key, count: u32) {
        let waits = count > 0;
        if !waits && !self.origins.contains_key(name) {
            return;
        }
        let origin = self.origins.entry(name.clone()).or_default();
        let next = origin.now + COST / u64::from((*priority).max(1));
        let rank = origin.ranks.entry(*priority).or_insert_with(|| Rank {
            next,
            claims: BTreeMap::new(),
            last: who,
        });
        let before = if waits {
            rank.claims.insert(who, count)
        } else {
            rank.claims.remove(&who)
        };
        self.waiting = self.waiting + u64::from(count) - u64::from(before.unwrap_or(0));
        if rank.claims.is_empty() {
            origin.ranks.remove(priority);
        }
        if origin.ranks.is_empty() {
            self.origins.remove(name);
        }
    }
}

impl Origin {
    /// Whose turn it is within the origin, and how many it has after that.
    fn next(&mut self) -> Option<(u32, Claimant, u32)> {
        let first = |(priority, rank): &(&u32, &mut Rank)| (rank.next, Reverse(**priority));
        let (priority, rank) = self.ranks.iter_mut().min_by_key(first)?;
        let behind = (Bound::Excluded(rank.last), Bound::Unbounded);
        let next = rank.claims.range(behind).next();
        let (who, count) = next.or_else(|| rank.claims.iter().next())?;
        self.now = self.now.max(rank.next);
        rank.next += COST / u64::from((*priority).max(1));
        rank.last = *who;
        Some((*priority, *who, count - 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claims(all: &[(&str, u32, u32)]) -> BTreeMap<Key, u32> {
        let key =
            |(origin, priority, count): &(&str, u32, u32)| (((*origin).into(), *priority), *count);
        all.iter().map(key).collect()
    }

    fn taken(shares: &mut Shares, most: usize) -> Vec<(Claimant, String, u32)> {
        let next = || {
            shares
                .next()
                .map(|(who, (origin, priority))| (who, origin.to_string(), priority))
        };
        std::iter::from_fn(next).take(most).collect()
    }

    fn count<T>(all: &[T], which: impl Fn(&T) -> bool) -> usize {
        all.iter().filter(|one| which(one)).count()
    }

    #[test]
    fn origins_share_alike_however_much_waits_and_wherever() {
        let mut shares = Shares::default();
        shares.claim(1, claims(&[("crowd", 10, 10_000)]));
        shares.claim(2, claims(&[("few", 1, 10)]));
        shares.claim(3, claims(&[("crowd", 5, 10_000)]));
        let all = taken(&mut shares, 1000);
        let last = all.iter().rposition(|(who, ..)| *who == 2);
        assert!(last < Some(20), "{last:?}");
    }

    #[test]
    fn priorities_of_an_origin_share_by_weight_over_all_its_homes() {
        for homes in [[1, 2], [2, 1]] {
            let mut shares = Shares::default();
            shares.claim(homes[0], claims(&[("a", 10, 1000)]));
            shares.claim(homes[1], claims(&[("a", 1, 1000)]));
            let all = taken(&mut shares, 110);
            let urgent = count(&all, |(who, ..)| *who == homes[0]);
            assert!((99..=101).contains(&urgent), "{urgent}");
        }
    }

    #[test]
    fn homes_of_one_origin_and_priority_take_turns() {
        let mut shares = Shares::default();
        for (home, count) in [(1, 10), (2, 20), (3, 300), (4, 400)] {
            shares.claim(home, claims(&[("a", 5, count)]));
        }
        let all = taken(&mut shares, 40);
        for home in 1..=4 {
            assert_eq!(count(&all, |(who, ..)| *who == home), 10);
        }
    }

    #[test]
    fn the_least_priority_goes_though_ever_more_important_ones_are_claimed_anew() {
        let mut shares = Shares::default();
        shares.claim(1, claims(&[("a", 10, 5), ("a", 1, 1)]));
        shares.claim(2, claims(&[("a", 10, 5)]));
        for turn in 0.. {
            let (_, (_, priority)) = shares.next().unwrap();
            if priority == 1 {
                break;
            }
            assert!(turn < 12, "it starves");
            shares.claim(1, claims(&[("a", 10, 5), ("a", 1, 1)]));
            shares.claim(2, claims(&[("a", 10, 5)]));
        }
    }

    proptest! {
        /// Whatever is claimed when: every claim that is left is served once, no other is, and
        /// nothing is left behind; and no origin that waits is passed over twice for another one.
        #[test]
        fn every_claim_is_served_once(
            steps in prop::collection::vec(
                (0..4_u64, prop::collection::btree_map((0..3_u8, 1..=10_u32), 1..9_u32, 0..5), 0..6_usize),
                1..60,
            )
        ) {
            let mut shares = Shares::default();
            let mut model: HashMap<Claimant, BTreeMap<Key, u32>> = HashMap::new();
            let mut passed: BTreeMap<Arc<str>, BTreeMap<Arc<str>, u32>> = BTreeMap::new();
            let mut take = |shares: &mut Shares, model: &mut HashMap<Claimant, BTreeMap<Key, u32>>| {
                let Some((who, key)) = shares.next() else { return false };
                let left = model.get_mut(&who).unwrap().get_mut(&key).unwrap();
                *left = left.checked_sub(1).unwrap();
                let waits = |origin: &Arc<str>| model.values().flatten()
                    .any(|((one, _), count)| one == origin && *count > 0);
                passed.remove(&key.0);
                for origin in ["0", "1", "2"].map(Arc::<str>::from) {
                    if origin != key.0 && waits(&origin) {
                        let times = passed.entry(origin).or_default().entry(key.0.clone()).or_default();
                        *times += 1;
                        assert!(*times <= 2, "passed over");
                    } else {
                        passed.remove(&origin);
                    }
                }
                true
            };
            for (who, all, most) in steps {
                let all: BTreeMap<Key, u32> = all.into_iter()
                    .map(|((origin, priority), count)| ((origin.to_string().into(), priority), count))
                    .collect();
                model.insert(who, all.clone());
                shares.claim(who, all);
                let sum: u64 = model.values().flat_map(|all| all.values()).map(|n| u64::from(*n)).sum();
                prop_assert_eq!(shares.waiting(), sum);
                for _ in 0..most {
                    take(&mut shares, &mut model);
                }
            }
            while take(&mut shares, &mut model) {}
            prop_assert!(model.values().flat_map(|all| all.values()).all(|left| *left == 0));
            prop_assert_eq!(shares.waiting(), 0);
            prop_assert!(shares.origins.is_empty());
        }
    }
}
