//! Our own HTTP/2 engine: bytes in, bytes out. No socket, no task, no clock of its own.
//!
//! What passes a sidecar is not taken apart into requests and put together again: frames are read,
//! stream ids and headers rewritten, DATA passed on. Everything here is a pure machine, so that it
//! can be simulated, fuzzed and replayed as it is. Time is an argument; a driver outside owns
//! sockets, wake-ups and one timer. The task engine's simulation (`task::simulation`) has all its streams
//! on this engine, over a network on which everything goes wrong.
//!
//! | room | what it owns |
//! |---|---|
//! | [`frame`] | how a frame looks: RFC 9113, sections 4, 6 and 7 |
//! | [`hpack`] | how a list of header fields looks: RFC 7541 |
//! | [`header`] | which lists of fields are a request, an answer, trailers: RFC 9113, section 8 |
//! | [`stream`] | the life of one stream: RFC 9113, section 5.1 |
//! | [`window`] | flow control: RFC 9113, section 5.2 |
//! | [`budget`] | what one peer may ask beyond calls: floods end here |
//! | [`connection`] | one connection, server or client: all of the above put together |
//! | [`grpc`] | the little of gRPC that a forwarder knows: timeouts, statuses |
//! | [`call`] | one call: a downstream stream, an upstream stream, and what lies between |
//! | [`exchange`] | many connections and the calls that are switched between them |
//! | [`slab`], [`wheel`] | keys that cannot be mistaken; timers by the thousand |
//!
//! # Who owns what
//! ```text
//!   Exchange<Policy>                      one per core of the machine
//!     |- Line* (a place at the exchange)  one per connection: who is there, what waits for it
//!     |    '- Connection                  streams, windows, HPACK tables, budget, output buffer
//!     |         '- Stream*                state, windows; names its Call
//!     |- Call*                            names its two Streams; parked and replayable bytes
//!     |- Wheel                            deadlines of calls and connections
//!     '- Policy                           where to, what to change, what to remember: not ours
//! ```
//! Nobody holds a reference to anything else: all names are [`slab::Key`]s, and a key of what has
//! gone finds nothing.
//!
//! # The way of a call
//! ```text
//!   driver: exchange.receive(line, bytes, now)
//!     connection.receive        a frame: parsed, in order?, within budget?
//!       block, header           field block assembled, decoded, a valid request?
//!       stream, window          allowed in this state? within the window?
//!     -> Event::Request         exchange::request: Policy::on_request says Forward(target)
//!          exchange::upstream   the target's connection: open, or to be dialed; a stream on it
//!          connection.open      HEADERS into its output; the line is dirty
//!     -> Event::Data            exchange::transit: copied once, into the other side's output,
//!                               or parked in the call until windows open (bounded by our windows)
//!   driver: for each dirty line: wake it once; it takes the output and writes it in one go
//!   ... and back: Event::Fields of the answer, Event::Data, trailers
//!          exchange::ending     both sides are through: Policy::on_end, once for every call
//! ```
//!
//! # A stream
//! See [`stream`] for the drawing. A call that ends before its time ends on both sides: what the
//! caller is told is decided in [`call::Failure`], in one place.

pub mod budget;
pub mod call;
pub mod connection;
pub mod exchange;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod grpc;
pub mod header;
pub mod hpack;
pub mod slab;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod wheel;
pub mod window;
