//! Streams of ours that nobody wants any longer: reset, but never faster than the peer bears it.
//!
//! A connection to whoever answers is shared, and servers end connections on which streams are reset
//! in great numbers; most of all those that they have not looked at yet. Each caller is held to its
//! own budget, but callers may come again on new connections, or be many. So resets have a pace of
//! ours, below what the peer bears: a stream that cannot be reset yet stays open without a call, what
//! comes on it is dropped and its window is given no more, and most end by themselves meanwhile.
//! Bounded by the streams that the peer allows.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::Connection;
use crate::h2::{budget::Allowance, frame::ErrorCode, slab::Key, stream::Side};

/// A stream without an answer has been looked at after so long: no server leaves it lying, and no
/// batch of frames is as old.
const LOOKED_AT: Duration = Duration::from_secs(1);
/// Names of streams that have ended meanwhile are kept up to this number beside those that are open.
const STALE: usize = 64;

/// How fast streams of ours are reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resets {
    /// Those that the peer may not have looked at.
    pub fresh: Allowance,
    /// All others.
    pub known: Allowance,
}

impl Resets {
    /// To a sidecar: less than half of what its budget for resets is.
    pub const MESH: Self = Self {
        fresh: allowance(500, 400),
        known: allowance(1000, 500),
    };

    /// To our own services, which count on those in front of them.
    pub const PIPE: Self = Self {
        fresh: allowance(4096, 4096),
        known: allowance(4096, 4096),
    };

    /// To an agent's own server. Those made with Rust end a connection with 20 streams that were
    /// reset before they were looked at; no server minds those that it has begun to answer.
    pub const AGENT: Self = Self {
        fresh: allowance(10, 200),
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
    known: Line,
}

#[derive(Debug)]
struct Waiting {
    stream: Key,
    code: ErrorCode,
    /// From when on the peer has looked at it.
    looked_at: Instant,
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

    /// When the next turn is, seen from `now`.
    fn next(&self, now: Instant) -> Instant {
        let full = self.full.max(now) + self.every;
        full.checked_sub(self.burst).unwrap_or(now)
    }

    fn turn(&mut self, now: Instant) -> bool {
        let due = self.next(now) <= now;
        if due {
            self.full = self.full.max(now) + self.every;
        }
        due
    }
}

impl Unwanted {
    pub(super) fn new(pace: Resets, now: Instant) -> Self {
        Self {
            fresh: Line::new(pace.fresh, now),
            known: Line::new(pace.known, now),
        }
    }

    /// When a reset may go that waits.
    pub(super) fn next(&self) -> Option<Instant> {
        let fresh = self.fresh.waiting.front();
        let fresh = fresh.map(|first| self.fresh.next(self.fresh.full).min(first.looked_at));
        let known = self.known.waiting.front();
        let known = known.map(|_| self.known.next(self.known.full));
        fresh.into_iter().chain(known).min()
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
        let line = &mut self.unwanted.fresh.waiting;
        if line.len() >= STALE + open {
            let streams = &self.streams;
            line.retain(|waiting| streams.get(waiting.stream).is_some());
        }
        let looked_at = self
            .streams
            .get(key)
            .map_or(now, |stream| stream.opened + LOOKED_AT);
        self.unwanted.fresh.waiting.push_back(Waiting {
            stream: key,
            code,
            looked_at,
        });
        self.reset_unwanted(now);
    }

    /// Whether streams wait for their reset.
    pub fn has_unwanted(&self) -> bool {
        !self.unwanted.fresh.waiting.is_empty() || !self.unwanted.known.waiting.is_empty()
    }

    /// Resets what may be reset by now.
    pub(super) fn reset_unwanted(&mut self, now: Instant) {
        while let Some(first) = self.unwanted.fresh.waiting.front() {
            let (stream, code, looked_at) = (first.stream, first.code, first.looked_at <= now);
            match self.streams.get(stream).map(|stream| stream.state.received) {
                None => {}
                Some(received) if received != Side::Head || looked_at => {
                    let first = self.unwanted.fresh.waiting.pop_front();
                    self.unwanted.known.waiting.extend(first);
                    continue;
                }
                Some(_) if self.unwanted.fresh.turn(now) => self.reset(stream, code),
                Some(_) => break,
            }
            self.unwanted.fresh.waiting.pop_front();
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
}
