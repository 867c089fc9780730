//! The bytes of a segment: its header, and a frame per record. Pure; refuses what does not check.
//!
//! All numbers are little-endian. A segment begins with 64 bytes:
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | `ATTJRNL\0` |
//! | 8 | 4 | format |
//! | 12 | 4 | CRC-32 of the 64 bytes, these four as zero |
//! | 16 | 8 | random id of the segment |
//! | 24 | 8 | number of its first record |
//! | 32 | 32 | zero |
//!
//! These 64 bytes stay as they are in every later format. Then come frames, each at a multiple of
//! 8, each a header of 24 bytes and the record, filled up with zeros:
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 4 | length of the record; `u32::MAX`: a mark |
//! | 4 | 4 | how many records of the same batch come before it |
//! | 8 | 8 | number of the record |
//! | 16 | 4 | CRC-32 of the record and its filling |
//! | 20 | 4 | CRC-32 of the 20 bytes before, mixed with the segment's id |
//!
//! A mark has the number of the next record: all before it were synced when it was written. It is
//! overwritten by the next batch.

use prost::Message;

use crate::pb::journal::Record;

use super::Lsn;

/// A record is at most this long when encoded: over twice the largest message of the contract.
pub const MAX_RECORD_BYTES: usize = 8 << 20;
/// Format that this program writes; it reads this one and those before. In format 2 records may name
/// contents beside the log; to a program that knows format 1 alone such a record would look hollow.
pub(super) const FORMAT: u32 = 2;
/// Length of a segment's header.
pub(super) const SEGMENT_HEADER: usize = 64;
/// Length of a frame's header, and of a mark.
pub(super) const FRAME_HEADER: usize = 24;

const MAGIC: &[u8; 8] = b"ATTJRNL\0";
const ALIGN: usize = 8;
const MARK: u32 = u32::MAX;
/// More frames than the largest file can hold.
const MAX_FILE_RECORDS: u64 = 1 << 26;

/// What a segment says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Format of its records, from 1 to [`FORMAT`].
    pub(super) format: u32,
    /// Random; makes frames of another segment, or of a payload, fail here.
    pub(super) id: u64,
    /// Number of the first record.
    pub(super) first: Lsn,
}

/// Why a segment's header was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// It checks, but is of this later format.
    Newer(u32),
    /// It is short or does not check.
    Damaged,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&self.format.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first.to_le_bytes());
        let crc = crc32fast::hash(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let Some(bytes) = bytes.first_chunk::<SEGMENT_HEADER>() else {
            return Err(HeaderFault::Damaged);
        };
        let mut unsigned = *bytes;
        unsigned[12..16].fill(0);
        // The CRC before the format: a flipped bit is not a newer format.
        if &bytes[..8] != MAGIC || crc32fast::hash(&unsigned) != u32_at(bytes, 12) {
            return Err(HeaderFault::Damaged);
        }
        match u32_at(bytes, 8) {
            format @ 1..=FORMAT => Ok(Self {
                format,
                id: u64_at(bytes, 16),
                first: u64_at(bytes, 24),
            }),
            0 => Err(HeaderFault::Damaged),
            newer => Err(HeaderFault::Newer(newer)),
        }
    }

    /// A header of which only the salt is known.
    pub(super) fn with_salt(salt: u32, first: Lsn) -> Self {
        Self {
            format: FORMAT,
            id: u64::from(salt),
            first,
        }
    }

    /// What is mixed into the CRC of every frame's header. For headers of one length this equals
    /// a CRC that begins with the id.
    pub(super) fn salt(&self) -> u32 {
        let bytes = self.id.to_le_bytes();
        u32_at(&bytes, 0) ^ u32_at(&bytes, 4)
    }
}

/// Length of the frame of a record that is `record` bytes long.
pub(super) fn frame_len(record: usize) -> usize {
    FRAME_HEADER + record.next_multiple_of(ALIGN)
}

/// Appends the frame of `record`, without salt: which segment it goes to is decided by [`salt`].
/// `batch` is the number of the first record in `into`. The caller has checked the size.
pub(super) fn push(into: &mut Vec<u8>, lsn: Lsn, batch: Lsn, record: &Record) {
    let start = into.len();
    into.resize(start + FRAME_HEADER, 0);
    record
        .encode(into)
        .expect("a Vec has room for every record");
    let length = into.len() - start - FRAME_HEADER;
    into.resize(start + frame_len(length), 0);
    let (head, body) = into[start..].split_at_mut(FRAME_HEADER);
    let length = u32::try_from(length).expect("a record is at most MAX_RECORD_BYTES long");
    let place = u32::try_from(lsn - batch).expect("a batch in memory has fewer records than 2^32");
    fill_header(head, [length, place], lsn, crc32fast::hash(body));
}

