//! The open file, shared by the thread that writes and the one that reads.
//!
//! The writer opens it, off everybody's way, and opens it again after a failure; a reader waits
//! only for the first opening.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};
use redb::Database;

use super::error::{ArchiveError, failed};

/// How the file is opened.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, ArchiveError> + Send>;

/// The place of the open file.
pub(super) struct Slot {
    stand: Mutex<Stand>,
    changed: Condvar,
}

enum Stand {
    Opening,
    Open(Arc<Database>),
    Failed(ArchiveError),
}

impl Slot {
    pub(super) fn new() -> Self {
        Self {
            stand: Mutex::new(Stand::Opening),
            changed: Condvar::new(),
        }
    }

    /// The open file; waits while it is opened for the first time.
    pub(super) fn database(&self) -> Result<Arc<Database>, ArchiveError> {
        let mut stand = self.stand.lock();
        self.changed
            .wait_while(&mut stand, |stand| matches!(stand, Stand::Opening));
        match &*stand {
            Stand::Open(database) => Ok(Arc::clone(database)),
            Stand::Failed(error) => Err(error.clone()),
            Stand::Opening => Err(ArchiveError::Closed),
        }
    }

    /// Opens the file, in place of the one before; `first` sees it before anybody else.
    pub(super) fn open(
        &self,
        opener: &Opener,
        first: impl FnOnce(&Database) -> Result<(), ArchiveError>,
    ) -> Result<Arc<Database>, ArchiveError> {
        // The file is locked while anybody has it open.
        self.fail(&failed("it is being opened again"));
        let opened = caught(|| {
            let database = opener()?;
            first(&database)?;
            Ok(Arc::new(database))
        });
        *self.stand.lock() = match &opened {
            Ok(database) => Stand::Open(Arc::clone(database)),
            Err(error) => Stand::Failed(error.clone()),
        };
        self.changed.notify_all();
        opened
    }

    /// Nobody gets the file any more; one that is being opened for the first time is waited for.
    pub(super) fn fail(&self, error: &ArchiveError) {
        let mut stand = self.stand.lock();
        if !matches!(*stand, Stand::Opening) {
            *stand = Stand::Failed(error.clone());
        }
    }

    /// Lets go of the file for good.
    pub(super) fn close(&self) {
        *self.stand.lock() = Stand::Failed(ArchiveError::Closed);
        self.changed.notify_all();
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

/// What `work` gives; the store's own checks may panic on a damaged file, which is an error here.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, ArchiveError>) -> Result<T, ArchiveError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(failed("the store gave up: the file is damaged")))
}
