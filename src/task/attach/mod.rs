//! Agents without a port: they open a stream to their own sidecar and take work over it.
//!
//! [`Desk`] is to the executor what a listening agent is: another
//! [`HandlerLink`](super::executor::HandlerLink). What a stream may say is decided in `session`;
//! nothing here waits without a bound or keeps more than what the credit of an attempt allows.

mod desk;
mod link;
mod serve;
mod session;
#[cfg(test)]
mod tests;

pub use desk::{Attendance, Desk, STREAMS_MAX};
pub use session::{CREDIT, PLACES_MAX};
