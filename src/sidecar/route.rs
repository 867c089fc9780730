//! Who could run a task now: the catalog's live instances, the less busy of two first.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::watch;

use crate::{
    domain::InstanceId,
    registry::client::{Entry, Mirror, Query},
    task::{Candidate, Route, Want},
};

/// Attempts that this sidecar has open at each instance.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight {
    open: Arc<Mutex<HashMap<InstanceId, u32>>>,
}

/// One open attempt; counted until dropped.
#[derive(Debug)]
pub(super) struct Open {
    flights: InFlight,
    instance: InstanceId,
}

impl InFlight {
    /// Counts one more. The map holds an entry only while something is open there.
    pub(super) fn enter(&self, instance: &InstanceId) -> Open {
        *self.open.lock().entry(instance.clone()).or_default() += 1;
        Open {
            flights: self.clone(),
            instance: instance.clone(),
        }
    }

    fn at(&self, instance: &InstanceId) -> u32 {
        self.open.lock().get(instance).copied().unwrap_or(0)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.flights.open.lock();
        if let Some(count) = open.get_mut(&self.instance) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.instance);
            }
        }
    }
}

/// Routes by the mirror of the catalog.
#[derive(Debug)]
pub(super) struct CatalogRoute {
    mirror: Mirror,
    flights: InFlight,
}

impl CatalogRoute {
    pub(super) fn new(mirror: Mirror, flights: InFlight) -> Self {
        Self { mirror, flights }
    }

    /// How full an instance is, from what it said and what we gave it since, per slot.
    fn fullness(&self, entry: &Entry) -> f64 {
        let load = entry.load().unwrap_or_default();
        let busy = load.running.max(self.flights.at(&entry.instance_id));
        f64::from(busy) / f64::from(load.slots.max(1))
    }
}

impl Route for CatalogRoute {
    fn candidates(&self, want: &Want) -> Vec<Candidate> {
        let Ok(query) = Query::parse(&want.selector, Some(&want.namespace)) else {
            return Vec::new();
        };
        let catalog = self.mirror.catalog();
        let mut fitting: Vec<Arc<Entry>> = catalog.find(&query);
        fitting.retain(|entry| entry.serves() && !want.exclude.contains(&entry.instance_id));
        choose_first(&mut fitting, &mut rand::rng(), |entry| self.fullness(entry));
        fitting
            .iter()
            .filter_map(|entry| candidate(entry, &want.selector.skill))
            .collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.mirror.changes()
    }
}

fn candidate(entry: &Entry, skill: &str) -> Option<Candidate> {
    let agent = entry.id.member.agent_name()?.clone();
    let idempotent = entry
        .card
        .skills
        .iter()
        .any(|has| has.name == skill && has.idempotent);
    Some(Candidate {
        instance: entry.instance_id.clone(),
        agent,
        idempotent,
        boot_id: entry.instance.boot_id.clone(),
    })
}

/// Puts the less loaded of two random ones at the front: nearly as good as the least loaded, and
/// a herd that sees the same numbers does not run to the same place (Mitzenmacher 2001).
fn choose_first<T>(all: &mut [T], random: &mut impl Rng, load: impl Fn(&T) -> f64) {
    if all.len() < 2 {
        return;
    }
    let first = random.random_range(0..all.len());
    all.swap(0, first);
    let second = random.random_range(1..all.len());
    if load(&all[second]) < load(&all[0]) {
        all.swap(0, second);
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn the_busiest_is_never_first_and_the_others_share() {
        let mut random = StdRng::seed_from_u64(7);
        let mut firsts = [0_u32; 3];
        for _ in 0..3000 {
            let mut all = [0_usize, 1, 2];
            choose_first(&mut all, &mut random, |place| [1.0, 0.0, 9.0][*place]);
            firsts[all[0]] += 1;
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2]);
        }
        assert_eq!(firsts[2], 0);
        assert!(firsts[1] > firsts[0], "{firsts:?}");
        assert!(firsts[0] > 500, "{firsts:?}");
    }

    #[test]
    fn what_is_open_is_counted_until_dropped() {
        let flights = InFlight::default();
        let one: InstanceId = "i1".parse().unwrap();
        let (a, b) = (flights.enter(&one), flights.enter(&one));
        assert_eq!(flights.at(&one), 2);
        drop((a, b));
        assert_eq!(flights.at(&one), 0);
        assert!(flights.open.lock().is_empty());
    }
}
