//! The name of a content: its SHA-256. Pure.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;

/// Bytes of a [`Hash`].
pub(super) const HASH_BYTES: usize = 32;

/// SHA-256 of a content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; HASH_BYTES]);

impl Hash {
    /// The name of this content.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        let found = digest(&SHA256, content);
        Self::parse(found.as_ref()).expect("a SHA-256 has 32 bytes")
    }

    /// A name as it was written down; `None`: it has not 32 bytes.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; HASH_BYTES] {
        &self.0
    }
}

impl From<[u8; HASH_BYTES]> for Hash {
    fn from(bytes: [u8; HASH_BYTES]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A content that is to be stored, and its name.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob {
    /// SHA-256 of `bytes`.
    pub hash: Hash,
    /// The content.
    pub bytes: Bytes,
}

impl Blob {
    /// This content by its name.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        let hash = Hash::of(&bytes);
        Self { hash, bytes }
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whose content it is, is nobody's business.
        write!(f, "{} of {} bytes", self.hash, self.bytes.len())
    }
}
