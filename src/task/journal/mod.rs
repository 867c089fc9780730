//! The write-ahead log of a home's tasks: records in, numbers out, on disk before anybody is told.
//!
//! - `frame`: bytes of a segment's header and of a record; pure.
//! - `log`: segments in a directory: recover, append, rotate, delete; single threaded, over a
//!   [`Disk`].
//! - `queue`: records that wait, in the buffer that is written; shared by the handles and:
//! - `writer`: what came in during the last sync goes into the next one; no timer.
//! - `handle`: the public [`Journal`].
//! - `recover`: what `log` does at start; `scan`, `survey`: the same past what is damaged, without
//!   changing anything; `owners`, `repair`: which tasks are whole, and a new directory of them.
//! - `blobs`: large content, in the same directory, that records name by its hash.
//! - `disk`, `readonly`: the few operations that the log needs of a file system, and the real one.
//!
//! # What a crash leaves
//! A batch is what one sync covers. It is written only after the batch before it was synced, and
//! lies in one segment. So a crash can damage the last batch alone, in any of its pages: its whole
//! records up to the first that does not check are kept, the rest is cut. Records of one
//! [`Journal::append`] keep their order, but a crash may keep only the first of them.
//!
//! Every record carries the number at which its batch began, and after each sync a mark is written
//! behind the batch (not synced itself). A record that does not check is therefore known to have
//! been on disk if anything behind it began later: that is damage, and it is refused with file and
//! offset. The one thing that cannot be told from a torn tail is damage to the very last batch
//! before its mark reached the disk.
//!
//! # What is refused
//! Two processes in one directory, segments of a newer format, damage, a missing segment between
//! two others. After an error of a write or a sync nothing is acknowledged any more and no sync is
//! tried again, since the pages may be lost yet look clean: the process must end and replay.

pub mod blobs;
mod disk;
mod error;
mod frame;
mod handle;
mod log;
mod metrics;
mod owners;
mod queue;
mod readonly;
mod recover;
mod repair;
mod scan;
mod survey;
mod writer;

#[cfg(test)]
pub(in crate::task) mod faulty;
#[cfg(test)]
mod tests;

pub use disk::{Disk, DiskFile, RealDisk};
pub use error::JournalError;
pub use frame::MAX_RECORD_BYTES;
pub use handle::{Journal, JournalConfig};
pub use log::Cut;
pub use owners::Fate;
pub use queue::{JournalStats, Segments, Synced};
pub use repair::Repaired;
pub use survey::{Damage, Segment, Survey, Torn};
pub use writer::{Step, Writer};

/// Number of a record, from 1, contiguous over the life of the directory; 0 is before the first.
pub type Lsn = u64;
