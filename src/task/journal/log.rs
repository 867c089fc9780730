//! Segments in a directory: recover, append a batch, rotate, delete. One caller, one thread.
//!
//! A segment is the file `<number of its first record>.log`. It is reserved and its header synced
//! under another name first, so a file with such a name always has a whole header.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::pb::journal::Record;
use crate::runtime::chance;

use super::Lsn;
use super::disk::{Disk, DiskFile};
use super::error::JournalError;
use super::frame::{self, FORMAT, FRAME_HEADER, SEGMENT_HEADER, SegmentHeader};
use super::queue::Segments;
use super::recover::{recover, replay_full};

/// A segment that has no records yet.
const SPARE: &str = "spare.tmp";
/// Zeros written ahead of the batch now and then, so that most syncs overwrite written blocks:
/// a sync that first turns reserved blocks into written ones takes about twice as long.
pub(super) static AHEAD: [u8; 512 << 10] = [0; 512 << 10];

/// A torn tail that recovery cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// File of the segment.
    pub file: String,
    /// Where the first byte that went lies.
    pub offset: u64,
    /// Length up to the last byte that was not zero.
    pub bytes: u64,
}

/// The segments of a directory; the last one takes the batches.
#[derive(Debug)]
pub(super) struct Log {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    /// First record of every segment, oldest first; the last is the active one. Never empty.
    firsts: VecDeque<Lsn>,
    active: Active,
    spare: Option<Spare>,
    cut: Option<Cut>,
}

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) file: Box<dyn DiskFile>,
    pub(super) name: String,
    /// Format of its header.
    pub(super) format: u32,
    pub(super) salt: u32,
    /// Offset of the next batch.
    pub(super) end: u64,
    /// Up to here all blocks are written, if only with zeros.
    pub(super) written: u64,
    pub(super) capacity: u64,
    /// Number of the next record.
    pub(super) next: Lsn,
}

#[derive(Debug)]
struct Spare {
    file: Box<dyn DiskFile>,
    bytes: u64,
}

impl Log {
    /// Reads all segments, gives every whole record to `replay`, and cuts a torn tail.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        segment_bytes: u64,
        replay: &mut dyn FnMut(Lsn, Record),
    ) -> Result<Self, JournalError> {
        let names = disk
            .list()
            .map_err(JournalError::io("list", "the journal's directory"))?;
        if names.iter().any(|name| name == SPARE) {
            disk.remove(SPARE)
                .map_err(JournalError::io("remove", SPARE))?;
        }
        let mut firsts: Vec<Lsn> = names.iter().filter_map(|name| first_of(name)).collect();
        firsts.sort_unstable();
        // A crash may have come between a rename or a removal and its sync.
        disk.sync_dir()
            .map_err(JournalError::io("sync", "the journal's directory"))?;
        let Some((&last, full)) = firsts.split_last() else {
            return Self::create(disk, segment_bytes, 1);
        };
        let mut buffer = Vec::new();
        for (first, following) in full.iter().zip(&firsts[1..]) {
            replay_full(disk.as_ref(), [*first, *following], &mut buffer, replay)?;
        }
        let (active, cut) = recover(disk.as_ref(), last, segment_bytes, &mut buffer, replay)?;
        Ok(Self {
            disk,
            segment_bytes,
            firsts: firsts.into(),
            active,
            spare: None,
            cut,
        })
    }

    /// A log in an empty directory, whose first record gets this number.
    pub(super) fn create(
        disk: Arc<dyn Disk>,
        segment_bytes: u64,
        first: Lsn,
    ) -> Result<Self, JournalError> {
        let spare = reserve(disk.as_ref(), segment_bytes)?;
        let active = Active::start(disk.as_ref(), spare, first)?;
        Ok(Self {
            disk,
            segment_bytes,
            firsts: VecDeque::from([first]),
            active,
            spare: None,
            cut: None,
        })
    }

    /// Number of the next record.
    pub(super) fn next(&self) -> Lsn {
        self.active.next
    }

    /// The torn tail that `open` cut off.
    pub(super) fn cut(&self) -> Option<&Cut> {
        self.cut.as_ref()
    }

    /// Whether the active segment takes a batch of so many bytes, and its mark. One of an earlier
    /// format takes none: an earlier version would read it to its end, and not know what it reads.
    pub(super) fn fits(&self, batch: usize) -> bool {
        self.active.format == FORMAT
            && self.active.end + (batch + FRAME_HEADER) as u64 <= self.active.capacity
    }

    /// Reserves what a batch of so many bytes needs in the next segment. An error does no harm yet.
    pub(super) fn make_room(&mut self, batch: usize) -> Result<(), JournalError> {
        // A batch lies in one segment, so a large one gets a large segment.
        let bytes = (SEGMENT_HEADER + batch + FRAME_HEADER) as u64;
        self.reserve()?;
        if let Some(spare) = &mut self.spare
            && spare.bytes < bytes
        {
            let more = spare.file.allocate(bytes);
            more.map_err(JournalError::io("reserve room for", SPARE))?;
            spare.bytes = bytes;
        }
        Ok(())
    }

    /// Writes frames that [`frame::push`] made for the next `records` records as one batch, and
    /// syncs them. There must be room. After an error the log must not be used any more.
    pub(super) fn append(&mut self, batch: &mut [u8], records: u64) -> Result<(), JournalError> {
        if !self.fits(batch.len()) {
            self.rotate()?;
        }
        frame::salt(batch, self.active.salt);
        self.active.append(batch, records)
    }

    /// Writes behind a synced batch, without a sync, that it was synced.
    pub(super) fn mark(&mut self) -> Result<(), JournalError> {
        let Active {
            file,
            name,
            salt,
            end,
            next,
            ..
        } = &self.active;
        file.write_at(*end, &frame::mark(*next, *salt))
            .map_err(JournalError::io("write", name))
    }

    /// Deletes the oldest segment if all its records are below `needed`; whether it did.
    pub(super) fn release(&mut self, needed: Lsn) -> Result<bool, JournalError> {
        let (Some(&oldest), Some(&following)) = (self.firsts.front(), self.firsts.get(1)) else {
            return Ok(false);
        };
        if following > needed {
            return Ok(false);
        }
        // One by one and oldest first: a crash must not leave a gap between two segments.
        let name = name_of(oldest);
        self.disk
            .remove(&name)
            .map_err(JournalError::io("remove", &name))?;
        self.disk
            .sync_dir()
            .map_err(JournalError::io("sync the directory of", &name))?;
        self.firsts.pop_front();
        Ok(true)
    }

    /// Reserves the room of the next segment ahead of need. An error does no harm yet.
    pub(super) fn reserve(&mut self) -> Result<(), JournalError> {
        if self.spare.is_none() {
            self.spare = Some(reserve(self.disk.as_ref(), self.segment_bytes)?);
        }
        Ok(())
    }

    /// Bytes that the file system has for us, `None` where it does not tell.
    pub(super) fn free(&self) -> Option<u64> {
        self.disk.free().ok()
    }

    /// Whether the next segment has its room already.
    pub(super) fn reserved(&self) -> bool {
        self.spare.is_some()
    }

    /// Number of segments on disk.
    pub(super) fn segments(&self) -> usize {
        self.firsts.len()
    }

    /// Whether the segments begin with these records.
    pub(super) fn begins(&self, firsts: &[Lsn]) -> bool {
        // The numbers grow, so the ends and the count say all.
        self.firsts.len() == firsts.len()
            && self.firsts.front() == firsts.first()
            && self.firsts.back() == firsts.last()
    }

    /// Where the segments begin.
    pub(super) fn begin(&self) -> Segments {
        Segments {
            firsts: self.firsts.iter().copied().collect(),
            bytes: self.segment_bytes,
        }
    }

    fn rotate(&mut self) -> Result<(), JournalError> {
        self.reserve()?;
        let spare = self.spare.take().expect("it was just reserved");
        self.active = Active::start(self.disk.as_ref(), spare, self.active.next)?;
        // A segment without records was replaced by one of the same name.
        if self.firsts.back() != Some(&self.active.next) {
            self.firsts.push_back(self.active.next);
        }
        Ok(())
    }
}

