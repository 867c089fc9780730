//! Blocks that no honest peer sends.

use proptest::prelude::*;

use super::{decode, encode, entries, list, octets, shown};
use crate::h2::{
    frame::ErrorCode,
    hpack::{Decoder, Encoder, Error, Fields, Fit, Limits},
};

#[test]
fn every_breach_is_an_error_of_its_own() {
    let cases = [
        ("2.3.3 index 0", "80", Error::Index),
        ("2.3.3 an index beyond both tables", "be", Error::Index),
        ("2.3.3 a name beyond both tables", "7f00 0161", Error::Index),
        ("5.1 an integer that ends early", "ff", Error::Truncated),
        ("5.1 an integer that goes on", "ffff ff", Error::Truncated),
        ("5.1 an integer too long", "ff80 8080 8001", Error::Integer),
        (
            "5.1 zeros without end",
            "ff80 8080 8080 8080 8080 00",
            Error::Integer,
        ),
        (
            "5.1 an integer too large",
            "ffff ffff ffff 7f",
            Error::Integer,
        ),
        ("5.2 a name that ends early", "4005 6162", Error::Truncated),
        ("5.2 a value that ends early", "0402 61", Error::Truncated),
        ("5.2 no value", "04", Error::Truncated),
        ("5.2 no name", "40", Error::Truncated),
        (
            "5.2 a string longer than memory",
            "047f ffff ff7f",
            Error::Truncated,
        ),
        ("5.2 EOS in a string", "0484 ffff ffff", Error::EndOfString),
        ("5.2 padding of 8 bits", "0482 1fff", Error::Padding),
        ("5.2 padding of zeros", "0481 18", Error::Padding),
        ("4.2 a size after a field", "8220", Error::MisplacedUpdate),
        ("4.2 a third size", "2020 2082", Error::MisplacedUpdate),
        (
            "6.3 a size above what was announced",
            "3fe2 1f",
            Error::Update,
        ),
    ];
    for (case, block, error) in cases {
        let decoded = decode(&mut Decoder::new(4096), &octets(block));
        assert_eq!(decoded.map(|fields| shown(&fields)), Err(error), "{case}");
        assert_eq!(error.code(), ErrorCode::Compression);
    }
    for (case, block) in [
        ("6.3 just what was announced", "3fe1 1f82"),
        ("4.2 two sizes", "2020 82"),
        ("4.2 a size and no field", "20"),
        ("5.1 an integer with a zero too many", "3fe1 9f00 82"),
    ] {
        assert!(
            decode(&mut Decoder::new(4096), &octets(block)).is_ok(),
            "{case}"
        );
    }
}

#[test]
fn a_block_that_is_cut_off_anywhere_is_an_error_or_a_shorter_list() {
    let mut encoder = Encoder::new();
    let fields = list(&[
        (":path", "/a/b"),
        ("authorization", "x"),
        ("user-agent", "somebody/1.0"),
        ("x-large", &"v".repeat(300)),
    ]);
    encode(&mut encoder, &fields);
    let block = encode(&mut encoder, &fields);
    let whole = shown(&fields);
    for cut in 0..block.len() {
        match decode(&mut Decoder::new(4096), &block[..cut]) {
            Ok(fields) => assert!(whole.starts_with(&shown(&fields))),
            Err(error) => assert_eq!(error, Error::Truncated, "{cut}"),
        }
    }
}

/// Into the table: `k` with a value of 4000 octets.
fn large_entry() -> Vec<u8> {
    let mut block = octets("4001 6b7f a11e");
    block.extend([b'v'; 4000]);
    block
}

const LIMITS: Limits = Limits {
    list: 16_000,
    fields: 20,
    unfolded: 64_000,
};

#[test]
fn a_list_above_its_limit_is_cut_and_the_connection_goes_on() {
    let mut decoder = Decoder::new(4096);
    let mut fields = Fields::new();
    let mut block = large_entry();
    // Then a list of five of them, and after those one that changes the table.
    block.extend([0xbe; 4]);
    block.extend(octets("4001 6101 62"));
    let fit = decoder.decode(&block, &LIMITS, &mut fields);
    assert_eq!((fit, fields.len()), (Ok(Fit::Cut), 3));
    assert!(fields.size() <= LIMITS.list);
    // Both ends still agree about what the table holds, in this order.
    assert!(decode(&mut decoder, &[0xbe]).is_ok());
    let entries = entries(&mut decoder);
    assert!(shown(&entries).starts_with("a: b\n"));

    let many = [0x82; 21];
    let fit = decoder.decode(&many[..20], &LIMITS, &mut fields);
    assert_eq!((fit, fields.len()), (Ok(Fit::Whole), 20));
    let fit = decoder.decode(&many, &LIMITS, &mut fields);
    assert_eq!((fit, fields.len()), (Ok(Fit::Cut), 20));
}

#[test]
fn a_bomb_ends_the_connection_before_it_costs_anything() {
    let mut decoder = Decoder::new(4096);
    let mut fields = Fields::new();
    let fit = decoder.decode(&large_entry(), &LIMITS, &mut fields);
    assert_eq!(fit, Ok(Fit::Whole));
    let bombs = [
        // 16 KiB that name 4 KiB each time: 64 MiB.
        vec![0xbe; 1 << 14],
        // The same by names: each literal copies the one before into the table.
        [octets("4000 00"), octets("7e00").repeat(1 << 13)].concat(),
        // Empty fields cost 32 octets each.
        octets("0001 6100").repeat(1 << 12),
    ];
    for (at, bomb) in bombs.iter().enumerate() {
        let mut fields = Fields::new();
        let spent = allocation_counter::measure(|| {
            let end = decoder.decode(bomb, &LIMITS, &mut fields);
            assert_eq!(end, Err(Error::Bomb), "{at}");
        });
        assert!(spent.bytes_max < 64 << 10, "{at}: {spent:?}");
    }
    assert_eq!(Error::Bomb.code(), ErrorCode::EnhanceYourCalm);
}

#[test]
fn a_table_keeps_no_more_than_its_size() {
    let mut decoder = Decoder::new(4096);
    let mut fields = Fields::new();
    let spent = allocation_counter::measure(|| {
        for at in 0..10_000_u32 {
            let name = at.to_be_bytes();
            let block = [&[0x40, 4][..], &name, &[100], &[b'v'; 100]].concat();
            let fit = decoder.decode(&block, &LIMITS, &mut fields);
            assert_eq!(fit, Ok(Fit::Whole));
        }
    });
    assert!(spent.bytes_max < 32 << 10, "{spent:?}");
    assert_eq!(entries(&mut decoder).len(), 4096 / (32 + 104));
    // One that is larger than the table empties it, and is still a field of its list.
    let mut block = octets("4001 6b7f e11e");
    block.extend([b'v'; 4064]);
    assert_eq!(decode(&mut decoder, &block).unwrap().len(), 1);
    assert!(entries(&mut decoder).is_empty());
}

proptest! {
    #[test]
    fn whatever_comes_stays_within_the_limits(
        blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6),
    ) {
        let limits = Limits { list: 600, fields: 9, unfolded: 2000 };
        let (mut decoder, mut fields) = (Decoder::new(4096), Fields::new());
        for block in blocks {
            match decoder.decode(&block, &limits, &mut fields) {
                Ok(_) => {
                    prop_assert!(fields.size() <= limits.list && fields.len() <= limits.fields);
                    let sum: usize = fields.iter().map(|f| f.name.len() + f.value.len() + 32).sum();
                    prop_assert_eq!(sum, fields.size());
                }
                Err(_) => break,
            }
        }
    }
}
