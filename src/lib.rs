//! attache: a gRPC mesh for AI agents with mutual TLS.
//!
//! Every agent gets an attaché: a sidecar that carries its credentials, finds its peers by what
//! they can do, and delivers tasks between them that survive crashes. One binary is the registry,
//! the certificate authority, the sidecar and the operator's tool.
//!
//! Modules look down only; `tests/layers.rs` holds the table and enforces it:
//!
//! | level | modules |
//! |---|---|
//! | 7 | [`cli`]: the command line |
//! | 6 | [`app`]: the processes, and a whole mesh on one machine |
//! | 5 | [`sidecar`]: one member's attaché |
//! | 4 | [`registry`]: the catalog; [`task`]: home, executor and journal |
//! | 3 | [`transport`]: listeners and connections; [`admin`]: health pages |
//! | 2 | [`identity`]: CA, certificates, TLS, the door; [`agent`]: agents written in Rust |
//! | 1 | [`wire`], [`runtime`], [`config`], [`telemetry`], [`resilience`], [`contract`], [`h2`] |
//! | 0 | [`domain`], [`pb`] |
//!
//! The way of a task: `task::service` (who asks, and may they) -> `task::spec` (checked at the
//! door) -> `task::home` (journal, then acknowledge; choose an executor by `sidecar::route`) ->
//! `sidecar::carry` and `transport::pool` (mutual TLS, pinned to the instance) -> the executor's
//! `task::executor` (authorize, take a slot, call the agent's `Handle`) -> every update back to the
//! home, which numbers it, syncs it, shows it to watchers, and then acknowledges it.

pub mod admin;
pub mod agent;
pub mod app;
pub mod cli;
pub mod config;
pub mod contract;
pub mod domain;
pub mod h2;
pub mod identity;
pub mod pb;
pub mod registry;
pub mod resilience;
pub mod runtime;
pub mod sidecar;
pub mod task;
pub mod telemetry;
pub mod transport;
pub mod wire;
