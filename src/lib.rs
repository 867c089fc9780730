//! attache: a gRPC mesh for AI agents.
pub mod pb;
pub mod task;
