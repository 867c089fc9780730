//! Which of a shard's tasks were submitted with an idempotency key. Pure.
//!
//! Tasks go from memory to the archive: whoever looked for a key there first, and asks the shard
//! then, must not miss one that moved in between. So what moved stays known here for a while, and a
//! look that is older than what was let go of is refused.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;
use uuid::Uuid;

use crate::task::key::place_of;

/// Keys of moved tasks that are remembered: far more than move while somebody looks.
const MOVED_MAX: usize = 4096;

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Its task is in memory.
    Here(Uuid),
    /// Its task was moved to the archive, or may have been moved since the look.
    Archived,
    /// It is not in memory, and was not since the look.
    Unknown,
}

/// The keys of one shard, by their place.
#[derive(Debug, Default)]
pub(super) struct Keys {
    here: HashMap<u64, Uuid>,
    moved: HashMap<u64, Uuid>,
    /// In the order in which they moved.
    order: VecDeque<(Instant, Uuid)>,
    /// What moved until then is forgotten.
    forgotten: Option<Instant>,
}

impl Keys {
    /// A task with a key is in memory.
    pub(super) fn enter(&mut self, task: Uuid) {
        let place = place_of(task);
        self.here.insert(place, task);
        self.moved.remove(&place);
    }

    /// It leaves memory; `moved`: the archive has it since then, else nobody has it.
    pub(super) fn leave(&mut self, task: Uuid, moved: Option<Instant>) {
        let place = place_of(task);
        if self.here.get(&place) != Some(&task) {
            return;
        }
        self.here.remove(&place);
        let Some(now) = moved else { return };
        self.moved.insert(place, task);
        self.order.push_back((now, task));
        if self.order.len() > MOVED_MAX
            && let Some((at, oldest)) = self.order.pop_front()
        {
            self.forgotten = Some(at);
            if self.moved.get(&place_of(oldest)) == Some(&oldest) {
                self.moved.remove(&place_of(oldest));
            }
        }
    }

    /// What is known of the key at `place`, for somebody who looked into the archive at `looked`.
    pub(super) fn find(&self, place: u64, looked: Instant) -> Known {
        if let Some(task) = self.here.get(&place) {
            return Known::Here(*task);
        }
        if self.moved.contains_key(&place) || self.forgotten.is_some_and(|until| looked <= until) {
            return Known::Archived;
        }
        Known::Unknown
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn task(place: u64) -> Uuid {
        Uuid::from_u64_pair(7, place)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_found_in_memory_then_as_moved_and_at_last_by_a_new_look_only() {
        let (mut keys, began) = (Keys::default(), Instant::now());
        let at = |number: u64| began + Duration::from_millis(number);
        assert_eq!(keys.find(1, began), Known::Unknown);
        keys.enter(task(1));
        assert_eq!(keys.find(1, began), Known::Here(task(1)));
        keys.leave(task(1), Some(at(1)));
        assert_eq!(keys.find(1, began), Known::Archived);

        for number in 2..MOVED_MAX as u64 + 2 {
            keys.enter(task(number));
            keys.leave(task(number), Some(at(number)));
        }
        assert_eq!(keys.find(1, at(1)), Known::Archived, "looked too early");
        assert_eq!(keys.find(1, at(2)), Known::Unknown, "it is there by then");
        assert_eq!(keys.find(2, at(1)), Known::Archived);
        assert_eq!(keys.moved.len(), MOVED_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_nobody_has_any_more_is_free() {
        let (mut keys, now) = (Keys::default(), Instant::now());
        keys.enter(task(1));
        keys.leave(task(1), None);
        assert_eq!(keys.find(1, now), Known::Unknown);
        // A newer task of the same key is not taken away by the end of the older one.
        let newer = Uuid::from_u64_pair(8, 1);
        keys.enter(task(1));
        keys.enter(newer);
        keys.leave(task(1), Some(now));
        assert_eq!(keys.find(1, now), Known::Here(newer));
    }
}
