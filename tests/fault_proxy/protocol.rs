//! What is said over the control socket: one JSON value per line, a request and its answer in turn.
//! The proxy and the tests that drive it share this file, so that neither can drift.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest line either way, in bytes: far above any request, and a bound for what a mistake sends.
pub(crate) const LINE_MAX: usize = 64 << 10;

/// What is asked of the proxy.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Listens and passes everything on to `target`, both `host:port`. Answers where it listens.
    Add {
        route: String,
        target: String,
        /// A free loopback port unless it is said.
        #[serde(default = "anywhere")]
        listen: String,
    },
    /// Closes a route's listener and resets its connections.
    Remove { route: String },
    /// Sets a fault, in the place of one of its kind and direction; other faults stay.
    Set {
        route: String,
        #[serde(default)]
        direction: Direction,
        /// How many of 100 connections have it, drawn once for each connection.
        #[serde(default = "every")]
        share: u8,
        fault: Fault,
    },
    /// Takes all faults from a route.
    Clear { route: String },
    /// What a route has done so far.
    Counters { route: String },
    /// All routes: what each has done and where it listens.
    Routes {},
}

/// What the proxy answers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// It is done, and holds for all that happens from now on.
    Done {},
    /// Where the new route listens, `host:port`.
    Listening(String),
    Counters(Counters),
    Routes(BTreeMap<String, RouteState>),
    /// It was not done, and why.
    Error(String),
}

/// A route as it stands.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct RouteState {
    pub(crate) listen: String,
    pub(crate) target: String,
    pub(crate) counters: Counters,
}

/// Which bytes a fault is for. Faults of a whole connection know no direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Direction {
    /// From who connects to the target.
    Up,
    /// From the target to who connects.
    Down,
    #[default]
    Both,
}

/// One way to fail. Offsets and amounts of bytes are counted in one direction of one connection,
/// from its start or from when the fault was set, whichever is later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Fault {
    /// Bytes arrive later: by `ms`, and by a random part of `jitter_ms`. Their order stays.
    Latency {
        ms: u64,
        #[serde(default)]
        jitter_ms: u64,
    },
    /// So many bytes pass per second.
    Rate { bytes_per_second: u64 },
    /// Connections are made and stay open, and nothing passes, the end included. What waits is
    /// delivered when this is cleared, as after a partition.
    Blackhole,
    /// Connections are torn down by RST: those that are there now, and those that come.
    Reset {
        #[serde(default = "yes")]
        existing: bool,
        #[serde(default = "yes")]
        new: bool,
    },
    /// Nobody listens: connects are refused. What is connected stays.
    Refuse,
    /// The receiver is told the end while the other direction goes on.
    HalfClose,
    /// After so many bytes the whole connection ends, in good order or by RST.
    Cut {
        after: u64,
        #[serde(default)]
        reset: bool,
    },
    /// Turns bits around in the byte at this offset, and in one of so many bytes at random.
    Corrupt {
        #[serde(default)]
        at: Option<u64>,
        #[serde(default)]
        one_in: Option<u32>,
    },
    /// Bytes are written in pieces of so many, with a gap between them.
    Slice {
        bytes: u64,
        #[serde(default)]
        gap_ms: u64,
    },
    /// All other faults of the route hold only now and then: first not, then they do, and again.
    Flap { up_ms: u64, down_ms: u64 },
}

/// What a route has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Counters {
    /// Connections that were accepted.
    pub(crate) connections: u64,
    /// Connections that are there now.
    pub(crate) open: u64,
    /// Connections that were reset because the target could not be reached.
    pub(crate) unreached: u64,
    /// Connections that were reset because there were too many.
    pub(crate) over: u64,
    /// Bytes delivered to the target.
    pub(crate) bytes_up: u64,
    /// Bytes delivered to who connected.
    pub(crate) bytes_down: u64,
    /// How often each kind of fault was done to a connection, a read or a byte; absent: never.
    pub(crate) applied: BTreeMap<String, u64>,
}

/// Where the control socket is, as the proxy prints it when it is ready: one line.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Ready {
    /// `host:port` or `unix:/path`.
    pub(crate) control: String,
    /// What all chance comes from.
    pub(crate) seed: u64,
}

fn anywhere() -> String {
    "127.0.0.1:0".to_owned()
}

fn every() -> u8 {
    100
}

fn yes() -> bool {
    true
}
