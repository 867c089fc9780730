//! Some of what was last written or read, so that a task that goes out at once, and those who watch
//! it, need no disk. Pure. Kept by task and hash: what one task reads says nothing of others.

use std::collections::VecDeque;

use bytes::Bytes;
use uuid::Uuid;

use super::hash::Hash;

/// Memory of a home for contents that were used of late.
pub(super) const RECENT_BYTES: usize = 8 << 20;
/// Most of them: they are looked through one by one.
const RECENT_MAX: usize = 128;

/// The newest last.
#[derive(Debug, Default)]
pub(super) struct Recent {
    held: VecDeque<(Uuid, Hash, Bytes)>,
    bytes: usize,
}

impl Recent {
    pub(super) fn find(&self, task: Uuid, hash: Hash) -> Option<Bytes> {
        let same = |held: &&(Uuid, Hash, Bytes)| held.0 == task && held.1 == hash;
        self.held.iter().rev().find(same).map(|held| held.2.clone())
    }

    pub(super) fn keep(&mut self, task: Uuid, hash: Hash, bytes: Bytes) {
        if self.find(task, hash).is_some() {
            return;
        }
        self.bytes += bytes.len();
        self.held.push_back((task, hash, bytes));
        while self.bytes > RECENT_BYTES || self.held.len() > RECENT_MAX {
            let Some((_, _, oldest)) = self.held.pop_front() else {
                return;
            };
            self.bytes -= oldest.len();
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
