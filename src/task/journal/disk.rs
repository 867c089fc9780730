//! The few operations that the log needs of a file system, and the real one.
//!
//! Names are plain file names inside one directory. Nothing is durable before `sync_data` of the
//! file and, for what was created, renamed or removed, `sync_dir`.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::JournalError;
use crate::runtime::files::sync_name;

/// Name of the file whose lock says that the directory is taken.
pub(super) const LOCK: &str = "lock";

/// A directory that one log has for itself.
pub trait Disk: Debug + Send + Sync {
    /// A new empty file for reading and writing; an old one of this name is emptied.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// An existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Names of all files, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Gives a file another name; open handles stay good.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Deletes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes created, renamed and removed names durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes that may still be reserved; cheap enough to be asked once a second.
    fn free(&self) -> io::Result<u64>;
}

/// An open file of a [`Disk`].
pub trait DiskFile: Debug + Send {
    /// Length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `into` from `offset`; less than that in the file is an error.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes the file at least `size` bytes long, the new ones zero, and reserves their room.
    fn allocate(&self, size: u64) -> io::Result<()>;
    /// Returns when everything written before is on disk.
    fn sync_data(&self) -> io::Result<()>;
}

/// A directory of the operating system, locked against other processes until dropped.
#[derive(Debug)]
pub struct RealDisk {
    path: PathBuf,
    /// Open for `sync_dir`.
    dir: File,
    /// Holds the lock.
    _lock: File,
}

impl RealDisk {
    /// Makes the directory (0700) where it is missing, and locks it.
    ///
    /// # Errors
    /// `Locked` names the process that has it; `Io` otherwise.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let shown = path.display().to_string();
        if !path.is_dir() {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder
                .create(path)
                .map_err(JournalError::io("create directory", &shown))?;
            sync_name(path).map_err(JournalError::io("sync the directory above", &shown))?;
        }
        let lock = lock(path)?;
        let dir = File::open(path).map_err(JournalError::io("open directory", &shown))?;
        Ok(Self {
            path: path.to_owned(),
            dir,
            _lock: lock,
        })
    }
}

impl Disk for RealDisk {
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut options = private();
        Ok(Box::new(
            options
                .create(true)
                .truncate(true)
                .open(self.path.join(name))?,
        ))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(private().open(self.path.join(name))?))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.dir.sync_all()
    }

    fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl DiskFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        if self.metadata()?.len() >= size {
            return Ok(());
        }
        reserve(self, size)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }
}

/// Task payloads are nobody else's business: 0600.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

#[cfg(target_os = "linux")]
fn reserve(file: &File, size: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;

    match fallocate(file, FallocateFlags::empty(), 0, size) {
        // Not every file system reserves; a sparse file works, but may run out of room later.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(size),
        answer => Ok(answer?),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(file: &File, size: u64) -> io::Result<()> {
    file.set_len(size)
}

/// Takes the lock and leaves the own process id in the file, for the text of others' refusals.
fn lock(dir: &Path) -> Result<File, JournalError> {
    let path = dir.join(LOCK);
    let shown = path.display().to_string();
    // Emptied only once the lock is held: until then the text is the holder's.
    let mut options = private();
    let opened = options.create(true).truncate(false).open(&path);
    let mut file = opened.map_err(JournalError::io("open", &shown))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(JournalError::Locked {
                dir: dir.to_owned(),
                holder: holder(&file),
            });
        }
        Err(TryLockError::Error(source)) => return Err(JournalError::io("lock", &shown)(source)),
    }
    let noted = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    noted.map_err(JournalError::io("write", &shown))?;
    Ok(file)
}

/// Who has a lock file locked, as far as it is known.
pub(super) fn holder(mut file: &File) -> String {
    let mut pid = String::new();
    let known = file.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
    match known {
        true => format!("process {}", pid.trim()),
        false => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_has_the_directory_and_the_refusal_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = RealDisk::open(&path).unwrap();
        let refused = RealDisk::open(&path).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("in use by process {}", std::process::id())),
            "{refused}"
        );
        drop(first);
        RealDisk::open(&path).unwrap();
    }

    #[test]
    fn a_reserved_file_reads_as_zeros_and_keeps_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        let file = disk.create("x").unwrap();
        file.write_at(0, b"abc").unwrap();
        file.allocate(8).unwrap();
        file.allocate(4).unwrap();
        assert_eq!(file.size().unwrap(), 8);
        let mut read = [1; 8];
        file.read_at(0, &mut read).unwrap();
        assert_eq!(&read, b"abc\0\0\0\0\0");
        assert!(file.read_at(4, &mut read).is_err());
    }
}
