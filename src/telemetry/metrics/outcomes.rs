//! Counts of what is done rarely, by how it ended.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

/// Counts by `N` labels. For what happens seldom: it takes a lock. Clones are the same. All labels
/// come from closed lists in the program, which is their bound.
#[derive(Clone, Debug)]
pub struct Outcomes<const N: usize> {
    counts: Arc<Mutex<BTreeMap<[&'static str; N], u64>>>,
}

impl<const N: usize> Default for Outcomes<N> {
    fn default() -> Self {
        Self {
            counts: Arc::default(),
        }
    }
}

impl<const N: usize> Outcomes<N> {
    /// None yet; these are shown from the start, so that the first one is seen as a step.
    pub fn of(expected: impl IntoIterator<Item = [&'static str; N]>) -> Self {
        let counts = expected.into_iter().map(|labels| (labels, 0)).collect();
        Self {
            counts: Arc::new(Mutex::new(counts)),
        }
    }

    /// One more of these.
    pub fn count(&self, labels: [&'static str; N]) {
        *self.counts.lock().entry(labels).or_insert(0) += 1;
    }

    /// All so far, for [`Sheet::counter`](super::Sheet::counter).
    pub fn rows(&self) -> Vec<([&'static str; N], f64)> {
        let counts = self.counts.lock();
        let rows = counts
            .iter()
            .map(|(labels, count)| (*labels, *count as f64));
        rows.collect()
    }
}
