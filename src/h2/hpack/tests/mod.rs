//! The RFC's own examples, what the encoder chooses, what hostile blocks do, and properties.

mod choices;
mod examples;
mod hostile;
mod huffman;
mod lists;
mod properties;
mod table;

use super::{Decoder, Encoder, Error, Fields, Fit, Limits};

/// Octets from hexadecimal digits, however they are spaced.
pub(super) fn octets(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap())
        .collect()
}

/// A list as it is drawn in the RFC.
pub(super) fn shown(fields: &Fields) -> String {
    let text = |octets| String::from_utf8_lossy(octets).into_owned();
    fields
        .iter()
        .map(|field| format!("{}: {}\n", text(field.name), text(field.value)))
        .collect()
}

/// A list with these fields.
pub(super) fn list(fields: &[(&str, &str)]) -> Fields {
    let mut list = Fields::new();
    for (name, value) in fields {
        list.push(name.as_bytes(), value.as_bytes());
    }
    list
}

/// What a decoder makes of a block under the default limits.
pub(super) fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, Error> {
    let mut fields = Fields::new();
    let fit = decoder.decode(block, &Limits::default(), &mut fields)?;
    assert_eq!(fit, Fit::Whole);
    Ok(fields)
}

/// The block of a list.
pub(super) fn encode(encoder: &mut Encoder, fields: &Fields) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.encode(fields, &mut block);
    block
}

/// The entries of a decoder's table, newest first: seen by asking for each.
pub(super) fn entries(decoder: &mut Decoder) -> Fields {
    let mut all = Fields::new();
    for index in 62_u8.. {
        let mut block = Vec::new();
        super::integer::write(&mut block, 0x80, 7, usize::from(index));
        let Ok(entry) = decode(decoder, &block) else {
            break;
        };
        all.push_field(&entry, 0);
    }
    all
}