/// Bytes of a mark: all records before `next` are synced.
pub(super) fn mark(next: Lsn, salt_of: u32) -> [u8; FRAME_HEADER] {
    let mut bytes = [0; FRAME_HEADER];
    fill_header(&mut bytes, [MARK, 0], next, 0);
    mix(&mut bytes, salt_of);
    bytes
}

/// Binds frames that [`push`] made to the segment with this salt.
pub(super) fn salt(frames: &mut [u8], salt_of: u32) {
    let mut rest = frames;
    while !rest.is_empty() {
        let length = frame_len(u32_at(rest, 0) as usize);
        mix(rest, salt_of);
        rest = &mut rest[length..];
    }
}

/// Length of `bytes` without the zeros at the end. By blocks: a new segment is nothing but zeros.
pub(super) fn used(bytes: &[u8]) -> usize {
    const BLOCK: [u8; 4096] = [0; 4096];
    let mut end = bytes.len();
    while let Some(start) = end.checked_sub(BLOCK.len())
        && bytes[start..end] == BLOCK
    {
        end = start;
    }
    let last = bytes[..end].iter().rposition(|byte| *byte != 0);
    last.map_or(0, |last| last + 1)
}

/// The salt of the segment that the frame at the beginning of `bytes` belongs to, if it is a whole
/// one of a segment whose first record is `first`.
pub(super) fn salt_by(bytes: &[u8], first: Lsn, longest: usize) -> Option<u32> {
    let head = bytes.get(..FRAME_HEADER)?;
    let length = u32_at(head, 0) as usize;
    // More records than fit into the segment do not stand in it.
    let numbers = first..first + MAX_FILE_RECORDS;
    if length > longest || !numbers.contains(&u64_at(head, 8)) {
        return None;
    }
    let body = bytes.get(FRAME_HEADER..frame_len(length))?;
    // Zeros have a CRC of zero only where there are none.
    let whole = !body.is_empty() && crc32fast::hash(body) == u32_at(head, 16);
    whole.then(|| crc32fast::hash(&head[..20]) ^ u32_at(head, 20))
}

/// Walks over the whole frames of a segment, in order, up to the first that is not one.
#[derive(Debug)]
pub(super) struct Frames<'a> {
    segment: &'a [u8],
    salt: u32,
    /// Offset behind the last whole frame.
    pub(super) at: usize,
    /// Number that the frame at `at` has to have.
    pub(super) next: Lsn,
    /// Offset at which the batch of the last whole frame begins.
    pub(super) batch_at: usize,
    /// Number of the first record of that batch.
    pub(super) batch: Lsn,
}

impl<'a> Frames<'a> {
    /// Over all bytes of a segment with this header.
    pub(super) fn new(segment: &'a [u8], header: &SegmentHeader) -> Self {
        let (at, next) = (SEGMENT_HEADER, header.first);
        Self {
            segment,
            salt: header.salt(),
            at,
            next,
            batch_at: at,
            batch: next,
        }
    }

    /// Offset, number and bytes of the next record.
    pub(super) fn record(&mut self) -> Option<(usize, Lsn, &'a [u8])> {
        let rest = self.segment.get(self.at..)?;
        let head = Head::read(rest, self.salt)?;
        if !number_checks(head.lsn, self.next) || head.length == MARK {
            return None;
        }
        let length = head.length as usize;
        let body = rest.get(FRAME_HEADER..frame_len(length))?;
        if !record_checks(body, head.crc) {
            return None;
        }
        let at = self.at;
        if head.batch != self.batch {
            (self.batch, self.batch_at) = (head.batch, at);
        }
        self.at += frame_len(length);
        self.next += 1;
        Some((at, head.lsn, &body[..length]))
    }

    /// Where whole frames may go on behind what does not check, and the number there. A record
    /// whose header checks is passed by its length.
    pub(super) fn resumed(&self) -> Option<(usize, Lsn)> {
        let rest = self.segment.get(self.at..)?;
        let here = Head::read(rest, self.salt);
        if let Some(head) = here.filter(|head| head.lsn == self.next && head.length != MARK)
            && let Some(end) =
                Some(frame_len(head.length as usize)).filter(|end| *end <= rest.len())
        {
            return Some((self.at + end, self.next + 1));
        }
        let (offset, head) = self.heads().find(|(_, head)| head.lsn > self.next)?;
        Some((self.at + offset, head.lsn))
    }

    /// Reads on from there.
    pub(super) fn go_on(&mut self, at: usize, next: Lsn) {
        (self.at, self.next) = (at, next);
    }

