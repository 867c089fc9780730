//! What a sidecar's metrics are read from, besides the components that are sources themselves.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    identity::Credentials,
    registry::client::Described,
    runtime::{Nursery, Stop, clock},
    task::{executor::Executor, home::Home},
    telemetry::metrics::{Metrics, Outcomes, Sheet, family, remaining},
};

/// Has the certificate's rest of life read, and the outcomes of its renewals.
pub(super) fn certificate(metrics: &Metrics, credentials: &Credentials, renewals: Outcomes<1>) {
    let credentials = credentials.clone();
    metrics.add(move |sheet: &mut Sheet<'_>| {
        let end = credentials.current().peer().not_after;
        let left = remaining(end, clock::wall());
        sheet.gauge(&family::CERTIFICATE_LEFT, [(["own"], left)]);
        sheet.counter(&family::RENEWALS, renewals.rows());
    });
}

/// Has home and executor read, and their skills known as long as the nursery lives.
pub(super) fn parts(
    metrics: &Metrics,
    (home, executor): (&Home, &Executor),
    described: watch::Receiver<Arc<Described>>,
    nursery: &Nursery,
) {
    metrics.add(executor.clone());
    metrics.add(Arc::clone(home.metrics()));
    let home = home.clone();
    nursery.start("skills", |stop| know_skills(home, described, stop));
}

/// Keeps the home's counts told of the card's skills, until `stop`.
async fn know_skills(home: Home, mut described: watch::Receiver<Arc<Described>>, stop: Stop) {
    loop {
        let present = Arc::clone(&described.borrow_and_update());
        let skills = present.card.skills.iter();
        let skills = skills.map(|skill| skill.name.as_str());
        home.metrics().skills().know(skills);
        tokio::select! {
            changed = described.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}
