//! What a home says to one executor about who waits for it, all its shards together, and which shard
//! gets a slot that it grants. Pure.

use std::{
    collections::{BTreeMap, VecDeque},
    iter,
    ops::Bound,
    sync::Arc,
};

use crate::domain::InstanceId;
use crate::pb;

/// Whose tasks wait: origin, priority and skill.
pub(super) type Key = (Arc<str>, u32, Arc<str>);

/// Entries of one message: what an executor takes.
const ENTRIES_MAX: usize = 256;
/// Grants that one message gives back: what an executor takes.
const BACK_MAX: usize = 256;

/// What a shard says about its tasks that wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// By the executors that would take them if they had room.
    pub(super) waiting: BTreeMap<InstanceId, BTreeMap<Key, u32>>,
    /// The last granted slot that these counts know of, by who granted it.
    pub(super) seen: BTreeMap<InstanceId, u64>,
    /// Others wait as well: they are told of next.
    pub(super) partial: bool,
}

impl Report {
    /// How much there is to say.
    pub(super) fn entries(&self) -> usize {
        self.waiting.values().map(BTreeMap::len).sum()
    }
}

/// What is known of those who wait for one executor.
#[derive(Debug)]
pub(super) struct Claims {
    shards: Vec<Shard>,
    /// Grants that came on this stream.
    received: u64,
    /// Which shard had the last slot.
    last: usize,
    /// Grants to be given back.
    back: Vec<String>,
    /// What was said last.
    said: Option<(BTreeMap<Key, u32>, u64)>,
    /// Where the last message ended that had no room for all.
    said_up_to: Option<Key>,
}

#[derive(Clone, Debug, Default)]
struct Shard {
    waiting: BTreeMap<Key, u32>,
    /// Slots that it was given and did not know of when it counted.
    unseen: VecDeque<(u64, Arc<str>, u32)>,
}

impl Shard {
    /// How many wait of an origin and a priority that have no slot.
    fn waits(&self, origin: &str, priority: u32) -> u64 {
        let fits = |of: &str, one: u32| *of == *origin && priority == one;
        let waiting = self.waiting.iter();
        let waiting = waiting.filter(|((of, one, _), _)| fits(of, *one));
        let waiting: u64 = waiting.map(|(_, count)| u64::from(*count)).sum();
        let unseen = self.unseen.iter().filter(|(_, of, one)| fits(of, *one));
        waiting.saturating_sub(unseen.count() as u64)
    }
}

impl Claims {
    pub(super) fn new(shards: usize) -> Self {
        Self {
            shards: vec![Shard::default(); shards],
            received: 0,
            last: 0,
            back: Vec::new(),
            said: None,
            said_up_to: None,
        }
    }

    /// What a shard says, of the executor `instance`.
    pub(super) fn report(&mut self, place: usize, report: &Report, instance: &InstanceId) {
        let Some(shard) = self.shards.get_mut(place) else {
            return;
        };
        shard.waiting = report.waiting.get(instance).cloned().unwrap_or_default();
        let seen = report.seen.get(instance).copied().unwrap_or(0);
        shard.unseen.retain(|(number, ..)| *number > seen);
    }

    /// A slot was granted. Which shard gets it; `None`: nobody waits for it, and it goes back.
    pub(super) fn grant(&mut self, grant: &pb::SlotsResponse, number: u64) -> Option<usize> {
        self.received += 1;
        let shards = self.shards.len();
        let others = (1..=10)
            .rev()
            .filter(|priority| *priority != grant.priority);
        let found = iter::once(grant.priority)
            .chain(others)
            .find_map(|priority| {
                let mut in_turn = (1..=shards).map(|step| (self.last + step) % shards);
                let waits = |place: &usize| self.shards[*place].waits(&grant.origin, priority) > 0;
                in_turn.find(waits).map(|place| (place, priority))
            });
        let Some((place, priority)) = found else {
            self.give_back(grant.grant_id.clone());
            return None;
        };
        self.last = place;
        let unseen = (number, grant.origin.as_str().into(), priority);
        self.shards[place].unseen.push_back(unseen);
        Some(place)
    }

    /// A shard had no task for it.
    pub(super) fn give_back(&mut self, grant: String) {
        // More than can be said are void before they would be.
        if self.back.len() < BACK_MAX {
            self.back.push(grant);
        }
    }

