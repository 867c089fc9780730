//! When a change is told: at its turn at its place, and not while it rests. Pure.

use std::sync::Arc;

use tokio::time::Instant;
use uuid::Uuid;

use crate::task::callback::Ticket;
use crate::task::spec::Moment;

use super::machine::{Effect, Tasks};
use super::telling::{HELD, UNHEARD, Way};

impl Tasks {
    /// Does nothing until then, and leaves its turn to others.
    pub(super) fn put_off(&mut self, task: Uuid, next: Instant, at: Moment) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(telling) = &mut entry.telling else {
            return;
        };
        let was_out = telling.is_out();
        telling.way = Way::Rests;
        telling.next = next.min(telling.ends());
        if was_out && let Some(place) = entry.place.clone() {
            self.back(&place, at);
        }
    }

    /// Goes out, or waits for its turn at its place.
    pub(super) fn ask_turn(&mut self, task: Uuid, at: Moment) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let (Some(telling), Some(place)) = (&mut entry.telling, &entry.place) else {
            return;
        };
        if self.holding {
            telling.next = at.now + HELD;
        } else if self.places.may_go(place, task) {
            self.queue(task, at);
        } else {
            telling.way = Way::Waits;
            telling.next = telling.ends();
        }
    }

    /// Has the courier make a try when its turn comes there.
    pub(super) fn queue(&mut self, task: Uuid, at: Moment) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let (Some(telling), Some(place)) = (&mut entry.telling, &entry.place) else {
            return;
        };
        self.tries += 1;
        telling.number = self.tries;
        telling.way = Way::Queued;
        telling.next = (at.now + UNHEARD).min(telling.ends());
        self.effects.push(Effect::Tell(Box::new(Ticket {
            id: entry.kept.id.clone(),
            seq: telling.seq,
            number: telling.number,
            place: place.clone(),
        })));
    }

    /// One that was out at this place is back: whoever waited longest goes.
    fn back(&mut self, place: &Arc<str>, at: Moment) {
        self.places.back(place);
        while !self.holding
            && let Some(next) = self.places.next(place)
        {
            let entry = self.tasks.get(&next);
            let telling = entry.and_then(|entry| entry.telling.as_ref());
            if telling.is_some_and(|telling| telling.way == Way::Waits) {
                self.queue(next, at);
                self.settle(next);
            } else {
                self.places.back(place);
            }
        }
    }

    /// Nothing of it is being told any more.
    pub(super) fn end_telling(&mut self, task: Uuid, at: Moment) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(telling) = entry.telling.take() else {
            return;
        };
        self.telling -= 1;
        if telling.is_out()
            && let Some(place) = entry.place.clone()
        {
            self.back(&place, at);
        }
    }
}
