//! One HTTP/2 connection, as server or as client: bytes in, events and bytes out.
//!
//! Owns the order of frames, the streams, both directions of flow control, the HPACK tables, the
//! peer's budget, liveness and the goodbye. Refuses to know what a call is: a stream carries the
//! key of whatever its owner calls it, and every event names that key.
//!
//! ```text
//!   server: preface -> SETTINGS -> open -> GOAWAY(2^31-1)+PING -> GOAWAY(last) -> no streams: over
//!   client:            SETTINGS -> open -> (peer's GOAWAY, or enough) ----------> no streams: over
//!   anywhere: a broken rule, an overdrawn budget, a deadline -> GOAWAY(code): over at once
//! ```
//!
//! | file | what |
//! |---|---|
//! | `receive` | one frame in: dispatch, errors of streams and of the connection |
//! | `block` | field blocks: HEADERS and CONTINUATION put together, decoded, judged |
//! | `control` | SETTINGS, PING, GOAWAY, WINDOW_UPDATE |
//! | `send` | HEADERS, DATA, RST_STREAM out |
//! | `share` | who has how many of the streams |
//! | `streams` | which streams there are, and which there were |
//! | `unwanted` | streams given up: resets at a pace that the peer bears |
//! | `lifetime` | deadlines, keepalive, drain |

mod block;
mod control;
mod lifetime;
mod receive;
mod send;
mod share;
mod streams;
#[cfg(test)]
mod tests;
mod unwanted;

use std::time::Duration;

use tokio::time::Instant;

use self::{
    block::Assembly,
    lifetime::{Leaving, Times},
    streams::Streams,
    unwanted::Unwanted,
};
pub use self::{receive::Event, send::Room, share::Share, streams::Stream, unwanted::Resets};
use super::{
    budget::{Budget, Limits},
    frame::{self, DEFAULT_WINDOW, ErrorCode, PREFACE, Setting, write},
    hpack::{Decoder, Encoder},
    slab::Key,
    window::{ReceiveWindow, SendWindow},
};

/// DATA waits with its call above this much unwritten output: a kernel buffer is smaller.
pub const OUTPUT_FULL: usize = 512 << 10;
/// Nothing more is read from a peer that leaves this much of ours unread: four times what DATA
/// can take, so that two ends that both wait have [`Config::write`] to end it and hardly ever do.
pub const OUTPUT_STOP: usize = 2 << 20;
/// What an HPACK table holds, both ways: the protocol's default.
const TABLE: u32 = 4096;
/// A field block as it is sent: four times the largest list of fields that is taken, since
/// Huffman coding can double and padding with empty fields costs us little.
const BLOCK_MAX: usize = 64 << 10;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The peer opens streams.
    Server,
    /// We open streams.
    Client,
}

/// How a connection is run. All windows in bytes.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which end we are.
    pub role: Role,
    /// What the peer may ask beyond calls.
    pub limits: &'static Limits,
    /// How fast streams of ours are reset (client only).
    pub resets: Resets,
    /// Streams that the peer may have open at once.
    pub max_streams: u32,
    /// The same of a peer that has not acknowledged our SETTINGS, if that is more: until then it knows
    /// no limit (RFC 9113, section 6.5.2), and some programs ask all they have to ask as they start.
    /// Those that are open then last as long as their calls.
    pub early_streams: u32,
    /// How much the peer may send on a stream before any of it has left us.
    pub stream_window: u32,
    /// The same for all streams together; at least 65,535.
    pub connection_window: u32,
    /// Names, values and 32 per field: the largest list of fields that is taken.
    pub header_list: u32,
    /// Until the peer's preface and SETTINGS.
    pub greeting: Duration,
    /// For a frame, or a whole field block, from its first byte to its last.
    pub frame: Duration,
    /// For the peer to take anything of what we have to send.
    pub write: Duration,
    /// Without streams for this long, the connection ends. `None`: never.
    pub idle: Option<Duration>,
    /// Without a byte for this long, a PING asks. `None`: never. A gRPC server that was not told
    /// otherwise takes more than one in five minutes for abuse.
    pub keepalive: Option<Duration>,
    /// For the answer to that PING.
    pub answer: Duration,
}

impl Config {
    /// For the door at which programs call.
    pub const fn caller() -> Self {
        Self {
            role: Role::Server,
            limits: &Limits::CALLER,
            resets: Resets::MESH,
            max_streams: 100,
            early_streams: 1024,
            stream_window: 1 << 20,
            connection_window: 4 << 20,
            header_list: 16 << 10,
            greeting: Duration::from_secs(5),
            frame: Duration::from_secs(10),
            write: Duration::from_secs(30),
            idle: None,
            keepalive: None,
            answer: Duration::from_secs(20),
        }
    }

    /// For the door at which other sidecars call.
    pub const fn mesh() -> Self {
        Self {
            limits: &Limits::MESH,
            max_streams: 1024,
            keepalive: Some(Duration::from_secs(15)),
            answer: Duration::from_secs(10),
            ..Self::caller()
        }
    }

    /// For connections to other sidecars. Their peer opens no streams, and is asked as often as it
    /// likes to be: its budget is that of a sidecar.
    pub const fn upstream() -> Self {
        Self {
            role: Role::Client,
            idle: Some(Duration::from_secs(300)),
            ..Self::mesh()
        }
    }

