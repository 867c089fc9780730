//! The packs on disk: written once, read whole or not at all, removed when nobody needs them. It
//! blocks. One thread writes; any may read.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::domain::{Fault, Reason};
use crate::task::journal::disk::{Disk, DiskFile};
use crate::task::journal::error::JournalError;

use super::hash::{Blob, Hash};
use super::pack::{self, Entry, START, TEMP};
use super::shelf::{Shelf, Spot};

/// Looks for a content that is being moved while it is looked for.
const LOOKS: usize = 4;
/// Bytes that are written anew at once, at most, but for one content: others wait meanwhile.
const ANEW: u64 = 8 << 20;

/// Why a content cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// Its bytes are not what they were.
    #[error(
        "{file} is damaged at byte {offset}: content {hash} does not check; stop the sidecar and restore that file from a copy, or submit the task again"
    )]
    Damaged {
        /// The pack.
        file: String,
        /// Where the content begins in it.
        offset: u64,
        /// What was to be read.
        hash: Hash,
    },
    /// No pack that can be read has it.
    #[error(
        "content {0} is in none of the journal's files: stop the sidecar and restore the *.pack files from a copy of its journal, or submit the task again"
    )]
    Missing(Hash),
    /// The file system answered with an error.
    #[error("cannot read {file}: {cause}; look at the disk, then try again")]
    Io {
        /// The pack.
        file: String,
        /// The system's answer.
        cause: String,
    },
    /// The journal was closed.
    #[error("the journal is closed: the process is shutting down")]
    Closed,
}

impl BlobError {
    /// Whether trying again may help.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Closed)
    }
}

impl From<BlobError> for Fault {
    fn from(error: BlobError) -> Self {
        let reason = if error.may_pass() {
            Reason::StorageFailed
        } else {
            Reason::ContentDamaged
        };
        Self::new(reason, error.to_string())
    }
}

/// What a check of all packs found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Files.
    pub packs: usize,
    /// Contents in them.
    pub blobs: usize,
    /// Bytes of those.
    pub bytes: u64,
    /// File, offset and what is wrong there.
    pub damage: Vec<(String, u64, String)>,
}

/// The packs of a directory.
#[derive(Debug)]
pub(in crate::task::journal) struct Store {
    /// `None`: closed.
    disk: RwLock<Option<Arc<dyn Disk>>>,
    pub(super) shelf: Mutex<Shelf>,
    /// Number of the next pack.
    next: AtomicU64,
    /// Contents that nobody named any more, since the start.
    pub(super) collected: AtomicU64,
    /// Packs removed since the start.
    pub(super) removed: AtomicU64,
    /// Contents that did not check when they were read, and packs whose head did not.
    pub(super) damaged: AtomicU64,
}

impl Store {
    /// Reads what is in the packs; what one that was being written left is removed.
    pub(in crate::task::journal) fn open(
        disk: Arc<dyn Disk>,
        worth: u64,
    ) -> Result<Self, JournalError> {
        let names = disk.list();
        let names = names.map_err(JournalError::io("list", "the journal's directory"))?;
        if names.iter().any(|name| name == TEMP) {
            disk.remove(TEMP)
                .map_err(JournalError::io("remove", TEMP))?;
        }
        let mut numbers: Vec<u64> = names
            .iter()
            .filter_map(|name| pack::number_of(name))
            .collect();
        numbers.sort_unstable();
        let (mut shelf, mut damaged) = (Shelf::new(worth), 0);
        for number in &numbers {
            let name = pack::name_of(*number);
            let read = entries_of(disk.as_ref(), &name);
            match read.map_err(JournalError::io("read", &name))? {
                Some(entries) => shelf.add(*number, &entries),
                None => {
                    // Other tasks need none of it; whoever does hears what is missing.
                    tracing::error!(file = name, "damaged: what is in this file cannot be read");
                    damaged += 1;
                }
            }
        }
        Ok(Self {
            disk: RwLock::new(Some(disk)),
            shelf: Mutex::new(shelf),
            next: AtomicU64::new(numbers.last().map_or(1, |last| last + 1)),
            collected: AtomicU64::default(),
            removed: AtomicU64::default(),
            damaged: AtomicU64::new(damaged),
        })
    }

