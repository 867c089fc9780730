//! Whose turn it is: tickets that wait, by where they go. Pure.
//!
//! Each place gets its turn, and only so much at once. One that has just failed, or that nobody knows
//! yet, gets one try at a time, and all of those together half of all: whatever does not answer keeps
//! nobody else waiting.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::task::callback::Ticket;

/// Tries at one place at once.
pub(super) const PER_PLACE: usize = 10;
/// Tries at once, at all places.
pub(super) const IN_FLIGHT: usize = 128;
/// Of these, tries at places that may not be there.
const DOUBTFUL: usize = IN_FLIGHT / 2;
/// Of these, what such places get however much waits for the others.
const DOUBTFUL_LEAST: usize = IN_FLIGHT / 8;
/// Places where nothing waits that are remembered as being there.
const KNOWN: usize = 1024;

/// Tickets that wait. How many is bounded by those who give them out: each task has one that counts,
/// and only a few of those for one place are out at a time.
#[derive(Debug, Default)]
pub(super) struct Desk {
    places: BTreeMap<Arc<str>, Place>,
    /// Places whose next ticket may go, each once.
    sure: VecDeque<Arc<str>>,
    doubtful: VecDeque<Arc<str>>,
    under_way: usize,
    doubtful_under_way: usize,
}

#[derive(Debug, Default)]
struct Place {
    waiting: VecDeque<Ticket>,
    under_way: usize,
    /// The last try was answered.
    is_there: bool,
    /// The one try that is under way was begun in doubt.
    in_doubt: bool,
    /// It is among the turns.
    queued: bool,
}

impl Place {
    fn may_go(&self) -> bool {
        let most = if self.is_there { PER_PLACE } else { 1 };
        !self.waiting.is_empty() && self.under_way < most
    }

    fn is_idle(&self) -> bool {
        self.under_way == 0 && self.waiting.is_empty()
    }
}

impl Desk {
    /// Takes one in.
    pub(super) fn take(&mut self, ticket: Ticket) {
        let name = ticket.place.clone();
        let place = self.places.entry(name.clone()).or_default();
        place.waiting.push_back(ticket);
        self.queue(name);
    }

    /// The next to go, if one may.
    pub(super) fn next(&mut self) -> Option<Ticket> {
        while self.under_way < IN_FLIGHT {
            let least = self.doubtful_under_way < DOUBTFUL_LEAST && !self.doubtful.is_empty();
            let in_doubt = self.sure.is_empty() || least;
            if in_doubt && self.doubtful_under_way >= DOUBTFUL {
                return None;
            }
            let turns = if in_doubt {
                &mut self.doubtful
            } else {
                &mut self.sure
            };
            let name = turns.pop_front()?;
            let Some(place) = self.places.get_mut(&name) else {
                continue;
            };
            place.queued = false;
            if place.is_there == in_doubt || !place.may_go() {
                // It has changed since.
                self.queue(name);
                continue;
            }
            let Some(next) = place.waiting.pop_front() else {
                continue;
            };
            place.under_way += 1;
            place.in_doubt = in_doubt;
            self.doubtful_under_way += usize::from(in_doubt);
            self.under_way += 1;
            self.queue(name);
            return Some(next);
        }
        None
    }

    /// One that went to this place is over; whether it was answered, if anything was tried.
    pub(super) fn done(&mut self, name: &str, answered: Option<bool>) {
        let Some((name, place)) = self.places.get_key_value(name) else {
            return;
        };
        let (name, in_doubt) = (name.clone(), place.in_doubt);
        let known = self.places.len() <= KNOWN;
        let Some(place) = self.places.get_mut(&name) else {
            return;
        };
        place.under_way = place.under_way.saturating_sub(1);
        place.is_there = answered.unwrap_or(place.is_there);
        place.in_doubt = false;
        self.doubtful_under_way -= usize::from(in_doubt);
        self.under_way = self.under_way.saturating_sub(1);
        if place.is_idle() && !(place.is_there && known) {
            self.places.remove(&name);
        } else {
            self.queue(name);
        }
    }

