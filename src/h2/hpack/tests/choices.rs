//! What the encoder puts into the table, what it does not, and how it tells of a table's size.

use super::{decode, encode, entries, list, octets, shown};
use crate::h2::hpack::{DEFAULT_TABLE_SIZE, Decoder, Encoder, Field, Fields, Fit, Limits, Name};

/// One connection: what its blocks are and what becomes of its table.
struct Pair {
    encoder: Encoder,
    decoder: Decoder,
}

impl Pair {
    fn new() -> Self {
        Self {
            encoder: Encoder::new(),
            decoder: Decoder::new(4096),
        }
    }

    /// Sends a list over and gives its block.
    fn send(&mut self, fields: &Fields) -> Vec<u8> {
        let block = encode(&mut self.encoder, fields);
        let arrived = decode(&mut self.decoder, &block).expect("our own block");
        assert_eq!(shown(&arrived), shown(fields));
        block
    }
}

fn secrets(fields: &Fields) -> Vec<bool> {
    fields.iter().map(|field| field.never_indexed).collect()
}

#[test]
fn a_field_goes_into_the_table_when_it_comes_again() {
    let mut pair = Pair::new();
    let fields = list(&[(":path", "/a.B/C"), ("x-tenant", "blue")]);
    let blocks: Vec<_> = (0..3).map(|_| pair.send(&fields)).collect();
    assert!(blocks[0].len() > blocks[1].len() - 2 && blocks[2].len() == 2);
    assert_eq!(entries(&mut pair.decoder).len(), 2);
    // What comes once, as a path with an id in it does, pushes nothing out.
    for id in 0..1000 {
        pair.send(&list(&[
            (":path", &format!("/a.B/{id}")),
            ("x-tenant", "blue"),
        ]));
    }
    assert_eq!(entries(&mut pair.decoder).len(), 2);
}

#[test]
fn of_a_field_that_varies_only_the_name_is_learned() {
    let mut pair = Pair::new();
    for name in ["grpc-timeout", "traceparent", "x-cart-bin", "grpc-message"] {
        let mut last = 0;
        for value in 100..120 {
            last = pair.send(&list(&[(name, &value.to_string())])).len();
        }
        // An index, and four octets of value.
        assert!(last <= 6, "{name}: {last}");
    }
    assert_eq!(entries(&mut pair.decoder).len(), 4);
}

#[test]
fn secrets_are_never_indexed_and_stay_so_when_they_are_passed_on() {
    let mut pair = Pair::new();
    let fields = list(&[
        ("authorization", "Bearer abc"),
        ("cookie", "a=b"),
        ("proxy-authorization", "Basic abc"),
        ("set-cookie", "a=b"),
        ("x-api-key", "abc"),
    ]);
    for _ in 0..4 {
        let block = pair.send(&fields);
        assert_eq!(block[0], 0x1f);
        assert_eq!(
            secrets(&decode(&mut pair.decoder, &block).unwrap()),
            [true; 5]
        );
    }
    assert!(entries(&mut pair.decoder).is_empty());

    // A name that says nothing, marked by whoever sent it, at each hop.
    let mut hop = decode(&mut Decoder::new(4096), &octets("1002 6b31 0273 31")).unwrap();
    hop.push(b"k2", b"s2");
    for _ in 0..4 {
        let block = encode(&mut pair.encoder, &hop);
        hop = decode(&mut pair.decoder, &block).unwrap();
        assert_eq!(secrets(&hop), [true, false]);
    }
    assert_eq!(shown(&entries(&mut pair.decoder)), "k2: s2\n");
    // Also with another value.
    let mut fields = decode(&mut Decoder::new(4096), &octets("1f0d 0273 31")).unwrap();
    assert_eq!(fields.iter().next().unwrap().id, Name::ContentLength);
    fields.set(Name::ContentLength, b"22");
    assert_eq!(secrets(&fields), [true]);
}

#[test]
fn a_large_field_stays_out() {
    let mut pair = Pair::new();
    let value = "v".repeat(DEFAULT_TABLE_SIZE / 4);
    for _ in 0..4 {
        pair.send(&list(&[("x-large", &value), ("x-bin", &value)]));
    }
    assert!(entries(&mut pair.decoder).is_empty());
}

