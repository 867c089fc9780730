//! Streams of ours that nobody wants any longer: reset, but never faster than the peer bears it.
//!
//! A connection to whoever answers is shared, and servers end connections on which streams are reset
//! in great numbers; most of all those that they have not looked at yet. Each caller is held to its
//! own budget, but callers may come again on new connections, or be many. So resets have a pace of
//! ours, below what the peer bears: a stream that cannot be reset yet stays open without a call, what
//! comes on it is dropped and its window is given no more, and most end by themselves meanwhile.
//! Bounded by the streams that the peer allows.
//!
//! ```text
//!   given up -> fresh --an answer to it, or to one that was opened later--> known -> reset
//!                 |  '--after a while--> aged ---------------------------->   |
//!                 '-> reset            '-> reset
//! ```

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::{Connection, Stream};
use crate::h2::{budget::Allowance, frame::ErrorCode, slab::Key, stream::Side};

/// A stream has been looked at after so long, most likely: no server leaves it lying, but the
/// machine of one may have other things to do.
const AGED: Duration = Duration::from_secs(2);
/// Names of streams that have ended meanwhile are kept up to this number beside those that are open.
const STALE: usize = 64;

/// How fast streams of ours are reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resets {
    /// Those that the peer may not have looked at. The burst comes back when it answers anything
    /// that was opened after the last of them.
    pub fresh: Allowance,
    /// Those of them that are two seconds old.
    pub aged: Allowance,
    /// Those that it has looked at: it has answered them, or what was opened after them.
    pub known: Allowance,
}

impl Resets {
    /// To a sidecar: together less than half of what it bears at once, and less than three quarters of
    /// what it bears for ever.
    pub const MESH: Self = Self {
        fresh: allowance(300, 150),
        aged: allowance(300, 150),
        known: allowance(900, 400),
    };

    /// To our own services, which count on those in front of them.
    pub const PIPE: Self = Self {
        fresh: allowance(4096, 4096),
        aged: allowance(4096, 4096),
        known: allowance(4096, 4096),
    };

    /// To an agent's own server. Those made with Rust end a connection with 20 streams that were
    /// reset before they were looked at; no server minds those that it has looked at.
    pub const AGENT: Self = Self {
        fresh: allowance(6, 1),
        aged: allowance(4, 40),
        known: allowance(1000, 1000),
    };
}

const fn allowance(burst: u32, per_second: u32) -> Allowance {
    Allowance { burst, per_second }
}

/// What one connection has left. See the module.
#[derive(Debug)]
pub(super) struct Unwanted {
    fresh: Line,
    aged: Line,
    known: Line,
    /// The highest stream that was answered, and the highest that was reset while it was fresh.
    answered: u32,
    reset: u32,
}

#[derive(Debug)]
struct Waiting {
    stream: Key,
    code: ErrorCode,
    /// From when on it is aged.
    aged: Instant,
}

/// Streams that wait for their reset, and its pace (GCRA).
#[derive(Debug)]
struct Line {
    waiting: VecDeque<Waiting>,
    every: Duration,
    burst: Duration,
    /// When the turns that were taken are worked off.
    full: Instant,
}

/// What becomes of the first in a line.
enum Next {
    Gone,
    Later,
    Known,
    Aged,
    Reset,
}

impl Line {
    fn new(allowance: Allowance, now: Instant) -> Self {
        let every = Duration::from_secs(1) / allowance.per_second.max(1);
        Self {
            waiting: VecDeque::new(),
            every,
            burst: every * allowance.burst,
            full: now,
        }
    }

    /// When there is a turn, where somebody waits for it.
    fn next(&self) -> Option<Instant> {
        self.waiting.front()?;
        let full = self.full + self.every;
        Some(full.checked_sub(self.burst).unwrap_or(full))
    }

    fn turn(&mut self, now: Instant) -> bool {
        let full = self.full.max(now) + self.every;
        let due = full.checked_sub(self.burst).is_none_or(|at| at <= now);
        if due {
            self.full = full;
        }
        due
    }
}

impl Unwanted {
    pub(super) fn new(pace: Resets, now: Instant) -> Self {
        Self {
            fresh: Line::new(pace.fresh, now),
            aged: Line::new(pace.aged, now),
            known: Line::new(pace.known, now),
            answered: 0,
            reset: 0,
        }
    }

