//! What a directory holds, whole or not, without changing a byte of it.

use std::io;
use std::path::Path;

use prost::Message;

use crate::pb::journal::Record;

use super::Lsn;
use super::blobs::Checked;
use super::disk::{Disk, DiskFile};
use super::error::JournalError;
use super::frame::FORMAT;
use super::log::{first_of, name_of};
use super::readonly::ReadOnlyDisk;
use super::recover::MAX_FILE_BYTES;
use super::scan::{Found, Lost, Scan, header_of};

/// What is read at once where a whole file cannot be read.
const BLOCK: usize = 4096;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Oldest first.
    pub segments: Vec<Segment>,
    /// Large contents beside the log. Whether all are there that tasks name is not looked at: some of
    /// those are in the archive.
    pub blobs: Checked,
}

/// One file of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its name.
    pub file: String,
    /// Format of its records.
    pub format: u32,
    /// Length of the file, in bytes.
    pub size: u64,
    /// Bytes of it that are in use, with header and frames.
    pub used: u64,
    /// Records that check.
    pub records: u64,
    /// Batches that they were synced in.
    pub batches: u64,
    /// Number of the first record.
    pub first: Lsn,
    /// Number of the last record that is or was here; `first - 1`: none.
    pub last: Lsn,
    /// What does not check and should.
    pub damage: Vec<Damage>,
    /// An end that was never acknowledged, and that the next start cuts off: no damage.
    pub torn: Option<Torn>,
}

/// A part of a segment that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Offset of the first byte that does not check.
    pub offset: u64,
    /// What was found.
    pub reason: String,
    /// First and last number of the records that are lost with it; `None`: none is.
    pub lost: Option<(Lsn, Lsn)>,
    /// The task that the lost record names, where that can still be read.
    pub owner: Option<String>,
}

/// The end of a batch that was being written when the process or the machine stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Torn {
    /// Where it begins.
    pub offset: u64,
    /// Its length up to the last byte that is not zero.
    pub bytes: u64,
}

impl Survey {
    /// Reads a directory that no process has open.
    ///
    /// # Errors
    /// `Locked` while a sidecar runs on it; `NoJournal`, `NewerFormat`, `Io`. Damage is none.
    pub fn of(dir: &Path) -> Result<Self, JournalError> {
        let disk = ReadOnlyDisk::open(dir)?;
        let mut survey = Self::on(&disk, &mut |_| Ok(()))?;
        survey.blobs = Checked::on(&disk)?;
        if survey.segments.is_empty() {
            return Err(JournalError::NoJournal {
                dir: dir.to_owned(),
            });
        }
        Ok(survey)
    }

    /// Whether all that was acknowledged is there, as far as that can be known.
    pub fn whole(&self) -> bool {
        let mut segments = self.segments.iter();
        segments.all(|segment| segment.damage.is_empty()) && self.blobs.damage.is_empty()
    }

    /// The number after all that were ever given out, as far as is known.
    pub(super) fn next(&self) -> Lsn {
        self.segments
            .iter()
            .map(|segment| segment.last + 1)
            .max()
            .unwrap_or(1)
    }