    /// For the pipe to our own services. What they have said waits there rather than here: a task's
    /// watcher that reads slowly costs next to nothing.
    pub const fn pipe() -> Self {
        Self {
            stream_window: 128 << 10,
            resets: Resets::PIPE,
            ..Self::agent()
        }
    }

    /// For connections to an agent's own server, on this machine.
    pub const fn agent() -> Self {
        Self {
            resets: Resets::AGENT,
            keepalive: None,
            ..Self::upstream()
        }
    }
}

/// What the peer's SETTINGS say, or the protocol before they came.
#[derive(Debug, Clone, Copy)]
struct Peer {
    /// Whether its SETTINGS have come.
    greeted: bool,
    initial_window: u32,
    max_streams: u32,
}

/// A connection. See the module.
#[derive(Debug)]
pub struct Connection {
    config: Config,
    preface_due: bool,
    peer: Peer,
    streams: Streams,
    decoder: Decoder,
    encoder: Encoder,
    assembly: Assembly,
    send: SendWindow,
    receive: ReceiveWindow,
    budget: Budget,
    unwanted: Unwanted,
    out: Vec<u8>,
    /// Bytes that the driver took and has not written yet.
    in_flight: usize,
    times: Times,
    leaving: Leaving,
    failed: Option<frame::Error>,
}

impl Connection {
    /// A connection that has just been accepted or made; our SETTINGS are in its output.
    pub fn new(config: Config, now: Instant) -> Self {
        let mut out = Vec::with_capacity(4096);
        let common = [
            Setting::InitialWindowSize(config.stream_window),
            Setting::MaxHeaderListSize(config.header_list),
        ];
        match config.role {
            Role::Server => {
                let streams = Setting::MaxConcurrentStreams(config.max_streams);
                write::settings(&mut out, &[streams, common[0], common[1]]);
            }
            Role::Client => {
                out.extend_from_slice(PREFACE);
                let push = Setting::EnablePush(false);
                write::settings(&mut out, &[push, common[0], common[1]]);
            }
        }
        let window = config.connection_window.max(DEFAULT_WINDOW);
        if window > DEFAULT_WINDOW {
            write::window_update(&mut out, 0, window - DEFAULT_WINDOW);
        }
        Self {
            preface_due: config.role == Role::Server,
            peer: Peer {
                greeted: false,
                initial_window: DEFAULT_WINDOW,
                max_streams: u32::MAX,
            },
            streams: Streams::new(config.role),
            decoder: Decoder::new(TABLE as usize),
            encoder: Encoder::new(),
            assembly: Assembly::default(),
            send: SendWindow::new(DEFAULT_WINDOW),
            receive: ReceiveWindow::new(window),
            budget: Budget::new(config.limits, now),
            unwanted: Unwanted::new(config.resets, now),
            out,
            in_flight: 0,
            times: Times::new(now),
            leaving: Leaving::Not,
            failed: None,
            config,
        }
    }

    /// The bytes flow from now on only: deadlines run from here.
    pub fn begin(&mut self, now: Instant) {
        self.times = Times::new(now);
    }

    /// Which end we are.
    pub fn role(&self) -> Role {
        self.config.role
    }

    /// How many streams are open.
    pub fn active(&self) -> usize {
        self.streams.len()
    }

    /// A stream, while it is open.
    pub fn stream(&self, stream: Key) -> Option<&Stream> {
        self.streams.get(stream)
    }

    /// The calls of all open streams.
    pub fn calls(&self) -> impl Iterator<Item = Key> {
        self.streams.calls()
    }

    /// Gives a stream that the peer opened the key of its call.
    pub fn assign(&mut self, stream: Key, call: Key) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.call = Some(call);
        }
    }

    /// Output that was not written yet, taken by the driver or not.
    #[inline]
    pub fn backlog(&self) -> usize {
        self.out.len() + self.in_flight
    }

    /// Whether the driver should read on: not while the peer leaves too much of ours unread.
    pub fn wants_input(&self) -> bool {
        self.backlog() <= OUTPUT_STOP && !self.over()
    }

    /// Whether there is something to take.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Moves all output to `into`, which is empty: the two buffers change places, so that neither
    /// is ever allocated again. To be followed by [`Self::written`].
    pub fn take_output(&mut self, into: &mut Vec<u8>, now: Instant) {
        debug_assert!(into.is_empty() && self.in_flight == 0);
        std::mem::swap(&mut self.out, into);
        self.in_flight = into.len();
        self.times.wrote = now;
        self.note_busy(now);
    }

    /// The driver has written `bytes` of what it took.
    pub fn written(&mut self, bytes: usize, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.times.wrote = now;
    }

    /// Ends the connection at once: GOAWAY says why. Everything still open is lost.
    pub fn fail(&mut self, error: &frame::Error) {
        if self.leaving != Leaving::Over {
            let last = self.streams.last_of_peer();
            write::goaway(&mut self.out, last, error.code, error.what.as_bytes());
            self.leaving = Leaving::Over;
            self.failed = Some(*error);
        }
    }

    /// The rule for which it was ended, if it was.
    pub fn failed(&self) -> Option<frame::Error> {
        self.failed
    }

    /// Whether the connection is through: what is in the output goes out, then it is closed.
    pub fn over(&self) -> bool {
        match self.leaving {
            Leaving::Over => true,
            Leaving::Last => self.streams.len() == 0,
            Leaving::Not | Leaving::Announced { .. } => false,
        }
    }
}

/// A broken rule that ends the connection.
fn broken(code: ErrorCode, what: &'static str) -> frame::Error {
    frame::Error::connection(code, what)
}
