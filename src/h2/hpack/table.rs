//! The dynamic table: RFC 7541, section 2.3.2 and 4. Both sides of a connection keep one that grows
//! and shrinks in the same way.

use std::collections::VecDeque;

use super::{ENTRY_OVERHEAD, Name, fields::Facts, hash};

/// A ring of octets and a ring of entries that point into it: insertion copies once, eviction moves
/// a mark, and neither allocates once the rings have grown.
#[derive(Debug)]
pub(super) struct Table {
    /// Twice the capacity, so that an entry never has to be split at the end: what is live is at
    /// most half of it, so wherever the ring wraps, the gap it leaves cannot reach the oldest entry.
    ring: Vec<u8>,
    /// Newest at the back.
    entries: VecDeque<Entry>,
    /// Where the next entry's octets go.
    head: usize,
    /// RFC 7541's count of all entries.
    size: usize,
    /// The bound of `size` in force.
    max: usize,
    /// The bound of `max`, for good.
    capacity: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    at: usize,
    /// Octets of the name in the ring: none where it is a known one.
    name: usize,
    value: usize,
    facts: Facts,
}

/// An entry and its octets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// Empty where `facts` says which name it is.
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) facts: Facts,
}

impl Row<'_> {
    /// Octets that RFC 7541 counts for it.
    pub(super) fn size(&self) -> usize {
        name_octets(self.facts.name, self.name).len() + self.value.len() + ENTRY_OVERHEAD
    }

    /// A hash of name and value: the one that was kept, if there is one.
    #[inline]
    pub(super) fn hash(&self) -> u64 {
        match self.facts.hash {
            0 => hash::of(self.name_hash(), self.value),
            kept => kept,
        }
    }

    /// A hash of the name alone.
    #[inline]
    pub(super) fn name_hash(&self) -> u64 {
        match self.facts.name == Name::Other {
            true => hash::of(0, self.name),
            false => hash::of_known(self.facts.name),
        }
    }
}

/// The octets of a name, wherever they are.
#[inline]
pub(super) fn name_octets(name: Name, other: &[u8]) -> &[u8] {
    match name == Name::Other {
        true => other,
        false => name.octets(),
    }
}

impl Table {
    /// An empty table that never holds more than `capacity`, and for now not more than `max`.
    pub(super) fn new(capacity: usize, max: usize) -> Self {
        Self {
            ring: Vec::new(),
            entries: VecDeque::new(),
            head: 0,
            size: 0,
            max: max.min(capacity),
            capacity,
        }
    }

    pub(super) const fn max(&self) -> usize {
        self.max
    }

    /// Changes the bound and drops what is above it.
    pub(super) fn resize(&mut self, max: usize) {
        self.max = max.min(self.capacity);
        self.evict_to(self.max);
    }

    /// An entry by its age: 0 is the newest.
    #[inline]
    pub(super) fn get(&self, age: usize) -> Option<Row<'_>> {
        let place = self.entries.len().checked_sub(age + 1)?;
        let entry = self.entries.get(place)?;
        let (name, rest) = self.ring[entry.at..].split_at(entry.name);
        Some(Row {
            name,
            value: &rest[..entry.value],
            facts: entry.facts,
        })
    }

    /// Puts a field in and older ones out. One that is larger than the table empties it and is not
    /// put in, which is no error (section 4.4). Says whether it is in.
    pub(super) fn insert(&mut self, row: Row<'_>) -> bool {
        let size = row.size();
        if size > self.max {
            self.evict_to(0);
            return false;
        }
        self.evict_to(self.max - size);
        if self.ring.is_empty() {
            self.ring.resize(2 * self.capacity, 0);
        }
        let length = row.name.len() + row.value.len();
        if self.head + length > self.ring.len() {
            self.head = 0;
        }
        let at = self.head;
        self.head += length;
        let (name, value) = self.ring[at..self.head].split_at_mut(row.name.len());
        name.copy_from_slice(row.name);
        value.copy_from_slice(row.value);
        self.entries.push_back(Entry {
            at,
            name: row.name.len(),
            value: row.value.len(),
            facts: row.facts,
        });
        self.size += size;
        true
    }

    fn evict_to(&mut self, most: usize) {
        while self.size > most {
            let oldest = self.entries.len() - 1;
            let size = self.get(oldest).expect("a size above 0 has entries").size();
            self.entries.pop_front();
            self.size -= size;
        }
    }
}