    /// Whether a mark stands at the end: all records before it were synced.
    pub(super) fn marked(&self) -> bool {
        let head = self
            .segment
            .get(self.at..)
            .and_then(|rest| Head::read(rest, self.salt));
        head.is_some_and(|head| head.length == MARK && head.lsn == self.next)
    }

    /// Where behind the end something begins that was written after record `next` was synced.
    /// Its batch (or mark) has a higher number, and a batch is written after the one before it
    /// was synced; a frame of the same batch proves nothing, pages reach the disk in any order.
    pub(super) fn written_later(&self) -> Option<usize> {
        let mut later = self.heads().filter(|(_, head)| head.batch > self.next);
        later.next().map(|(offset, _)| self.at + offset)
    }

    /// Every header that checks from the end on, with its offset from there.
    fn heads(&self) -> impl Iterator<Item = (usize, Head)> {
        let rest = self.segment.get(self.at..).unwrap_or_default();
        let used = used(rest).next_multiple_of(ALIGN).min(rest.len());
        let words = rest[..used].chunks_exact(ALIGN).enumerate();
        // A frame's second word is its number, which is never 0.
        let numbers = words.skip(1).filter(|(_, word)| *word != [0; ALIGN]);
        numbers.filter_map(|(index, _)| {
            let offset = (index - 1) * ALIGN;
            let head = Head::read(&rest[offset..], self.salt)?;
            // More records than fit in between: bytes of a payload that check by chance.
            let between = (offset / FRAME_HEADER) as u64;
            (head.lsn.saturating_sub(self.next) <= between).then_some((offset, head))
        })
    }
}

/// The control that a record is as it was written.
fn record_checks(body: &[u8], crc: u32) -> bool {
    #[cfg(test)]
    if crate::task::controls::removed(crate::task::controls::Control::Record) {
        return true;
    }
    crc32fast::hash(body) == crc
}

/// The control that a record stands where it was written.
fn number_checks(found: Lsn, expected: Lsn) -> bool {
    #[cfg(test)]
    if crate::task::controls::removed(crate::task::controls::Control::Number) {
        return true;
    }
    found == expected
}

/// A frame's header that checks.
#[derive(Debug)]
struct Head {
    length: u32,
    /// Number of the first record of the batch.
    batch: Lsn,
    lsn: Lsn,
    crc: u32,
}

impl Head {
    fn read(bytes: &[u8], salt_of: u32) -> Option<Self> {
        let bytes = bytes.get(..FRAME_HEADER)?;
        if crc32fast::hash(&bytes[..20]) ^ salt_of != u32_at(bytes, 20) {
            return None;
        }
        let lsn = u64_at(bytes, 8);
        let batch = lsn.checked_sub(u64::from(u32_at(bytes, 4)))?;
        Some(Self {
            length: u32_at(bytes, 0),
            batch,
            lsn,
            crc: u32_at(bytes, 16),
        })
    }
}

fn fill_header(head: &mut [u8], [length, place]: [u32; 2], lsn: Lsn, crc: u32) {
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..8].copy_from_slice(&place.to_le_bytes());
    head[8..16].copy_from_slice(&lsn.to_le_bytes());
    head[16..20].copy_from_slice(&crc.to_le_bytes());
    let check = crc32fast::hash(&head[..20]);
    head[20..24].copy_from_slice(&check.to_le_bytes());
}

