//! What an operator's machine may ask a process: is it alive, is it ready, what is it.
//!
//! HTTP/1 on loopback only, since it asks for no identity. The one thing that it changes is how much
//! the process logs. What gRPC listeners say of themselves, health and reflection, is here too.

pub mod client;
pub mod health;
pub mod introspection;
mod server;

pub use server::{AdminError, Inspect, Server};
