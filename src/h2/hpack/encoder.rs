//! Lists into field blocks: RFC 7541, sections 6 and 7.
//!
//! What is compressed how is decided here, for a connection that many callers may share:
//!
//! - A field goes into the table when it is seen for the second time, so that values which never
//!   come again (paths with ids in them) push nothing out.
//! - Of fields whose values differ from call to call (timeouts, trace contexts, `-bin` metadata) only
//!   the name is learned.
//! - Large fields stay out.
//! - Secrets, by their name or by the mark of whoever sent them, are sent as literals that nobody
//!   on the way may index, so that no caller can guess those of another by the length of blocks.

use super::{
    DEFAULT_TABLE_SIZE, Fields,
    chains::{Chains, MAX_STEPS},
    facts::Row,
    huffman, integer,
    name::Indexing,
    seen::Seen,
    statics,
    table::Table,
};

/// The state of one direction of a connection, at its sender.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// Entries put in so far, around: the number of the newest.
    newest: u32,
    /// Entries by name and value.
    fields: Box<Chains>,
    /// Entries by name, of those that have none in the static table.
    names: Box<Chains>,
    seen: Box<Seen>,
    /// The least and the last size that SETTINGS allowed since the last block.
    resized: Option<(usize, usize)>,
}

/// A field that takes more than this part of the table is not put in: it would push out too many.
const LARGEST_PART: usize = 4;

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
            newest: 0,
            fields: Chains::new(),
            names: Chains::new(),
            seen: Seen::new(),
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
        for row in fields.rows() {
            self.field(row, out);
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
        match row.facts.indexing {
            Indexing::Forbidden => literal(row, self.name_index(&row), Form::Never, out),
            Indexing::Wanted | Indexing::NameOnly if row.facts.fixed > 0 => {
                integer::write(out, 0x80, 7, usize::from(row.facts.fixed));
            }
            Indexing::Wanted | Indexing::NameOnly
                if row.facts.size() > self.table.max() / LARGEST_PART =>
            {
                literal(row, self.name_index(&row), Form::Plain, out);
            }
            Indexing::Wanted => self.by_field(row, out),
            Indexing::NameOnly => self.by_name(row, out),
        }
    }

    /// By index if the table has it, and into the table if this is the second time.
    #[inline]
    fn by_field(&mut self, mut row: Row<'_>, out: &mut Vec<u8>) {
        let hash = row.hash();
        let same = |entry: &Row<'_>| entry.facts.hash == hash && entry.same_field(&row);
        let index = self.find(&self.fields, hash, same);
        if index > 0 {
            return integer::write(out, 0x80, 7, index);
        }
        let name = self.name_index(&row);
        if !self.seen.again(hash) {
            return literal(row, name, Form::Plain, out);
        }
        row.facts.hash = hash;
        self.insert(row, name, out);
        self.fields.push(hash, self.newest);
    }

    /// As a literal; if it is the second time that its name has no index, into the table for the
    /// sake of the name.
    #[inline]
    fn by_name(&mut self, row: Row<'_>, out: &mut Vec<u8>) {
        match self.name_index(&row) {
            0 if self.seen.again(row.name_hash()) => self.insert(row, 0, out),
            name => literal(row, name, Form::Plain, out),
        }
    }

    /// Appends a literal that goes into the table. `name` is the index of its name, or 0.
    fn insert(&mut self, row: Row<'_>, name: usize, out: &mut Vec<u8>) {
        literal(row, name, Form::Indexed, out);
        self.table.insert(row);
        self.newest = self.newest.wrapping_add(1);
        if row.facts.name.static_index() == 0 {
            self.names.push(row.name_hash(), self.newest);
        }
    }

    /// The index of an entry with this name; 0 for none.
    #[inline]
    fn name_index(&self, row: &Row<'_>) -> usize {
        match row.facts.name.static_index() {
            0 => self.find(&self.names, row.name_hash(), |entry| entry.same_name(row)),
            index => usize::from(index),
        }
    }

    /// The index of an entry that is the same; 0 for none.
    #[inline]
    fn find(&self, chains: &Chains, hash: u64, same: impl Fn(&Row<'_>) -> bool) -> usize {
        let mut number = chains.newest(hash);
        for _ in 0..MAX_STEPS {
            let age = self.newest.wrapping_sub(number) as usize;
            match self.table.get(age) {
                Some(entry) if same(&entry) => return 1 + statics::ENTRIES.len() + age,
                Some(_) => number = chains.older(number),
                None => break,
            }
        }
        0
    }
}

/// The three literal forms: section 6.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Indexed,
    Plain,
    Never,
}

/// A name by its index, or as a string if that is 0, and a value as a string.
///
/// What goes into the table is sent once, so it is sent short; what is sent with every call is sent
/// as it is, which spares both ends the Huffman code.
fn literal(row: Row<'_>, name: usize, form: Form, out: &mut Vec<u8>) {
    let string = match form {
        Form::Indexed => short_string,
        Form::Plain | Form::Never => string,
    };
    match form {
        Form::Indexed => integer::write(out, 0x40, 6, name),
        Form::Plain => integer::write(out, 0x00, 4, name),
        Form::Never => integer::write(out, 0x10, 4, name),
    }
    if name == 0 {
        string(row.name(), out);
    }
    string(row.value(), out);
}

/// As it is.
#[inline]
fn string(octets: &[u8], out: &mut Vec<u8>) {
    integer::write(out, 0, 7, octets.len());
    out.extend_from_slice(octets);
}

/// With the Huffman code where that is shorter.
fn short_string(octets: &[u8], out: &mut Vec<u8>) {
    let length = huffman::encoded_length(octets);
    if length >= octets.len() {
        return string(octets, out);
    }
    integer::write(out, 0x80, 7, length);
    huffman::encode(octets, out);
}
