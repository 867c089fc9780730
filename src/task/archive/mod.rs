//! Finished tasks on disk, out of memory and out of the log: one redb file beside the journal.
//!
//! - `row`: what stands of a task in the tables; pure.
//! - `store`: the tables; it blocks.
//! - `view`: what a reader sees, as of one moment.
//! - `slot`: the open file, shared by the two threads; opens it again after a failure.
//! - `writer`, `reader`: one thread each, with bounded queues.
//! - `handle`: the public [`Archive`].
//!
//! Keys are the tasks' UUIDs, which sort by age. What a write says is durable when it is answered;
//! the same task written again replaces itself. Retention is counted from a task's end.
//!
//! An archive that cannot be opened, read or written loses nothing that is not in it already: its
//! owner keeps what it could not hand over, and asks again. It says so in its [`ArchiveStats`].

mod error;
mod handle;
mod metrics;
mod reader;
mod row;
mod slot;
mod store;
mod view;
mod writer;

#[cfg(test)]
mod tests;

pub use error::ArchiveError;
pub use handle::{Archive, ArchiveConfig, ArchiveStats};
pub use row::Row;
pub use view::{Filed, View};