impl Active {
    /// Makes a spare file the segment that begins with record `first`.
    fn start(disk: &dyn Disk, spare: Spare, first: Lsn) -> Result<Self, JournalError> {
        let Spare {
            file,
            bytes: capacity,
        } = spare;
        let header = SegmentHeader {
            format: FORMAT,
            id: chance::number(),
            first,
        };
        let name = name_of(first);
        file.write_at(0, &header.encode())
            .map_err(JournalError::io("write", SPARE))?;
        file.sync_data().map_err(JournalError::io("sync", SPARE))?;
        disk.rename(SPARE, &name)
            .map_err(JournalError::io("rename the spare segment to", &name))?;
        disk.sync_dir()
            .map_err(JournalError::io("sync the directory of", &name))?;
        let end = SEGMENT_HEADER as u64;
        Ok(Self {
            file,
            name,
            format: header.format,
            salt: header.salt(),
            end,
            written: end,
            capacity,
            next: first,
        })
    }

    fn append(&mut self, batch: &[u8], records: u64) -> Result<(), JournalError> {
        let write = |offset, bytes| {
            self.file
                .write_at(offset, bytes)
                .map_err(JournalError::io("write", &self.name))
        };
        write(self.end, batch)?;
        let end = self.end + batch.len() as u64;
        let mut written = self.written.max(end);
        if end + FRAME_HEADER as u64 > self.written {
            let ahead = usize::try_from(self.capacity - end).unwrap_or(usize::MAX);
            let ahead = &AHEAD[..ahead.min(AHEAD.len())];
            write(end, ahead)?;
            written = end + ahead.len() as u64;
        }
        self.sync()?;
        (self.end, self.written, self.next) = (end, written, self.next + records);
        Ok(())
    }

    /// The control that nothing is acknowledged before it is on disk.
    fn sync(&self) -> Result<(), JournalError> {
        #[cfg(any(test, feature = "sabotage"))]
        if crate::task::controls::removed(crate::task::controls::Control::Sync) {
            return Ok(());
        }
        self.file
            .sync_data()
            .map_err(JournalError::io("sync", &self.name))
    }
}

pub(super) fn name_of(first: Lsn) -> String {
    format!("{first:020}.log")
}

/// The number in a segment's name; files of other names are not ours to judge.
pub(super) fn first_of(name: &str) -> Option<Lsn> {
    let first = name.strip_suffix(".log")?.parse().ok()?;
    (first > 0 && name_of(first) == name).then_some(first)
}

/// A file with reserved room under the spare name; nothing is left of it after an error.
fn reserve(disk: &dyn Disk, bytes: u64) -> Result<Spare, JournalError> {
    let file = disk
        .create(SPARE)
        .map_err(JournalError::io("create", SPARE))?;
    if let Err(source) = file.allocate(bytes) {
        // The first error is the one to tell; a file that stays is emptied by the next try.
        drop(disk.remove(SPARE));
        return Err(JournalError::io("reserve room for", SPARE)(source));
    }
    Ok(Spare { file, bytes })
}
