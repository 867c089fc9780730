//! The command line: parse, act, print, exit.

pub mod args;
