//! Integers with a prefix: RFC 7541, section 5.1.

use super::Error;

/// Octets after the prefix that are read: 28 bits, more than any length or size that is allowed.
const MAX_CONTINUATION: u32 = 4;

/// The integer at the front of `input`, of which the lowest `bits` of the first octet are the
/// prefix. `input` moves behind it.
#[inline]
pub(super) fn read(input: &mut &[u8], bits: u32) -> Result<usize, Error> {
    let (&first, mut rest) = input.split_first().ok_or(Error::Truncated)?;
    let most = u8::MAX >> (8 - bits);
    let prefix = first & most;
    let mut value = usize::from(prefix);
    if prefix == most {
        value += continued(&mut rest)?;
    }
    *input = rest;
    Ok(value)
}

fn continued(rest: &mut &[u8]) -> Result<usize, Error> {
    let mut value = 0;
    for group in 0..MAX_CONTINUATION {
        let (&octet, after) = rest.split_first().ok_or(Error::Truncated)?;
        *rest = after;
        value |= usize::from(octet & 0x7f) << (7 * group);
        if octet & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::Integer)
}

/// Appends an integer whose first octet has `pattern` above its prefix of so many bits.
#[inline]
pub(super) fn write(out: &mut Vec<u8>, pattern: u8, bits: u32, value: usize) {
    let most = u8::MAX >> (8 - bits);
    match u8::try_from(value) {
        Ok(short) if short < most => out.push(pattern | short),
        Ok(_) | Err(_) => {
            out.push(pattern | most);
            continue_with(out, value - usize::from(most));
        }
    }
}

fn continue_with(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}
