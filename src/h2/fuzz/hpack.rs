//! The HPACK decoder, and behind it our encoder and another decoder.

use crate::h2::hpack::{Decoder, Encoder, Fields, Fit, Limits};

/// Small ones, so that they are met.
const LIMITS: Limits = Limits {
    list: 2048,
    fields: 16,
    unfolded: 8192,
};

/// Takes `bytes` for blocks and SETTINGS of one connection, one after the other. Whatever is
/// decoded stays within its limits, and arrives unchanged over a second connection.
///
/// # Panics
/// If it does not.
pub fn hpack(mut bytes: &[u8]) {
    let mut near = Decoder::new(8192);
    let (mut encoder, mut far) = (Encoder::new(), Decoder::new(4096));
    let (mut fields, mut arrived, mut block) = (Fields::new(), Fields::new(), Vec::new());
    while let Some((&[kind, low], rest)) = bytes.split_first_chunk() {
        if kind >= 0xf0 {
            encoder.set_table_max(u32::from_be_bytes([0, 0, kind & 0xf, low]) * 2);
            bytes = rest;
            continue;
        }
        let length = usize::from(low).min(rest.len());
        let (input, rest) = rest.split_at(length);
        bytes = rest;
        match near.decode(input, &LIMITS, &mut fields) {
            // What is cut is still a list, though not the one that was meant.
            Ok(Fit::Whole | Fit::Cut) => check(&fields),
            Err(_) => return,
        }
        block.clear();
        encoder.encode(&fields, &mut block);
        let fit = far.decode(&block, &LIMITS, &mut arrived);
        assert_eq!(fit, Ok(Fit::Whole));
        assert!(fields.iter().eq(arrived.iter()), "{fields:?} {arrived:?}");
    }
}

fn check(fields: &Fields) {
    let size: usize = fields
        .iter()
        .map(|field| field.name.len() + field.value.len() + 32)
        .sum();
    assert_eq!(size, fields.size());
    assert!(size <= LIMITS.list && fields.len() <= LIMITS.fields);
}
