//! A list of header fields as it passes from one connection to another.

use super::{
    ENTRY_OVERHEAD, Name,
    name::Indexing,
    table::{Row, name_octets},
};

/// Header fields in their order, in one flat arena that is reused from call to call.
#[derive(Debug, Default, Clone)]
pub struct Fields {
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
    /// It came as a literal that must never be indexed, and goes on as one: RFC 7541, section 6.2.3.
    pub never_indexed: bool,
    /// Its name or value has octets that no field may have, or it is a pseudo-header field that
    /// nobody knows: RFC 9113, sections 8.2.1 and 8.3.
    pub malformed: bool,
}

/// What is found out about a field once, and stays with its entry in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// Of name and value; 0 until somebody needed it.
    pub(super) hash: u64,
    pub(super) name: Name,
    pub(super) indexing: Indexing,
    pub(super) malformed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    /// Of a name that is not known; empty otherwise.
    name: (u32, u32),
    value: (u32, u32),
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
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Octets as SETTINGS_MAX_HEADER_LIST_SIZE counts them: each field with 32 more.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// The fields in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Field<'_>> + Clone {
        self.spans.iter().map(|span| self.field(span))
    }

    /// The first value of a known name.
    #[must_use]
    pub fn get(&self, name: Name) -> Option<&[u8]> {
        let span = self.spans.iter().find(|span| span.facts.name == name)?;
        Some(self.slice(span.value))
    }

    /// Appends a field of whatever name.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let id = Name::of(name);
        let other = if id == Name::Other { name } else { b"" };
        let facts = Facts::of(id, name, value);
        self.append(Row {
            name: other,
            value,
            facts,
        });
    }

    /// Appends a field of a known name.
    pub fn push_known(&mut self, name: Name, value: &[u8]) {
        debug_assert_ne!(name, Name::Other, "another name has octets to say");
        let facts = Facts::of(name, name.octets(), value);
        self.append(Row {
            name: b"",
            value,
            facts,
        });
    }

    /// Appends a field of another list, with what is known of it.
    pub fn push_field(&mut self, other: &Self, index: usize) {
        self.append(other.row(index));
    }

    /// Gives the first field of a known name another value, or appends it.
    pub fn set(&mut self, name: Name, value: &[u8]) {
        let Some(at) = self.spans.iter().position(|span| span.facts.name == name) else {
            return self.push_known(name, value);
        };
        let never = self.spans[at].facts.indexing == Indexing::Forbidden;
        let facts = Facts::of(name, name.octets(), value).keep_secret(never);
        self.size = self.size + value.len() - length(self.spans[at].value);
        let value = self.store(value);
        self.spans[at].value = value;
        self.spans[at].facts = facts;
    }

    /// Drops the fields that `keep` does not want; the others stay in order.
    pub fn retain(&mut self, mut keep: impl FnMut(Field<'_>) -> bool) {
        let Self {
            octets,
            spans,
            size,
        } = self;
        spans.retain(|span| {
            let field = field(octets, span);
            let kept = keep(field);
            if !kept {
                *size -= field.name.len() + field.value.len() + ENTRY_OVERHEAD;
            }
            kept
        });
    }

    /// Appends octets and facts as they are.
    #[inline]
    pub(super) fn append(&mut self, row: Row<'_>) {
        let span = Span {
            name: self.store(row.name),
            value: self.store(row.value),
            facts: row.facts,
        };
        self.size += row.size();
        self.spans.push(span);
    }

    /// A field whose octets a decoder has put at the end of the arena: a name that is not known from
    /// `start`, the value from `value`.
    pub(super) fn drafted(&self, start: usize, value: usize, name: Name) -> Row<'_> {
        let (other, value) = self.octets[start..].split_at(value - start);
        Row {
            name: other,
            value,
            facts: Facts::of(name, name_octets(name, other), value),
        }
    }

    /// Makes the draft a field.
    pub(super) fn keep_draft(&mut self, start: usize, value: usize, facts: Facts) {
        let end = self.octets.len();
        let span = Span {
            name: (offset(start), offset(value)),
            value: (offset(value), offset(end)),
            facts,
        };
        let known = facts.name.octets().len();
        self.size += known + (end - start) + ENTRY_OVERHEAD;
        self.spans.push(span);
    }

    /// A field as a table takes it.
    #[inline]
    pub(super) fn row(&self, index: usize) -> Row<'_> {
        let span = &self.spans[index];
        Row {
            name: self.slice(span.name),
            value: self.slice(span.value),
            facts: span.facts,
        }
    }

    fn field(&self, span: &Span) -> Field<'_> {
        field(&self.octets, span)
    }

    #[inline]
    fn slice(&self, span: (u32, u32)) -> &[u8] {
        slice(&self.octets, span)
    }

    #[inline]
    fn store(&mut self, octets: &[u8]) -> (u32, u32) {
        let from = self.octets.len();
        self.octets.extend_from_slice(octets);
        (offset(from), offset(self.octets.len()))
    }
}

fn field<'a>(octets: &'a [u8], span: &Span) -> Field<'a> {
    Field {
        id: span.facts.name,
        name: name_octets(span.facts.name, slice(octets, span.name)),
        value: slice(octets, span.value),
        never_indexed: span.facts.indexing == Indexing::Forbidden,
        malformed: span.facts.malformed,
    }
}

#[inline]
fn slice(octets: &[u8], (from, to): (u32, u32)) -> &[u8] {
    &octets[from as usize..to as usize]
}

const fn length((from, to): (u32, u32)) -> usize {
    (to - from) as usize
}

fn offset(at: usize) -> u32 {
    u32::try_from(at).expect("a list is bounded far below 4 GiB")
}

impl Facts {
    /// `octets` is the name's, known or not.
    pub(super) fn of(name: Name, octets: &[u8], value: &[u8]) -> Self {
        let good_name = name != Name::Other || is_field_name(octets);
        Self {
            hash: 0,
            name,
            indexing: name.indexing(octets),
            malformed: !good_name || !is_field_value(value),
        }
    }

    /// A field that came as never to be indexed stays so.
    pub(super) fn keep_secret(self, never: bool) -> Self {
        match never {
            true => Self {
                indexing: Indexing::Forbidden,
                ..self
            },
            false => self,
        }
    }
}

/// Lower case and no controls, spaces or colons: RFC 9113, section 8.2.1.
fn is_field_name(octets: &[u8]) -> bool {
    !octets.is_empty()
        && octets
            .iter()
            .all(|octet| matches!(octet, 0x21..=0x7e) && !matches!(octet, b'A'..=b'Z' | b':'))
}

/// No NUL, CR or LF, and no space or tab at either end: RFC 9113, section 8.2.1. Without a branch
/// for each octet, so that several are looked at at once.
fn is_field_value(octets: &[u8]) -> bool {
    let blank = |octet: Option<&u8>| matches!(octet, Some(b' ' | b'\t'));
    let breaks = octets.iter().fold(false, |breaks, octet| {
        breaks | (*octet == 0) | (*octet == b'\r') | (*octet == b'\n')
    });
    !breaks && !blank(octets.first()) && !blank(octets.last())
}
