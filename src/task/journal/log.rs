//! Segments in a directory: recover, append a batch, rotate, delete. One caller, one thread.
//!
//! A segment is the file `<number of its first record>.log`. It is reserved and its header synced
//! under another name first, so a file with such a name always has a whole header.

use std::collections::VecDeque;

use prost::Message;

use crate::pb::journal::Record;

use super::Lsn;
use super::disk::{Disk, DiskFile};
use super::error::JournalError;
use super::frame::{
    self, FORMAT, FRAME_HEADER, Frames, HeaderFault, SEGMENT_HEADER, SegmentHeader,
};
use super::queue::Segments;

/// A longer file is no segment of ours, and is not read into memory.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// A segment that has no records yet.
const SPARE: &str = "spare.tmp";
/// Zeros written ahead of the batch now and then, so that most syncs overwrite written blocks:
/// a sync that first turns reserved blocks into written ones takes about twice as long.
static AHEAD: [u8; 512 << 10] = [0; 512 << 10];

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
    disk: Box<dyn Disk>,
    segment_bytes: u64,
    /// First record of every segment, oldest first; the last is the active one. Never empty.
    firsts: VecDeque<Lsn>,
    active: Active,
    spare: Option<Spare>,
    cut: Option<Cut>,
}

/// The segment that is written to.
#[derive(Debug)]
struct Active {
    file: Box<dyn DiskFile>,
    name: String,
    salt: u32,
    /// Offset of the next batch.
    end: u64,
    /// Up to here all blocks are written, if only with zeros.
    written: u64,
    capacity: u64,
    /// Number of the next record.
    next: Lsn,
}

#[derive(Debug)]
struct Spare {
    file: Box<dyn DiskFile>,
    bytes: u64,
}

