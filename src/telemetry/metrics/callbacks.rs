//! Counts of what whoever is called back was told, and the line of each.

use std::sync::Arc;
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
    GivenUp(GivenUp),
}

/// Why there are no more tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// The receiver says no, or may not be told.
    Refused,
    /// Nobody took it in time.
    Expired,
    /// Too many later changes of the task wait.
    TooMany,
    /// It took too much memory.
    TooLarge,
}

/// What became of telling one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Who is told.
    pub kind: Kind,
    /// What became of it.
    pub came: Told,
    /// The task that changed.
    pub task: String,
    /// Number of its event.
    pub seq: u64,
    /// Host, or agent and skill; never a whole URL.
    pub place: Arc<str>,
    /// Why it failed; short, without secrets.
    pub why: String,
}

const KINDS: [&str; 2] = ["agent", "url"];
const ENDS: [&str; 3] = ["delivered", "failed", "given_up"];
const REASONS: [&str; 4] = ["refused", "expired", "too_many", "too_large"];

/// Counts of one home.
#[derive(Debug, Default)]
pub struct Callbacks {
    counts: [[AtomicU64; ENDS.len()]; KINDS.len()],
    given_up: [[AtomicU64; REASONS.len()]; KINDS.len()],
}

impl Callbacks {
    /// Counts and tells what became of telling a change.
    pub fn told(&self, report: &Report) {
        let Report {
            kind,
            came,
            task,
            seq,
            place,
            why,
        } = report;
        let kind = match kind {
            Kind::Agent => 0,
            Kind::Url => 1,
        };
        let end = match came {
            Told::Delivered => {
                tracing::debug!(target: LINES, task, seq, to = &**place, "a callback was delivered");
                0
            }
            Told::Failed => {
                tracing::info!(target: LINES, task, seq, to = &**place, why, "a callback failed");
                1
            }
            Told::GivenUp(given_up) => {
                let place_of = given_up.place();
                let reason = REASONS[place_of];
                tracing::warn!(target: LINES, task, seq, to = &**place, reason, why, "a callback was given up");
                self.given_up[kind][place_of].fetch_add(1, Relaxed);
                2
            }
        };
        self.counts[kind][end].fetch_add(1, Relaxed);
    }

    /// Writes the counts, and how many tasks have changes that are to be told.
    pub(super) fn write(&self, sheet: &mut Sheet<'_>, waiting: usize) {
        sheet.counter(&family::CALLBACKS, rows(&self.counts, &ENDS));
        sheet.counter(&family::CALLBACKS_GIVEN_UP, rows(&self.given_up, &REASONS));
        sheet.gauge(&family::CALLBACKS_WAITING, [([], waiting as f64)]);
    }
}

impl GivenUp {
    fn place(self) -> usize {
        match self {
            Self::Refused => 0,
            Self::Expired => 1,
            Self::TooMany => 2,
            Self::TooLarge => 3,
        }
    }
}

fn rows<const N: usize>(
    counts: &[[AtomicU64; N]; KINDS.len()],
    names: &'static [&'static str; N],
) -> Vec<([&'static str; 2], f64)> {
    let mut rows = Vec::new();
    for (counts, kind) in counts.iter().zip(KINDS) {
        for (count, name) in counts.iter().zip(names) {
            rows.push(([kind, *name], count.load(Relaxed) as f64));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Metrics, tasks::Tasks};
    use super::*;

    #[test]
    fn what_was_told_is_counted_by_kind_and_end() {
        let tasks = Tasks::new(1);
        let metrics = Metrics::new("sidecar");
        metrics.add(Arc::clone(&tasks));
        let told = |kind, came| {
            tasks.callbacks.told(&Report {
                kind,
                came,
                task: "i1.x".into(),
                seq: 1,
                place: "place".into(),
                why: String::new(),
            });
        };
        told(Kind::Url, Told::Failed);
        told(Kind::Url, Told::Failed);
        told(Kind::Url, Told::GivenUp(GivenUp::Expired));
        told(Kind::Agent, Told::GivenUp(GivenUp::TooLarge));
        told(Kind::Agent, Told::Delivered);
        let page = metrics.page(Format::Text);
        for row in [
            "attache_callbacks_total{target=\"url\",outcome=\"failed\"} 2",
            "attache_callbacks_total{target=\"url\",outcome=\"given_up\"} 1",
            "attache_callbacks_total{target=\"url\",outcome=\"delivered\"} 0",
            "attache_callbacks_total{target=\"agent\",outcome=\"delivered\"} 1",
            "attache_callbacks_given_up_total{target=\"url\",reason=\"expired\"} 1",
            "attache_callbacks_given_up_total{target=\"agent\",reason=\"too_large\"} 1",
            "attache_callbacks_given_up_total{target=\"agent\",reason=\"refused\"} 0",
        ] {
            assert!(page.lines().any(|line| line == row), "{row}\n{page}");
        }
    }
}
