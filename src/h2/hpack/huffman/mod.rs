//! The Huffman code of RFC 7541, section 5.2 and appendix B.
//!
//! The code is canonical: its lengths alone make it, so the tables below are computed from them by
//! the compiler. The decoder keeps up to 64 bits in a register and looks 12 of them up at a time,
//! which yields two symbols where both are short, as those of header fields are. Longer codes are
//! found by comparing with the bound of each length. Both go over the input once.

mod tables;

use super::Error;
use tables::{BOUNDS, CODES, EOS, LENGTHS, LONGEST, LOOK, LOOKS, ORDER, PLACES};

/// Appends what `input` stands for.
pub(super) fn decode(input: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let start = out.len();
    // Two octets are written where one may be meant.
    out.resize(start + most_symbols(input.len()) + 1, 0);
    let (length, tail) = decode_bulk(input, &mut out[start..]);
    out.truncate(start + length);
    tail.finish(out)
}

/// Symbols that so many octets can stand for: no code has fewer than 5 bits.
const fn most_symbols(octets: usize) -> usize {
    octets * 8 / 5
}

/// Decodes while there are 8 octets to read at a time. Returns how much was written.
fn decode_bulk<'a>(input: &'a [u8], out: &mut [u8]) -> (usize, Bits<'a>) {
    let mut bits = Bits {
        input,
        window: 0,
        count: 0,
    };
    let mut at = 0;
    while bits.refill() {
        // 56 bits and more are there: 4 look-ups, or a code of up to 30 bits.
        for _ in 0..4 {
            let look = &LOOKS[bits.look()];
            if look.count == 0 {
                match bits.long() {
                    // The end is decoded elsewhere: it meets EOS again and says so.
                    Some((EOS, _)) => return (at, bits),
                    // It reaches below the window.
                    None => break,
                    Some((symbol, length)) => {
                        out[at] = (symbol & 0xff) as u8;
                        at += 1;
                        bits.skip(length);
                    }
                }
                break;
            }
            out[at..at + 2].copy_from_slice(&look.symbols);
            at += usize::from(look.count);
            bits.skip(u32::from(look.bits));
        }
    }
    (at, bits)
}

/// Bits yet to be decoded: some in a window, the first at its top, and the octets behind them.
struct Bits<'a> {
    input: &'a [u8],
    window: u64,
    /// How many bits of the window are there. Those below are 0 or the bits that come next.
    count: u32,
}

impl Bits<'_> {
    /// Fills the window with whole octets, if 8 are left to be read at once.
    #[inline]
    fn refill(&mut self) -> bool {
        let Some(word) = self.input.first_chunk() else {
            return false;
        };
        let octets = (63 - self.count) / 8;
        let fresh = u64::from_be_bytes(*word) >> self.count;
        self.count += 8 * octets;
        // With bits of an octet that is not counted yet: they come again, and are the same.
        self.window |= fresh;
        self.input = &self.input[octets as usize..];
        true
    }

    /// Fills the window from the last octets.
    #[inline]
    fn refill_slowly(&mut self) {
        while self.count <= 56
            && let Some((octet, rest)) = self.input.split_first()
        {
            self.window |= u64::from(*octet) << (56 - self.count);
            self.count += 8;
            self.input = rest;
        }
    }

    #[inline]
    const fn look(&self) -> usize {
        (self.window >> (64 - LOOK)) as usize
    }

    #[inline]
    const fn skip(&mut self, bits: u32) {
        self.window <<= bits;
        self.count -= bits;
    }

    /// A symbol of more than 12 bits at the top of the window and its length; `None` if it ends
    /// below what is there.
    fn long(&self) -> Option<(u16, u32)> {
        let top = self.window >> 32;
        let length = (LOOK as usize + 1..LONGEST).find(|length| top < BOUNDS[*length]);
        let length = length.unwrap_or(LONGEST);
        let code = i64::try_from(top >> (32 - length)).expect("at most 30 bits");
        let place = usize::try_from(code + PLACES[length]).expect("codes come in order");
        let bits = u32::try_from(length).expect("at most 30");
        (bits <= self.count).then(|| (ORDER[place], bits))
    }

    /// Decodes the last octets and checks the padding.
    fn finish(mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        loop {
            self.refill_slowly();
            let look = &LOOKS[self.look()];
            let (both, first) = (u32::from(look.bits), u32::from(look.first));
            if look.count == 2 && both <= self.count {
                out.extend_from_slice(&look.symbols);
                self.skip(both);
            } else if look.count > 0 && first <= self.count {
                out.push(look.symbols[0]);
                self.skip(first);
            } else if look.count == 0
                && let Some((symbol, bits)) = self.long()
            {
                if symbol == EOS {
                    return Err(Error::EndOfString);
                }
                out.push((symbol & 0xff) as u8);
                self.skip(bits);
            } else {
                return self.check_padding();
            }
        }
    }

    /// What is left is no code: fewer than eight bits, all of them 1 as those of EOS.
    fn check_padding(&self) -> Result<(), Error> {
        let ones = !(u64::MAX.checked_shr(self.count).unwrap_or(0));
        match self.count < 8 && self.window == ones {
            true => Ok(()),
            false => Err(Error::Padding),
        }
    }
}

/// Octets that `input` takes when it is encoded.
pub(super) fn encoded_length(input: &[u8]) -> usize {
    let bits: usize = input
        .iter()
        .map(|octet| usize::from(LENGTHS[usize::from(*octet)]))
        .sum();
    bits.div_ceil(8)
}

/// Appends the code of `input`, padded with ones.
pub(super) fn encode(input: &[u8], out: &mut Vec<u8>) {
    let (mut window, mut count) = (0_u64, 0_u32);
    for octet in input {
        let symbol = usize::from(*octet);
        let length = u32::from(LENGTHS[symbol]);
        window = (window << length) | u64::from(CODES[symbol]);
        count += length;
        if count >= 32 {
            count -= 32;
            let [.., a, b, c, d] = (window >> count).to_be_bytes();
            out.extend_from_slice(&[a, b, c, d]);
        }
    }
    let spare = count.wrapping_neg() % 8;
    window = (window << spare) | ((1 << spare) - 1);
    for octet in (0..(count + spare) / 8).rev() {
        out.push((window >> (8 * octet) & 0xff) as u8);
    }
}
