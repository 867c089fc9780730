//! Files that hold secrets or must never be half written.
//!
//! A secret is written with mode 0600 and is refused when others may read it.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};

use crate::runtime::files::sync_name;

/// Mode of a file that others may read.
pub(super) const PUBLIC: u32 = 0o644;
/// Mode of a file that holds a key.
pub(super) const SECRET: u32 = 0o600;

/// Columns of base64 in a PEM line (RFC 7468 section 2).
const PEM_COLUMNS: usize = 64;

/// Why a file could not be used. Names the file, never what is in it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Others may read a secret.
    #[error("{path} holds a key but has mode {mode:o}: run `chmod 600 {path}`")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl FileError {
    /// Whether there is no such file.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound)
    }
}

/// Makes a directory that only its owner may enter, where there is none.
pub(super) fn private_dir(dir: &Path) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|cause| failed(dir, cause))
}

/// Writes a file so that a reader, also one after a power cut, sees the old or the new content.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let fresh = path.with_file_name(name);
    // A file that is there may be somebody else's, open to them, or a link to anywhere.
    remove(&fresh)?;
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&fresh)?;
        // The mode at opening is narrowed by the umask.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        sync_name(path)
    };
    write().map_err(|cause| failed(path, cause))
}

/// Writes a line that only its owner may read, such as a join string.
///
/// # Errors
/// When the system refuses.
pub fn write_secret(path: &Path, text: &str) -> Result<(), FileError> {
    replace(path, format!("{text}\n").as_bytes(), SECRET)
}

/// Reads a file that anybody may read.
pub(super) fn read(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(|cause| failed(path, cause))
}

/// Reads a file that only its owner may read.
pub(super) fn read_secret(path: &Path) -> Result<String, FileError> {
    let found = fs::metadata(path).map_err(|cause| failed(path, cause))?;
    let mode = found.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let path = path.to_path_buf();
        return Err(FileError::Exposed { path, mode });
    }
    read(path)
}

/// Removes a file; one that is not there is removed already.
pub(super) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(failed(path, cause)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// DER as a PEM block.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut block = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(PEM_COLUMNS) {
        block.extend(line.iter().map(|byte| char::from(*byte)));
        block.push('\n');
    }
    block.push_str(&format!("-----END {label}-----\n"));
    block
}

fn failed(path: &Path, cause: io::Error) -> FileError {
    let path = path.to_path_buf();
    FileError::Io { path, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_0600_and_refused_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        fs::write(dir.path().join("key.pem.new"), "left over, readable").unwrap();
        replace(&path, b"secret", SECRET).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(read_secret(&path).unwrap(), "secret");
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = read_secret(&path).unwrap_err();
            assert!(matches!(error, FileError::Exposed { .. }), "{mode:o}");
            assert!(error.to_string().contains("chmod 600"));
        }
    }

    #[test]
    fn a_secret_is_written_to_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, draft) = (dir.path().join("victim"), dir.path().join("join.new"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &draft).unwrap();
        let path = dir.path().join("join");
        write_secret(&path, "secret").unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        fs::write(&draft, "left over, readable").unwrap();
        write_secret(&path, "secret").unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), "secret\n");
    }

    #[test]
    fn a_replaced_file_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        replace(&path, b"one", PUBLIC).unwrap();
        replace(&path, b"two", PUBLIC).unwrap();
        assert_eq!(read(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(read(&path).unwrap_err().is_absent());
    }
}
