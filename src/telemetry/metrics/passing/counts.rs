//! What is counted of one method of one agent: a part for each thread that moves it, and their sum.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tonic::Code;

use crate::telemetry::metrics::{Histogram, calls::Codes};

/// Tables of counts, of one thread each as long as there are no more threads than these: then no
/// processor waits for another to count. Above it threads share, and count as well.
pub(super) const TABLES: usize = 8;

/// What ended a passing call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// Its answer, which the caller has as a whole.
    Answer,
    /// This sidecar, which answered in the place of whoever it was for.
    Sidecar,
    /// Its caller, who left or reset it.
    Caller,
    /// Something on its way: a connection or stream that broke, a deadline.
    Way,
}

impl EndedBy {
    const ALL: [Self; 4] = [Self::Answer, Self::Sidecar, Self::Caller, Self::Way];

    /// Its label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Sidecar => "sidecar",
            Self::Caller => "caller",
            Self::Way => "way",
        }
    }
}

/// What there is to say of a passing call that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What ended it.
    pub by: EndedBy,
    /// The status that the caller has seen.
    pub code: Code,
    /// How often it was given to somebody.
    pub attempts: u8,
    /// From its head to its last byte.
    pub took: Duration,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
}

/// The labels of a row: bounded, and none of them a stranger's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Labels {
    pub(super) direction: &'static str,
    pub(super) agent: Box<str>,
    pub(super) service: Box<str>,
    pub(super) method: Box<str>,
}

impl Labels {
    /// In the order of the families.
    pub(super) fn row(&self) -> [&str; 4] {
        [self.direction, &self.agent, &self.service, &self.method]
    }
}

/// The counts of a row that one table holds. On cache lines of their own: two processors count at
/// once without taking lines from each other.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Counts {
    pub(super) labels: Arc<Labels>,
    pub(super) in_flight: AtomicI64,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) again: AtomicU64,
    ended: [AtomicU64; EndedBy::ALL.len()],
    pub(super) codes: Codes,
    pub(super) duration: Histogram,
}

impl Counts {
    fn new(labels: &Arc<Labels>) -> Self {
        Self {
            labels: Arc::clone(labels),
            in_flight: AtomicI64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            again: AtomicU64::new(0),
            ended: Default::default(),
            codes: Codes::default(),
            duration: Histogram::calls(),
        }
    }

    /// A call has begun.
    pub(super) fn began(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// A call that was counted as begun, here or elsewhere, is under way no more.
    pub(super) fn left(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// A call is over.
    pub(super) fn ended(&self, ended: &Ended) {
        self.received.fetch_add(ended.received, Relaxed);
        self.sent.fetch_add(ended.sent, Relaxed);
        if ended.attempts > 1 {
            self.again.fetch_add(u64::from(ended.attempts) - 1, Relaxed);
        }
        self.ended[ended.by as usize].fetch_add(1, Relaxed);
        self.codes.count(ended.code);
        self.duration.took(ended.took);
    }

    /// How many calls were ended by what.
    pub(super) fn ends(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let all = EndedBy::ALL.into_iter().zip(&self.ended);
        all.map(|(by, count)| (by.label(), count.load(Relaxed) as f64))
    }

    /// Whether a call was ever counted.
    pub(super) fn called(&self) -> bool {
        self.in_flight.load(Relaxed) != 0 || !self.duration.is_empty()
    }

    fn absorb(&self, part: &Self) {
        let flying = part.in_flight.load(Relaxed);
        self.in_flight.fetch_add(flying, Relaxed);
        for (sum, part) in [
            (&self.received, &part.received),
            (&self.sent, &part.sent),
            (&self.again, &part.again),
        ] {
            sum.fetch_add(part.load(Relaxed), Relaxed);
        }
        for (sum, part) in self.ended.iter().zip(&part.ended) {
            sum.fetch_add(part.load(Relaxed), Relaxed);
        }
        self.codes.absorb(&part.codes);
        self.duration.absorb(&part.duration);
    }
}

/// One row of every family: its labels, and a part of its counts in each table that has needed it.
#[derive(Debug)]
pub(super) struct Row {
    labels: Arc<Labels>,
    parts: [OnceLock<Arc<Counts>>; TABLES],
}

impl Row {
    pub(super) fn new(labels: Labels) -> Arc<Self> {
        Arc::new(Self {
            labels: Arc::new(labels),
            parts: Default::default(),
        })
    }

    /// The part of one table.
    pub(super) fn part(&self, table: usize) -> Arc<Counts> {
        let part = self.parts[table].get_or_init(|| Arc::new(Counts::new(&self.labels)));
        Arc::clone(part)
    }

    /// All parts together.
    pub(super) fn sum(&self) -> Counts {
        let sum = Counts::new(&self.labels);
        for part in self.parts.iter().filter_map(OnceLock::get) {
            sum.absorb(part);
        }
        sum
    }
}
