//! Finds the entries of a table by their hash.

/// Entries are numbered as they are put in, from 1 on and around. Those of one bucket form a chain
/// from the newest to the oldest; as the oldest entry of a table goes first, a chain ends where its
/// numbers are older than the table, and nothing has to be taken out of it.
#[derive(Debug)]
pub(super) struct Chains {
    /// By bucket: the newest number.
    heads: [u32; BUCKETS],
    /// By number: the next older one in its bucket.
    older: [u32; ENTRIES],
}

/// Entries that a table of 4096 octets holds at most: one that is empty counts 32.
const ENTRIES: usize = 128;
const BUCKETS: usize = 256;
/// How far a chain is gone along. Chains of honest fields have one or two; who sends fields that
/// share a bucket gets longer blocks, not slower ones.
pub(super) const MAX_STEPS: usize = 8;

impl Chains {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            heads: [0; BUCKETS],
            older: [0; ENTRIES],
        })
    }

    /// The entry `number`, the newest of all, has this hash.
    pub(super) fn push(&mut self, hash: u64, number: u32) {
        let head = &mut self.heads[bucket(hash)];
        self.older[place(number)] = *head;
        *head = number;
    }

    /// The newest number of this hash's bucket; one that is older than the table if there is none.
    #[inline]
    pub(super) const fn newest(&self, hash: u64) -> u32 {
        self.heads[bucket(hash)]
    }

    /// The next older number of the same bucket.
    #[inline]
    pub(super) const fn older(&self, number: u32) -> u32 {
        self.older[place(number)]
    }
}

#[inline]
const fn bucket(hash: u64) -> usize {
    let [low, ..] = hash.to_le_bytes();
    low as usize
}

#[inline]
const fn place(number: u32) -> usize {
    number as usize % ENTRIES
}
