//! What has happened to all instances together, counted since the process began.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::breaker::Trip;
use super::outcome::Outcome;

/// What made a breaker close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mend {
    /// Its probe was answered.
    Probe,
    /// Its probe has been at work long enough.
    Time,
    /// Calls went well that flowed in spite of it.
    Calls,
    /// Another process is there.
    Restart,
}

/// The counts; only ever more.
#[derive(Debug, Default)]
pub(super) struct Tally {
    ended: [AtomicU64; ENDED.len()],
    opened: [AtomicU64; OPENED.len()],
    closed: [AtomicU64; CLOSED.len()],
}

/// The counts at one time, by labels that never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Calls that have ended, by what they said of their instance.
    pub ended: [(&'static str, u64); ENDED.len()],
    /// Breakers that opened, by why.
    pub opened: [(&'static str, u64); OPENED.len()],
    /// Breakers that closed, by why.
    pub closed: [(&'static str, u64); CLOSED.len()],
}

const ENDED: [&str; 4] = ["success", "failure", "overload", "nothing"];
const OPENED: [&str; 3] = ["consecutive", "rate", "probe"];
const CLOSED: [&str; 4] = ["probe", "time", "calls", "restart"];

impl Tally {
    pub(super) fn ended(&self, outcome: Outcome) {
        let place = match outcome {
            Outcome::Success => 0,
            Outcome::Failure => 1,
            Outcome::Overload(_) => 2,
            Outcome::Neutral => 3,
        };
        self.ended[place].fetch_add(1, Relaxed);
    }

    pub(super) fn opened(&self, why: Trip) {
        let place = match why {
            Trip::Consecutive(_) => 0,
            Trip::Rate { .. } => 1,
            Trip::Probe => 2,
        };
        self.opened[place].fetch_add(1, Relaxed);
    }

    pub(super) fn closed(&self, by: Mend) {
        let place = match by {
            Mend::Probe => 0,
            Mend::Time => 1,
            Mend::Calls => 2,
            Mend::Restart => 3,
        };
        self.closed[place].fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self) -> Counts {
        Counts {
            ended: shown(ENDED, &self.ended),
            opened: shown(OPENED, &self.opened),
            closed: shown(CLOSED, &self.closed),
        }
    }
}

fn shown<const N: usize>(
    labels: [&'static str; N],
    counts: &[AtomicU64; N],
) -> [(&'static str, u64); N] {
    std::array::from_fn(|place| (labels[place], counts[place].load(Relaxed)))
}
