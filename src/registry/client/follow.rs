//! Reading a watch: messages in, changes of the catalog out. Pure.
//!
//! A snapshot is gathered aside and handed over whole, so that nobody sees half of one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::domain::InstanceId;
use crate::pb;
use crate::pb::watch_response::Change as Word;
use crate::registry::catalog::Catalog;
use crate::registry::catalog::Entry;
use crate::registry::catalog::Revision;
use crate::registry::live::Change;

/// The stream cannot be followed any more: watch again, from a snapshot.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the registry's watch broke its contract: {0}")]
pub(super) struct Broken(&'static str);

/// What a message means for the catalog.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing yet.
    Nothing,
    /// An instance came or changed.
    Put(Arc<Entry>),
    /// An instance left, if it was there.
    Gone(InstanceId),
    /// All that there is; what is not in it has gone.
    Snapshot(BTreeMap<InstanceId, Arc<Entry>>),
}

/// One watch as it is read.
#[derive(Debug)]
pub(super) struct Follow {
    /// All up to here was taken; empty until a first snapshot is complete.
    revision: Revision,
    cards: HashMap<Vec<u8>, Arc<pb::AgentCard>>,
    gathering: Option<BTreeMap<InstanceId, Arc<Entry>>>,
}

impl Follow {
    /// A new watch, that goes on after `revision` of what is known.
    pub(super) fn new(revision: Revision, known: &Catalog) -> Self {
        let cards = known
            .entries_after(None)
            .map(|entry| (entry.card.digest.clone(), Arc::clone(&entry.card)))
            .collect();
        Self {
            revision,
            cards,
            gathering: None,
        }
    }

    /// What to ask for after a break.
    pub(super) fn revision(&self) -> &Revision {
        &self.revision
    }

    /// Whether all up to its revision is there: no snapshot is under way.
    pub(super) fn is_complete(&self) -> bool {
        self.gathering.is_none() && !self.revision.generation.is_empty()
    }

    /// Takes the next message.
    pub(super) fn take(&mut self, message: pb::WatchResponse) -> Result<Step, Broken> {
        let at = Revision {
            generation: message.generation.into(),
            number: message.revision,
        };
        // A kind of change that only newer registries know.
        let Some(word) = message.change else {
            return Ok(Step::Nothing);
        };
        if self.gathering.is_none() && !matches!(word, Word::SnapshotBegin(_)) {
            if at.generation != self.revision.generation {
                return Err(Broken("another store generation without a snapshot"));
            }
            if at.number < self.revision.number {
                return Err(Broken("a revision went back"));
            }
        }
        let step = match word {
            Word::SnapshotBegin(_) => {
                self.gathering = Some(BTreeMap::new());
                Step::Nothing
            }
            Word::SnapshotEnd(_) => {
                let all = self.gathering.take();
                Step::Snapshot(all.ok_or(Broken("the end of no snapshot"))?)
            }
            Word::Card(card) => {
                // A card is told before the instance that needs it, at the same revision: should
                // the stream break between them, both must come again.
                self.cards.insert(card.digest.clone(), Arc::new(card));
                return Ok(Step::Nothing);
            }
            Word::Instance(instance) => self.instance(instance)?,
            Word::Gone(gone) => self.gone(&gone.id),
            Word::Keepalive(_) => Step::Nothing,
        };
        if self.gathering.is_none() {
            self.revision = at;
        }
        Ok(step)
    }

    fn instance(&mut self, instance: pb::Instance) -> Result<Step, Broken> {
        let card = self.cards.get(&instance.card_digest);
        let card = card.ok_or(Broken("an instance before its card"))?;
        let entry = match Entry::new(instance, Arc::clone(card)) {
            Ok(entry) => Arc::new(entry),
            Err(fault) => {
                // A newer registry may know shapes that we do not; the others still count.
                tracing::warn!(%fault, "an instance of the catalog cannot be read");
                return Ok(Step::Nothing);
            }
        };
        Ok(match &mut self.gathering {
            Some(all) => {
                all.insert(entry.instance_id.clone(), entry);
                Step::Nothing
            }
            None => Step::Put(entry),
        })
    }

