//! How the agent is ill, as a test writes it into the file of `ill=FILE`, one line:
//!
//! - `slow MILLIS`: every task waits that long before its first word.
//! - `unavailable SHARE`: so many of 1 end UNAVAILABLE before their first word.
//! - `unprocessed SHARE`: the same, and it says that it has not begun.
//! - `unprocessed SHARE MILLIS`: and when to come again.

use std::{fs, time::Duration};

use tonic::Status;

/// What is wrong with one task.
#[derive(Debug, Default)]
pub(crate) struct Ill {
    /// Wait before the first word.
    pub(crate) late: Option<Duration>,
    /// What it ends with instead of working.
    pub(crate) fails: Option<Status>,
}

impl Ill {
    /// As the file says it now, for one task. Without the file, or while it is being written: not at
    /// all.
    pub(crate) fn now(file: Option<&str>) -> Self {
        let said = file.and_then(|file| fs::read_to_string(file).ok());
        let said = said.unwrap_or_default();
        let words: Vec<&str> = said.split_whitespace().collect();
        let hit = |share: &str| rand::random::<f64>() < share.parse().unwrap();
        match words[..] {
            ["slow", millis] => Self {
                late: Some(Duration::from_millis(millis.parse().unwrap())),
                fails: None,
            },
            ["unavailable", share] if hit(share) => Self::failing(Status::unavailable("ill")),
            ["unprocessed", share] if hit(share) => Self::failing(not_begun("ill", None)),
            ["unprocessed", share, millis] if hit(share) => {
                Self::failing(not_begun("ill", Some(millis)))
            }
            _ => Self::default(),
        }
    }

    fn failing(status: Status) -> Self {
        Self {
            late: None,
            fails: Some(status),
        }
    }
}

/// Says that a task was not begun, and after how many milliseconds it may come again.
pub(crate) fn not_begun(text: &str, pushback: Option<&str>) -> Status {
    let mut status = Status::unavailable(text);
    let metadata = status.metadata_mut();
    metadata.insert("attache-not-processed", "1".parse().unwrap());
    if let Some(millis) = pushback {
        metadata.insert("grpc-retry-pushback-ms", millis.parse().unwrap());
    }
    status
}