impl Log {
    /// Reads all segments, gives every whole record to `replay`, and cuts a torn tail.
    pub(super) fn open(
        disk: Box<dyn Disk>,
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
            let spare = reserve(disk.as_ref(), segment_bytes)?;
            let active = Active::start(disk.as_ref(), spare, 1)?;
            let firsts = VecDeque::from([1]);
            return Ok(Self {
                disk,
                segment_bytes,
                firsts,
                active,
                spare: None,
                cut: None,
            });
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

    /// Number of the next record.
    pub(super) fn next(&self) -> Lsn {
        self.active.next
    }

    /// The torn tail that `open` cut off.
    pub(super) fn cut(&self) -> Option<&Cut> {
        self.cut.as_ref()
    }

    /// Writes frames that [`frame::push`] made for the next `records` records as one batch, and
    /// syncs them. After an error the log must not be used any more.
    pub(super) fn append(&mut self, batch: &mut [u8], records: u64) -> Result<(), JournalError> {
        // Behind a batch there is always room for its mark.
        let length = (batch.len() + FRAME_HEADER) as u64;
        if self.active.end + length > self.active.capacity {
            self.rotate(length)?;
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

    fn rotate(&mut self, batch: u64) -> Result<(), JournalError> {
        // A batch lies in one segment, so a large one gets a large segment.
        let bytes = self.segment_bytes.max(SEGMENT_HEADER as u64 + batch);
        let spare = match self.spare.take() {
            Some(spare) if spare.bytes >= bytes => spare,
            _ => reserve(self.disk.as_ref(), bytes)?,
        };
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
            id: rand::random(),
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
        self.file
            .sync_data()
            .map_err(JournalError::io("sync", &self.name))?;
        (self.end, self.written, self.next) = (end, written, self.next + records);
        Ok(())
    }
}

fn name_of(first: Lsn) -> String {
    format!("{first:020}.log")
}

/// The number in a segment's name; files of other names are not ours to judge.
fn first_of(name: &str) -> Option<Lsn> {
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

fn damaged(file: &str, offset: usize, reason: String) -> JournalError {
    JournalError::Damaged {
        file: file.to_owned(),
        offset: offset as u64,
        reason,
    }
}

/// Reads a whole segment into `buffer` and checks its header.
fn load(
    disk: &dyn Disk,
    first: Lsn,
    buffer: &mut Vec<u8>,
) -> Result<(Box<dyn DiskFile>, SegmentHeader), JournalError> {
    let name = &name_of(first);
    let file = disk.open(name).map_err(JournalError::io("open", name))?;
    let size = file.size().map_err(JournalError::io("read", name))?;
    let Some(size) = usize::try_from(size)
        .ok()
        .filter(|_| size <= MAX_FILE_BYTES)
    else {
        return Err(damaged(
            name,
            0,
            format!("{size} bytes are longer than any segment"),
        ));
    };
    buffer.resize(size, 0);
    file.read_at(0, buffer)
        .map_err(JournalError::io("read", name))?;
    match SegmentHeader::decode(buffer) {
        Ok(header) if header.first == first => Ok((file, header)),
        Ok(header) => {
            let reason = format!("by its header it begins with record {}", header.first);
            Err(damaged(name, 0, reason))
        }
        Err(HeaderFault::Newer(found)) => Err(JournalError::NewerFormat {
            file: name.clone(),
            found,
            known: FORMAT,
        }),
        Err(HeaderFault::Damaged) => Err(damaged(
            name,
            0,
            "the segment's header does not check".to_owned(),
        )),
    }
}

/// Replays whole records up to record `until`.
fn replay_frames(
    name: &str,
    frames: &mut Frames<'_>,
    until: Lsn,
    replay: &mut dyn FnMut(Lsn, Record),
) -> Result<(), JournalError> {
    while frames.next < until
        && let Some((at, lsn, bytes)) = frames.record()
    {
        // From a slice, so that no record keeps the buffer of its segment alive.
        let record = Record::decode(bytes)
            .map_err(|fault| damaged(name, at, format!("record {lsn} checks but: {fault}")))?;
        replay(lsn, record);
    }
    Ok(())
}

/// Replays a segment that has another behind it: all of it was synced, so all must be there.
fn replay_full(
    disk: &dyn Disk,
    [first, following]: [Lsn; 2],
    buffer: &mut Vec<u8>,
    replay: &mut dyn FnMut(Lsn, Record),
) -> Result<(), JournalError> {
    let (_, header) = load(disk, first, buffer)?;
    let name = &name_of(first);
    let mut frames = Frames::new(buffer, &header);
    replay_frames(name, &mut frames, following, replay)?;
    if frames.next < following {
        let reason = format!(
            "record {} does not check or is missing, the next segment begins with {following}",
            frames.next
        );
        return Err(damaged(name, frames.at, reason));
    }
    Ok(())
}

/// Replays the last segment, cuts its torn tail, and makes what is kept durable.
fn recover(
    disk: &dyn Disk,
    first: Lsn,
    segment_bytes: u64,
    buffer: &mut Vec<u8>,
    replay: &mut dyn FnMut(Lsn, Record),
) -> Result<(Active, Option<Cut>), JournalError> {
    let (file, header) = load(disk, first, buffer)?;
    let name = name_of(first);
    let mut frames = Frames::new(buffer, &header);
    replay_frames(&name, &mut frames, Lsn::MAX, replay)?;
    if let Some(later) = frames.written_later() {
        let next = frames.next;
        let reason = format!("record {next} does not check, but at {later} what came later does");
        return Err(damaged(&name, frames.at, reason));
    }
    let (end, next, marked) = (frames.at, frames.next, frames.marked());
    let behind = end + if marked { FRAME_HEADER } else { 0 };
    let dirty = Some(frame::used(buffer)).filter(|used| *used > behind);

    let capacity = (buffer.len() as u64)
        .max(segment_bytes)
        .max((end + FRAME_HEADER) as u64);
    file.allocate(capacity)
        .map_err(JournalError::io("reserve room for", &name))?;
    let write = |at: usize, bytes: &[u8]| {
        file.write_at(at as u64, bytes)
            .map_err(JournalError::io("write", &name))
    };
    if !marked {
        // The process before may have ended on a failed sync, after which pages look clean
        // though the disk never got them: only writing them again makes the next sync mean it.
        write(frames.batch_at, &buffer[frames.batch_at..end])?;
    }
    // A frame of the torn batch must not fit behind a record that is written in its place.
    let tail = dirty.map_or(0..0, |dirty| end..dirty);
    for at in tail.step_by(AHEAD.len()) {
        let length = dirty.map_or(0, |dirty| dirty - at).min(AHEAD.len());
        write(at, &AHEAD[..length])?;
    }
    if !marked || dirty.is_some() {
        file.sync_data().map_err(JournalError::io("sync", &name))?;
        write(end, &frame::mark(next, header.salt()))?;
    }
    let (salt, end) = (header.salt(), end as u64);
    let cut = dirty.map(|dirty| Cut {
        file: name.clone(),
        offset: end,
        bytes: dirty as u64 - end,
    });
    Ok((
        Active {
            file,
            name,
            salt,
            end,
            written: end,
            capacity,
            next,
        },
        cut,
    ))
}