    fn gone(&mut self, id: &str) -> Step {
        let Ok(id) = id.parse::<InstanceId>() else {
            return Step::Nothing;
        };
        match &mut self.gathering {
            Some(all) => {
                all.remove(&id);
                Step::Nothing
            }
            None => Step::Gone(id),
        }
    }
}

/// What leads from `known` to a snapshot. Entries that differ in their load only change nothing
/// but it.
pub(super) fn difference(
    known: &Catalog,
    mut snapshot: BTreeMap<InstanceId, Arc<Entry>>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for entry in known.entries_after(None) {
        match snapshot.remove(&entry.instance_id) {
            None => changes.push(Change::Gone(Arc::clone(entry))),
            Some(new) if new.same_but_load(entry) => entry.report(new.load()),
            Some(new) => changes.push(Change::Put(new)),
        }
    }
    changes.extend(snapshot.into_values().map(Change::Put));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::fixture::entry;

    fn word(number: u64, change: Word) -> pb::WatchResponse {
        pb::WatchResponse {
            revision: number,
            generation: "g".into(),
            change: Some(change),
            rules: None,
        }
    }

    fn card(id: &str) -> Word {
        Word::Card((*entry(id, "default/x", &["s"]).card).clone())
    }

    fn instance(id: &str) -> Word {
        Word::Instance(entry(id, "default/x", &["s"]).published())
    }

    fn begin() -> Word {
        Word::SnapshotBegin(pb::SnapshotBegin::default())
    }

    fn end() -> Word {
        Word::SnapshotEnd(pb::SnapshotEnd {})
    }

    fn gone(id: &str) -> Word {
        Word::Gone(pb::InstanceGone { id: id.into() })
    }

    /// A watch that has taken these.
    fn after(words: Vec<pb::WatchResponse>) -> Follow {
        let mut follow = Follow::new(Revision::default(), &Catalog::default());
        for word in words {
            follow.take(word).unwrap();
        }
        follow
    }

    #[test]
    fn half_of_anything_is_not_reached() {
        let snapshot = || vec![word(5, begin()), word(5, card("a")), word(5, instance("a"))];
        let half = after(snapshot());
        assert_eq!((half.revision().number, half.is_complete()), (0, false));
        let mut whole = after(snapshot());
        let Ok(Step::Snapshot(all)) = whole.take(word(5, end())) else {
            panic!("no snapshot");
        };
        assert_eq!(all.len(), 1);
        assert_eq!((whole.revision().number, whole.is_complete()), (5, true));
        // A break between a card and its instance must bring both again.
        whole.take(word(6, card("b"))).unwrap();
        assert_eq!(whole.revision().number, 5);
        assert!(matches!(
            whole.take(word(6, instance("b"))),
            Ok(Step::Put(_))
        ));
        assert_eq!(whole.revision().number, 6);
        assert!(matches!(whole.take(word(7, gone("b"))), Ok(Step::Gone(_))));
    }

    #[test]
    fn what_left_during_a_snapshot_is_not_in_it() {
        let mut follow = after(vec![
            word(5, begin()),
            word(5, card("a")),
            word(5, instance("a")),
            word(5, gone("a")),
        ]);
        assert!(matches!(follow.take(word(5, end())), Ok(Step::Snapshot(all)) if all.is_empty()));
    }

    #[test]
    fn a_watch_against_its_contract_is_broken() {
        let ready = || after(vec![word(5, begin()), word(5, end())]);
        let foreign = pb::WatchResponse {
            generation: "other".into(),
            ..word(6, gone("a"))
        };
        let unknown = pb::WatchResponse {
            change: None,
            ..word(6, gone("a"))
        };
        assert!(matches!(ready().take(unknown), Ok(Step::Nothing)));
        for wrong in [
            foreign,
            word(4, gone("a")),
            word(6, instance("a")),
            word(6, end()),
        ] {
            assert!(ready().take(wrong.clone()).is_err(), "{wrong:?}");
        }
    }
}
