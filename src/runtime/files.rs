//! Files that are the owner's alone, and names that outlive a power cut.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

/// Opens a file to read and write, or makes it, readable to its owner only (0600). Its name is on
/// disk before this returns. Blocks for a sync.
///
/// # Errors
/// When the system refuses.
pub fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    sync_name(path)?;
    Ok(file)
}

/// Syncs the directory that a path is in: only then is a new, renamed or removed name on disk.
///
/// # Errors
/// When the system refuses.
pub fn sync_name(path: &Path) -> io::Result<()> {
    let above = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(above.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

#[cfg(all(test, unix))]
mod tests {
    use std::{io::Write as _, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_file_is_the_owners_and_keeps_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        open_private(&path).unwrap().write_all(b"kept").unwrap();
        let mode = open_private(&path)
            .unwrap()
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read(&path).unwrap(), b"kept");
        assert!(sync_name(&dir.path().join("no/such")).is_err());
    }
}
