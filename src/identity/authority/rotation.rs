//! Rotations that an operator asks for: another root, or another issuing CA, before its time.

use std::time::{Duration, SystemTime};

use super::{Authority, AuthorityError, ROOTS_MAX, Root, Roots, directory};
use crate::identity::certificate;
use crate::runtime::clock::{self, unix_seconds};

/// Time to fetch a key from a safe.
const WEEK: Duration = Duration::from_hours(7 * 24);

/// How the next root takes the place of the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// How long it is trusted before it signs: every member that is connected has it by then.
    pub prepare: Duration,
    /// How long the last one is trusted after that: every certificate is replaced by then.
    pub keep: Duration,
}

impl Overlap {
    /// Least of both: members are told within moments and look at once, the registry every second.
    pub const LEAST: Duration = Duration::from_secs(2);
    /// Most of both: no certificate of a member lives longer.
    pub const MOST: Duration = super::ISSUING_LIFE;
}

impl Authority {
    /// Makes the next root, with its issuing CA, from `now` on. Nothing of it changes by a crash
    /// half way. Its key may be taken away at once, as may the last one's.
    ///
    /// # Errors
    /// When the next one is made already, [`ROOTS_MAX`] are known, an overlap is out of its bounds,
    /// or files cannot be used.
    pub fn rotate_root(&self, overlap: Overlap, now: SystemTime) -> Result<(), AuthorityError> {
        let within = |span| (Overlap::LEAST..=Overlap::MOST).contains(&span);
        if !within(overlap.prepare) || !within(overlap.keep) {
            let text = "a root is prepared for 2s to 90d, and the last one kept for 2s to 90d";
            return Err(AuthorityError::Overlap(text));
        }
        let opened = directory::open(&self.dir, now)?;
        let last = opened.roots.last();
        if last.signs_from > now {
            return Err(AuthorityError::Prepared(last.number));
        }
        if opened.roots.known(now).count() >= ROOTS_MAX {
            return Err(AuthorityError::Roots);
        }
        // Whole seconds are kept: neither may come out shorter.
        let now_up = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds(now) + 1);
        let signs_from = now_up + overlap.prepare;
        let until = signs_from + overlap.keep;
        directory::rotate(&self.dir, &opened, (signs_from, until), now)?;
        self.refresh(now)
    }

    /// Makes another issuing CA of the signing root. It signs at once: members trust the root.
    ///
    /// # Errors
    /// When the root's key is not here, or files cannot be used.
    pub fn rotate_issuing(&self, now: SystemTime) -> Result<(), AuthorityError> {
        let opened = directory::open(&self.dir, now)?;
        let root = opened.roots.signing(now);
        let made = directory::roll_over(&self.dir, &self.domain, root, now)?;
        if made.is_none() {
            return Err(AuthorityError::KeyAway(self.key_path(root)));
        }
        self.refresh(now)
    }

    /// All roots that the directory names.
    pub fn roots(&self) -> Roots {
        self.state.load().roots.clone()
    }

    /// Whether the key of a root is in the directory.
    pub fn has_key(&self, root: &Root) -> bool {
        directory::has_key(&self.dir, root.number)
    }

    /// Name of a root's certificate in the directory.
    pub fn root_file(&self, root: &Root) -> String {
        let path = directory::root_path(&self.dir, root.number);
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// What a root is for at `now`, in a word.
    pub fn role(&self, root: &Root, now: SystemTime) -> &'static str {
        let state = self.state.load();
        if state.roots.signing(now).number == root.number {
            "signs"
        } else if root.signs_from > now {
            "next"
        } else if root.trusted_until.is_none_or(|until| now < until) {
            "trusted"
        } else {
            "former"
        }
    }

    /// Whether the CA cannot sign certificates of their whole life for much longer, in words that
    /// say what to do.
    pub fn concern(&self) -> Option<String> {
        let now = clock::wall();
        let state = self.state.load();
        let left = state.issuing.life.not_after.duration_since(now);
        let left = left.unwrap_or_default();
        // Certificates are cut to what is left.
        if left > self.leaf_life + WEEK {
            return None;
        }
        let key = self.key_path(state.roots.signing(now));
        Some(format!(
            "the issuing CA ends in {} h, and no member's certificate lives longer: bring {} back",
            left.as_secs() / 3600,
            key.display()
        ))
    }
}

impl AuthorityError {
    /// Whether it is for who asked to do something else, and nothing is broken.
    pub fn is_askers(&self) -> bool {
        matches!(
            self,
            Self::Overlap(_) | Self::Prepared(_) | Self::Roots | Self::KeyAway(_)
        )
    }
}

impl Root {
    /// End of its certificate's life.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn ends(&self) -> Result<SystemTime, AuthorityError> {
        let (_, end) = certificate::validity(&self.certificate)?;
        Ok(end)
    }

    /// SHA-256 of its public key.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn key_pin(&self) -> Result<[u8; 32], AuthorityError> {
        Ok(certificate::key_pin(&self.certificate)?)
    }
}