    /// Reads any disk, and shows everything in order.
    pub(super) fn on(
        disk: &dyn Disk,
        each: &mut dyn FnMut(Seen<'_>) -> Result<(), JournalError>,
    ) -> Result<Self, JournalError> {
        let names = disk.list();
        let names = names.map_err(JournalError::io("list", "the journal's directory"))?;
        let mut firsts: Vec<Lsn> = names.iter().filter_map(|name| first_of(name)).collect();
        firsts.sort_unstable();
        let (mut segments, mut buffer) = (Vec::new(), Vec::new());
        for (index, first) in firsts.iter().enumerate() {
            let following = firsts.get(index + 1).copied();
            segments.push(Segment::read(disk, *first, following, &mut buffer, each)?);
        }
        Ok(Self {
            segments,
            blobs: Checked::default(),
        })
    }
}

/// What [`Survey::on`] shows.
#[derive(Debug)]
pub(super) enum Seen<'a> {
    /// A record.
    Record(&'a Record),
    /// Numbers that are lost.
    Lost(&'a Damage),
}

impl Segment {
    fn read(
        disk: &dyn Disk,
        first: Lsn,
        following: Option<Lsn>,
        buffer: &mut Vec<u8>,
        each: &mut dyn FnMut(Seen<'_>) -> Result<(), JournalError>,
    ) -> Result<Self, JournalError> {
        let file = name_of(first);
        let (size, unreadable) = load(disk, &file, buffer)?;
        let mut segment = Self {
            file,
            format: FORMAT,
            size,
            used: 0,
            records: 0,
            batches: 0,
            first,
            last: first - 1,
            damage: unreadable,
            torn: None,
        };
        let found = header_of(buffer, first).map_err(|found| JournalError::NewerFormat {
            file: segment.file.clone(),
            found,
            known: FORMAT,
        })?;
        let Some((header, whole)) = found else {
            return segment.lost_whole(buffer, following, each);
        };
        segment.format = header.format;
        if !whole {
            segment.damage.push(Damage {
                offset: 0,
                reason: "the header does not check; it was told from the records".to_owned(),
                lost: None,
                owner: None,
            });
        }
        segment.scan(Scan::new(buffer, &header, following), following, each)?;
        Ok(segment)
    }

    fn scan(
        &mut self,
        mut scan: Scan<'_>,
        following: Option<Lsn>,
        each: &mut dyn FnMut(Seen<'_>) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let mut batch = None;
        while let Some(found) = scan.next() {
            self.used = scan.at() as u64;
            match found {
                Found::Record {
                    at,
                    lsn,
                    batch: of,
                    bytes,
                } => match Record::decode(bytes) {
                    Ok(record) => {
                        self.records += 1;
                        self.last = lsn;
                        self.batches += u64::from(batch.replace(of) != Some(of));
                        each(Seen::Record(&record))?;
                    }
                    Err(fault) => {
                        let reason = format!("record {lsn} checks, but: {fault}");
                        self.lose(Damage::at(at, reason, lsn, lsn), each)?;
                    }
                },
                Found::Lost(lost) => self.take(&lost, following, each)?,
                Found::Torn { at, bytes } => {
                    self.torn = Some(Torn {
                        offset: at as u64,
                        bytes: bytes as u64,
                    });
                }
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        lost: &Lost<'_>,
        following: Option<Lsn>,
        each: &mut dyn FnMut(Seen<'_>) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let (first, last) = (lost.first, lost.last);
        if let Some(record) = lost.salvaged() {
            self.damage.push(Damage {
                offset: lost.at as u64,
                reason: format!("the frame of record {first} does not check, the record does"),
                lost: None,
                owner: None,
            });
            self.records += 1;
            self.last = last;
            return each(Seen::Record(&record));
        }
        let reason = match following {
            _ if first == last => format!("record {first} does not check"),
            Some(following) if last + 1 == following => {
                format!(
                    "records {first} to {last} do not check or are missing, the next file begins with {following}"
                )
            }
            _ => format!("records {first} to {last} do not check or are missing"),
        };
        let mut damage = Damage::at(lost.at, reason, first, last);
        damage.owner = lost.owner();
        self.lose(damage, each)
    }

    fn lose(
        &mut self,
        damage: Damage,
        each: &mut dyn FnMut(Seen<'_>) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        if let Some((_, last)) = damage.lost {
            self.last = last;
        }
        each(Seen::Lost(&damage))?;
        self.damage.push(damage);
        Ok(())
    }

    /// Nothing in it is known to be a record of it.
    fn lost_whole(
        mut self,
        buffer: &[u8],
        following: Option<Lsn>,
        each: &mut dyn FnMut(Seen<'_>) -> Result<(), JournalError>,
    ) -> Result<Self, JournalError> {
        self.used = super::frame::used(buffer) as u64;
        let first = self.first;
        // How many records the last file held cannot be known: one number stands for all.
        let last = following.map_or(first, |following| following - 1);
        let reason = match following {
            Some(_) => "neither its header nor any record checks".to_owned(),
            None => "neither its header nor any record checks; how many there were is not known"
                .to_owned(),
        };
        self.lose(Damage::at(0, reason, first, last), each)?;
        Ok(self)
    }
}

impl Damage {
    fn at(offset: usize, reason: String, first: Lsn, last: Lsn) -> Self {
        Self {
            offset: offset as u64,
            reason,
            lost: Some((first, last)),
            owner: None,
        }
    }
}

/// Reads a file; what cannot be read is zeros, and told. Gives its length.
fn load(
    disk: &dyn Disk,
    name: &str,
    buffer: &mut Vec<u8>,
) -> Result<(u64, Vec<Damage>), JournalError> {
    let file = disk.open(name).map_err(JournalError::io("open", name))?;
    let size = file.size().map_err(JournalError::io("read", name))?;
    buffer.clear();
    let fits = usize::try_from(size)
        .ok()
        .filter(|_| size <= MAX_FILE_BYTES);
    let Some(length) = fits else {
        let damage = Damage {
            offset: 0,
            reason: format!("{size} bytes are longer than any segment"),
            lost: None,
            owner: None,
        };
        return Ok((size, vec![damage]));
    };
    buffer.resize(length, 0);
    if file.read_at(0, buffer).is_ok() {
        return Ok((size, Vec::new()));
    }
    Ok((size, blocks(file.as_ref(), buffer)))
}

/// Reads block by block.
fn blocks(file: &dyn DiskFile, buffer: &mut [u8]) -> Vec<Damage> {
    let mut damage = Vec::new();
    for (index, block) in buffer.chunks_mut(BLOCK).enumerate() {
        let offset = (index * BLOCK) as u64;
        let answer: io::Result<()> = file.read_at(offset, block);
        if let Err(error) = answer {
            block.fill(0);
            damage.push(Damage {
                offset,
                reason: format!("{} bytes cannot be read: {error}", block.len()),
                lost: None,
                owner: None,
            });
        }
    }
    damage
}
