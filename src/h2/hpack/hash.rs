//! Hashes that find a field in an encoder's table.
//!
//! Not made to withstand those who look for collisions: a slot holds one entry and every hit is
//! compared octet by octet, so collisions only make a block longer.

use super::Name;

const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Octets after something that was hashed before: a name's hash, then a value.
#[inline]
pub(super) fn of(seed: u64, octets: &[u8]) -> u64 {
    let (words, rest) = octets.as_chunks::<8>();
    let mut hash = seed ^ (octets.len() as u64).wrapping_mul(FACTOR);
    for word in words {
        hash = mix(hash, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let hash = mix(hash, u64::from_le_bytes(last));
    // 0 says "not computed".
    (hash ^ hash >> 32) | 1 << 63
}

/// A known name.
#[inline]
pub(super) const fn of_known(name: Name) -> u64 {
    (name as u64 + 1).wrapping_mul(FACTOR)
}

#[inline]
const fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(FACTOR).rotate_left(29)
}
