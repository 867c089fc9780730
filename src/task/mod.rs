//! Tasks: who owns them, who runs them, and what is kept of them.
//!
//! The home journals a task before it is acknowledged and every event before it is shown; the
//! executor runs one attempt and forgets it. They meet at the doors in [`doors`], so that either is
//! tested without the other, and without sockets.

#[cfg(test)]
mod fair_tests;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tree_tests;

pub mod archive;
pub mod attach;
pub mod callback;
#[cfg(any(test, feature = "sabotage"))]
mod controls;
pub mod courier;
pub mod descendants;
pub mod doors;
pub mod executor;
pub mod home;
pub mod journal;
pub mod key;
pub mod lineage;
pub mod parts;
pub mod service;
pub mod spec;

pub use doors::{
    Call, Candidate, Claims, Connect, Contract, Grants, Parent, Parents, Pick, Promise, Route,
    Steps, Updates, Want,
};
