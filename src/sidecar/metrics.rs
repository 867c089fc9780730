//! What a sidecar's metrics are read from, besides the components that are sources themselves.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    identity::{Credentials, Svid, join::JoinError},
    registry::client::Described,
    runtime::{Nursery, Stop, clock},
    task::{executor::Executor, home::Home},
    telemetry::metrics::{Metrics, Outcomes, Sheet, family, remaining},
};

/// Outcomes of a renewal that was tried.
const RENEWED: &str = "ok";
const FAILED: &str = "failed";
const LATE: &str = "late";

/// Has the certificate's rest of life read, and the renewals that it returns.
pub(super) fn certificate(metrics: &Metrics, credentials: &Credentials) -> Outcomes<1> {
    let credentials = credentials.clone();
    metrics.add(move |sheet: &mut Sheet<'_>| {
        let end = credentials.current().peer().not_after;
        let left = remaining(end, clock::wall());
        sheet.gauge(&family::CERTIFICATE_LEFT, [(["own"], left)]);
    });
    let renewals = Outcomes::of([RENEWED, FAILED, LATE].map(|outcome| [outcome]));
    let counted = renewals.clone();
    metrics.add(move |sheet: &mut Sheet<'_>| {
        sheet.counter(&family::RENEWALS, counted.rows());
    });
    renewals
}

/// A renewal under way; given up it counts as late.
pub(super) struct Renewal {
    outcomes: Outcomes<1>,
    outcome: &'static str,
}

impl Renewal {
    pub(super) fn begin(outcomes: &Outcomes<1>) -> Self {
        Self {
            outcomes: outcomes.clone(),
            outcome: LATE,
        }
    }

    pub(super) fn ended(mut self, outcome: Result<Svid, JoinError>) -> Result<Svid, JoinError> {
        self.outcome = if outcome.is_ok() { RENEWED } else { FAILED };
        outcome
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.outcomes.count([self.outcome]);
    }
}

/// Has home and executor read, and their skills known as long as the nursery lives.
pub(super) fn parts(
    metrics: &Metrics,
    (home, executor): (&Home, &Executor),
    described: watch::Receiver<Arc<Described>>,
    nursery: &Nursery,
) {
    metrics.add(executor.clone());
    metrics.add(Arc::clone(home.counts()));
    let home = home.clone();
    nursery.start("skills", |stop| know_skills(home, described, stop));
}

/// Keeps the home's counts told of the card's skills, until `stop`.
async fn know_skills(home: Home, mut described: watch::Receiver<Arc<Described>>, stop: Stop) {
    loop {
        let present = Arc::clone(&described.borrow_and_update());
        let skills = present.card.skills.iter();
        let skills = skills.map(|skill| skill.name.as_str());
        home.counts().skills().know(skills);
        tokio::select! {
            changed = described.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}
