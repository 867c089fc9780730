//! Whose turn it is to be told of, by where they are told. Pure.
//!
//! Of the tasks of a shard that have something to tell at one place only a few are out at once; the
//! others wait here, and take up no room at the courier, nor at an agent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use uuid::Uuid;

/// Tasks of a shard that are out at once for one place: at the courier, or told by a task of an agent
/// that has not ended.
pub(super) const OUT_MAX: usize = 16;

/// The places where tasks of a shard have something to tell, or will.
#[derive(Debug, Default)]
pub(super) struct Places {
    all: BTreeMap<Arc<str>, Place>,
}

#[derive(Debug, Default)]
struct Place {
    /// Tasks that are told of there and are not over.
    tasks: usize,
    out: usize,
    /// Whoever is next may have given up meanwhile.
    waiting: VecDeque<Uuid>,
}

impl Places {
    /// Tasks that are told of there and are not over.
    pub(super) fn tasks(&self, place: &str) -> usize {
        self.all.get(place).map_or(0, |place| place.tasks)
    }

    /// One more task is told of there.
    pub(super) fn enter(&mut self, place: &Arc<str>) {
        self.all.entry(place.clone()).or_default().tasks += 1;
    }

    /// One less is.
    pub(super) fn leave(&mut self, place: &Arc<str>) {
        self.change(place, |place| place.tasks = place.tasks.saturating_sub(1));
    }

    /// Whether the task may go out now; otherwise it waits for its turn.
    pub(super) fn may_go(&mut self, name: &Arc<str>, task: Uuid) -> bool {
        let place = self.all.entry(name.clone()).or_default();
        let goes = place.out < OUT_MAX && place.waiting.is_empty();
        if goes {
            place.out += 1;
        } else {
            place.waiting.push_back(task);
        }
        goes
    }

    /// One that was out there is back.
    pub(super) fn back(&mut self, place: &Arc<str>) {
        self.change(place, |place| place.out = place.out.saturating_sub(1));
    }

    /// The next one that may go out there, if it still wants to: it is out now.
    pub(super) fn next(&mut self, name: &Arc<str>) -> Option<Uuid> {
        let place = self.all.get_mut(name)?;
        if place.out >= OUT_MAX {
            return None;
        }
        let next = place.waiting.pop_front()?;
        place.out += 1;
        Some(next)
    }

    fn change(&mut self, name: &Arc<str>, change: impl FnOnce(&mut Place)) {
        let Some(place) = self.all.get_mut(name) else {
            return;
        };
        change(place);
        if place.tasks == 0 && place.out == 0 && place.waiting.is_empty() {
            self.all.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_out_at_once_and_the_others_go_in_the_order_in_which_they_came() {
        let (mut places, dead): (_, Arc<str>) = (Places::default(), "dead".into());
        let well: Arc<str> = "well".into();
        let task = |number: usize| Uuid::from_u128(number as u128);
        let went: Vec<_> = (0..OUT_MAX + 2)
            .filter(|number| {
                places.enter(&dead);
                places.may_go(&dead, task(*number))
            })
            .collect();
        assert_eq!(went, (0..OUT_MAX).collect::<Vec<_>>());
        assert_eq!(places.next(&dead), None);
        assert!(places.may_go(&well, task(99)), "others do not wait for it");
        places.back(&dead);
        assert_eq!(places.next(&dead), Some(task(OUT_MAX)));
        assert_eq!(places.next(&dead), None);
        places.back(&dead);
        assert!(!places.may_go(&dead, task(0)), "it waits behind the other");
        assert_eq!(places.next(&dead), Some(task(OUT_MAX + 1)));
        assert_eq!(places.tasks("dead"), OUT_MAX + 2);
        for _ in 0..OUT_MAX + 2 {
            places.leave(&dead);
            places.back(&dead);
        }
        assert_eq!(places.next(&dead), Some(task(0)));
        places.back(&dead);
        places.back(&well);
        assert!(places.all.is_empty(), "{places:?}");
    }
}