    /// Whether any task waits.
    pub(super) fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.waiting.is_empty())
    }

    /// What is to be said now; `None`: nothing that was not said. `again`: say it in any case.
    pub(super) fn say(&mut self, again: bool) -> Option<pb::SlotsRequest> {
        let waiting = self.waiting();
        let said = Some((waiting, self.received));
        if said == self.said && !again && self.back.is_empty() {
            return None;
        }
        let (waiting, _) = said.as_ref()?;
        let entry = |((origin, priority, skill), count): (&Key, &u32)| pb::Waiting {
            origin: origin.to_string(),
            priority: *priority,
            count: *count,
            skill: skill.to_string(),
        };
        let entries = if waiting.len() <= ENTRIES_MAX {
            waiting.iter().map(entry).collect()
        } else {
            let from = self.said_up_to.take();
            let from = from.map_or(Bound::Unbounded, Bound::Excluded);
            let rest = waiting.range::<Key, _>((from, Bound::Unbounded));
            let some: Vec<_> = rest.chain(waiting).take(ENTRIES_MAX).collect();
            self.said_up_to = some.last().map(|(key, _)| (*key).clone());
            some.into_iter().map(entry).collect()
        };
        self.said = said;
        Some(pb::SlotsRequest {
            waiting: entries,
            seen: self.received,
            returned: std::mem::take(&mut self.back),
        })
    }

    /// All who wait and have no slot.
    fn waiting(&self) -> BTreeMap<Key, u32> {
        let mut all: BTreeMap<Key, u32> = BTreeMap::new();
        for shard in &self.shards {
            let mut waiting = shard.waiting.clone();
            for (_, origin, priority) in &shard.unseen {
                let granted = waiting
                    .iter_mut()
                    .find(|((of, one, _), count)| (of, one) == (origin, priority) && **count > 0);
                if let Some((_, count)) = granted {
                    *count -= 1;
                }
            }
            for (key, count) in waiting.into_iter().filter(|(_, count)| *count > 0) {
                let sum = all.entry(key).or_default();
                *sum = sum.saturating_add(count);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(seen: u64, waiting: &[(&str, u32, u32)]) -> Report {
        let key = |(origin, priority, count): &(&str, u32, u32)| {
            (((*origin).into(), *priority, "work.do".into()), *count)
        };
        let i1: InstanceId = "i1".parse().unwrap();
        Report {
            waiting: [(i1.clone(), waiting.iter().map(key).collect())].into(),
            seen: [(i1, seen)].into(),
            partial: false,
        }
    }

    fn grant(origin: &str, priority: u32) -> pb::SlotsResponse {
        pb::SlotsResponse {
            grant_id: format!("{origin}{priority}"),
            origin: origin.into(),
            priority,
            ..Default::default()
        }
    }

    type Told = (Vec<(String, u32, u32)>, u64, Vec<String>);

    fn said(claims: &mut Claims) -> Option<Told> {
        let said = claims.say(false)?;
        let entries = said.waiting.into_iter();
        let entries = entries.map(|one| (one.origin, one.priority, one.count));
        Some((entries.collect(), said.seen, said.returned))
    }

    fn i1() -> InstanceId {
        "i1".parse().unwrap()
    }

    #[test]
    fn all_shards_are_one_to_the_executor_and_what_was_granted_waits_no_more() {
        let mut claims = Claims::new(2);
        claims.report(0, &report(0, &[("a", 5, 2), ("b", 1, 1)]), &i1());
        claims.report(1, &report(0, &[("a", 5, 3)]), &i1());
        let all = vec![("a".into(), 5, 5), ("b".into(), 1, 1)];
        assert_eq!(said(&mut claims), Some((all, 0, vec![])));
        assert_eq!(said(&mut claims), None, "nothing new");
        assert!(claims.say(true).is_some(), "again");
        assert_eq!(claims.grant(&grant("a", 5), 1), Some(1));
        let all = vec![("a".into(), 5, 4), ("b".into(), 1, 1)];
        assert_eq!(
            said(&mut claims),
            Some((all, 1, vec![])),
            "before the shard knows"
        );
        claims.report(1, &report(1, &[("a", 5, 2)]), &i1());
        assert_eq!(said(&mut claims), None, "and when it does");
        // One more came there.
        claims.report(1, &report(1, &[("a", 5, 3)]), &i1());
        assert_eq!(said(&mut claims).unwrap().0[0].2, 5);
    }

    #[test]
    fn shards_take_turns_and_what_nobody_wants_goes_back() {
        let mut claims = Claims::new(3);
        for place in [0, 2] {
            claims.report(place, &report(0, &[("a", 5, 2), ("a", 1, 1)]), &i1());
        }
        let places: Vec<_> = (1..=7).map(|n| claims.grant(&grant("a", 5), n)).collect();
        let [first, second] = [Some(2), Some(0)];
        assert_eq!(places, [first, second, first, second, first, second, None]);
        assert_eq!(claims.grant(&grant("b", 5), 8), None);
        claims.give_back("late".into());
        let (waiting, seen, back) = said(&mut claims).unwrap();
        assert_eq!((waiting, seen), (vec![], 8));
        assert_eq!(back, ["a5", "b5", "late"]);
        for _ in 0..2 * BACK_MAX {
            claims.give_back("late".into());
        }
        assert_eq!(said(&mut claims).unwrap().2.len(), BACK_MAX);
    }

    #[test]
    fn more_than_one_message_takes_are_said_one_after_the_other() {
        let mut claims = Claims::new(1);
        let names: Vec<String> = (0..400).map(|number| format!("{number:03}")).collect();
        let all: Vec<_> = names.iter().map(|name| (name.as_str(), 5, 1)).collect();
        claims.report(0, &report(0, &all), &i1());
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..2 {
            let said = claims.say(true).unwrap();
            assert_eq!(said.waiting.len(), ENTRIES_MAX);
            seen.extend(said.waiting.into_iter().map(|one| one.origin));
        }
        assert_eq!(seen.len(), 400);
    }
}