#[test]
fn the_static_table_is_used_where_it_fits() {
    let cases = [
        (":method", "POST", "83"),
        (":status", "404", "8d"),
        ("accept-encoding", "gzip, deflate", "90"),
        (":authority", "", "81"),
        ("www-authenticate", "", "bd"),
        (":method", "PUT", "0203 5055 54"),
        (":status", "302", "0803 3330 32"),
        ("vary", "*", "0f2c 012a"),
    ];
    for (name, value, block) in cases {
        let fields = list(&[(name, value)]);
        assert_eq!(
            encode(&mut Encoder::new(), &fields),
            octets(block),
            "{name}"
        );
    }
}

#[test]
fn table_sizes_are_told_at_the_start_of_the_next_block() {
    let cases: &[(&[u32], &str)] = &[
        (&[], ""),
        (&[4096], ""),
        // Ours is the smaller one.
        (&[65_536], ""),
        (&[0], "20"),
        (&[256], "3fe1 01"),
        // The last one holds; the least one before it has to be told too, as the peer has evicted.
        (&[0, 4096], "20 3fe1 1f"),
        (&[500, 100, 4096], "3f45 3fe1 1f"),
        (&[100, 4096, 500], "3f45 3fd5 03"),
        (&[500, 100], "3f45"),
        (&[65_536, 100], "3f45"),
    ];
    for (settings, told) in cases {
        let mut pair = Pair::new();
        let fields = list(&[("x-a", "1"), ("x-b", "2")]);
        pair.send(&fields);
        pair.send(&fields);
        assert_eq!(pair.send(&fields).len(), 2);
        for setting in *settings {
            pair.encoder.set_table_max(*setting);
        }
        let told = octets(told);
        let block = pair.send(&fields);
        assert!(block.starts_with(&told), "{settings:?}: {block:x?}");
        // Said once.
        assert!(pair.send(&fields).len() < 20);
        let size = settings.iter().min().map_or(4096, |least| *least);
        // What did not fit in between is gone on both sides, or came again.
        assert!(entries(&mut pair.decoder).len() <= 2, "{size}");
    }
}

#[test]
fn a_decoder_starts_at_4096_and_grows_only_when_it_is_told() {
    let mut decoder = Decoder::new(1 << 16);
    let mut block = Vec::new();
    for _ in 0..3 {
        // k: 2000 octets, into the table.
        block.extend(octets("4001 6b7f d10e"));
        block.extend([b'v'; 2000]);
    }
    decode(&mut decoder, &block).unwrap();
    assert_eq!(entries(&mut decoder).len(), 2);
    let grown = [&octets("3fe1 ff03")[..], &block].concat();
    decode(&mut decoder, &grown).unwrap();
    assert_eq!(entries(&mut decoder).len(), 5);
}

#[test]
fn nothing_is_allocated_once_the_buffers_have_grown() {
    let (mut first, mut second) = (Pair::new(), Pair::new());
    let (mut fields, mut block, mut passed) = (Fields::new(), Vec::new(), Vec::new());
    let lists: Vec<_> = (0..300)
        .map(|at| {
            list(&[
                (":path", &format!("/package.Service/Method{}", at % 70)),
                ("grpc-timeout", &format!("{at}m")),
                ("user-agent", "grpc-go/1.83.1"),
                (&format!("x-name-{}", at % 11), "some value"),
            ])
        })
        .collect();
    let mut pass = || {
        for list in &lists {
            block.clear();
            first.encoder.encode(list, &mut block);
            let limits = Limits::default();
            let fit = first.decoder.decode(&block, &limits, &mut fields);
            assert_eq!(fit, Ok(Fit::Whole));
            passed.clear();
            second.encoder.encode(&fields, &mut passed);
        }
    };
    pass();
    pass();
    assert_eq!(allocation_counter::measure(pass).count_total, 0);
}

#[test]
fn what_an_entry_is_known_to_be_comes_with_it() {
    let mut pair = Pair::new();
    let fields = list(&[
        ("Upper", "x"),
        ("x-line", "a\nb"),
        (":unknown", "x"),
        ("x-good", "y"),
    ]);
    for _ in 0..4 {
        let block = pair.send(&fields);
        let arrived = decode(&mut pair.decoder, &block).unwrap();
        let malformed: Vec<_> = arrived
            .iter()
            .map(|field: Field<'_>| field.malformed)
            .collect();
        assert_eq!(malformed, [true, true, true, false]);
    }
}
