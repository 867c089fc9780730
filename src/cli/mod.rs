//! The command line: parse, act, print, exit.

pub mod args;
pub mod exit;
pub mod output;
pub mod show;
