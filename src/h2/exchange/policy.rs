//! The seam: what the exchange asks, and what it tells. Where calls go, what changes on their way
//! and what is remembered of them is decided behind it; the exchange knows none of it.
//!
//! Every question is answered at once: whatever takes time (looking up, connecting) is done
//! before, or by the driver.

use std::{borrow::Cow, fmt, time::Duration};

use tokio::time::Instant;

use crate::h2::{connection::Config, grpc::Code, hpack::Fields};

/// Somebody who answers calls, by the policy's own number. One connection leads to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target(pub u64);

/// A request that waits for a decision.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its header section, valid HTTP/2. What is changed here goes upstream.
    pub fields: &'a mut Fields,
    /// What is left of its `grpc-timeout`. What is set here is enforced and sent on.
    pub timeout: Option<Duration>,
    /// What time it is.
    pub now: Instant,
    /// How often it was given to somebody before.
    pub attempts: u8,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to this target.
    Forward(Target),
    /// It goes to our own services, over a pipe of its caller's connection alone.
    Local,
    /// It rests for so long and comes up again as [`GivenBack::Rested`]: what it needs is not there
    /// yet, or its next attempt is not due. Ten seconds of waiting in a row end it.
    Later(Duration),
    /// It is answered here.
    Reply(Code, Cow<'static, str>),
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Onward {
    /// It goes to the caller.
    Pass,
    /// It is dropped and the request sent again, where that is still possible; else it passes.
    Again,
}

/// Why a call comes up for another decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenBack {
    /// No connection could be made: nothing was sent.
    Unreachable,
    /// The peer has not looked at it (REFUSED_STREAM, GOAWAY), or it was never sent.
    Unprocessed,
    /// The policy wanted it again.
    Wanted,
    /// It has rested, as the policy said.
    Rested,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The answer went to the caller as a whole.
    Answered,
    /// The policy replied.
    Replied,
    /// The caller gave up or went away.
    GivenUp,
    /// It failed on its way, and the caller was told so.
    Failed,
}

/// What is to be remembered of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// The status the caller saw, or would have made of what it saw. `None` for an answer without.
    pub code: Option<Code>,
    /// How often it was given to somebody.
    pub attempts: u8,
    /// Bytes of DATA that the caller sent.
    pub sent: u64,
    /// Bytes of DATA that the answering side sent.
    pub received: u64,
    /// From its header section to now.
    pub elapsed: Duration,
}

/// Decides and remembers. See the module.
pub trait Policy {
    /// What is known of a caller's connection: who proved to be there.
    type Peer: fmt::Debug;
    /// What is remembered of one call from its request to its end.
    type Call: fmt::Debug;

    /// The number of a caller that may have several connections, the same on all of them; calls that
    /// wait take turns by it. `None`: each connection is a caller.
    fn caller(&self, peer: &Self::Peer) -> Option<u64> {
        let _ = peer;
        None
    }

    /// A request came. For every one of them [`Self::on_end`] is called, once.
    fn on_request(&mut self, peer: &Self::Peer, request: &mut Request<'_>)
    -> (Verdict, Self::Call);

    /// A call was given back and can be sent again, as `request` has it.
    fn on_again(
        &mut self,
        call: &mut Self::Call,
        request: &mut Request<'_>,
        why: GivenBack,
    ) -> Verdict;

    /// The head of an answer. `end`: it is all there is (trailers-only).
    fn on_response(&mut self, call: &mut Self::Call, fields: &mut Fields, end: bool) -> Onward {
        let _ = (call, fields, end);
        Onward::Pass
    }

    /// The trailers of an answer.
    fn on_trailers(&mut self, call: &mut Self::Call, fields: &mut Fields) {
        let _ = (call, fields);
    }

    /// An answer of our own, as [`Verdict::Reply`] has it, about to go to the caller.
    fn on_reply(&mut self, call: &mut Self::Call, fields: &mut Fields) {
        let _ = (call, fields);
    }

    /// The call is over.
    fn on_end(&mut self, call: Self::Call, outcome: &Outcome);

    /// How the connection to a target is run; `None`: the pipe to our own services.
    fn config(&self, target: Option<Target>) -> Config {
        match target {
            Some(_) => Config::upstream(),
            None => Config::pipe(),
        }
    }
}
