//! The documents: text files below a folder. Refuses to follow links, to enter build output and
//! hidden folders, and to read more than fits in memory.

use std::fs;
use std::io;
use std::path::Path;

/// Files with these endings are text that people wrote.
const ENDINGS: &[&str] = &["md", "txt", "rs", "proto", "toml"];

/// Folders that hold what programs wrote; hidden ones are skipped as well.
const SKIPPED: &[&str] = &[
    "target",
    "node_modules",
    "__pycache__",
    "venv",
    "gen",
    "proptest-regressions",
];

/// Most files; a folder with more is a file system, not a desk.
const MAX_FILES: usize = 5_000;

/// Largest file: what is longer is data or a log.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Text in all, held in memory.
const MAX_TOTAL_BYTES: usize = 64 << 20;

/// A text file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Path below the folder, with `/` between its parts.
    pub file: String,
    /// All of its text.
    pub text: String,
}

/// Reads the documents below `root`, ordered by path.
///
/// # Errors
/// `root` itself cannot be listed. What cannot be read further below is left out and logged.
pub fn read(root: &Path) -> io::Result<Vec<Document>> {
    let mut documents = Vec::new();
    let mut bytes = 0;
    let mut folders = vec![(fs::read_dir(root)?, String::new())];
    while let Some((entries, above)) = folders.pop() {
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let file = if above.is_empty() {
                name.clone()
            } else {
                format!("{above}/{name}")
            };
            if kind.is_dir() && !name.starts_with('.') && !SKIPPED.contains(&name.as_str()) {
                match fs::read_dir(entry.path()) {
                    Ok(entries) => folders.push((entries, file)),
                    Err(error) => tracing::warn!(file, %error, "left out"),
                }
            } else if kind.is_file()
                && let Some(text) = text_of(&entry.path())
            {
                bytes += text.len();
                if documents.len() == MAX_FILES || bytes > MAX_TOTAL_BYTES {
                    tracing::warn!(
                        files = documents.len(),
                        "too much text: the rest is left out"
                    );
                    return Ok(sorted(documents));
                }
                documents.push(Document { file, text });
            }
        }
    }
    Ok(sorted(documents))
}

/// The text of a file that counts as a document.
fn text_of(path: &Path) -> Option<String> {
    let ending = path.extension()?.to_str()?;
    if !ENDINGS.contains(&ending) || fs::metadata(path).ok()?.len() > MAX_FILE_BYTES {
        return None;
    }
    fs::read_to_string(path)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "left out"))
        .ok()
}

fn sorted(mut documents: Vec<Document>) -> Vec<Document> {
    documents.sort_by(|one, other| one.file.cmp(&other.file));
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_that_people_wrote_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &[u8]| {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("README.md", b"top");
        write("docs/deep/guide.txt", b"deep");
        write("docs/picture.png", b"not text");
        write("docs/broken.md", &[0xff, 0xfe, 0x00]);
        write("docs/huge.md", &vec![b'x'; 2 << 20]);
        write("target/doc/made.md", b"made");
        write(".git/notes.md", b"hidden");
        let read = read(folder.path()).unwrap();
        let files: Vec<_> = read.iter().map(|document| document.file.as_str()).collect();
        assert_eq!(files, ["README.md", "docs/deep/guide.txt"]);
        assert_eq!(read[1].text, "deep");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("one.md"), "one").unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("again")).unwrap();
        assert_eq!(read(folder.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(&folder.path().join("nowhere")).is_err());
    }
}
