//! Whose turn it is: deliveries that wait, by where they go. Pure.
//!
//! Each place gets its turn, and only so much at once: one that does not answer keeps nobody else
//! waiting.

use std::collections::{BTreeMap, VecDeque};

use crate::task::callback::Delivery;

/// Deliveries to one place at once.
pub(super) const PER_PLACE: usize = 10;
/// Deliveries at once, to all places.
pub(super) const IN_FLIGHT: usize = 128;
/// Deliveries that wait here; of more the home hears that it is busy. A delivery is small, and what
/// it tells is in memory anyway.
const WAITING: usize = 8192;

/// Deliveries on their way and before it.
#[derive(Debug, Default)]
pub(super) struct Desk {
    places: BTreeMap<String, Place>,
    /// Places whose next delivery may go, each once.
    turns: VecDeque<String>,
    waiting: usize,
    under_way: usize,
}

#[derive(Debug, Default)]
struct Place {
    waiting: VecDeque<Delivery>,
    under_way: usize,
    /// It is among the turns.
    queued: bool,
}

impl Place {
    fn may_go(&self) -> bool {
        !self.waiting.is_empty() && self.under_way < PER_PLACE
    }
}

impl Desk {
    /// Takes one in.
    ///
    /// # Errors
    /// The delivery, where too many wait.
    pub(super) fn take(&mut self, delivery: Delivery) -> Result<(), Box<Delivery>> {
        if self.waiting >= WAITING {
            return Err(Box::new(delivery));
        }
        let name = delivery.target.place();
        self.places
            .entry(name.clone())
            .or_default()
            .waiting
            .push_back(delivery);
        self.waiting += 1;
        self.queue(name);
        Ok(())
    }

    /// The next to go, if one may.
    pub(super) fn next(&mut self) -> Option<Delivery> {
        if self.under_way >= IN_FLIGHT {
            return None;
        }
        let name = self.turns.pop_front()?;
        let place = self.places.get_mut(&name)?;
        place.queued = false;
        let next = place.waiting.pop_front()?;
        place.under_way += 1;
        self.waiting -= 1;
        self.under_way += 1;
        self.queue(name);
        Some(next)
    }

    /// One that went to this place is over.
    pub(super) fn done(&mut self, name: &str) {
        let Some(place) = self.places.get_mut(name) else {
            return;
        };
        place.under_way = place.under_way.saturating_sub(1);
        self.under_way = self.under_way.saturating_sub(1);
        if place.under_way == 0 && place.waiting.is_empty() {
            self.places.remove(name);
        } else {
            self.queue(name.to_owned());
        }
    }

    fn queue(&mut self, name: String) {
        if let Some(place) = self.places.get_mut(&name)
            && !place.queued
            && place.may_go()
        {
            place.queued = true;
            self.turns.push_back(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::domain::TaskId;
    use crate::task::callback::{Target, Url};

    fn delivery(host: &str) -> Delivery {
        Delivery {
            id: TaskId {
                home: "i1".parse().unwrap(),
                uuid: uuid::Uuid::nil(),
            },
            event: Arc::default(),
            target: Target::Url(Url::parse(&format!("https://{host}/")).unwrap()),
            until: SystemTime::UNIX_EPOCH,
            task: Box::default(),
            caller: "spiffe://a/ns/default/agent/c".parse().unwrap(),
        }
    }

    fn went(desk: &mut Desk) -> Vec<String> {
        std::iter::from_fn(|| desk.next())
            .map(|next| next.target.place())
            .collect()
    }

    #[test]
    fn places_take_turns_and_each_has_ten_at_once() {
        let mut desk = Desk::default();
        for _ in 0..25 {
            desk.take(delivery("dead")).unwrap();
        }
        for _ in 0..2 {
            desk.take(delivery("well")).unwrap();
        }
        let first = went(&mut desk);
        assert_eq!(first[..4], ["dead", "well", "dead", "well"]);
        assert_eq!(first.len(), PER_PLACE + 2);
        desk.done("well");
        assert!(desk.next().is_none());
        desk.done("dead");
        assert_eq!(went(&mut desk), ["dead"]);
        desk.done("well");
        for _ in 0..PER_PLACE {
            desk.done("dead");
        }
        assert_eq!(went(&mut desk).len(), PER_PLACE);
        for _ in 0..PER_PLACE {
            desk.done("dead");
        }
        assert_eq!(went(&mut desk).len(), 4);
        for _ in 0..4 {
            desk.done("dead");
        }
        assert!(desk.places.is_empty() && desk.turns.is_empty());
        assert_eq!((desk.waiting, desk.under_way), (0, 0));
    }

    #[test]
    fn what_waits_and_what_is_under_way_is_bounded() {
        let mut desk = Desk::default();
        for number in 0..WAITING {
            desk.take(delivery(&format!("host{}", number % 100)))
                .unwrap();
        }
        assert!(desk.take(delivery("one-more")).is_err());
        assert_eq!(went(&mut desk).len(), IN_FLIGHT);
        assert!(desk.take(delivery("one-more")).is_ok());
        assert!(desk.next().is_none());
        desk.done("host0");
        assert_eq!(went(&mut desk).len(), 1);
    }
}
