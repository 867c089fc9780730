//! The line to whoever answers: one for each target, and one to our own services for each caller.

use tokio::time::Instant;

use super::{
    Destination, Dial, Exchange, GivenBack, Policy, Target,
    line::{Far, Line},
    queue::Queue,
};
use crate::h2::{
    connection::{Connection, Room},
    slab::Key,
};

impl<P: Policy> Exchange<P> {
    /// The line that leads there; a new one to be dialed where there is none, or none that takes
    /// calls. `None` where the caller that it is for has gone.
    pub(super) fn line_to(&mut self, to: Destination, now: Instant) -> Option<Key> {
        let known = match to {
            Destination::Target(target) => self.targets.get(&target).copied(),
            Destination::Local { caller } => match &self.lines.get(caller)?.far {
                Far::Caller { local, .. } => *local,
                Far::Answering(_) => None,
            },
        };
        if let Some(line) = known {
            match self.lines.get(line).map(|line| line.connection.room()) {
                Some(Room::Yes | Room::Later) => return Some(line),
                Some(Room::Never) => self.drain(line, now),
                None => {}
            }
        }
        let target = match to {
            Destination::Target(target) => Some(target),
            Destination::Local { .. } => None,
        };
        let connection = Connection::new(self.policy.config(target), now);
        let line = Line::new(connection, Far::Answering(to), false);
        let line = self.lines.insert(line);
        match to {
            Destination::Target(target) => {
                self.targets.insert(target, line);
            }
            Destination::Local { caller } => {
                if let Some(Far::Caller { local, .. }) =
                    self.lines.get_mut(caller).map(|line| &mut line.far)
                {
                    *local = Some(line);
                }
            }
        }
        self.dials.push(Dial { line, to });
        Some(line)
    }

    /// Has a line to a target, for calls that are to come; one is dialed where there is none.
    pub fn stand_by(&mut self, target: Target, now: Instant) {
        self.line_to(Destination::Target(target), now);
        self.settle(now);
    }

    /// New calls go elsewhere from now on.
    pub(super) fn forget(&mut self, line: Key) {
        let Some(Far::Answering(to)) = self.lines.get(line).map(|line| &line.far) else {
            return;
        };
        match *to {
            Destination::Target(target) => {
                if self.targets.get(&target) == Some(&line) {
                    self.targets.remove(&target);
                }
            }
            Destination::Local { caller } => {
                if let Some(Far::Caller { local, .. }) =
                    self.lines.get_mut(caller).map(|line| &mut line.far)
                    && *local == Some(line)
                {
                    *local = None;
                }
            }
        }
    }

    /// Opens streams for calls that wait, as far as there is room.
    pub(super) fn open_waiting(&mut self, line: Key, now: Instant) {
        while let Some(place) = self.lines.get_mut(line)
            && place.connection.room() == Room::Yes
            && let most = place.connection.most()
            && let Some(key) = place
                .waiting
                .next(|share| place.connection.held(share), most)
        {
            if self.waits_on(key, line) {
                self.open(key, now);
            }
        }
    }

    /// The peer takes no more calls. Those that it has not looked at go again, on another line;
    /// the others end in their own time.
    pub(super) fn goaway(&mut self, line: Key, last: u32, now: Instant) {
        self.forget(line);
        let Some(place) = self.lines.get_mut(line) else {
            return;
        };
        let unprocessed = place.connection.take_unprocessed(last);
        let waiting = std::mem::take(&mut place.waiting);
        for key in unprocessed {
            if let Some(call) = self.calls.get_mut(key) {
                call.leave_upstream();
                self.again(key, GivenBack::Unprocessed, now);
            }
        }
        self.wait_elsewhere(waiting, line, GivenBack::Unprocessed, now);
        self.touch(line);
    }

    /// Calls that waited for a stream on this line go again: it opens none any more.
    pub(super) fn wait_elsewhere(
        &mut self,
        waiting: Queue,
        line: Key,
        why: GivenBack,
        now: Instant,
    ) {
        for key in waiting.into_calls() {
            if self.waits_on(key, line) {
                self.again(key, why, now);
            }
        }
    }

    /// Whether a call is in this line's list with reason: it may have gone elsewhere since.
    pub(super) fn waits_on(&self, key: Key, line: Key) -> bool {
        let call = self.calls.get(key);
        call.is_some_and(|call| call.waiting.is_some() && call.up.is_some_and(|up| up.line == line))
    }
}