    /// Writes all of them into one pack, durably. After `StorageFull` nothing was written.
    pub(in crate::task::journal) fn put(&self, blobs: &[Blob]) -> Result<(), JournalError> {
        let mut once: Vec<Blob> = Vec::with_capacity(blobs.len());
        for blob in blobs {
            if !once.iter().any(|before| before.hash == blob.hash) {
                once.push(blob.clone());
            }
        }
        let Some(disk) = self.disk() else {
            return Err(JournalError::Closed);
        };
        let number = self.next.load(Ordering::Relaxed);
        let name = pack::name_of(number);
        let (head, entries) = pack::head(&once);
        if let Err(error) = write(disk.as_ref(), pack::bytes(head, &once)) {
            // The first error is the one to tell; a file that stays is emptied by the next try.
            drop(disk.remove(TEMP));
            return Err(JournalError::io("write", TEMP)(error));
        }
        disk.rename(TEMP, &name)
            .map_err(JournalError::io("rename what was written to", &name))?;
        sync_name(disk.as_ref()).map_err(JournalError::io("sync the directory of", &name))?;
        self.next.store(number + 1, Ordering::Relaxed);
        self.shelf.lock().add(number, &entries);
        Ok(())
    }

    /// Removes a pack that nobody needs, or writes one anew of which little is needed; whether there
    /// may be more to do.
    pub(in crate::task::journal) fn tidy(&self) -> Result<bool, JournalError> {
        let Some(disk) = self.disk() else {
            return Ok(false);
        };
        let mut shelf = self.shelf.lock();
        if !shelf.untidy() {
            return Ok(false);
        }
        let (needless, sparse) = (shelf.needless(), shelf.sparse());
        drop(shelf);
        if let Some(number) = needless {
            let name = pack::name_of(number);
            disk.remove(&name)
                .map_err(JournalError::io("remove", &name))?;
            self.removed.fetch_add(1, Ordering::Relaxed);
            let mut shelf = self.shelf.lock();
            shelf.removed(number);
            shelf.look_again();
            return Ok(true);
        }
        let Some((number, needed)) = sparse else {
            return Ok(false);
        };
        let moved = self.anew(&needed)?;
        let mut shelf = self.shelf.lock();
        if !moved {
            shelf.stays(number);
        }
        shelf.look_again();
        Ok(true)
    }

    /// Writes contents into a pack of their own; `false`: they cannot be read, or there is no room.
    fn anew(&self, needed: &[(Hash, Spot)]) -> Result<bool, JournalError> {
        let (mut blobs, mut bytes) = (Vec::new(), 0);
        for (hash, spot) in needed {
            bytes += u64::from(spot.len);
            if bytes > ANEW && !blobs.is_empty() {
                break;
            }
            match self.read(*hash) {
                Ok(content) => blobs.push(Blob {
                    hash: *hash,
                    bytes: content,
                }),
                Err(BlobError::Io { file, cause }) => {
                    return Err(JournalError::io("read", &file)(io::Error::other(cause)));
                }
                Err(error) => {
                    tracing::error!(%error, "a content is lost");
                    return Ok(false);
                }
            }
        }
        match self.put(&blobs) {
            Err(error) if error.no_room() => Ok(false),
            put => put.map(|()| true),
        }
    }

    /// A content, checked against its name.
    pub(in crate::task::journal) fn read(&self, hash: Hash) -> Result<Bytes, BlobError> {
        for _ in 0..LOOKS {
            let disk = self.disk().ok_or(BlobError::Closed)?;
            let Some(spot) = self.shelf.lock().find(hash) else {
                return Err(BlobError::Missing(hash));
            };
            let file = pack::name_of(spot.pack);
            match load(disk.as_ref(), &file, spot) {
                Ok(bytes) if Hash::of(&bytes) == hash => return Ok(bytes.into()),
                Ok(_) => {
                    self.damaged.fetch_add(1, Ordering::Relaxed);
                    let offset = spot.offset;
                    return Err(BlobError::Damaged { file, offset, hash });
                }
                // It was moved meanwhile, and its pack removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.damaged.fetch_add(1, Ordering::Relaxed);
                    let offset = spot.offset;
                    return Err(BlobError::Damaged { file, offset, hash });
                }
                Err(error) => {
                    let cause = error.to_string();
                    return Err(BlobError::Io { file, cause });
                }
            }
        }
        Err(BlobError::Missing(hash))
    }

    /// Lets go of the directory: nothing is read or written any more.
    pub(in crate::task::journal) fn close(&self) {
        self.disk.write().take();
    }

    fn disk(&self) -> Option<Arc<dyn Disk>> {
        self.disk.read().clone()
    }
}

