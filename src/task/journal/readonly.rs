//! A directory that is only read, under its lock: nothing in it is changed, not even the lock file.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{Disk, DiskFile, LOCK, holder};
use super::error::JournalError;

/// A directory that no process works in meanwhile. Every change is refused.
#[derive(Debug)]
pub(super) struct ReadOnlyDisk {
    path: PathBuf,
    /// Holds the lock, where there is one: a copy of a directory may come without.
    _lock: Option<File>,
}

impl ReadOnlyDisk {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// `NoJournal` where there is no directory, `Locked` while a process has it, `Io`.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        if !path.is_dir() {
            return Err(JournalError::NoJournal {
                dir: path.to_owned(),
            });
        }
        let lock = path.join(LOCK);
        let shown = lock.display().to_string();
        let lock = match File::open(&lock) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(JournalError::io("open", &shown)(error)),
        };
        if let Some(file) = &lock {
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(JournalError::Locked {
                        dir: path.to_owned(),
                        holder: holder(file),
                    });
                }
                Err(TryLockError::Error(error)) => {
                    return Err(JournalError::io("lock", &shown)(error));
                }
            }
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }
}

impl Disk for ReadOnlyDisk {
    fn create(&self, _: &str) -> io::Result<Box<dyn DiskFile>> {
        refused()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(ReadOnlyFile(File::open(self.path.join(name))?)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn sync_dir(&self) -> io::Result<()> {
        refused()
    }

    fn free(&self) -> io::Result<u64> {
        refused()
    }
}

#[derive(Debug)]
struct ReadOnlyFile(File);

impl DiskFile for ReadOnlyFile {
    fn size(&self) -> io::Result<u64> {
        DiskFile::size(&self.0)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        DiskFile::read_at(&self.0, offset, into)
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        refused()
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        refused()
    }

    fn sync_data(&self) -> io::Result<()> {
        refused()
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}
