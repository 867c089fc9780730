//! Lists, the names that are known, and what is found out about fields.

use proptest::prelude::*;

use super::{list, shown};
use crate::h2::hpack::{Fields, Name, name::KNOWN, statics::ENTRIES};

#[test]
fn every_known_name_is_found_and_nothing_else_is() {
    let (other, names) = KNOWN.split_last().unwrap();
    assert_eq!(other.0, Name::Other);
    for (at, (name, text)) in names.iter().enumerate() {
        assert_eq!(*name as usize, at);
        assert_eq!(Name::of(text.as_bytes()), *name);
        assert_eq!(name.octets(), text.as_bytes());
        assert_eq!(name.is_pseudo(), text.starts_with(':'));
        // What has the same slot is not taken for it.
        let mut near = text.as_bytes().to_vec();
        near[1] ^= 1;
        assert_ne!(Name::of(&near), *name);
        assert_eq!(Name::of(text.to_uppercase().as_bytes()), Name::Other);
        assert_eq!(Name::of(&text.as_bytes()[1..]), Name::Other);
    }
    assert_eq!(Name::of(b""), Name::Other);
}

#[test]
fn each_entry_of_the_static_table_is_found_by_name_and_by_both() {
    for (at, (name, value)) in ENTRIES.iter().enumerate() {
        let first = usize::from(name.static_index());
        assert!(first <= at + 1 && ENTRIES[first - 1].0 == *name);
        let exact = crate::h2::hpack::statics::exact(*name, value.as_bytes());
        assert_eq!(usize::from(exact), at + 1, "{name:?} {value}");
    }
}

#[test]
fn a_list_is_changed_in_place() {
    let mut fields = list(&[
        (":path", "/"),
        ("grpc-timeout", "1S"),
        ("x-a", "1"),
        ("x-b", ""),
    ]);
    assert_eq!(fields.get(Name::GrpcTimeout), Some(&b"1S"[..]));
    fields.set(Name::GrpcTimeout, b"900m");
    fields.set(Name::Authority, b"b.mesh");
    fields.retain(|field| field.name != b"x-a");
    let changed = ":path: /\ngrpc-timeout: 900m\nx-b: \n:authority: b.mesh\n";
    assert_eq!((shown(&fields), fields.len()), (changed.to_owned(), 4));
    let counted: usize = fields
        .iter()
        .map(|f| f.name.len() + f.value.len() + 32)
        .sum();
    assert_eq!(fields.size(), counted);
    assert_eq!(fields.get(Name::Status), None);

    let mut other = Fields::new();
    other.push_field(&fields, 2);
    other.push_known(Name::Status, b"200");
    assert_eq!(shown(&other), "x-b: \n:status: 200\n");
    fields.clear();
    assert!(fields.is_empty() && fields.size() == 0);
}

/// RFC 9113, section 8.2.1, word for word.
fn breaks_the_rules(name: &[u8], value: &[u8]) -> bool {
    let name_breaks = name.iter().enumerate().any(|(at, octet)| {
        matches!(octet, 0x00..=0x20 | 0x41..=0x5a | 0x7f..=0xff) || (*octet == b':' && at > 0)
    });
    let blank = |octet: Option<&u8>| matches!(octet, Some(0x20 | 0x09));
    let value_breaks = value
        .iter()
        .any(|octet| matches!(octet, 0x00 | 0x0a | 0x0d))
        || blank(value.first())
        || blank(value.last());
    // Section 8.3, and a name of nothing, which RFC 9110 has not.
    let unknown = name.is_empty() || (name[0] == b':' && Name::of(name) == Name::Other);
    name_breaks || value_breaks || unknown
}

#[test]
fn each_octet_is_judged_in_each_place() {
    for octet in 0..=u8::MAX {
        for length in [1, 2, 7, 8, 9, 16, 23] {
            for at in 0..length {
                let mut text = vec![b'a'; length];
                text[at] = octet;
                for (name, value) in [(&text[..], &b"v"[..]), (b"name", &text)] {
                    let mut fields = Fields::new();
                    fields.push(name, value);
                    let malformed = fields.iter().next().unwrap().malformed;
                    assert_eq!(malformed, breaks_the_rules(name, value), "{octet} at {at}");
                }
            }
        }
    }
    let mut fields = Fields::new();
    fields.push(b"x-empty", b"");
    fields.push(b"", b"");
    let malformed: Vec<_> = fields.iter().map(|field| field.malformed).collect();
    assert_eq!(malformed, [false, true]);
}

proptest! {
    #[test]
    fn fields_are_judged_by_the_letter(
        name in prop::collection::vec(any::<u8>(), 0..20),
        value in prop::collection::vec(prop_oneof![0..40_u8, any::<u8>()], 0..40),
    ) {
        let mut fields = Fields::new();
        fields.push(&name, &value);
        let field = fields.iter().next().unwrap();
        prop_assert_eq!(field.malformed, breaks_the_rules(&name, &value));
    }
}