impl Checked {
    /// Reads all packs of a directory, and checks every content in them.
    ///
    /// # Errors
    /// `Io`. Damage is none.
    pub(in crate::task::journal) fn on(disk: &dyn Disk) -> Result<Self, JournalError> {
        let names = disk.list();
        let mut names = names.map_err(JournalError::io("list", "the journal's directory"))?;
        names.retain(|name| pack::number_of(name).is_some());
        names.sort_unstable();
        let mut checked = Self::default();
        for name in names {
            checked.packs += 1;
            let wrong = |offset, what: String| (name.clone(), offset, what);
            let read = entries_of(disk, &name);
            let Some(entries) = read.map_err(JournalError::io("read", &name))? else {
                let what = "its list of contents does not check".to_owned();
                checked.damage.push(wrong(0, what));
                continue;
            };
            for Entry { hash, offset, len } in entries {
                checked.blobs += 1;
                checked.bytes += u64::from(len);
                let spot = Spot {
                    pack: 0,
                    offset,
                    len,
                };
                match load(disk, &name, spot) {
                    Ok(bytes) if Hash::of(&bytes) == hash => {}
                    Ok(_) => {
                        let what = format!("content {hash} does not check");
                        checked.damage.push(wrong(offset, what));
                    }
                    Err(error) => {
                        let what = format!("content {hash} cannot be read: {error}");
                        checked.damage.push(wrong(offset, what));
                    }
                }
            }
        }
        Ok(checked)
    }
}

/// Copies every pack to another disk, as it is; whether its contents check is seen when they are read.
pub(in crate::task::journal) fn copy_packs(
    from: &dyn Disk,
    to: &dyn Disk,
) -> Result<(), JournalError> {
    let names = from.list();
    let names = names.map_err(JournalError::io("list", "the journal's directory"))?;
    let packs: Vec<_> = names
        .into_iter()
        .filter(|name| pack::number_of(name).is_some())
        .collect();
    for name in &packs {
        let copy = || {
            let (source, target) = (from.open(name)?, to.create(name)?);
            let mut buffer = vec![0; 1 << 20];
            let (size, mut at) = (source.size()?, 0);
            while at < size {
                let piece = usize::try_from(size - at).unwrap_or(usize::MAX);
                let piece = &mut buffer[..piece.min(1 << 20)];
                source.read_at(at, piece)?;
                target.write_at(at, piece)?;
                at += piece.len() as u64;
            }
            target.sync_data()
        };
        copy().map_err(JournalError::io("copy", name))?;
    }
    if packs.is_empty() {
        return Ok(());
    }
    to.sync_dir()
        .map_err(JournalError::io("sync", "the new directory"))
}

fn write(disk: &dyn Disk, pieces: impl Iterator<Item = Bytes>) -> io::Result<()> {
    let file = disk.create(TEMP)?;
    let mut offset = 0;
    for piece in pieces {
        file.write_at(offset, &piece)?;
        offset += piece.len() as u64;
    }
    sync(file.as_ref())
}

/// The control that no record names what is not on disk.
fn sync(file: &dyn DiskFile) -> io::Result<()> {
    #[cfg(any(test, feature = "sabotage"))]
    if crate::task::controls::removed(crate::task::controls::Control::Sync) {
        return Ok(());
    }
    file.sync_data()
}

fn sync_name(disk: &dyn Disk) -> io::Result<()> {
    disk.sync_dir()
}

/// The bytes at this spot.
fn load(disk: &dyn Disk, file: &str, spot: Spot) -> io::Result<Vec<u8>> {
    let file = disk.open(file)?;
    // A length that was damaged must not take memory.
    if spot.offset + u64::from(spot.len) > file.size()? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut bytes = vec![0; spot.len as usize];
    file.read_at(spot.offset, &mut bytes)?;
    Ok(bytes)
}

/// What is in a pack; `None`: its head does not check.
fn entries_of(disk: &dyn Disk, name: &str) -> io::Result<Option<Vec<Entry>>> {
    let file = disk.open(name)?;
    let size = file.size()?;
    let mut start = [0; START];
    if size < START as u64 {
        return Ok(None);
    }
    file.read_at(0, &mut start)?;
    let Some(len) = pack::head_len_of(&start).filter(|len| *len as u64 <= size) else {
        return Ok(None);
    };
    let mut head = vec![0; len];
    file.read_at(0, &mut head)?;
    Ok(pack::entries(&head))
}
