//! The list of who is shut out, as a member keeps it beside its certificate: in force from its
//! start, also where no registry answers.

use std::path::{Path, PathBuf};

use crate::identity::files::{self, FileError, PUBLIC};
use crate::identity::revocation::{Revocation, Revocations};
use crate::pb;

const FILE: &str = "revocations.json";

impl Revocations {
    /// As the bundle watch tells it, and how many of the entries cannot be read.
    pub fn told(list: pb::WatchBundleResponse) -> (Self, usize) {
        let all: Vec<_> = list
            .revocations
            .iter()
            .filter_map(Revocation::read)
            .collect();
        let unread = list.revocations.len() - all.len();
        let told = Self {
            generation: list.generation,
            revision: list.revision,
            all,
        };
        (told, unread)
    }

    /// The list that was kept in `dir`; none where there is no file, or none that can be read: it
    /// is told anew then.
    ///
    /// # Errors
    /// When the system does not let us read it.
    pub fn kept_in(dir: &Path) -> Result<Self, FileError> {
        match files::read(&path(dir)) {
            Ok(text) => Ok(serde_json::from_str(&text).unwrap_or_default()),
            Err(error) if error.is_absent() => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Keeps it in `dir`, in place of the one before.
    ///
    /// # Errors
    /// When it cannot be written; the one before is there then.
    pub fn keep_in(&self, dir: &Path) -> Result<(), FileError> {
        let text = serde_json::to_vec(self).expect("ids and times are text and numbers");
        files::replace(&path(dir), &text, PUBLIC)
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;

    #[test]
    fn what_was_told_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            Revocations::kept_in(dir.path()).unwrap(),
            Revocations::default()
        );
        let mut list = Revocations::none();
        let now = clock::wall();
        for id in ["agent/billing", "service/web"] {
            let id = format!("spiffe://attache.local/ns/default/{id}")
                .parse()
                .unwrap();
            list.add(Revocation::at(now, id, None), now).unwrap();
        }
        let mut message = pb::WatchBundleResponse {
            revision: list.revision,
            generation: list.generation.clone(),
            revocations: list.all.iter().map(Revocation::message).collect(),
            ..Default::default()
        };
        assert_eq!(Revocations::told(message.clone()), (list.clone(), 0));
        message.revocations.push(pb::Revocation::default());
        assert_eq!(Revocations::told(message), (list.clone(), 1));
        list.keep_in(dir.path()).unwrap();
        assert_eq!(Revocations::kept_in(dir.path()).unwrap(), list);
        // It is told anew.
        std::fs::write(path(dir.path()), "{").unwrap();
        assert_eq!(
            Revocations::kept_in(dir.path()).unwrap(),
            Revocations::default()
        );
    }
}
