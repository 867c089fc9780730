//! Who names which content. Pure. Saying the same twice is as saying it once.

use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use super::hash::Hash;

/// Where a task stands that names something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// In memory and in the log.
    Log,
    /// In the archive.
    Archive,
}

/// Who names a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Holder {
    /// A task; one that is moved is in two places for a while.
    Task(Place, Uuid),
    /// Somebody who reads, by a number of its own.
    Reader(u64),
}

/// Names, by who says them.
#[derive(Debug, Default)]
pub(super) struct Names {
    of: HashMap<Holder, BTreeSet<Hash>>,
    holders: HashMap<Hash, usize>,
}

impl Names {
    /// From here on `holder` names it.
    pub(super) fn hold(&mut self, holder: Holder, hash: Hash) {
        if self.of.entry(holder).or_default().insert(hash) {
            *self.holders.entry(hash).or_default() += 1;
        }
    }

    /// `holder` names nothing any more. What nobody does now.
    pub(super) fn let_go(&mut self, holder: Holder) -> Vec<Hash> {
        let mut free = Vec::new();
        for hash in self.of.remove(&holder).unwrap_or_default() {
            if let Some(count) = self.holders.get_mut(&hash) {
                *count -= 1;
                if *count == 0 {
                    self.holders.remove(&hash);
                    free.push(hash);
                }
            }
        }
        free
    }

    /// Whether anybody names it.
    pub(super) fn named(&self, hash: Hash) -> bool {
        self.holders.contains_key(&hash)
    }
}
