//! The Huffman code against the plainest decoder there is, bit by bit.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::octets;
use crate::h2::hpack::{
    Error,
    huffman::{decode, encode, encoded_length},
};

/// Codes of appendix B, as many as show each length: octet, code, bits.
const CODES: [(u8, u32, u32); 12] = [
    (b'0', 0x0, 5),
    (b't', 0x9, 5),
    (b' ', 0x14, 6),
    (b'u', 0x2d, 6),
    (b':', 0x5c, 7),
    (b'&', 0xf8, 8),
    (b'!', 0x3f8, 10),
    (b'+', 0x7fb, 11),
    (b'\\', 0x7fff0, 19),
    (249, 0xfff_fffe, 28),
    (10, 0x3fff_fffc, 30),
    (22, 0x3fff_fffe, 30),
];

fn encoded(input: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(input, &mut out);
    assert_eq!(out.len(), encoded_length(input));
    out
}

fn decoded(input: &[u8]) -> Result<Vec<u8>, Error> {
    // Behind what is already there.
    let mut out = b"before".to_vec();
    decode(input, &mut out)?;
    Ok(out.split_off(6))
}

/// The code of each octet and its bits, out of what is encoded.
static ALL: LazyLock<Vec<(u32, u32)>> = LazyLock::new(|| {
    (0..=255_u8)
        .map(|octet| {
            let bits = encoded_length(&[octet; 8]);
            let code = encoded(&[octet])
                .iter()
                .fold(0_u64, |all, o| all << 8 | u64::from(*o));
            let padding = encoded_length(&[octet]) * 8 - bits;
            (
                u32::try_from(code >> padding).unwrap(),
                u32::try_from(bits).unwrap(),
            )
        })
        .collect()
});

/// Bit by bit, by looking for each code in turn.
fn decoded_plainly(input: &[u8]) -> Result<Vec<u8>, Error> {
    let (mut out, mut code, mut bits) = (Vec::new(), 0_u32, 0_u32);
    for bit in input
        .iter()
        .flat_map(|octet| (0..8).rev().map(move |at| octet >> at & 1))
    {
        (code, bits) = (code << 1 | u32::from(bit), bits + 1);
        if let Some(octet) = ALL.iter().position(|known| *known == (code, bits)) {
            out.push(u8::try_from(octet).unwrap());
            (code, bits) = (0, 0);
        } else if (code, bits) == (0x3fff_ffff, 30) {
            return Err(Error::EndOfString);
        }
    }
    match bits < 8 && code == (1 << bits) - 1 {
        true => Ok(out),
        false => Err(Error::Padding),
    }
}

#[test]
fn codes_are_those_of_the_appendix() {
    for (octet, code, bits) in CODES {
        let padding = (8 - bits % 8) % 8;
        let whole = u64::from(code) << padding | ((1 << padding) - 1);
        let length = ((bits + padding) / 8) as usize;
        assert_eq!(
            encoded(&[octet]),
            whole.to_be_bytes()[8 - length..],
            "{octet}"
        );
    }
}

#[test]
fn every_octet_comes_back_wherever_it_stands() {
    for octet in 0..=u8::MAX {
        for length in 0..20 {
            let text = [&vec![b'0'; length], &[octet][..], b"behind it a tail"].concat();
            assert_eq!(decoded(&encoded(&text)).unwrap(), text);
            assert_eq!(
                decoded(&encoded(&text[..=length])).unwrap(),
                text[..=length]
            );
        }
    }
}

#[test]
fn bad_endings_are_told_apart() {
    let cases = [
        ("", Ok(())),
        // 'a' is 00011.
        ("1f", Ok(())),
        ("18", Err(Error::Padding)),
        ("1e", Err(Error::Padding)),
        ("1f ff", Err(Error::Padding)),
        ("ff", Err(Error::Padding)),
        ("ff ff ff", Err(Error::Padding)),
        ("ff ff ff fc", Err(Error::EndOfString)),
        ("ff ff ff ff", Err(Error::EndOfString)),
        ("1f ff ff ff ff", Err(Error::EndOfString)),
        (
            "ff ff ff ff 00 00 00 00 00 00 00 00",
            Err(Error::EndOfString),
        ),
        // '\n' is 30 bits, and two ones follow.
        ("ff ff ff f3", Ok(())),
        ("ff ff ff f0", Err(Error::Padding)),
    ];
    for (hex, result) in cases {
        assert_eq!(decoded(&octets(hex)).map(|_| ()), result, "{hex}");
        assert_eq!(decoded_plainly(&octets(hex)).map(|_| ()), result, "{hex}");
    }
}

#[test]
fn two_octets_are_read_as_bit_by_bit() {
    for word in (0..=u16::MAX).step_by(7) {
        let input = word.to_be_bytes();
        assert_eq!(decoded(&input), decoded_plainly(&input), "{word:#x}");
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(text in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(decoded(&encoded(&text)).unwrap(), text);
    }

    #[test]
    fn whatever_comes_is_read_as_bit_by_bit(
        // Ones make for long codes.
        input in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xff)], 0..40),
    ) {
        prop_assert_eq!(decoded(&input), decoded_plainly(&input));
    }
}
