//! How long: greeting, frames, writes, silence, idleness, and the goodbye in two steps.

use std::time::Duration;

use tokio::time::Instant;

use super::{Connection, Role, broken};
use crate::h2::frame::{self, ErrorCode, MAX_STREAM, write};

/// For the PING between the two GOAWAYs of a drain to come back: by then whatever the peer sent
/// before it knew has arrived.
const DRAIN_ANSWER: Duration = Duration::from_secs(1);

/// From that answer to the last GOAWAY. Clients write the answer before the calls that they began just
/// before they heard of the drain (gRPC's C core puts answers to PINGs first); what was written with
/// it is here by then, unless the network lost it: then the last GOAWAY excludes it.
const DRAIN_HELD: Duration = Duration::from_millis(100);

/// When things happened last.
#[derive(Debug)]
pub(super) struct Times {
    pub(super) opened: Instant,
    /// Bytes came.
    pub(super) received: Instant,
    /// The driver wrote, or began to.
    pub(super) wrote: Instant,
    /// Since when a frame is not whole.
    pub(super) partial: Option<Instant>,
    /// Since when a field block is not whole.
    pub(super) block: Option<Instant>,
    /// A PING is out since then.
    pub(super) asked: Option<Instant>,
    /// The peer has acknowledged our SETTINGS.
    pub(super) acknowledged: bool,
    /// There was a stream, when something happened last before now.
    busy: Instant,
    idle: bool,
}

impl Times {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            opened: now,
            received: now,
            wrote: now,
            partial: None,
            block: None,
            asked: None,
            acknowledged: false,
            busy: now,
            idle: false,
        }
    }
}

/// How far the goodbye is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Not at all.
    Not,
    /// The peer knows; streams that it opened before it knew are still taken.
    Announced {
        /// When to go on without the answer.
        until: Instant,
    },
    /// No new streams; over with the last one that is open.
    Last,
    /// Over at once.
    Over,
}

/// What our PINGs ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Are you there?
    Alive,
    /// Have you seen the first GOAWAY?
    Drained,
}

impl Asked {
    fn opaque(self) -> [u8; 8] {
        match self {
            Self::Alive => *b"are you?",
            Self::Drained => *b"drained?",
        }
    }

    pub(super) fn of(opaque: [u8; 8]) -> Option<Self> {
        [Self::Alive, Self::Drained]
            .into_iter()
            .find(|asked| asked.opaque() == opaque)
    }
}

impl Connection {
    /// Says goodbye: no new streams from now on, those that are open end in their own time. As
    /// server in two steps (RFC 9113 section 6.8), so that no stream under way is lost.
    pub fn drain(&mut self, now: Instant) {
        if self.leaving != Leaving::Not {
            return;
        }
        match self.role() {
            Role::Client => self.leaving = Leaving::Last,
            Role::Server => {
                write::goaway(&mut self.out, MAX_STREAM, ErrorCode::NoError, b"drain");
                write::ping(&mut self.out, false, Asked::Drained.opaque());
                let until = now + DRAIN_ANSWER;
                self.leaving = Leaving::Announced { until };
            }
        }
    }

    /// The peer knows of the drain: what it wrote before that is here in a moment.
    pub(super) fn hold_drain(&mut self, now: Instant) {
        if let Leaving::Announced { until } = &mut self.leaving {
            *until = (*until).min(now + DRAIN_HELD);
        }
    }

    /// The second step of a drain.
    pub(super) fn finish_drain(&mut self) {
        if let Leaving::Announced { .. } = self.leaving {
            let last = self.streams.last_of_peer();
            write::goaway(&mut self.out, last, ErrorCode::NoError, b"drain");
            self.leaving = Leaving::Last;
        }
    }

    /// When [`Self::on_time`] wants to be called; at the latest, and only if nothing happens before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let times = &self.times;
        let greeting = (!self.peer.greeted || !times.acknowledged)
            .then(|| times.opened + self.config.greeting);
        let partial = self.incomplete().map(|since| since + self.config.frame);
        let write = (self.in_flight > 0).then(|| times.wrote + self.config.write);
        let alive = match (times.asked, self.config.keepalive) {
            (Some(asked), _) => Some(asked + self.config.answer),
            (None, Some(every)) => Some(times.received + every),
            (None, None) => None,
        };
        let drain = match self.leaving {
            Leaving::Announced { until } => Some(until),
            Leaving::Not | Leaving::Last | Leaving::Over => None,
        };
        let reset = self.unwanted.next();
        [
            greeting,
            partial,
            write,
            alive,
            drain,
            reset,
            self.idle_until(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Time has passed: asks whether the peer is alive, goes on with a drain, ends what is idle.
    ///
    /// # Errors
    /// The peer took too long: close the connection.
    pub fn on_time(&mut self, now: Instant) -> Result<(), frame::Error> {
        let late = |since: Instant, limit: Duration| now >= since + limit;
        let times = &self.times;
        if !self.peer.greeted && late(times.opened, self.config.greeting) {
            return Err(broken(ErrorCode::SettingsTimeout, "no SETTINGS in time"));
        }
        if !times.acknowledged && late(times.opened, self.config.greeting) {
            let what = "SETTINGS were not acknowledged in time";
            return Err(broken(ErrorCode::SettingsTimeout, what));
        }
        if self
            .incomplete()
            .is_some_and(|since| late(since, self.config.frame))
        {
            let what = "a frame or field block took too long";
            return Err(broken(ErrorCode::EnhanceYourCalm, what));
        }
        if self.in_flight > 0 && late(times.wrote, self.config.write) {
            let what = "nothing of what was sent was taken in time";
            return Err(broken(ErrorCode::EnhanceYourCalm, what));
        }
        if times
            .asked
            .is_some_and(|asked| late(asked, self.config.answer))
        {
            return Err(broken(ErrorCode::NoError, "no answer to PING"));
        }
        let quiet = self.config.keepalive;
        if times.asked.is_none() && quiet.is_some_and(|every| late(times.received, every)) {
            self.times.asked = Some(now);
            write::ping(&mut self.out, false, Asked::Alive.opaque());
        }
        if matches!(self.leaving, Leaving::Announced { until } if now >= until) {
            self.finish_drain();
        }
        self.reset_unwanted(now);
        if self.idle_until().is_some_and(|until| now >= until) {
            self.drain(now);
        }
        Ok(())
    }

    /// Since when a frame or a field block is not whole.
    fn incomplete(&self) -> Option<Instant> {
        let times = &self.times;
        times.partial.into_iter().chain(times.block).min()
    }

    /// When a connection without streams has been idle for long enough.
    fn idle_until(&self) -> Option<Instant> {
        let idle = self.config.idle?;
        if self.streams.len() > 0 || self.leaving != Leaving::Not {
            return None;
        }
        Some(self.times.busy + idle)
    }

    /// Something happened: a connection is idle from the first time on that it has no streams.
    pub(super) fn note_busy(&mut self, now: Instant) {
        let idle = self.streams.len() == 0;
        if !(idle && self.times.idle) {
            self.times.busy = now;
        }
        self.times.idle = idle;
    }
}
