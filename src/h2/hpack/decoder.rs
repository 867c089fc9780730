//! Field blocks into lists: RFC 7541, sections 3 and 6.

use super::{
    DEFAULT_TABLE_SIZE, Error, Fields, Name, facts::Row, huffman, integer, statics, table::Table,
};

/// What one block may cost. Whoever calls bounds the octets of the block itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Octets of a list, each field counted with 32 more: what SETTINGS_MAX_HEADER_LIST_SIZE says.
    /// A longer list is decoded, so that the connection can go on, but not kept.
    pub list: usize,
    /// Fields of a list, in the same way.
    pub fields: usize,
    /// Octets, counted like `list`, that a block may unfold to at all. Beyond, the connection ends:
    /// a few octets that name an entry of the table would cost much more than they took to send.
    pub unfolded: usize,
}

impl Default for Limits {
    /// 64 KiB and 256 fields, far above what gRPC's own implementations take (8 to 16 KiB), and four
    /// times that to be refused politely.
    fn default() -> Self {
        Self {
            list: 64 << 10,
            fields: 256,
            unfolded: 256 << 10,
        }
    }
}

/// Whether a list was within its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Fit {
    /// All fields are there.
    Whole,
    /// It was too long: some fields are missing, and its stream has to be refused.
    Cut,
}

/// The state of one direction of a connection, at its receiver.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// What our SETTINGS allow the sender to raise its table to.
    most: usize,
}

/// Size updates that may begin a block: the least size since the last one, and the last (section 4.2).
const MAX_UPDATES: u32 = 2;

impl Decoder {
    /// For a connection whose SETTINGS announce a table of `table_max` octets. Below 4096, which
    /// holds until a peer has seen our SETTINGS, it is taken for 4096.
    #[must_use]
    pub fn new(table_max: usize) -> Self {
        let most = table_max.max(DEFAULT_TABLE_SIZE);
        Self {
            table: Table::new(most, DEFAULT_TABLE_SIZE),
            most,
        }
    }

    /// Decodes a whole block into `fields`, which is cleared first.
    ///
    /// # Errors
    /// The connection cannot go on: the tables of its two ends may differ from now on. What is in
    /// `fields` is of no use.
    pub fn decode(
        &mut self,
        block: &[u8],
        limits: &Limits,
        fields: &mut Fields,
    ) -> Result<Fit, Error> {
        fields.clear();
        let mut input = block;
        self.size_updates(&mut input)?;
        let mut pass = Pass {
            table: &mut self.table,
            fields,
            budget: Budget {
                limits,
                unfolded: 0,
                fit: Fit::Whole,
            },
        };
        while let Some(first) = input.first() {
            match first {
                0x80.. => pass.indexed(&mut input)?,
                0x40.. => pass.literal(&mut input, Literal::Indexed)?,
                0x20.. => return Err(Error::MisplacedUpdate),
                0x10.. => pass.literal(&mut input, Literal::NeverIndexed)?,
                _ => pass.literal(&mut input, Literal::NotIndexed)?,
            }
        }
        Ok(pass.budget.fit)
    }

    fn size_updates(&mut self, input: &mut &[u8]) -> Result<(), Error> {
        for _ in 0..MAX_UPDATES {
            let Some(0x20..=0x3f) = input.first() else {
                break;
            };
            let size = integer::read(input, 5)?;
            if size > self.most {
                return Err(Error::Update);
            }
            self.table.resize(size);
        }
        Ok(())
    }
}

/// The three literal forms: section 6.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Literal {
    Indexed,
    NotIndexed,
    NeverIndexed,
}

/// One block being decoded.
struct Pass<'a> {
    table: &'a mut Table,
    fields: &'a mut Fields,
    budget: Budget<'a>,
}

/// What a block has cost so far.
struct Budget<'a> {
    limits: &'a Limits,
    /// Counted like a list, whether kept or not.
    unfolded: usize,
    fit: Fit,
}

impl Pass<'_> {
    /// Section 6.1.
    #[inline]
    fn indexed(&mut self, input: &mut &[u8]) -> Result<(), Error> {
        let index = integer::read(input, 7)?;
        let row = row(self.table, index)?;
        // Not copied when it is not kept: so a long block of short references stays cheap.
        if self.budget.take(row.facts.size(), self.fields)? {
            self.fields.append(row);
        }
        Ok(())
    }

    /// Section 6.2: name by index or as a string, then the value.
    fn literal(&mut self, input: &mut &[u8], form: Literal) -> Result<(), Error> {
        let bits = if form == Literal::Indexed { 6 } else { 4 };
        let index = integer::read(input, bits)?;
        let start = self.fields.octets.len();
        let name = match index {
            0 => self.name_as_string(input)?,
            index => {
                let row = row(self.table, index)?;
                self.fields
                    .octets
                    .extend_from_slice(&row.octets[..row.split]);
                row.facts.name
            }
        };
        let split = self.fields.octets.len() - start;
        string(input, &mut self.fields.octets)?;
        let mut row = self.fields.last(start, split, name);
        row.facts = row.facts.keep_secret(form == Literal::NeverIndexed);
        let kept = self.budget.take(row.facts.size(), self.fields)?;
        if form == Literal::Indexed {
            row.facts.hash = row.hash();
            self.table.insert(row);
        }
        let facts = row.facts;
        match kept {
            true => self.fields.keep(start, split, facts),
            false => self.fields.octets.truncate(start),
        }
        Ok(())
    }

    /// Appends a name to the arena, unless it is a known one: its octets are known too.
    fn name_as_string(&mut self, input: &mut &[u8]) -> Result<Name, Error> {
        let octets = &mut self.fields.octets;
        let start = octets.len();
        string(input, octets)?;
        let name = Name::of(&octets[start..]);
        if name != Name::Other {
            octets.truncate(start);
        }
        Ok(name)
    }
}

impl Budget<'_> {
    /// Counts a field and says whether it is kept. After the first that is not, none is.
    #[inline]
    fn take(&mut self, size: usize, fields: &Fields) -> Result<bool, Error> {
        self.unfolded += size;
        if self.unfolded > self.limits.unfolded {
            return Err(Error::Bomb);
        }
        if self.unfolded > self.limits.list || fields.len() >= self.limits.fields {
            self.fit = Fit::Cut;
        }
        Ok(self.fit == Fit::Whole)
    }
}

/// The entry of an index in both tables: section 2.3.3.
#[inline]
fn row(table: &Table, index: usize) -> Result<Row<'_>, Error> {
    match index.checked_sub(1 + statics::ENTRIES.len()) {
        Some(age) => table.get(age).ok_or(Error::Index),
        None => statics::row(index).ok_or(Error::Index),
    }
}

/// Section 5.2.
fn string(input: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let huffman = input.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer::read(input, 7)?;
    let (octets, rest) = input.split_at_checked(length).ok_or(Error::Truncated)?;
    *input = rest;
    if huffman {
        return huffman::decode(octets, out);
    }
    out.extend_from_slice(octets);
    Ok(())
}
