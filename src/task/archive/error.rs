//! Why the archive cannot do what it was asked.

use crate::domain::{Fault, Reason};

/// Why the archive cannot do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// The file cannot be opened, read or written, or is damaged; the text names what and why.
    #[error("{0}")]
    Failed(String),
    /// More waits than the queue holds; nothing was taken.
    #[error("the archive is busy")]
    Busy,
    /// The archive was closed.
    #[error("the archive is closed")]
    Closed,
}

impl From<ArchiveError> for Fault {
    fn from(error: ArchiveError) -> Self {
        let text = format!(
            "the archive of finished tasks cannot be read, so whether it has this task is not known: {error}"
        );
        Self::new(Reason::StorageFailed, text)
    }
}

pub(super) fn failed(error: impl ToString) -> ArchiveError {
    ArchiveError::Failed(error.to_string())
}

macro_rules! from_redb {
    ($($error:ty)*) => {
        $(impl From<$error> for ArchiveError {
            fn from(error: $error) -> Self {
                failed(error)
            }
        })*
    };
}

from_redb!(
    redb::DatabaseError redb::TransactionError redb::TableError redb::StorageError
    redb::CommitError
);
