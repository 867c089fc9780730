//! Lists into field blocks: RFC 7541, sections 6 and 7.
//!
//! A field goes into the table when it is seen for the second time, so that values which never come
//! again (paths with ids in them) push nothing out. Names that are known to differ from call to
//! call, `-bin` metadata and long values are never put in, and secrets are marked as never to be
//! indexed by anybody on the way.

use super::{
    DEFAULT_TABLE_SIZE, Fields,
    fields::Facts,
    huffman, integer,
    name::Indexing,
    statics,
    table::{Row, Table, name_octets},
};

/// The state of one direction of a connection, at its sender.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// Entries put in so far, wrapping: with it an entry's number gives its age.
    inserted: u32,
    /// By hash of name and value: the number of the entry with them, one above its index from the start.
    fields: Box<[u32; SLOTS]>,
    /// By hash of name: the newest entry with it.
    names: Box<[u32; SLOTS]>,
    /// By hash of name and value: part of the hash of what was last seen here but not put in.
    seen: Box<[u32; SLOTS]>,
    /// The least and the last size that SETTINGS allowed since the last block.
    resized: Option<(usize, usize)>,
}

/// Several times the entries that a table of 4096 octets holds.
const SLOTS: usize = 256;
/// A field that takes more than this part of the table is not put in: it would push out too many.
const LARGEST_PART: usize = 4;
/// From which length on a string is tried with the Huffman code.
const MIN_HUFFMAN: usize = 4;

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// For a connection whose peer has not said otherwise: a table of 4096 octets, which is also
    /// the most that is ever used.
    #[must_use]
    pub fn new() -> Self {
        Self {
            table: Table::new(DEFAULT_TABLE_SIZE, DEFAULT_TABLE_SIZE),
            inserted: 0,
            fields: Box::new([0; SLOTS]),
            names: Box::new([0; SLOTS]),
            seen: Box::new([0; SLOTS]),
            resized: None,
        }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE. Told in the next block, as the RFC wants it: if it
    /// shrank and grew in between, both are told, as the peer has dropped entries too.
    pub fn set_table_max(&mut self, octets: u32) {
        let last = usize::try_from(octets)
            .unwrap_or(usize::MAX)
            .min(DEFAULT_TABLE_SIZE);
        let least = match self.resized {
            Some((least, _)) => least.min(last),
            None => last,
        };
        if self.resized.is_some() || last != self.table.max() {
            self.resized = Some((least, last));
        }
    }

    /// Appends the block of a list.
    pub fn encode(&mut self, fields: &Fields, out: &mut Vec<u8>) {
        self.size_updates(out);
        for index in 0..fields.len() {
            self.field(fields.row(index), out);
        }
    }

    fn size_updates(&mut self, out: &mut Vec<u8>) {
        let Some((least, last)) = self.resized.take() else {
            return;
        };
        if least < last {
            self.table.resize(least);
            integer::write(out, 0x20, 5, least);
        }
        self.table.resize(last);
        integer::write(out, 0x20, 5, last);
    }

    #[inline]
    fn field(&mut self, row: Row<'_>, out: &mut Vec<u8>) {
        let Facts { name, indexing, .. } = row.facts;
        if indexing != Indexing::Forbidden
            && let Some(index) = statics::exact(name, row.value)
        {
            return integer::write(out, 0x80, 7, index);
        }
        match indexing {
            Indexing::Forbidden => self.literal(row, 0x10, 4, out),
            Indexing::Useless => self.literal(row, 0x00, 4, out),
            Indexing::Wanted if row.size() > self.table.max() / LARGEST_PART => {
                self.literal(row, 0x00, 4, out);
            }
            Indexing::Wanted => self.by_table(row, out),
        }
    }

    #[inline]
    fn by_table(&mut self, mut row: Row<'_>, out: &mut Vec<u8>) {
        let hash = row.hash();
        let at = slot(hash);
        if let Some((index, entry)) = self.entry(self.fields[at])
            && entry.facts.name == row.facts.name
            && entry.value == row.value
            && entry.name == row.name
        {
            return integer::write(out, 0x80, 7, index);
        }
        if self.seen[at] != mark(hash) {
            self.seen[at] = mark(hash);
            return self.literal(row, 0x00, 4, out);
        }
        self.literal(row, 0x40, 6, out);
        row.facts.hash = hash;
        if self.table.insert(row) {
            self.inserted = self.inserted.wrapping_add(1);
            self.fields[at] = self.inserted;
            if row.facts.name.static_index() == 0 {
                self.names[slot(row.name_hash())] = self.inserted;
            }
        }
    }

    /// The name by index if it has one, and the value as a string.
    fn literal(&self, row: Row<'_>, pattern: u8, bits: u32, out: &mut Vec<u8>) {
        let index = match row.facts.name.static_index() {
            0 => self.name_index(row),
            index => usize::from(index),
        };
        integer::write(out, pattern, bits, index);
        if index == 0 {
            string(name_octets(row.facts.name, row.name), out);
        }
        string(row.value, out);
    }

    /// The index of an entry with this name; 0 for none.
    fn name_index(&self, row: Row<'_>) -> usize {
        match self.entry(self.names[slot(row.name_hash())]) {
            Some((index, entry))
                if entry.facts.name == row.facts.name && entry.name == row.name =>
            {
                index
            }
            Some(_) | None => 0,
        }
    }

    /// An entry by its number and its index, if it is still there.
    #[inline]
    fn entry(&self, number: u32) -> Option<(usize, Row<'_>)> {
        let age = self.inserted.wrapping_sub(number) as usize;
        let row = self.table.get(age)?;
        Some((1 + statics::ENTRIES.len() + age, row))
    }
}

/// Where a hash is looked for.
#[inline]
fn slot(hash: u64) -> usize {
    let [low, ..] = hash.to_le_bytes();
    usize::from(low)
}

/// What tells hashes of one slot apart.
#[inline]
fn mark(hash: u64) -> u32 {
    let [_, a, b, c, d, ..] = hash.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// As it is, or with the Huffman code where that is shorter.
fn string(octets: &[u8], out: &mut Vec<u8>) {
    if octets.len() >= MIN_HUFFMAN {
        let length = huffman::encoded_length(octets);
        if length < octets.len() {
            integer::write(out, 0x80, 7, length);
            return huffman::encode(octets, out);
        }
    }
    integer::write(out, 0, 7, octets.len());
    out.extend_from_slice(octets);
}
