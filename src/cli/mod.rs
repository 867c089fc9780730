//! The command line: parse, act, print, exit.

mod agents;
pub mod args;
pub mod exit;
mod follow;
mod mesh;
pub mod output;
pub mod show;
mod task;
