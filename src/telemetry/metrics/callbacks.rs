//! Counts of what whoever is called back was told, and the line of each.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Sheet, family};

/// Target of the lines.
const LINES: &str = "attache::callbacks";

/// Who is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An agent of the mesh.
    Agent,
    /// An https URL.
    Url,
}

/// What became of telling it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It was taken in.
    Delivered,
    /// A try failed; another one follows.
    Failed,
    /// No more tries.
    GivenUp,
}

const KINDS: [(Kind, &str); 2] = [(Kind::Agent, "agent"), (Kind::Url, "url")];
const ENDS: [(Told, &str); 3] = [
    (Told::Delivered, "delivered"),
    (Told::Failed, "failed"),
    (Told::GivenUp, "given_up"),
];

/// Counts of one home.
#[derive(Debug, Default)]
pub struct Callbacks {
    counts: [[AtomicU64; ENDS.len()]; KINDS.len()],
}

impl Callbacks {
    /// Counts and tells what became of telling event `seq` of a task. `place`: host or agent and skill,
    /// never a whole URL.
    pub fn told(
        &self,
        kind: Kind,
        told: Told,
        (task, seq): (&str, u64),
        place: &str,
        why: Option<&str>,
    ) {
        match told {
            Told::GivenUp => {
                tracing::warn!(target: LINES, task, seq, to = place, why, "a callback was given up");
            }
            Told::Failed => {
                tracing::info!(target: LINES, task, seq, to = place, why, "a callback failed");
            }

            Told::Delivered => {
                tracing::debug!(target: LINES, task, seq, to = place, "a callback was delivered");
            }
        }
        self.count(kind, told);
    }

    fn count(&self, kind: Kind, told: Told) {
        for (counts, (known, _)) in self.counts.iter().zip(KINDS) {
            for (count, (end, _)) in counts.iter().zip(ENDS) {
                if known == kind && end == told {
                    count.fetch_add(1, Relaxed);
                }
            }
        }
    }

    /// Writes the counts, and how many tasks have changes that are to be told.
    pub(super) fn write(&self, sheet: &mut Sheet<'_>, waiting: usize) {
        let mut rows = Vec::new();
        for (counts, (_, kind)) in self.counts.iter().zip(KINDS) {
            for (count, (_, end)) in counts.iter().zip(ENDS) {
                rows.push(([kind, end], count.load(Relaxed) as f64));
            }
        }
        sheet.counter(&family::CALLBACKS, rows);
        sheet.gauge(&family::CALLBACKS_WAITING, [([], waiting as f64)]);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Format, Metrics, tasks::Tasks};
    use super::*;

    #[test]
    fn what_was_told_is_counted_by_kind_and_end() {
        let tasks = Tasks::new(1);
        let metrics = Metrics::new("sidecar");
        metrics.add(Arc::clone(&tasks));
        let told = |kind, end| tasks.callbacks.told(kind, end, ("i1.x", 1), "place", None);
        told(Kind::Url, Told::Failed);
        told(Kind::Url, Told::Failed);
        told(Kind::Url, Told::GivenUp);
        told(Kind::Agent, Told::Delivered);
        let page = metrics.page(Format::Text);
        for row in [
            "attache_callbacks_total{target=\"url\",outcome=\"failed\"} 2",
            "attache_callbacks_total{target=\"url\",outcome=\"given_up\"} 1",
            "attache_callbacks_total{target=\"url\",outcome=\"delivered\"} 0",
            "attache_callbacks_total{target=\"agent\",outcome=\"delivered\"} 1",
        ] {
            assert!(page.lines().any(|line| line == row), "{row}\n{page}");
        }
    }
}
