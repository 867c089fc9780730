//! From the bytes of the segments back to records: what is whole is replayed, a torn tail of the
//! last segment is cut, everything else that does not check is refused.

use prost::Message;

use crate::pb::journal::Record;

use super::Lsn;
use super::disk::{Disk, DiskFile};
use super::error::JournalError;
use super::frame::{self, FORMAT, FRAME_HEADER, Frames, HeaderFault, SegmentHeader};
use super::log::{AHEAD, Active, Cut, name_of};

/// A longer file is no segment of ours, and is not read into memory.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 30;

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
pub(super) fn replay_full(
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
pub(super) fn recover(
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
            format: header.format,
            salt,
            end,
            written: end,
            capacity,
            next,
        },
        cut,
    ))
}

fn damaged(file: &str, offset: usize, reason: String) -> JournalError {
    JournalError::Damaged {
        file: file.to_owned(),
        offset: offset as u64,
        reason,
    }
}
