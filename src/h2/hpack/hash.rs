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

#[cfg(test)]
mod tests {
    use super::{FACTOR, mix, of};
    use crate::h2::hpack::{Decoder, Encoder, Fields, Fit, Limits};

    /// Two values of one name with one hash, as anybody can make them.
    fn colliding(name: &[u8]) -> [[u8; 16]; 2] {
        let start = of(0, name) ^ 16_u64.wrapping_mul(FACTOR);
        let [one, two] = [*b"one tena", *b"two tena"].map(u64::from_le_bytes);
        let behind = u64::from_le_bytes(*b"nt's key");
        let other = behind ^ mix(start, one) ^ mix(start, two);
        let value = |first: u64, last: u64| {
            let mut value = [0; 16];
            value[..8].copy_from_slice(&first.to_le_bytes());
            value[8..].copy_from_slice(&last.to_le_bytes());
            value
        };
        [value(one, behind), value(two, other)]
    }

    #[test]
    fn a_field_is_never_taken_for_another_with_its_hash() {
        let values = colliding(b"x-tenant");
        let hash = |value: &[u8]| of(of(0, b"x-tenant"), value);
        assert_eq!(hash(&values[0]), hash(&values[1]));
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
        let (mut fields, mut block) = (Fields::new(), Vec::new());
        for value in values.iter().cycle().take(12) {
            fields.clear();
            fields.push(b"x-tenant", value);
            block.clear();
            encoder.encode(&fields, &mut block);
            let fit = decoder.decode(&block, &Limits::default(), &mut fields);
            assert_eq!(fit, Ok(Fit::Whole));
            assert_eq!(fields.iter().next().unwrap().value, value);
        }
        // Both are in the table by now, behind one another in their bucket.
        assert_eq!(block.len(), 1);
    }
}
