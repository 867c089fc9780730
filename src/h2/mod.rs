//! Our own HTTP/2 engine: bytes in, bytes out. No socket, no task, no clock of its own.
//!
//! What passes a sidecar is not taken apart into requests and put together again: frames are read,
//! stream ids and headers rewritten, DATA passed on. Everything here is a pure machine, so that it
//! can be simulated, fuzzed and replayed as it is.
//!
//! | room | what it owns |
//! |---|---|
//! | [`frame`] | how a frame looks: RFC 9113, sections 4, 6 and 7 |
//! | [`hpack`] | how a list of header fields looks: RFC 7541 |

pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod hpack;
