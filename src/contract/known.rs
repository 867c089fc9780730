//! Compiled contracts by their hash: made once, and forgotten when others were of more use.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::compiled::Contract;

/// Contracts kept; a home gives its tasks to a handful of skills, and one takes some 10 to 100 KiB.
const KEPT: usize = 64;

/// Contracts that are ready to be applied. Shared by all threads.
#[derive(Debug, Default)]
pub struct Known {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// With the turn of its last use.
    all: HashMap<Vec<u8>, (Arc<Contract>, u64)>,
    turn: u64,
}

impl Known {
    /// The contract with this hash, if it is known.
    pub fn get(&self, hash: &[u8]) -> Option<Arc<Contract>> {
        let mut kept = self.kept.lock();
        kept.turn += 1;
        let turn = kept.turn;
        let (contract, used) = kept.all.get_mut(hash)?;
        *used = turn;
        Some(contract.clone())
    }

    /// Keeps a contract, in place of the one that was asked for the longest ago where there is no
    /// room.
    pub fn keep(&self, hash: &[u8], contract: Arc<Contract>) {
        let mut kept = self.kept.lock();
        kept.turn += 1;
        let turn = kept.turn;
        if kept.all.len() >= KEPT && !kept.all.contains_key(hash) {
            let oldest = kept.all.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(hash, _)| hash.clone()) {
                kept.all.remove(&oldest);
            }
        }
        kept.all.insert(hash.to_vec(), (contract, turn));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_used_is_forgotten() {
        let known = Known::default();
        let hash = |number: usize| [u8::try_from(number).unwrap()];
        for number in 0..KEPT {
            known.keep(&hash(number), Arc::default());
        }
        assert!(known.get(&hash(0)).is_some());
        known.keep(&hash(KEPT), Arc::default());
        assert!(known.get(&hash(0)).is_some(), "asked for of late");
        assert!(known.get(&hash(1)).is_none());
        assert!(known.get(&hash(KEPT)).is_some());
        assert_eq!(known.kept.lock().all.len(), KEPT);
    }
}
