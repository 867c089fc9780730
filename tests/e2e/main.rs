//! Everything together: real processes, real clients, real crashes.
//!
//! Each test has a directory, ports and processes of its own and leaves none of them behind.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test that finds nonsense should fail"
)]
#![allow(
    clippy::large_futures,
    clippy::too_many_lines,
    clippy::cognitive_complexity,
    reason = "each test is one story, told once"
)]

mod archive;
mod attached;
mod bad_input;
mod callbacks;
mod cancel;
mod contracts;
mod crash;
mod delegation;
mod differential;
mod disk;
mod drain;
mod failover;
mod fault_proxy;
mod first_command;
mod fleet;
mod floods;
mod foreign_clients;
mod grpcurl;
mod health;
mod hpack;
mod impostor;
mod injection;
mod interop;
mod keys;
mod kinds;
mod large;
mod lifecycle;
mod lifetimes;
mod metrics;
mod namespaces;
mod outage;
mod partition;
mod passing;
mod plenty;
mod questions;
mod reflection;
mod revocation;
mod rolling;
mod rules;
mod silence;
mod soak;
mod trace;
mod traffic;
mod turns;

#[path = "../support/mod.rs"]
mod support;
