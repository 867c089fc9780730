//! What the disk does by itself: append, then `fdatasync`, one record at a time.

use std::{fs::File, io::Write, path::Path, time::Duration};

use tokio::time::Instant;

use crate::{Outcome, load::Measured};

/// Appends records of `bytes` to a new file in `dir` for this long, each synced.
pub(crate) fn appends(dir: &Path, bytes: usize, time: Duration) -> Outcome<Measured> {
    let path = dir.join("appends");
    let mut file = File::create(&path)?;
    let record = vec![7; bytes];
    let mut took = Vec::new();
    let began = Instant::now();
    while began.elapsed() < time {
        let start = Instant::now();
        file.write_all(&record)?;
        file.sync_data()?;
        took.push(start.elapsed());
    }
    let elapsed = began.elapsed();
    std::fs::remove_file(path)?;
    Ok(Measured::new(took, elapsed))
}
