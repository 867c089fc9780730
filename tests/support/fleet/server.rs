//! An instance at work: so many calls at a time, a queue before them, and an end to both.

use std::{collections::VecDeque, time::Duration};

use super::world::{Draw, Instance, Time};

/// Calls that wait at an instance, beyond which it says that it has too much to do.
const QUEUE: usize = 100;
/// What it says then: when to ask again.
pub(crate) const PUSHBACK: Duration = Duration::from_millis(200);

/// One try of one call.
pub(crate) type Try = (usize, u32);

/// What an instance does now.
#[derive(Debug, Default)]
pub(crate) struct Server {
    at_work: Vec<Try>,
    waiting: VecDeque<(Try, Draw)>,
    /// Moves on whenever all that it does is lost.
    pub(crate) life: u32,
}

/// What becomes of a call that comes in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Taken {
    /// Done then.
    Done(Time),
    /// After others.
    Waits,
    /// Not at all.
    Full,
}

impl Server {
    /// A call comes in.
    pub(crate) fn take(&mut self, one: Try, draw: Draw, is: &Instance, now: Time) -> Taken {
        if self.at_work.len() < is.workers {
            self.at_work.push(one);
            Taken::Done(is.done(now, draw))
        } else if self.waiting.len() < QUEUE {
            self.waiting.push_back((one, draw));
            Taken::Waits
        } else {
            Taken::Full
        }
    }

    /// A call is done; the next that somebody still waits for, and when it is done.
    pub(crate) fn done(
        &mut self,
        one: Try,
        is: &Instance,
        now: Time,
        wanted: impl Fn(Try) -> bool,
    ) -> Option<(Try, Time)> {
        if let Some(place) = self.at_work.iter().position(|other| *other == one) {
            self.at_work.swap_remove(place);
        }
        while let Some((next, draw)) = self.waiting.pop_front() {
            if wanted(next) {
                self.at_work.push(next);
                return Some((next, is.done(now, draw)));
            }
        }
        None
    }

    /// It ends: everything that it had.
    pub(crate) fn end(&mut self) -> Vec<Try> {
        self.life += 1;
        let waiting = std::mem::take(&mut self.waiting);
        let mut lost = std::mem::take(&mut self.at_work);
        lost.extend(waiting.into_iter().map(|(one, _)| one));
        lost
    }
}