    fn waits(&self) -> bool {
        let lines = [&self.fresh, &self.aged, &self.known];
        lines.iter().any(|line| !line.waiting.is_empty())
    }

    /// When a reset may go that waits.
    pub(super) fn next(&self) -> Option<Instant> {
        let aged = self.fresh.waiting.front().map(|first| first.aged);
        [aged, self.fresh.next(), self.aged.next(), self.known.next()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether the peer has looked at a stream: servers do so in the order in which they were opened.
    fn has_seen(&self, stream: &Stream) -> bool {
        stream.state.received != Side::Head || stream.id < self.answered
    }
}

impl Connection {
    /// Gives up a stream of ours: it is reset, at once or as soon as its peer bears it. Its call
    /// hears nothing more of it.
    pub fn give_up(&mut self, key: Key, code: ErrorCode, now: Instant) {
        let open = self.streams.len();
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        stream.call = None;
        let aged = stream.opened + AGED;
        let waiting = &mut self.unwanted.fresh.waiting;
        if waiting.len() >= STALE + open {
            let streams = &self.streams;
            waiting.retain(|waiting| streams.get(waiting.stream).is_some());
        }
        waiting.push_back(Waiting {
            stream: key,
            code,
            aged,
        });
        self.reset_unwanted(now);
    }

    /// Whether streams wait for their reset.
    #[inline]
    pub fn has_unwanted(&self) -> bool {
        self.unwanted.waits()
    }

    /// The peer has answered a stream.
    #[inline]
    pub(super) fn note_answer(&mut self, id: u32, now: Instant) {
        self.unwanted.answered = self.unwanted.answered.max(id);
        if id > self.unwanted.reset && self.unwanted.reset > 0 {
            self.unwanted.reset = 0;
            self.unwanted.fresh.full = now;
        }
        if self.has_unwanted() {
            self.reset_unwanted(now);
        }
    }

    /// Resets what may be reset by now.
    pub(super) fn reset_unwanted(&mut self, now: Instant) {
        while let Some((next, stream, code)) = self.next_fresh(now) {
            let first = match next {
                Next::Later => break,
                Next::Gone | Next::Known | Next::Aged | Next::Reset => {
                    self.unwanted.fresh.waiting.pop_front()
                }
            };
            match next {
                Next::Known => self.unwanted.known.waiting.extend(first),
                Next::Aged => self.unwanted.aged.waiting.extend(first),
                Next::Reset => {
                    if let Some(stream) = self.streams.get(stream) {
                        self.unwanted.reset = self.unwanted.reset.max(stream.id);
                    }
                    self.reset(stream, code);
                }
                Next::Gone | Next::Later => {}
            }
        }
        while let Some(first) = self.unwanted.aged.waiting.front() {
            let (key, code) = (first.stream, first.code);
            match self.streams.get(key) {
                None => drop(self.unwanted.aged.waiting.pop_front()),
                Some(stream) if self.unwanted.has_seen(stream) => {
                    let first = self.unwanted.aged.waiting.pop_front();
                    self.unwanted.known.waiting.extend(first);
                }
                Some(_) if self.unwanted.aged.turn(now) => {
                    self.unwanted.aged.waiting.pop_front();
                    self.reset(key, code);
                }
                Some(_) => break,
            }
        }
        while let Some(first) = self.unwanted.known.waiting.front() {
            let (stream, code) = (first.stream, first.code);
            if self.streams.get(stream).is_some() && !self.unwanted.known.turn(now) {
                break;
            }
            self.unwanted.known.waiting.pop_front();
            self.reset(stream, code);
        }
    }

    /// What is to be done with the first of the fresh ones.
    fn next_fresh(&mut self, now: Instant) -> Option<(Next, Key, ErrorCode)> {
        let first = self.unwanted.fresh.waiting.front()?;
        let (key, code, aged) = (first.stream, first.code, first.aged);
        let next = match self.streams.get(key) {
            None => Next::Gone,
            Some(stream) if self.unwanted.has_seen(stream) => Next::Known,
            Some(_) if aged <= now => Next::Aged,
            Some(_) if self.unwanted.fresh.turn(now) => Next::Reset,
            Some(_) => Next::Later,
        };
        Some((next, key, code))
    }
}
