//! Compiled contracts by their hash: made once, and forgotten when others were of more use.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::pb;

use super::compiled::Contract;
use super::hash::Canonical;
use super::schema::SchemaError;

/// Contracts kept; a home gives its tasks to a handful of skills, and one takes some 10 to 100 KiB.
const KEPT: usize = 64;

/// Contracts that are ready to be applied. Shared by all threads.
#[derive(Debug)]
pub struct Known {
    most: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// With the turn of its last use.
    all: HashMap<Vec<u8>, (Arc<Contract>, u64)>,
    turn: u64,
}

impl Default for Known {
    fn default() -> Self {
        Self::of(KEPT)
    }
}

impl Known {
    /// None yet, and never more than so many.
    pub fn of(most: usize) -> Self {
        Self {
            most,
            kept: Mutex::default(),
        }
    }

    /// The contract of a question: what an answer to it has to fit. Compiled where it is not known.
    ///
    /// # Errors
    /// See [`Schema::compile`](super::Schema::compile); nothing is kept then.
    pub fn of_question(&self, question: &pb::Question) -> Result<Arc<Contract>, SchemaError> {
        if question.answer_schema.is_empty() {
            return Ok(Arc::default());
        }
        let mut hash = Canonical::new("attache.answer.v1");
        hash.text(&question.answer_schema);
        let hash = hash.finish();
        if let Some(known) = self.get(&hash) {
            return Ok(known);
        }
        let made = Arc::new(Contract::of_question(question)?);
        self.keep(&hash, made.clone());
        Ok(made)
    }

    /// The contract with this hash, if it is known.
    pub fn get(&self, hash: &[u8]) -> Option<Arc<Contract>> {
        let mut kept = self.kept.lock();
        kept.turn += 1;
        let turn = kept.turn;
        let (contract, used) = kept.all.get_mut(hash)?;
        *used = turn;
        Some(contract.clone())
    }

    /// How many are kept.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.kept.lock().all.len()
    }

    /// Keeps a contract, in place of the one that was asked for the longest ago where there is no
    /// room.
    pub fn keep(&self, hash: &[u8], contract: Arc<Contract>) {
        let mut kept = self.kept.lock();
        kept.turn += 1;
        let turn = kept.turn;
        if kept.all.len() >= self.most && !kept.all.contains_key(hash) {
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
        assert_eq!(known.count(), KEPT);
    }

    #[test]
    fn the_schema_of_an_answer_is_compiled_once_while_it_is_asked_for() {
        let asked = |answer_schema: &str| pb::Question {
            answer_schema: answer_schema.into(),
            ..pb::Question::default()
        };
        let object = asked(r#"{"type":"object"}"#);
        let known = Known::of(2);
        let made = known.of_question(&object).unwrap();
        assert!(!made.is_empty());
        for other in ["true", "false", r#"{"type":"string"}"#] {
            let again = known.of_question(&object).unwrap();
            assert!(Arc::ptr_eq(&made, &again), "compiled again");
            let other = known.of_question(&asked(other)).unwrap();
            assert!(!Arc::ptr_eq(&made, &other));
        }
        assert_eq!(known.count(), 2);
        assert!(known.of_question(&asked("{")).is_err());
        assert!(known.of_question(&asked("")).unwrap().is_empty());
        assert_eq!(known.count(), 2, "nothing of either is kept");
    }
}
