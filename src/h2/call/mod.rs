//! One call: a stream of its caller, a stream to whoever answers, and what lies between.
//!
//! Owns what is parked in either direction, what is kept so that the call can be sent again, and
//! what a caller is told when a call fails. Refuses to act: moving bytes is `exchange`'s work.
//!
//! ```text
//!                 request: Lane ----------->
//!   down: Leg (caller)                       up: Leg (who answers)
//!                 <----------- response: Lane
//!
//!   Waiting --a stream upstream--> Open --the answer's head--> Answered --both sides through--> gone
//!      ^                            |
//!      '---- given back (REFUSED_STREAM, GOAWAY, never sent): again, from `Kept`
//!   anywhere: deadline, reset, a lost connection -> gone, the caller told by `Failure`
//! ```

mod failure;
mod kept;
mod lane;

use std::time::Duration;

use tokio::time::Instant;

pub use self::{
    failure::{Failure, write_answer, write_status},
    kept::Kept,
    lane::{Ending, Lane, Parked},
};
use super::{connection::Share, grpc::Code, slab::Key, wheel::Timer};

/// A call is sent so many times at the most.
pub const ATTEMPTS: u8 = 3;

/// One side of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// The connection.
    pub line: Key,
    /// The stream, while it is open and ours.
    pub stream: Option<Key>,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the caller.
    Request,
    /// To the caller.
    Response,
}

/// A call and what the policy remembers of it. See the module.
#[derive(Debug)]
pub struct Call<C> {
    /// The policy's own.
    pub context: C,
    /// The caller's side.
    pub down: Leg,
    /// The answering side; `None` until somebody was chosen.
    pub up: Option<Leg>,
    /// Whose it is, among those who share the answering side's connection.
    pub share: Share,
    /// What the caller sends.
    pub request: Lane,
    /// What the caller is sent.
    pub response: Lane,
    /// For sending it again.
    pub kept: Kept,
    /// How often it was given to somebody.
    pub attempts: u8,
    /// The answer's head has gone to the caller.
    pub answered: bool,
    /// The content type says gRPC: failures are told as a status.
    pub grpc: bool,
    /// By when it has to be over, and how long that was when it came.
    pub deadline: Option<(Instant, Duration)>,
    /// When it came.
    pub since: Instant,
    /// When it rests, or waits for a stream upstream: since when.
    pub waiting: Option<Instant>,
    /// When it rests: until when.
    pub resting: Option<Instant>,
    /// When to look at it, at the latest.
    pub due: Option<(Instant, Timer)>,
    /// `grpc-status` of the answer.
    pub status: Option<Code>,
    /// Its connection broke: what had come of the answer is still on its way to the caller.
    pub lost: bool,
}

impl<C> Call<C> {
    /// Which way bytes go that come from this line.
    #[inline]
    pub fn way_from(&self, line: Key) -> Way {
        if self.down.line == line {
            Way::Request
        } else {
            Way::Response
        }
    }

    /// The lane of a way, where its bytes come from, and where they go.
    #[inline]
    pub fn lane(&mut self, way: Way) -> (&mut Lane, Option<Leg>, Option<Leg>) {
        match way {
            Way::Request => (&mut self.request, Some(self.down), self.up),
            Way::Response => (&mut self.response, self.up, Some(self.down)),
        }
    }

    /// The stream upstream is gone; what the caller still sends is dropped.
    pub fn leave_upstream(&mut self) {
        if let Some(up) = &mut self.up {
            up.stream = None;
        }
        self.request.closed = true;
    }

    /// Whether both messages have passed.
    pub fn through(&self) -> bool {
        self.response.sent && (self.request.sent || self.request.closed)
    }

    /// Whether it can be given to somebody else: nothing of an answer was passed on, and
    /// everything that was sent is still here.
    pub fn can_go_again(&self) -> bool {
        !self.answered && self.kept.whole() && self.attempts < ATTEMPTS
    }
}
