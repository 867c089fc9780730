//! A segment read to its end, past what is damaged. Pure.
//!
//! Frames say their number in a header that checks by itself and is bound to the segment, so the
//! place where whole records go on is known, and with it which numbers are lost. Bytes of a record
//! are taken for whole only if they check.

use prost::Message;

use crate::domain::TaskId;
use crate::pb::journal::Record;

use super::Lsn;
use super::frame::{
    self, FRAME_HEADER, Frames, HeaderFault, MAX_RECORD_BYTES, SEGMENT_HEADER, SegmentHeader,
};

/// What stands in a segment, in order.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// A record that checks.
    Record {
        /// Offset of its frame.
        at: usize,
        /// Its number.
        lsn: Lsn,
        /// Number of the first record of its batch.
        batch: Lsn,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// Records that were on disk and do not check any more.
    Lost(Lost<'a>),
    /// The end of a batch that was never acknowledged: opening cuts it.
    Torn {
        /// Where it begins.
        at: usize,
        /// Length up to the last byte that is not zero.
        bytes: usize,
    },
}

/// Numbers that are lost, and what stands in their place.
#[derive(Debug)]
pub(super) struct Lost<'a> {
    /// Offset of the first byte that does not check.
    pub(super) at: usize,
    /// The first number.
    pub(super) first: Lsn,
    /// The last one.
    pub(super) last: Lsn,
    bytes: &'a [u8],
}

impl Lost<'_> {
    /// The record, where only its frame's header is damaged: its bytes check by themselves.
    pub(super) fn salvaged(&self) -> Option<Record> {
        let (head, body) = self.alone()?;
        let crc = u32::from_le_bytes(head.get(16..20)?.try_into().ok()?);
        if crc32fast::hash(body) != crc {
            return None;
        }
        // The length is not known, but no record ends with a zero that is not its own.
        let ends = (0..8).map_while(|zeros| {
            let end = body.len().checked_sub(zeros)?;
            body[end..].iter().all(|byte| *byte == 0).then_some(end)
        });
        ends.into_iter()
            .find_map(|end| Record::decode(&body[..end]).ok())
    }

    /// The task that a damaged record names, if it names one: the id stands at its beginning.
    pub(super) fn owner(&self) -> Option<String> {
        let (_, body) = self.alone()?;
        let (&[tag, length], rest) = body.split_first_chunk::<2>()?;
        // Field 1, a string.
        let id = rest
            .get(..usize::from(length))
            .filter(|_| tag == 0x0a && length < 0x80)?;
        let id = str::from_utf8(id).ok()?;
        id.parse::<TaskId>().ok().map(|_| id.to_owned())
    }

    /// Header and content of the frame, if it is one.
    fn alone(&self) -> Option<(&[u8], &[u8])> {
        (self.first == self.last)
            .then(|| self.bytes.split_at_checked(FRAME_HEADER))
            .flatten()
    }
}

/// Reads a segment. Where another one is behind it, all up to that one's first number must be
/// there; the last segment may end torn.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    segment: &'a [u8],
    frames: Frames<'a>,
    following: Option<Lsn>,
    done: bool,
}

impl<'a> Scan<'a> {
    pub(super) fn new(segment: &'a [u8], header: &SegmentHeader, following: Option<Lsn>) -> Self {
        Self {
            segment,
            frames: Frames::new(segment, header),
            following,
            done: false,
        }
    }

    /// Offset behind what was read.
    pub(super) fn at(&self) -> usize {
        self.frames.at
    }

    fn gap(&mut self) -> Option<Found<'a>> {
        let (at, first) = (self.frames.at, self.frames.next);
        if self.following.is_none() && self.frames.written_later().is_none() {
            self.done = true;
            let behind = at
                + if self.frames.marked() {
                    FRAME_HEADER
                } else {
                    0
                };
            let used = frame::used(self.segment);
            return (used > behind).then(|| Found::Torn {
                at,
                bytes: used - at,
            });
        }
        let resumed = self.frames.resumed();
        let fits = |(_, next): &(usize, Lsn)| self.following.is_none_or(|end| *next <= end);
        let (to, next) = match (resumed.filter(fits), self.following) {
            (Some(resumed), _) => resumed,
            (None, Some(following)) => (frame::used(self.segment).max(at), following),
            // What was written later has a header that checks, so this is never so.
            (None, None) => {
                self.done = true;
                return None;
            }
        };
        self.frames.go_on(to, next);
        Some(Found::Lost(Lost {
            at,
            first,
            last: next - 1,
            bytes: &self.segment[at.min(to)..to],
        }))
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Found<'a>> {
        if self.done || self.following.is_some_and(|end| self.frames.next >= end) {
            return None;
        }
        match self.frames.record() {
            Some((at, lsn, bytes)) => Some(Found::Record {
                at,
                lsn,
                batch: self.frames.batch,
                bytes,
            }),
            None => self.gap(),
        }
    }
}

/// The header of a segment, or what it must have been, by its frames: and whether it was whole.
/// `None`: nothing in it can be bound to it.
///
/// # Errors
/// The format, where it is a later one.
pub(super) fn header_of(segment: &[u8], first: Lsn) -> Result<Option<(SegmentHeader, bool)>, u32> {
    match SegmentHeader::decode(segment) {
        Ok(header) if header.first == first => return Ok(Some((header, true))),
        Err(HeaderFault::Newer(format)) => return Err(format),
        Ok(_) | Err(HeaderFault::Damaged) => {}
    }
    // The bytes of a record check without the segment's id: the first whole one tells its salt.
    let mut offsets = (SEGMENT_HEADER..segment.len().saturating_sub(FRAME_HEADER)).step_by(8);
    Ok(offsets.find_map(|at| {
        let salt = frame::salt_by(&segment[at..], first, MAX_RECORD_BYTES)?;
        Some((SegmentHeader::with_salt(salt, first), false))
    }))
}
