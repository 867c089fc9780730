//! Many connections, and the calls that are switched between them.
//!
//! Owns every connection of one core of the machine (a [`Line`] each), every [`Call`], and their
//! deadlines. Refuses to know sockets, tasks and wake-ups: a driver brings bytes, takes bytes, and
//! is told which other lines have something to send. Refuses to decide where a call goes: that is
//! [`Policy`].
//!
//! | file | what |
//! |---|---|
//! | `policy` | the seam: what is asked and told |
//! | `line` | a connection's place here, and what the driver does with it |
//! | `queue` | calls that wait for a stream: callers take turns |
//! | `request` | a request: judged, given to a line, given again |
//! | `answer` | an answer's fields |
//! | `transit` | DATA: passed on, parked, sent on when windows open |
//! | `upstream` | the line to a target; calls that wait for a stream on it |
//! | `ending` | how calls and lines end |
//! | `timing` | deadlines of both |
//!
//! A driver's turn: read all there is, [`Exchange::receive`], [`Exchange::take_output`], write it
//! in one go, [`Exchange::written`]; then wake each line of [`Exchange::take_dirty`] once, dial
//! what [`Exchange::next_dial`] asks for, and set its one timer to [`Exchange::next_deadline`].

mod answer;
mod ending;
mod line;
mod policy;
mod queue;
mod request;
#[cfg(test)]
mod tests;
mod timing;
mod transit;
mod upstream;

use std::collections::HashMap;

use tokio::time::Instant;

use self::{line::Line, transit::Piece};
pub use self::{
    line::{Destination, Dial},
    policy::{End, GivenBack, Onward, Outcome, Policy, Request, Target, Verdict},
    timing::STALL,
};
use super::{
    call::{Call, Kept},
    connection::Event,
    hpack::Fields,
    slab::{Key, Slab},
    wheel::Wheel,
};

/// Parked bytes of all calls for which connection credit is given back before they leave: slow
/// readers then hold up only their own streams. Above it, they hold up those who send to them.
const PARKED_MAX: usize = 64 << 20;
/// Bytes of requests that are kept to be sent again, of all calls together: a quarter of what may
/// be parked. Above it, calls that send more are not kept.
const KEPT_MAX: usize = 16 << 20;
/// Buffers of ended calls that are kept for others.
const SPARE_MAX: usize = 256;

/// What is due on the wheel.
#[derive(Debug, Clone, Copy)]
enum Due {
    Line(Key),
    Call(Key),
}

/// Where calls are switched between connections. See the module.
#[derive(Debug)]
pub struct Exchange<P: Policy> {
    policy: P,
    lines: Slab<Line<P::Peer>>,
    calls: Slab<Call<P::Call>>,
    targets: HashMap<Target, Key>,
    wheel: Wheel<Due>,
    /// The list that is being read, and one that is being written.
    fields: Fields,
    written: Fields,
    text: Vec<u8>,
    spare: Vec<Kept>,
    /// Bytes parked in all calls.
    parked: usize,
    /// Bytes of requests kept in all calls.
    kept: usize,
    /// The line whose driver is at work: it needs no waking.
    current: Option<Key>,
    /// Lines with something to send whose drivers do not know yet.
    dirty: Vec<Key>,
    /// Lines to look at again before we are done: a stream became free, or something is to be sent.
    stirred: Vec<Key>,
    dials: Vec<Dial>,
}

impl<P: Policy> Exchange<P> {
    /// Without lines.
    pub fn new(policy: P, now: Instant) -> Self {
        Self {
            policy,
            lines: Slab::default(),
            calls: Slab::default(),
            targets: HashMap::new(),
            wheel: Wheel::new(now),
            fields: Fields::new(),
            written: Fields::new(),
            text: Vec::new(),
            spare: Vec::new(),
            parked: 0,
            kept: 0,
            current: None,
            dirty: Vec::new(),
            stirred: Vec::new(),
            dials: Vec::new(),
        }
    }

    /// Who decides.
    pub fn policy(&mut self) -> &mut P {
        &mut self.policy
    }

    /// How many calls there are.
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// How many connections there are, those being made with them.
    pub fn lines(&self) -> usize {
        self.lines.len()
    }

    /// Bytes that wait in calls, for windows to open.
    pub fn parked(&self) -> usize {
        self.parked
    }

    /// Bytes of requests that are kept, to be sent again.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// Takes all whole frames of `bytes`, which the line's driver has read. Answers how many bytes
    /// that were: the rest comes again, with more. A line that is [over](Self::over) takes all.
    pub fn receive(&mut self, line: Key, bytes: &[u8], now: Instant) -> usize {
        self.current = Some(line);
        let mut at = 0;
        loop {
            let Some(connection) = self.lines.get_mut(line).map(|line| &mut line.connection) else {
                at = bytes.len();
                break;
            };
            match connection.receive(&bytes[at..], &mut self.fields, now) {
                Ok((0, _)) => {
                    connection.note_remainder(at < bytes.len(), at > 0, now);
                    break;
                }
                Ok((used, event)) => {
                    at += used;
                    self.handle(line, event, now);
                }
                Err(error) => {
                    connection.fail(&error);
                    self.abandon(line, now);
                    at = bytes.len();
                    break;
                }
            }
        }
        let place = self.lines.get(line);
        if place.is_some_and(|place| !place.waiting.is_empty()) {
            // Streams that were given up end without a word to anybody.
            self.stir(line);
        }
        self.settle(now);
        self.arm_line(line);
        self.current = None;
        at
    }

    #[inline]
    fn handle(&mut self, line: Key, event: Event<'_>, now: Instant) {
        match event {
            Event::Quiet => {}
            Event::Request { stream, end } => self.request(line, stream, end, now),
            Event::Oversized { stream } => self.oversized(line, stream),
            Event::Fields { call, part, end } => self.fields(line, call, part, end, now),
            Event::Data {
                call,
                data,
                flow,
                end,
            } => self.transit(line, call, Piece { data, flow, end }, now),
            Event::Reset { call, code, ours } => self.stream_reset(line, call, code, ours, now),
            Event::Widened { call } => {
                self.queue(line, call);
                self.stir(line);
            }
            Event::Eased => self.stir(line),
            Event::Changed => {
                self.queue_all(line);
                self.stir(line);
            }
            Event::GoAway { last, .. } => self.goaway(line, last, now),
        }
    }

    /// Looks at all lines that were stirred: opens streams for those who wait, sends what is
    /// parked. Here and nowhere else, so that nothing calls itself.
    fn settle(&mut self, now: Instant) {
        while let Some(line) = self.stirred.pop() {
            self.open_waiting(line, now);
            self.flush(line, now);
        }
    }

    /// The line is to be looked at again before we are done.
    #[inline]
    fn stir(&mut self, line: Key) {
        if self.stirred.last() != Some(&line) {
            self.stirred.push(line);
        }
    }

    /// Something was written for a line: its driver is to know, unless it is at work.
    #[inline]
    fn touch(&mut self, line: Key) {
        if self.current == Some(line) {
            return;
        }
        if let Some(place) = self.lines.get_mut(line)
            && !place.dirty
        {
            place.dirty = true;
            self.dirty.push(line);
        }
    }
}
