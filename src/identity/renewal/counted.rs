//! Renewals that are counted by how they ended.

use super::Renewer;
use crate::identity::csr::Draft;
use crate::identity::join::JoinError;
use crate::identity::svid::Svid;
use crate::telemetry::metrics::Outcomes;

/// Outcomes of a renewal that was tried.
const RENEWED: &str = "ok";
const FAILED: &str = "failed";
const LATE: &str = "late";

/// A renewer whose renewals are counted. One that is given up counts as late.
#[derive(Debug)]
pub struct Counted<R> {
    renewer: R,
    outcomes: Outcomes<1>,
}

impl<R> Counted<R> {
    /// The same renewer, counted.
    pub fn new(renewer: R) -> Self {
        Self {
            renewer,
            outcomes: Outcomes::of([RENEWED, FAILED, LATE].map(|outcome| [outcome])),
        }
    }

    /// The counts, for the process' metrics.
    pub fn outcomes(&self) -> Outcomes<1> {
        self.outcomes.clone()
    }

    fn begin(&self) -> Attempt<'_> {
        Attempt {
            outcomes: &self.outcomes,
            outcome: LATE,
        }
    }
}

#[tonic::async_trait]
impl<R: Renewer> Renewer for Counted<R> {
    async fn renew(&self, present: &Svid, draft: &Draft) -> Result<Svid, JoinError> {
        let attempt = self.begin();
        attempt.ended(self.renewer.renew(present, draft).await)
    }

    async fn rejoin(&self, present: &Svid, draft: &Draft) -> Result<Svid, JoinError> {
        let attempt = self.begin();
        attempt.ended(self.renewer.rejoin(present, draft).await)
    }
}

/// An attempt under way.
struct Attempt<'a> {
    outcomes: &'a Outcomes<1>,
    outcome: &'static str,
}

impl Attempt<'_> {
    fn ended(mut self, outcome: Result<Svid, JoinError>) -> Result<Svid, JoinError> {
        self.outcome = if outcome.is_ok() { RENEWED } else { FAILED };
        outcome
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.outcomes.count([self.outcome]);
    }
}
