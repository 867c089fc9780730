//! Sockets, TLS handshakes and HTTP/2 connections, both ways.
//!
//! A listener proves who calls before any handler runs; a pool proves who answers before any byte
//! of a request is sent. Knows no service and no policy.
//!
//! Our own calls (tasks, the registry) go by `pool`, whose connections are hyper's; calls that pass
//! go by the engine's own lines (`hub::upstream`). One set for both would save a connection, some
//! 125 KiB at each end, between two sidecars that have tasks and passing calls, and would cost every
//! frame of every task one more hop: 3 us of processor a call, and some 20 us where nobody else
//! calls.

pub mod answer;
pub mod channel;
pub mod drive;
pub mod error;
pub mod hub;
pub mod limits;
pub mod listen;
pub mod pool;
pub mod server;

mod accept;
mod alive;
mod dial;
mod entry;
mod lifetime;
mod opening;
mod redial;
mod replay;
mod serve;

pub use answer::Answer;
pub use channel::{Channel, dial_enrollment};
pub use error::{DialError, TransportError};
pub use hub::{Arrival, Hubs, Lookup};
pub use limits::Limits;
pub use listen::Listener;
pub use pool::{Pool, Target, Ways};
pub use server::{Security, Server};

#[cfg(test)]
mod tests;
