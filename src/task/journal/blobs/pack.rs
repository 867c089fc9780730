//! The bytes of a pack: what is in it, then the contents, one behind the other. Pure.
//!
//! ```text
//!   "ATTPACK1"  count: u32  { hash: 32 B, length: u32 } * count  check: 8 B  content * count
//! ```
//! Numbers are little-endian; the check is the beginning of the SHA-256 over all before it.

use bytes::Bytes;

use super::hash::{Blob, HASH_BYTES, Hash};

const MAGIC: &[u8; 8] = b"ATTPACK1";
/// Bytes before the entries.
pub(super) const START: usize = MAGIC.len() + 4;
const ENTRY: usize = HASH_BYTES + 4;
const CHECK: usize = 8;
/// Most contents of a pack: far more than fit into what may wait for the disk.
const ENTRIES_MAX: u32 = 1 << 20;
/// Name of a pack that is being written.
pub(super) const TEMP: &str = "pack.tmp";

/// Where a content is in its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) hash: Hash,
    pub(super) offset: u64,
    pub(super) len: u32,
}

/// All of a pack but the contents, and where those go.
pub(super) fn head(blobs: &[Blob]) -> (Vec<u8>, Vec<Entry>) {
    let count = u32::try_from(blobs.len()).expect("a batch has fewer contents");
    let mut head = Vec::with_capacity(head_len(count));
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&count.to_le_bytes());
    let mut offset = head_len(count) as u64;
    let mut entries = Vec::with_capacity(blobs.len());
    for Blob { hash, bytes } in blobs {
        let len = u32::try_from(bytes.len()).expect("a content is smaller than a record");
        head.extend_from_slice(hash.as_bytes());
        head.extend_from_slice(&len.to_le_bytes());
        entries.push(Entry {
            hash: *hash,
            offset,
            len,
        });
        offset += u64::from(len);
    }
    let check = check(&head);
    head.extend_from_slice(&check);
    (head, entries)
}

/// Length of the head of a pack that starts so; `None`: no pack does.
pub(super) fn head_len_of(start: &[u8; START]) -> Option<usize> {
    let (magic, count) = start.split_at(MAGIC.len());
    let count = u32::from_le_bytes(count.try_into().ok()?);
    (magic == MAGIC && count <= ENTRIES_MAX).then(|| head_len(count))
}

/// What is in a pack by its head; `None`: it does not check.
pub(super) fn entries(head: &[u8]) -> Option<Vec<Entry>> {
    let (said, found) = head.split_at_checked(head.len().checked_sub(CHECK)?)?;
    if found != check(said) {
        return None;
    }
    let mut offset = head.len() as u64;
    let mut entries = Vec::new();
    for entry in said.get(START..)?.chunks_exact(ENTRY) {
        let (hash, len) = entry.split_at(HASH_BYTES);
        let len = u32::from_le_bytes(len.try_into().ok()?);
        entries.push(Entry {
            hash: Hash::parse(hash)?,
            offset,
            len,
        });
        offset += u64::from(len);
    }
    Some(entries)
}

/// The bytes of a whole pack.
pub(super) fn bytes(head: Vec<u8>, blobs: &[Blob]) -> impl Iterator<Item = Bytes> {
    let contents = blobs.iter().map(|blob| blob.bytes.clone());
    std::iter::once(head.into()).chain(contents)
}

/// Name of a pack.
pub(super) fn name_of(number: u64) -> String {
    format!("{number:020}.pack")
}

/// The number in a pack's name; files of other names are not ours to judge.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".pack")?.parse().ok()?;
    (name_of(number) == name).then_some(number)
}

fn head_len(count: u32) -> usize {
    START + count as usize * ENTRY + CHECK
}

fn check(said: &[u8]) -> [u8; CHECK] {
    let hash = Hash::of(said);
    let (first, _) = hash.as_bytes().split_at(CHECK);
    first.try_into().expect("a hash is longer")
}
