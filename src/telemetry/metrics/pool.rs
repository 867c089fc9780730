//! Counts of the connections that this process makes, by the pool that makes them.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::Relaxed},
};

use super::{Outcomes, Sheet, Source, family};

/// What became of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dial {
    /// There is a connection.
    Done,
    /// Nobody answers, or not in time.
    Unreachable,
    /// Somebody else answers.
    Mismatch,
    /// The peer does not take our certificate.
    Refused,
}

/// Why a connection that was made has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// No call for long.
    Idle,
    /// Another one took its place: its age, or a certificate.
    Replaced,
    /// Another target needed its place.
    Evicted,
    /// The peer ended it in good order, with a GOAWAY.
    Peer,
    /// The peer did not answer any more.
    Silent,
    /// It broke.
    Broken,
    /// The peer's certificate ended.
    Expired,
    /// The peer was shut out.
    Revoked,
    /// This process stops.
    Stopped,
}

impl Dial {
    const ALL: [Self; 4] = [Self::Done, Self::Unreachable, Self::Mismatch, Self::Refused];

    fn label(self) -> &'static str {
        match self {
            Self::Done => "ok",
            Self::Unreachable => "unreachable",
            Self::Mismatch => "mismatch",
            Self::Refused => "refused",
        }
    }
}

impl Close {
    const ALL: [Self; 9] = [
        Self::Idle,
        Self::Replaced,
        Self::Evicted,
        Self::Peer,
        Self::Silent,
        Self::Broken,
        Self::Expired,
        Self::Revoked,
        Self::Stopped,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Replaced => "replaced",
            Self::Evicted => "evicted",
            Self::Peer => "peer",
            Self::Silent => "silent",
            Self::Broken => "broken",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Stopped => "stopped",
        }
    }
}

/// Counts of one pool, or of those of all threads together.
#[derive(Debug)]
pub struct Dials {
    name: &'static str,
    open: AtomicI64,
    dials: Outcomes<2>,
    closes: Outcomes<2>,
}

impl Dials {
    /// Nothing has happened yet. `name` is its label.
    pub fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            name,
            open: AtomicI64::new(0),
            dials: Outcomes::of(Dial::ALL.map(|outcome| [name, outcome.label()])),
            closes: Outcomes::of(Close::ALL.map(|reason| [name, reason.label()])),
        })
    }

    /// A dial has ended so.
    pub fn dialed(&self, outcome: Dial) {
        self.dials.count([self.name, outcome.label()]);
    }

    /// A connection can be used.
    pub fn opened(&self) {
        self.open.fetch_add(1, Relaxed);
    }

    /// One that could be used has ended.
    pub fn closed(&self, reason: Close) {
        self.open.fetch_sub(1, Relaxed);
        self.closes.count([self.name, reason.label()]);
    }
}

/// All pools of a process as one source.
impl Source for Vec<Arc<Dials>> {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let open = self.iter();
        let open = open.map(|one| ([one.name], one.open.load(Relaxed) as f64));
        sheet.gauge(&family::POOL_CONNECTIONS, open);
        let dials = self.iter().flat_map(|one| one.dials.rows());
        sheet.counter(&family::POOL_DIALS, dials);
        let closes = self.iter().flat_map(|one| one.closes.rows());
        sheet.counter(&family::POOL_CLOSES, closes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{Format, Metrics};

    #[test]
    fn what_is_open_and_why_the_others_are_not_is_on_the_page() {
        let members = Dials::new("members");
        let metrics = Metrics::new("sidecar");
        metrics.add(vec![Arc::clone(&members), Dials::new("agent")]);
        members.dialed(Dial::Done);
        members.dialed(Dial::Refused);
        members.opened();
        members.opened();
        members.closed(Close::Silent);
        let page = metrics.page(Format::Text);
        for row in [
            "attache_pool_connections{pool=\"members\"} 1",
            "attache_pool_connections{pool=\"agent\"} 0",
            "attache_pool_dials_total{pool=\"members\",outcome=\"refused\"} 1",
            "attache_pool_dials_total{pool=\"agent\",outcome=\"ok\"} 0",
            "attache_pool_closes_total{pool=\"members\",reason=\"silent\"} 1",
            "attache_pool_closes_total{pool=\"members\",reason=\"idle\"} 0",
        ] {
            assert!(page.lines().any(|line| line == row), "{row}\n{page}");
        }
    }
}
