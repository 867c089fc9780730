//! The catalog as it changes: the newest value, a bounded ring of recent changes, and a bell; and
//! the traffic rules beside it, which are few and always told whole.
//!
//! Shared by every store and by the sidecar's mirror. Readers pull by cursor, so that a slow one
//! costs nothing: who has fallen out of the ring starts again from a snapshot.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::domain::InstanceId;
use crate::registry::catalog::Catalog;
use crate::registry::catalog::Entry;
use crate::registry::catalog::Revision;
use crate::registry::rules::Rules;

/// Changes kept for those who come back: a few minutes of a busy mesh. Beyond it a snapshot is the
/// cheaper answer.
pub const CHANGES_KEPT: usize = 4_096;

/// One step of the catalog.
#[derive(Clone, Debug)]
pub enum Change {
    /// An instance came or changed.
    Put(Arc<Entry>),
    /// An instance left; its last entry, so that filters can be asked about it.
    Gone(Arc<Entry>),
}

impl Change {
    /// The entry that came, or went.
    pub fn entry(&self) -> &Arc<Entry> {
        match self {
            Self::Put(entry) | Self::Gone(entry) => entry,
        }
    }
}

/// A change with the revision after it.
#[derive(Clone, Debug)]
pub struct Numbered {
    /// Number of the revision after this change.
    pub number: u64,
    /// What changed.
    pub change: Change,
}

/// What happened after a revision.
#[derive(Clone, Debug)]
pub enum Since {
    /// All changes after it, oldest first, as many as asked for; none when it is the newest.
    Changes(Vec<Numbered>),
    /// The changes are no longer known: read the whole catalog.
    Lost,
}

/// A catalog that changes. All methods are short and never wait for I/O.
#[derive(Debug)]
pub struct Live {
    state: RwLock<State>,
    head: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    catalog: Arc<Catalog>,
    recent: VecDeque<Numbered>,
    rules: Arc<Rules>,
}

impl Live {
    /// An empty catalog of a generation of its own.
    pub fn new(generation: u64) -> Self {
        let mut catalog = Catalog::default();
        catalog.revision.generation = format!("{generation:016x}").into();
        Self {
            state: RwLock::new(State {
                catalog: Arc::new(catalog),
                recent: VecDeque::new(),
                rules: Arc::default(),
            }),
            head: watch::Sender::new(0),
        }
    }

