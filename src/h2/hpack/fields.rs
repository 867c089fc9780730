//! A list of header fields as it passes from one connection to another.

use std::{fmt, io::Write as _};

use super::{
    Name,
    facts::{Facts, Row},
    name::Indexing,
};

/// Header fields in their order, in one flat arena that is reused from call to call.
#[derive(Debug, Default, Clone)]
pub struct Fields {
    /// Names that are not known ones, and values. What a field no longer needs stays until the list
    /// is cleared.
    pub(super) octets: Vec<u8>,
    spans: Vec<Span>,
    size: usize,
}

/// One field, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Which name it is, if it is a known one.
    pub id: Name,
    /// The name's octets.
    pub name: &'a [u8],
    /// The value's octets.
    pub value: &'a [u8],
    /// It came as a literal that must never be indexed (RFC 7541, section 6.2.3), or its name says
    /// that it is a secret. It goes on as such a literal.
    pub never_indexed: bool,
    /// Its name or value has octets that no field may have, or it is a pseudo-header field that
    /// nobody knows: RFC 9113, sections 8.2.1 and 8.3.
    pub malformed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
    /// Octets of a name that is not known.
    split: u32,
    facts: Facts,
}

impl Fields {
    /// An empty list; nothing is allocated.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the fields, keeps the buffers.
    pub fn clear(&mut self) {
        self.octets.clear();
        self.spans.clear();
        self.size = 0;
    }

    /// How many fields.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Octets as SETTINGS_MAX_HEADER_LIST_SIZE counts them: each field with 32 more.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// The fields in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Field<'_>> + Clone {
        self.rows().map(field)
    }

    /// The first value of a known name.
    #[must_use]
    pub fn get(&self, name: Name) -> Option<&[u8]> {
        let mut spans = self.spans.iter();
        let span = spans.find(|span| span.facts.name == name)?;
        Some(row(&self.octets, span).value())
    }

    /// Appends a field of whatever name.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let start = self.octets.len();
        let known = Name::of(name);
        if known == Name::Other {
            self.octets.extend_from_slice(name);
        }
        self.say(start, known, value);
    }

    /// Appends a field of a known name, its value as it is shown.
    pub fn push_shown(&mut self, name: Name, value: impl fmt::Display) {
        let start = self.octets.len();
        debug_assert_ne!(name, Name::Other, "another name has octets to say");
        write!(self.octets, "{value}").expect("a vector takes everything");
        self.finish(start, 0, name);
    }

    /// Appends a field of a known name.
    pub fn push_known(&mut self, name: Name, value: &[u8]) {
        debug_assert_ne!(name, Name::Other, "another name has octets to say");
        self.say(self.octets.len(), name, value);
    }

    /// Appends a field of another list, with what is known of it.
    pub fn push_field(&mut self, other: &Self, index: usize) {
        self.append(row(&other.octets, &other.spans[index]));
    }

    /// Gives the first field of a known name another value, or appends it.
    pub fn set(&mut self, name: Name, value: &[u8]) {
        let Some(at) = self.spans.iter().position(|span| span.facts.name == name) else {
            return self.push_known(name, value);
        };
        self.say(self.octets.len(), name, value);
        let mut fresh = self.spans.pop().expect("one was just put in");
        let old = self.spans[at].facts;
        fresh.facts = fresh.facts.keep_secret(old.indexing == Indexing::Forbidden);
        self.spans[at] = fresh;
        self.size -= old.size();
    }

    /// Drops the fields that `keep` does not want; the others stay in order.
    pub fn retain(&mut self, mut keep: impl FnMut(Field<'_>) -> bool) {
        let Self {
            octets,
            spans,
            size,
        } = self;
        spans.retain(|span| {
            let kept = keep(field(row(octets, span)));
            if !kept {
                *size -= span.facts.size();
            }
            kept
        });
    }

    /// The fields as tables take them.
    #[inline]
    pub(super) fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> + Clone {
        self.spans.iter().map(|span| row(&self.octets, span))
    }

    /// Appends octets and facts as they are.
    #[inline]
    pub(super) fn append(&mut self, row: Row<'_>) {
        let start = self.octets.len();
        self.octets.extend_from_slice(row.octets);
        self.keep(start, row.split, row.facts);
    }

    /// The field whose octets stand at the end of the arena from `start` on, with a name of `split`
    /// octets if it is no known one.
    #[inline]
    pub(super) fn last(&self, start: usize, split: usize, name: Name) -> Row<'_> {
        let octets = &self.octets[start..];
        let (other, value) = octets.split_at(split);
        Row {
            octets,
            split,
            facts: Facts::of(name, other, value),
        }
    }

    /// Makes what stands at the end of the arena a field of the list.
    #[inline]
    pub(super) fn keep(&mut self, start: usize, split: usize, facts: Facts) {
        self.size += facts.size();
        self.spans.push(Span {
            start: offset(start),
            end: offset(self.octets.len()),
            split: offset(split),
            facts,
        });
    }

    /// Appends a field whose name, if it is no known one, stands in the arena from `start` on.
    fn say(&mut self, start: usize, name: Name, value: &[u8]) {
        let split = self.octets.len() - start;
        self.octets.extend_from_slice(value);
        self.finish(start, split, name);
    }

    /// A field whose octets are there, from `start` on, the name's being `split`.
    fn finish(&mut self, start: usize, split: usize, name: Name) {
        let facts = self.last(start, split, name).facts;
        self.keep(start, split, facts);
    }
}

#[inline]
fn row<'a>(octets: &'a [u8], span: &Span) -> Row<'a> {
    Row {
        octets: &octets[span.start as usize..span.end as usize],
        split: span.split as usize,
        facts: span.facts,
    }
}

fn field(row: Row<'_>) -> Field<'_> {
    Field {
        id: row.facts.name,
        name: row.name(),
        value: row.value(),
        never_indexed: row.facts.indexing == Indexing::Forbidden,
        malformed: row.facts.malformed,
    }
}

/// A place in an arena, or a part of one.
#[inline]
pub(super) fn offset(octets: usize) -> u32 {
    u32::try_from(octets).expect("lists are bounded far below 4 GiB")
}
