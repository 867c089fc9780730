//! What is whole of a damaged journal, copied into a new directory. The old one stays as it is.
//!
//! A task that has lost a record is left out with all its records. Without those behind the hole it
//! would come to life again as it once was, and run or end a second time; with them it would not be
//! what was told to its watchers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::pb::journal::Record;

use super::Lsn;
use super::blobs::copy_packs;
use super::disk::{Disk, RealDisk};
use super::error::JournalError;
use super::frame;
use super::handle::{MAX_SEGMENT_BYTES, MIN_SEGMENT_BYTES};
use super::log::Log;
use super::owners::{Fate, Owners};
use super::readonly::ReadOnlyDisk;
use super::survey::{Seen, Survey};

/// Bytes that are written and synced at once.
const BATCH_BYTES: usize = 1 << 20;

/// What a repair found and made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// What the damaged directory holds.
    pub survey: Survey,
    /// The new directory.
    pub into: PathBuf,
    /// Records in it.
    pub records: u64,
    /// Tasks in it.
    pub tasks: usize,
    /// Tasks that are not in it: they have lost a record.
    pub holed: Vec<String>,
    /// Tasks that may have lost a record.
    pub doubtful: Vec<String>,
    /// Whether those that may have are in it all the same.
    pub kept_doubtful: bool,
}

impl Repaired {
    /// Copies what is whole of the journal in `dir` into the new directory `into`. Tasks that may
    /// have lost a record are left out too, unless `keep_doubtful` says that they may end, or be
    /// run, once more. Records get new numbers, above all that were ever given out.
    ///
    /// # Errors
    /// `Locked` while a sidecar runs on it; `NoJournal`, `Occupied`, `NewerFormat`, `Io`.
    pub fn make(dir: &Path, into: &Path, keep_doubtful: bool) -> Result<Self, JournalError> {
        let from = ReadOnlyDisk::open(dir)?;
        let (survey, fates) = fates(&from)?;
        if survey.segments.is_empty() {
            let dir = dir.to_owned();
            return Err(JournalError::NoJournal { dir });
        }
        let occupied = fs::read_dir(into).is_ok_and(|mut entries| entries.next().is_some());
        if occupied {
            let dir = into.to_owned();
            return Err(JournalError::Occupied { dir });
        }
        let to = Arc::new(RealDisk::open(into)?);
        let repaired = Self::copy(&from, to, (survey, fates), into, keep_doubtful)?;
        let made = Survey::of(into)?;
        match made
            .segments
            .iter()
            .find(|segment| !segment.damage.is_empty())
        {
            None => Ok(repaired),
            Some(segment) => Err(JournalError::Damaged {
                file: segment.file.clone(),
                offset: segment.damage[0].offset,
                reason: format!(
                    "the copy does not read as it was written: {}",
                    into.display()
                ),
            }),
        }
    }

    /// The same from one disk to another, empty one.
    pub(super) fn copy(
        from: &dyn Disk,
        to: Arc<dyn Disk>,
        (survey, fates): (Survey, BTreeMap<String, Fate>),
        into: &Path,
        keep_doubtful: bool,
    ) -> Result<Self, JournalError> {
        let largest = survey.segments.iter().map(|segment| segment.size).max();
        let segment = largest
            .unwrap_or(0)
            .clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES);
        // Before the records that name what is in them.
        copy_packs(from, to.as_ref())?;
        let mut copy = Copy::new(Log::create(to, segment, survey.next())?);
        let kept = |fate: Fate| match fate {
            Fate::Whole => true,
            Fate::Doubtful => keep_doubtful,
            Fate::Holed => false,
        };
        Survey::on(from, &mut |seen| match seen {
            Seen::Record(record) if fates.get(&record.task_id).is_some_and(|fate| kept(*fate)) => {
                copy.push(record)
            }
            Seen::Record(_) | Seen::Lost(_) => Ok(()),
        })?;
        copy.flush()?;
        let of = |wanted: Fate| {
            let found = fates.iter().filter(move |(_, fate)| **fate == wanted);
            found.map(|(task, _)| task.clone()).collect::<Vec<_>>()
        };
        Ok(Self {
            survey,
            into: into.to_owned(),
            records: copy.records,
            tasks: fates.values().filter(|fate| kept(**fate)).count(),
            holed: of(Fate::Holed),
            doubtful: of(Fate::Doubtful),
            kept_doubtful: keep_doubtful,
        })
    }
}

/// What a disk holds, and what became of its tasks.
pub(super) fn fates(from: &dyn Disk) -> Result<(Survey, BTreeMap<String, Fate>), JournalError> {
    let mut owners = Owners::default();
    let survey = Survey::on(from, &mut |seen| {
        owners.take(&seen);
        Ok(())
    })?;
    Ok((survey, owners.fates()))
}

/// A journal that is written anew.
struct Copy {
    log: Log,
    batch: Vec<u8>,
    /// Number of the first record in `batch`.
    first: Lsn,
    /// How many there are.
    count: u64,
    records: u64,
}

impl Copy {
    fn new(log: Log) -> Self {
        Self {
            first: log.next(),
            log,
            batch: Vec::new(),
            count: 0,
            records: 0,
        }
    }

    fn push(&mut self, record: &Record) -> Result<(), JournalError> {
        frame::push(&mut self.batch, self.first + self.count, self.first, record);
        self.count += 1;
        if self.batch.len() < BATCH_BYTES {
            return Ok(());
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), JournalError> {
        if self.count == 0 {
            return Ok(());
        }
        if !self.log.fits(self.batch.len()) {
            self.log.make_room(self.batch.len())?;
        }
        self.log.append(&mut self.batch, self.count)?;
        self.log.mark()?;
        self.batch.clear();
        self.records += self.count;
        (self.first, self.count) = (self.log.next(), 0);
        Ok(())
    }
}
