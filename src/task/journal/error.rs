//! Why the journal refused. The text tells the operator what to do.

use std::io;
use std::path::PathBuf;

/// Everything that opening or appending can answer.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has the directory.
    #[error(
        "the journal in {} is in use by {holder}: stop it, or give this sidecar its own data directory",
        .dir.display()
    )]
    Locked {
        /// Directory of the journal.
        dir: PathBuf,
        /// "process 4711", as far as it is known.
        holder: String,
    },
    /// A segment was written by a later version of the program.
    #[error(
        "{file} is written in journal format {found}, this version reads up to {known}: run the version that wrote it, or a newer one"
    )]
    NewerFormat {
        /// File of the segment.
        file: String,
        /// Format in its header.
        found: u32,
        /// Newest format of this program.
        known: u32,
    },
    /// Bytes that were on disk do not check any more.
    #[error(
        "{file} is damaged at byte {offset}: {reason}; acknowledged records would be lost: restore the directory from a copy, or move it away to start without its tasks"
    )]
    Damaged {
        /// File of the segment.
        file: String,
        /// Offset of the first byte of what does not check.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// There are no segments where a journal is to be checked.
    #[error(
        "{} holds no journal: name the directory with its *.log files, which a sidecar keeps in STATE/journal",
        .dir.display()
    )]
    NoJournal {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory for the repaired journal has something in it.
    #[error("{} is not empty: move it away, or name another directory with --into", .dir.display())]
    Occupied {
        /// The directory.
        dir: PathBuf,
    },
    /// The file system answered with an error.
    #[error("cannot {action} {file}: {source}")]
    Io {
        /// "write", "sync" and so on.
        action: &'static str,
        /// File or directory.
        file: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Too many bytes wait for the disk; nothing was taken. It passes with the next sync.
    #[error("{pending} bytes wait for the disk, the bound is {limit}: try again later")]
    Full {
        /// Bytes that wait.
        pending: usize,
        /// `JournalConfig::pending_bytes`.
        limit: usize,
    },
    /// A record, or the records of one call together, can never be taken.
    #[error("{bytes} bytes of journal records, at most {limit} are taken at once: send less")]
    TooLarge {
        /// Encoded size.
        bytes: usize,
        /// The bound that it passes.
        limit: usize,
    },
    /// A write or a sync failed before; nothing is acknowledged any more.
    #[error(
        "the journal failed ({cause}): the process must end, a restart replays what is on disk"
    )]
    Failed {
        /// The first error.
        cause: String,
    },
    /// [`super::Journal::close`] was called.
    #[error("the journal is closed: the process is shutting down")]
    Closed,
}

impl JournalError {
    /// Whether there is no room on the disk, which passes by itself: nothing was lost.
    pub(super) fn no_room(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// For `map_err`: an operation on a file and the system's answer.
    pub(super) fn io(action: &'static str, file: &str) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Io {
            action,
            file,
            source,
        }
    }
}
