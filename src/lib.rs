//! attache: a gRPC mesh for AI agents with mutual TLS.
//!
//! Every agent gets an attaché: a sidecar that carries its credentials, finds its peers by what
//! they can do, and delivers tasks between them that survive crashes.
//!
//! Modules look down only; `tests/layers.rs` holds the level table.

pub mod admin;
pub mod agent;
pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod identity;
pub mod pb;
pub mod registry;
pub mod runtime;
pub mod sidecar;
pub mod task;
pub mod transport;
pub mod wire;
