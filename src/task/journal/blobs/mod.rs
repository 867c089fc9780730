//! Large content beside the log: in its directory, stored once by its SHA-256, named by records.
//!
//! - `hash`: the name of a content; `names`: who names it; `shelf`: where it is, and what may go; pure.
//! - `pack`: the bytes of a file; pure. `store`: the files, over the journal's [`Disk`](super::Disk).
//! - `recent`: some of what was last used. `handle`: the public [`Blobs`]; `metrics`: its counters.
//!
//! # Why packs
//! All contents of a batch of records go into one file, a pack, that is written under another name,
//! synced and renamed, and its directory synced, before the first of those records is written. A
//! file for each content would cost a sync each: 32 contents of 256 KiB took 64 to 180 ms so, and 7
//! to 50 ms in one file. A pack is never changed. Of a content that is written again the newer copy
//! counts, and the pack of the older one goes once nothing else in it is named; one of which little
//! is named is written anew. So a crash at any point leaves whole packs, and at most some that
//! nobody needs, which the next start finds by counting who names what.
//!
//! # What nobody can find out
//! What is written again is written, whoever had written it before: how long it takes says nothing
//! about what others have stored. No call takes a hash for a right: who reads names a task that they
//! may see, and what it names.
//!
//! # What is refused
//! Wrong bytes: a content is checked against its name whenever it is read, and an error says which
//! file is damaged.

mod handle;
mod hash;
mod metrics;
mod names;
mod pack;
mod recent;
mod shelf;
mod store;

#[cfg(test)]
mod tests;

pub use handle::{BlobStats, Blobs, Pin};
pub use hash::{Blob, Hash};
pub use names::{Holder, Place};
pub use store::{BlobError, Checked};

pub(super) use store::{Store, copy_packs};
