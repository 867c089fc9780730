//! Deadlines of calls and lines, on one wheel, asked for by one timer of the driver's.

use std::time::Duration;

use tokio::time::Instant;

use super::{Due, Exchange, GivenBack, PARKED_MAX, Policy};
use crate::h2::{
    call::{Call, Failure, Lane},
    slab::Key,
};

/// Bytes that are parked for so long without one of them moving: nobody reads, and the call ends.
pub const STALL: Duration = Duration::from_secs(60);
/// The same while parked bytes of all calls take more than half of what is given for them:
/// whoever does not read gives way to those who do.
pub(super) const STALL_PRESSED: Duration = Duration::from_secs(2);
/// For a stream of whoever answers: longer than any connection takes to be made.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

impl<P: Policy> Exchange<P> {
    /// When [`Self::on_time`] wants to be called, at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.wheel.next()
    }

    /// Time has passed.
    pub fn on_time(&mut self, now: Instant) {
        while let Some(due) = self.wheel.due(now) {
            match due {
                Due::Line(line) => self.line_due(line, now),
                Due::Call(call) => self.call_due(call, now),
            }
        }
        self.settle(now);
    }

    /// Looks at a call by then, at the latest.
    pub(super) fn arm_call(&mut self, key: Key, at: Instant) {
        if let Some(call) = self.calls.get_mut(key) {
            self.wheel.sooner(&mut call.due, at, Due::Call(key));
        }
    }

    /// Looks at a line when it wants to be looked at. One that is set for earlier is left so: it
    /// finds nothing to do and is set again.
    #[inline]
    pub(super) fn arm_line(&mut self, key: Key) {
        let Some(line) = self.lines.get_mut(key).filter(|line| line.connected) else {
            return;
        };
        if let Some(at) = line.connection.next_deadline() {
            self.wheel.sooner(&mut line.due, at, Due::Line(key));
        }
    }

    fn line_due(&mut self, key: Key, now: Instant) {
        let Some(line) = self.lines.get_mut(key) else {
            return;
        };
        line.due = None;
        if let Err(error) = line.connection.on_time(now) {
            line.connection.fail(&error);
            self.abandon(key, now);
            return self.touch(key);
        }
        let waits = !line.waiting.is_empty();
        if line.connection.has_output() || line.connection.over() {
            self.touch(key);
            self.stir(key);
        } else if waits {
            self.stir(key);
        }
        self.arm_line(key);
    }

    fn call_due(&mut self, key: Key, now: Instant) {
        let pressed = self.parked > PARKED_MAX / 2;
        let stall = if pressed { STALL_PRESSED } else { STALL };
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        call.due = None;
        if call.deadline.is_some_and(|(deadline, _)| deadline <= now) {
            return self.fail(key, Failure::Deadline, now);
        }
        if call.waiting.is_some_and(|since| since + PATIENCE <= now) {
            let why = "whoever answers takes no more calls at once; ask again later";
            return self.fail(key, Failure::Unavailable(why), now);
        }
        if call.resting.is_some_and(|until| until <= now) {
            return self.ask_again(key, GivenBack::Rested, now);
        }
        let stalled = |lane: &Lane| !lane.parked.is_empty() && lane.moved + stall <= now;
        if stalled(&call.response) || (stalled(&call.request) && call.waiting.is_none()) {
            let why = "nobody has read what was sent for too long";
            return self.fail(key, Failure::Exhausted(why), now);
        }
        if let Some(at) = look_again(call, now) {
            self.arm_call(key, at);
        }
    }
}

/// When to look at a call again. Parked bytes are looked at often: pressure may come at any time.
fn look_again<C>(call: &Call<C>, now: Instant) -> Option<Instant> {
    let parked = !(call.request.parked.is_empty() && call.response.parked.is_empty());
    let look = parked.then(|| now + STALL_PRESSED);
    let deadline = call.deadline.map(|(deadline, _)| deadline);
    let waiting = call.waiting.map(|since| since + PATIENCE);
    [look, deadline, waiting, call.resting]
        .into_iter()
        .flatten()
        .min()
}
