//! What a sidecar uses of the registry: its mirror of the catalog, its own registration, and the
//! reads that it serves to its agent.
//!
//! Nothing here opens a socket: channels are handed in, through a [`Source`].

mod copy;
mod counted;
mod follow;
pub mod local;
pub mod mirror;
pub mod registration;
pub mod source;

pub use counted::counted;
pub use local::LocalRegistryService;
pub use mirror::{Mirror, MirrorConfig};
pub use registration::{Described, Registration, Report, Standing};
pub use source::{Dialed, Source};

/// What a mirror holds and is asked.
pub use super::catalog::{Catalog, Entry, Revision};
pub use super::query::Query;
pub use super::rules::{
    Caller, Effective, Overrides, Percent, Rehearsal, Rule, RuleName, Rules, Target, Weight,
};
