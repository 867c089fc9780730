//! The dynamic table: RFC 7541, sections 2.3.2 and 4. Both sides of a connection keep one, which
//! grow and shrink in the same way.

use std::collections::VecDeque;

use super::facts::{Facts, Row};

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
    length: usize,
    split: usize,
    facts: Facts,
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
        Some(Row {
            octets: &self.ring[entry.at..entry.at + entry.length],
            split: entry.split,
            facts: entry.facts,
        })
    }

    /// Puts a field in and older ones out. One that is larger than the table empties it and is not
    /// put in, which is no error (section 4.4).
    pub(super) fn insert(&mut self, row: Row<'_>) {
        let size = row.facts.size();
        if size > self.max {
            return self.evict_to(0);
        }
        self.evict_to(self.max - size);
        if self.ring.is_empty() {
            self.ring.resize(2 * self.capacity, 0);
        }
        if self.head + row.octets.len() > self.ring.len() {
            self.head = 0;
        }
        let at = self.head;
        self.head += row.octets.len();
        self.ring[at..self.head].copy_from_slice(row.octets);
        self.entries.push_back(Entry {
            at,
            length: row.octets.len(),
            split: row.split,
            facts: row.facts,
        });
        self.size += size;
    }

    fn evict_to(&mut self, most: usize) {
        while self.size > most {
            let oldest = self.entries.pop_front();
            self.size -= oldest.expect("a size above 0 has entries").facts.size();
        }
    }
}
