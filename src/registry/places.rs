//! Places for watches: so many in all, and so many for one member. A place is given back by drop.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::domain::Fault;
use crate::domain::Reason;
use crate::domain::SpiffeId;

/// Most watches at once: one for each sidecar and as many for operators' tools.
const ALL_MAX: usize = 20_000;
/// Most watches of one member, whose replicas share the id: as many as its connections.
const EACH_MAX: usize = 1_024;

/// Counts the places that are taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    each: HashMap<SpiffeId, usize>,
}

impl Places {
    /// Takes a place for a member.
    ///
    /// # Errors
    /// `QUEUE_FULL` when there is none left.
    pub(super) fn take(&self, member: &SpiffeId) -> Result<Place, Fault> {
        let mut taken = self.taken.lock();
        if taken.all >= ALL_MAX {
            let text = "the registry serves as many watches as it can: try another one";
            return Err(Fault::new(Reason::QueueFull, text));
        }
        let own = taken.each.entry(member.clone()).or_default();
        if *own >= EACH_MAX {
            let text = format!("{member} has {EACH_MAX} watches already: end some of them");
            return Err(Fault::new(Reason::QueueFull, text));
        }
        *own += 1;
        taken.all += 1;
        Ok(Place {
            places: self.clone(),
            member: member.clone(),
        })
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.lock().all
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    member: SpiffeId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.all -= 1;
        if let Some(own) = taken.each.get_mut(&self.member) {
            *own -= 1;
            if *own == 0 {
                taken.each.remove(&self.member);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::fixture::member;

    #[test]
    fn one_member_does_not_take_the_places_of_the_others() {
        let places = Places::default();
        let greedy = member("default/greedy");
        let mut held: Vec<Place> = (0..EACH_MAX)
            .map(|_| places.take(&greedy).unwrap())
            .collect();
        assert_eq!(places.take(&greedy).unwrap_err().reason, Reason::QueueFull);
        assert!(places.take(&member("default/x")).is_ok());
        held.pop();
        held.push(places.take(&greedy).unwrap());
        drop(held);
        assert_eq!(places.taken(), 0);
        assert!(places.taken.lock().each.is_empty());
    }

    #[test]
    fn there_is_an_end_for_all_together() {
        let places = Places::default();
        let held: Vec<Place> = (0..ALL_MAX)
            .map(|n| {
                places
                    .take(&member(&format!("default/x{}", n / 1_000)))
                    .unwrap()
            })
            .collect();
        let late = member("default/late");
        assert_eq!(places.take(&late).unwrap_err().reason, Reason::QueueFull);
        drop(held);
        assert!(places.take(&late).is_ok());
    }
}
