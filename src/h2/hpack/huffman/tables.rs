//! Tables of the Huffman code: RFC 7541, appendix B. Its lengths are given, all else is computed.
#![expect(
    clippy::cast_possible_truncation,
    reason = "constants: symbols are at most 256 and lengths at most 30"
)]

/// Bits of each symbol's code; the last is EOS.
#[rustfmt::skip]
pub(super) const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
pub(super) const SYMBOLS: usize = 257;
pub(super) const LONGEST: usize = 30;
/// Bits that one look-up takes.
pub(super) const LOOK: u32 = 12;

/// Symbols by length of their code, then by value: the order of the codes themselves.
pub(super) const ORDER: [u16; SYMBOLS] = {
    let mut order = [0; SYMBOLS];
    let (mut length, mut at) = (1, 0);
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                order[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    order
};

/// The code of each symbol in its lowest bits.
pub(super) const CODES: [u32; SYMBOLS] = {
    let mut codes = [0; SYMBOLS];
    let (mut code, mut at) = (0, 1);
    while at < SYMBOLS {
        let (before, symbol) = (ORDER[at - 1] as usize, ORDER[at] as usize);
        code = (code + 1) << (LENGTHS[symbol] - LENGTHS[before]);
        codes[symbol] = code;
        at += 1;
    }
    codes
};

/// What 12 bits begin with.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub(super) symbols: [u8; 2],
    /// How many symbols are whole within the bits: 0 is a code longer than they are.
    pub(super) count: u8,
    /// Bits that those symbols take.
    pub(super) bits: u8,
    /// Bits of the first alone.
    pub(super) first: u8,
}

pub(super) static LOOKS: [Look; 1 << LOOK] = {
    const NONE: Look = Look {
        symbols: [0; 2],
        count: 0,
        bits: 0,
        first: 0,
    };
    let mut looks = [NONE; 1 << LOOK];
    let mut symbol = 0;
    while symbol < SYMBOLS {
        let length = LENGTHS[symbol] as u32;
        if length <= LOOK {
            let spare = LOOK - length;
            let from = (CODES[symbol] as usize) << spare;
            let mut at = from;
            while at < from + (1 << spare) {
                looks[at] = Look {
                    symbols: [symbol as u8, 0],
                    count: 1,
                    bits: length as u8,
                    first: length as u8,
                };
                at += 1;
            }
        }
        symbol += 1;
    }
    // Bits behind the first symbol are those of another entry. Entries are gone through upwards,
    // and what follows is only read for its first symbol, which does not change.
    let mut at = 0;
    while at < looks.len() {
        let first = looks[at].first;
        if first > 0 {
            let next = looks[(at << first) & (looks.len() - 1)];
            if next.first > 0 && (first + next.first) as u32 <= LOOK {
                looks[at].symbols[1] = next.symbols[0];
                looks[at].count = 2;
                looks[at].bits = first + next.first;
            }
        }
        at += 1;
    }
    looks
};

/// For each length: codes of it are below this, if 32 bits are seen that begin with one.
pub(super) const BOUNDS: [u64; LONGEST + 1] = {
    let mut bounds = [0; LONGEST + 1];
    let mut at = 0;
    while at < SYMBOLS {
        let symbol = ORDER[at] as usize;
        let length = LENGTHS[symbol] as usize;
        bounds[length] = ((CODES[symbol] as u64) + 1) << (32 - length);
        at += 1;
    }
    bounds
};

/// For each length: place in [`ORDER`] less code, the same for all codes of a length.
pub(super) const PLACES: [i64; LONGEST + 1] = {
    let mut places = [0; LONGEST + 1];
    let mut at = 0;
    while at < SYMBOLS {
        let symbol = ORDER[at] as usize;
        places[LENGTHS[symbol] as usize] = at as i64 - CODES[symbol] as i64;
        at += 1;
    }
    places
};

pub(super) const EOS: u16 = 256;