    /// The catalog as it stands. Held for long it costs the next change a copy.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.state.read().catalog)
    }

    /// Reads the catalog in place, without holding a copy of it. `read` must be short.
    pub fn read<R>(&self, read: impl FnOnce(&Catalog) -> R) -> R {
        read(&self.state.read().catalog)
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.read(|catalog| catalog.revision.clone())
    }

    /// Rings with the newest number after every change, and after one of the rules, which have no
    /// number there.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// The traffic rules as they stand.
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.state.read().rules)
    }

    /// Makes other rules of those that stand, and rings.
    ///
    /// # Errors
    /// Those of `change`; nothing is changed then.
    pub fn change_rules<R, E>(
        &self,
        change: impl FnOnce(&Rules) -> Result<(Rules, R), E>,
    ) -> Result<R, E> {
        let mut state = self.state.write();
        let (rules, answer) = change(&state.rules)?;
        state.rules = Arc::new(rules);
        drop(state);
        self.head.send_modify(|_| ());
        Ok(answer)
    }

    /// Puts these rules in place of those that stand; rings if they are others.
    pub fn set_rules(&self, rules: Rules) {
        let mut state = self.state.write();
        if state.rules.iter().eq(rules.iter()) {
            return;
        }
        state.rules = Arc::new(rules);
        drop(state);
        self.head.send_modify(|_| ());
    }

    /// At most `most` entries after `after`, in the order of instance ids.
    pub fn entries_after(&self, after: Option<&InstanceId>, most: usize) -> Vec<Arc<Entry>> {
        self.read(|catalog| catalog.entries_after(after).take(most).cloned().collect())
    }

    /// Up to `most` changes after a revision.
    pub fn since(&self, revision: &Revision, most: usize) -> Since {
        let state = self.state.read();
        let head = &state.catalog.revision;
        let known = revision.generation == head.generation && revision.number <= head.number;
        // Numbers are dense: the ring holds the last `recent.len()` of them.
        let behind = head.number.saturating_sub(revision.number);
        let Ok(behind) = usize::try_from(behind) else {
            return Since::Lost;
        };
        match state.recent.len().checked_sub(behind) {
            Some(start) if known => {
                Since::Changes(state.recent.range(start..).take(most).cloned().collect())
            }
            Some(_) | None => Since::Lost,
        }
    }

    /// Applies changes in their order, each a revision of its own; the revision after the last.
    /// That an instance leaves which is not there changes nothing.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) -> Revision {
        let mut state = self.state.write();
        let State {
            catalog, recent, ..
        } = &mut *state;
        let before = catalog.revision.number;
        for change in changes {
            let catalog = Arc::make_mut(catalog);
            let done = match change {
                Change::Put(entry) => {
                    let id = entry.instance_id.clone();
                    catalog.put(entry);
                    catalog.entry(&id).cloned().map(Change::Put)
                }
                Change::Gone(entry) => catalog.remove(&entry.instance_id).map(Change::Gone),
            };
            let Some(change) = done else { continue };
            catalog.revision.number += 1;
            let number = catalog.revision.number;
            recent.push_back(Numbered { number, change });
        }
        let beyond = recent.len().saturating_sub(CHANGES_KEPT);
        recent.drain(..beyond);
        let revision = catalog.revision.clone();
        drop(state);
        if revision.number != before {
            self.head.send_replace(revision.number);
        }
        revision
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::registry::fixture::entry;

    fn put(name: &str, skill: &str) -> Change {
        Change::Put(Arc::new(entry(name, "default/billing", &[skill])))
    }

    fn gone(name: &str) -> Change {
        Change::Gone(Arc::new(entry(name, "default/billing", &[])))
    }

    fn shown(catalog: &Catalog) -> BTreeMap<String, Vec<u8>> {
        catalog
            .entries_after(None)
            .map(|e| (e.instance.id.clone(), e.instance.card_digest.clone()))
            .collect()
    }

    #[test]
    fn unknown_generations_and_old_numbers_are_lost() {
        let live = Live::new(1);
        let empty = live.revision();
        live.apply([put("a", "x")]);
        assert!(matches!(live.since(&empty, 9), Since::Changes(c) if c.len() == 1));
        let foreign = Revision {
            generation: "other".into(),
            number: 0,
        };
        assert!(matches!(live.since(&foreign, 9), Since::Lost));
        let ahead = Revision {
            number: 2,
            ..empty.clone()
        };
        assert!(matches!(live.since(&ahead, 9), Since::Lost));
        live.apply((0..CHANGES_KEPT).map(|_| put("a", "y")));
        assert!(matches!(live.since(&empty, 9), Since::Lost));
        let first = Revision { number: 1, ..empty };
        assert!(matches!(live.since(&first, 9), Since::Changes(c) if c.len() == 9));
    }

    #[test]
    fn only_what_changes_rings() {
        let live = Live::new(1);
        let mut bell = live.changes();
        live.apply([gone("a")]);
        assert!(!bell.has_changed().unwrap());
        live.apply([put("a", "x"), gone("a")]);
        assert_eq!(*bell.borrow_and_update(), 2);
    }

    proptest! {
        /// Whoever knows some revision and applies what came after has the newest catalog.
        #[test]
        fn deltas_from_any_revision_lead_to_the_snapshot(
            steps in prop::collection::vec((0_u8..6, 0_u8..4), 1..60),
            from in 0_usize..60,
            piece in 1_usize..9,
        ) {
            let live = Live::new(7);
            let mut known = live.catalog();
            for (place, (name, what)) in steps.iter().enumerate() {
                if place == from.min(steps.len() - 1) {
                    known = live.catalog();
                }
                let name = format!("i{name}");
                live.apply([if *what == 0 { gone(&name) } else { put(&name, &format!("s{what}")) }]);
            }
            let mut known = (*known).clone();
            while known.revision != live.revision() {
                let Since::Changes(changes) = live.since(&known.revision, piece) else {
                    return Err(TestCaseError::fail("lost"));
                };
                for Numbered { number, change } in changes {
                    prop_assert_eq!(number, known.revision.number + 1);
                    known.revision.number = number;
                    match change {
                        Change::Put(entry) => known.put(entry),
                        Change::Gone(entry) => drop(known.remove(&entry.instance_id)),
                    }
                }
            }
            prop_assert_eq!(shown(&known), shown(&live.catalog()));
        }
    }
}