    fn queue(&mut self, name: Arc<str>) {
        if let Some(place) = self.places.get_mut(&name)
            && !place.queued
            && place.may_go()
        {
            place.queued = true;
            let turns = if place.is_there {
                &mut self.sure
            } else {
                &mut self.doubtful
            };
            turns.push_back(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::TaskId;

    fn ticket(place: &str) -> Ticket {
        Ticket {
            id: TaskId {
                home: "i1".parse().unwrap(),
                uuid: uuid::Uuid::nil(),
            },
            seq: 1,
            number: 1,
            place: place.into(),
        }
    }

    fn went(desk: &mut Desk) -> Vec<Arc<str>> {
        std::iter::from_fn(|| desk.next())
            .map(|next| next.place)
            .collect()
    }

    #[test]
    fn places_take_turns_and_each_has_ten_at_once() {
        let mut desk = Desk::default();
        for _ in 0..PER_PLACE + 5 {
            desk.take(ticket("one"));
            desk.take(ticket("two"));
        }
        let first = went(&mut desk);
        assert_eq!(
            first,
            ["one".into(), "two".into()],
            "one, while nobody knows"
        );
        desk.done("one", Some(true));
        desk.done("two", Some(true));
        let then = went(&mut desk);
        assert_eq!(then[..4], ["one", "two", "one", "two"].map(Arc::from));
        assert_eq!(then.len(), 2 * PER_PLACE);
        desk.done("two", Some(true));
        assert_eq!(went(&mut desk), ["two".into()]);
    }

    #[test]
    fn a_place_that_has_just_failed_gets_one_try_at_a_time() {
        let mut desk = Desk::default();
        for _ in 0..30 {
            desk.take(ticket("dead"));
        }
        assert_eq!(went(&mut desk).len(), 1);
        desk.done("dead", Some(true));
        assert_eq!(went(&mut desk).len(), PER_PLACE);
        for _ in 0..PER_PLACE - 1 {
            desk.done("dead", Some(false));
            assert_eq!(went(&mut desk).len(), 0, "while others are under way");
        }
        desk.done("dead", Some(false));
        assert_eq!(went(&mut desk).len(), 1);
        // Nothing was tried: that says nothing.
        desk.done("dead", None);
        assert_eq!(went(&mut desk).len(), 1);
        desk.done("dead", Some(true));
        assert_eq!(went(&mut desk).len(), PER_PLACE);
    }

    #[test]
    fn places_that_do_not_answer_leave_half_of_all_to_the_others() {
        let mut desk = Desk::default();
        desk.take(ticket("well"));
        assert_eq!(went(&mut desk).len(), 1);
        desk.done("well", Some(true));
        for number in 0..10 * IN_FLIGHT {
            desk.take(ticket(&format!("dead{number}")));
        }
        assert_eq!(went(&mut desk).len(), DOUBTFUL);
        for _ in 0..PER_PLACE {
            desk.take(ticket("well"));
        }
        assert_eq!(went(&mut desk).len(), PER_PLACE, "it is not in their way");
        desk.done("dead0", Some(false));
        assert_eq!(went(&mut desk), [format!("dead{DOUBTFUL}").into()]);
    }

    #[test]
    fn a_new_place_has_its_turn_however_much_waits_for_known_ones() {
        let mut desk = Desk::default();
        for number in 0..20 {
            desk.take(ticket(&format!("known{number}")));
            let next = desk.next().unwrap();
            desk.done(&next.place, Some(true));
        }
        for number in 0..20 * 50 {
            desk.take(ticket(&format!("known{}", number % 20)));
        }
        assert_eq!(went(&mut desk).len(), IN_FLIGHT);
        desk.take(ticket("new"));
        desk.done("known0", Some(true));
        assert_eq!(went(&mut desk), ["new".into()]);
    }

    #[test]
    fn nothing_is_left_of_places_where_nothing_waits_but_that_they_are_there() {
        let mut desk = Desk::default();
        for number in 0..2 * KNOWN {
            desk.take(ticket(&format!("host{number}")));
            let next = desk.next().unwrap();
            desk.done(&next.place, Some(number % 2 == 0));
        }
        assert!(desk.places.len() <= KNOWN, "{}", desk.places.len());
        assert!(desk.places.values().all(|place| place.is_there));
        assert!(desk.sure.is_empty() && desk.doubtful.is_empty());
        assert_eq!((desk.under_way, desk.doubtful_under_way), (0, 0));
    }
}
