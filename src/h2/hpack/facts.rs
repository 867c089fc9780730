//! What is found out about a field once, when it comes as a literal, and stays with it.

use super::{ENTRY_OVERHEAD, Name, fields::offset, hash, name::Indexing, statics};

/// What is known of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// Of name and value; 0 until somebody needed it.
    pub(super) hash: u64,
    /// Octets that tables and lists count for it: name, value and 32 more.
    pub(super) size: u32,
    pub(super) name: Name,
    pub(super) indexing: Indexing,
    /// The entry of the static table with this name and value; 0 for none.
    pub(super) fixed: u8,
    /// It breaks RFC 9113, section 8.2.1, or is a pseudo-header field that nobody knows.
    pub(super) malformed: bool,
}

/// A field: octets somewhere else, and what is known of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// The name, unless it is a known one, and the value right behind it.
    pub(super) octets: &'a [u8],
    /// Octets of that name: 0 for a known one.
    pub(super) split: usize,
    pub(super) facts: Facts,
}

impl Facts {
    /// `other` is the name where it is not a known one.
    #[inline]
    pub(super) fn of(name: Name, other: &[u8], value: &[u8]) -> Self {
        let (length, indexing, good) = match name == Name::Other {
            true => (other.len(), Indexing::of_other(other), is_field_name(other)),
            false => (name.octets().len(), name.indexing(), true),
        };
        Self {
            hash: 0,
            size: offset(length + value.len() + ENTRY_OVERHEAD),
            name,
            indexing,
            fixed: statics::exact(name, value),
            malformed: !good || !is_field_value(value),
        }
    }

    /// Those of an entry of the static table, all of which are well formed.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "names and values are short"
    )]
    pub(super) const fn of_static(name: Name, value: &str, fixed: u8) -> Self {
        Self {
            hash: 0,
            size: (name.octets().len() + value.len() + ENTRY_OVERHEAD) as u32,
            name,
            indexing: name.indexing(),
            fixed,
            malformed: false,
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

    #[inline]
    pub(super) const fn size(&self) -> usize {
        self.size as usize
    }
}

impl<'a> Row<'a> {
    /// The name's octets, known or not.
    #[inline]
    pub(super) fn name(&self) -> &'a [u8] {
        match self.facts.name == Name::Other {
            true => &self.octets[..self.split],
            false => self.facts.name.octets(),
        }
    }

    #[inline]
    pub(super) fn value(&self) -> &'a [u8] {
        &self.octets[self.split..]
    }

    /// A hash of name and value: the one that was kept, if there is one.
    #[inline]
    pub(super) fn hash(&self) -> u64 {
        match self.facts.hash {
            0 => hash::of(self.name_hash(), self.value()),
            kept => kept,
        }
    }

    /// A hash of the name alone.
    #[inline]
    pub(super) fn name_hash(&self) -> u64 {
        match self.facts.name == Name::Other {
            true => hash::of(0, &self.octets[..self.split]),
            false => hash::of_known(self.facts.name),
        }
    }

    #[inline]
    pub(super) fn same_name(&self, other: &Row<'_>) -> bool {
        self.facts.name == other.facts.name
            && (self.facts.name != Name::Other || self.name() == other.name())
    }

    #[inline]
    pub(super) fn same_field(&self, other: &Row<'_>) -> bool {
        self.facts.name == other.facts.name
            && self.split == other.split
            && self.octets == other.octets
    }
}

/// Lower case and no controls, spaces or colons.
fn is_field_name(octets: &[u8]) -> bool {
    let allowed = |octet: &u8| matches!(octet, 0x21..=0x7e) && !matches!(octet, b'A'..=b'Z' | b':');
    !octets.is_empty() && octets.iter().all(allowed)
}

/// No NUL, CR or LF, and no space or tab at either end.
#[inline]
fn is_field_value(octets: &[u8]) -> bool {
    let [first, .., last] = octets else {
        return octets.iter().all(|only| is_edge(*only) && *only != 0);
    };
    is_edge(*first) && is_edge(*last) && (!has_low(octets) || octets.iter().all(|o| is_inner(*o)))
}

const fn is_inner(octet: u8) -> bool {
    !matches!(octet, 0 | b'\r' | b'\n')
}

const fn is_edge(octet: u8) -> bool {
    is_inner(octet) && !matches!(octet, b' ' | b'\t')
}

/// Whether some octet is below 16, as those are that no value may have: eight at a time. The last
/// eight may overlap those before.
#[inline]
fn has_low(octets: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 0xff;
    let low = |word: &[u8; 8]| {
        let word = u64::from_le_bytes(*word);
        // A borrow out of an octet below 16 sets its top bit; one above 127 had it set before.
        word.wrapping_sub(16 * ONES) & !word & (0x80 * ONES) != 0
    };
    match octets.last_chunk() {
        Some(last) => octets.as_chunks().0.iter().any(low) || low(last),
        None => octets.iter().any(|octet| *octet < 16),
    }
}
