//! The access line: one for each call that ends, in one form for all who serve or pass calls.
//!
//! Refuses nothing that it is given: values that callers chose are text, which both forms of the
//! log escape.

use std::time::Duration;

use tonic::Code;
use tracing::Level;

use super::milliseconds;
use crate::telemetry::{TraceContext, metrics::calls::code_name};

/// What is said of a call. What is `None` is left out.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The listener that it came by: its label.
    pub listener: &'a str,
    /// Who calls: a SPIFFE id, `local`, or `anonymous`.
    pub caller: &'a str,
    /// The other end's address; `-` on a Unix socket.
    pub remote: &'a str,
    /// As metrics have it.
    pub service: &'a str,
    /// As metrics have it.
    pub method: &'a str,
    /// What was asked for, where metrics have no name for it.
    pub path: Option<&'a str>,
    /// How it ended.
    pub code: Code,
    /// The reason in the status' details.
    pub reason: Option<&'a str>,
    /// Where it passed to.
    pub passed: Option<Passed<'a>>,
    /// The skill that is asked for.
    pub skill: Option<&'a str>,
    /// The task that it is about.
    pub task: Option<&'a str>,
    /// What ties it to other work.
    pub correlation: Option<&'a str>,
    /// What the caller traces it below.
    pub trace: Option<&'a TraceContext>,
    /// From its head to its last byte.
    pub took: Duration,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
}

/// Where a call passed to.
#[derive(Clone, Copy, Debug)]
pub struct Passed<'a> {
    /// The agent that it is for.
    pub agent: Option<&'a str>,
    /// The instance that it was given to last.
    pub instance: Option<&'a str>,
    /// How often it was given to somebody.
    pub attempts: u8,
    /// What ended it.
    pub ended_by: &'a str,
}

/// How many are to see a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Everybody: level info.
    Told,
    /// Who looks closely: level debug.
    Background,
}

impl Weight {
    /// Whether a line of this weight is written now: where not, nothing needs to be found out for it.
    #[inline]
    pub fn is_wanted(self) -> bool {
        match self {
            Self::Told => tracing::enabled!(target: "attache::access", Level::INFO),
            Self::Background => tracing::enabled!(target: "attache::access", Level::DEBUG),
        }
    }
}

impl Line<'_> {
    /// Writes it, if it is wanted.
    pub fn write(&self, weight: Weight) {
        let passed = self.passed.as_ref();
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "attache::access",
                    listener = self.listener,
                    caller = self.caller,
                    remote = self.remote,
                    service = self.service,
                    method = self.method,
                    path = self.path,
                    code = code_name(self.code),
                    reason = self.reason,
                    agent = passed.and_then(|passed| passed.agent),
                    instance = passed.and_then(|passed| passed.instance),
                    attempts = passed.map(|passed| passed.attempts),
                    ended_by = passed.map(|passed| passed.ended_by),
                    skill = self.skill,
                    task = self.task,
                    correlation = self.correlation,
                    trace = self.trace.map(TraceContext::trace_id),
                    duration_ms = milliseconds(self.took),
                    received = self.received,
                    sent = self.sent,
                    "call"
                )
            };
        }
        match weight {
            Weight::Told => line!(info),
            Weight::Background => line!(debug),
        }
    }
}