fn mix(frame: &mut [u8], salt_of: u32) {
    let mixed = u32_at(frame, 20) ^ salt_of;
    frame[20..24].copy_from_slice(&mixed.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of four"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of eight"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: SegmentHeader = SegmentHeader {
        format: FORMAT,
        id: 0x0123_4567_89ab_cdef,
        first: 7,
    };

    fn record(bytes: &[u8]) -> Record {
        let task_id = bytes
            .iter()
            .map(|byte| char::from(byte % 64 + 48))
            .collect();
        Record {
            task_id,
            ..Record::default()
        }
    }

    /// A segment with these batches, and the offset at which each record ends.
    fn segment(batches: &[Vec<Vec<u8>>]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = HEADER.encode().to_vec();
        let (mut lsn, mut ends) = (HEADER.first, Vec::new());
        for batch in batches {
            let (first, mut buffer) = (lsn, Vec::new());
            for payload in batch {
                push(&mut buffer, lsn, first, &record(payload));
                ends.push(bytes.len() + buffer.len());
                lsn += 1;
            }
            salt(&mut buffer, HEADER.salt());
            bytes.extend(buffer);
        }
        (bytes, ends)
    }

    fn whole(bytes: &[u8]) -> (usize, Frames<'_>) {
        let mut frames = Frames::new(bytes, &HEADER);
        let count = std::iter::from_fn(|| frames.record()).count();
        (count, frames)
    }

    fn batches() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
        let payload = prop::collection::vec(any::<u8>(), 0..40);
        prop::collection::vec(prop::collection::vec(payload, 1..4), 1..5)
    }

    proptest! {
        #[test]
        fn a_cut_at_every_byte_keeps_exactly_the_whole_records(batches in batches(), zeros in any::<bool>()) {
            let (bytes, ends) = segment(&batches);
            for cut in SEGMENT_HEADER..=bytes.len() {
                let mut torn = bytes[..cut].to_vec();
                if zeros {
                    torn.resize(bytes.len() + 64, 0);
                }
                let (count, frames) = whole(&torn);
                // Bytes of the filling that are cut and read as zeros are not missing.
                let lost = bytes[cut..].iter().position(|byte| *byte != 0);
                let good = if zeros { cut + lost.unwrap_or(bytes.len() - cut) } else { cut };
                prop_assert_eq!(count, ends.iter().filter(|end| **end <= good).count());
                prop_assert_eq!(frames.written_later(), None);
            }
        }

        #[test]
        fn a_flipped_bit_is_damage_unless_it_is_in_the_last_batch(batches in batches(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let (mut bytes, ends) = segment(&batches);
            let at = SEGMENT_HEADER + at.index(bytes.len() - SEGMENT_HEADER);
            bytes[at] ^= 1 << bit;
            let hit = ends.iter().filter(|end| **end <= at).count();
            let before_last = ends.len() - batches.last().unwrap().len();
            let (count, frames) = whole(&bytes);
            prop_assert_eq!(count, hit);
            prop_assert_eq!(frames.written_later().is_some(), hit < before_last);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut noise = HEADER.encode().to_vec();
            noise.extend(&bytes);
            let (count, frames) = whole(&noise);
            prop_assert_eq!((count, frames.written_later()), (0, None));
            prop_assert!(SegmentHeader::decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_mark_proves_that_the_last_batch_was_synced() {
        let (mut bytes, ends) = segment(&[vec![vec![1; 9], vec![2; 9]]]);
        bytes.extend(mark(HEADER.first + 2, HEADER.salt()));
        let (count, frames) = whole(&bytes);
        assert_eq!(
            (count, frames.marked(), frames.written_later()),
            (2, true, None)
        );
        bytes[ends[0] + FRAME_HEADER] ^= 1;
        let (count, frames) = whole(&bytes);
        assert_eq!((count, frames.marked()), (1, false));
        assert_eq!(frames.written_later(), Some(ends[1]));
    }

    #[test]
    fn a_number_that_cannot_stand_there_proves_nothing() {
        let (mut bytes, _) = segment(&[vec![vec![1; 9]]]);
        bytes.extend([0; FRAME_HEADER]);
        for (next, seen) in [(2, true), (3, false)] {
            let mut chance = bytes.clone();
            chance.extend(mark(HEADER.first + next, HEADER.salt()));
            assert_eq!(whole(&chance).1.written_later().is_some(), seen, "{next}");
        }
    }

    #[test]
    fn zeros_at_the_end_are_not_used() {
        for (length, used_bytes) in [(0, 0), (10_000, 0), (10_000, 1), (8192, 4096), (8192, 4097)] {
            let mut bytes = vec![0; length];
            bytes[..used_bytes].fill(1);
            assert_eq!(used(&bytes), used_bytes, "{length}");
        }
    }

    #[test]
    fn frames_of_another_segment_are_none() {
        let (bytes, _) = segment(&[vec![vec![1; 9]]]);
        let other = SegmentHeader {
            id: HEADER.id + 1,
            ..HEADER
        };
        let mut frames = Frames::new(&bytes, &other);
        assert!(frames.record().is_none());
    }

    #[test]
    fn a_header_is_whole_or_newer_or_damaged() {
        let bytes = HEADER.encode();
        let of = |format| SegmentHeader { format, ..HEADER };
        for format in 1..=FORMAT {
            let header = of(format);
            assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        }
        for newer in [FORMAT + 1, 9, u32::MAX] {
            let refused = SegmentHeader::decode(&of(newer).encode());
            assert_eq!(refused, Err(HeaderFault::Newer(newer)));
        }
        let none = SegmentHeader::decode(&of(0).encode());
        assert_eq!(none, Err(HeaderFault::Damaged));
        for bit in 0..SEGMENT_HEADER * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&flipped), Err(HeaderFault::Damaged));
        }
        assert_eq!(
            SegmentHeader::decode(&bytes[..63]),
            Err(HeaderFault::Damaged)
        );
    }
}
