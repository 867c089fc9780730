//! Looks at the agent and what came of them, for the metrics page.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{choice::Kind, verdict::Look};
use crate::telemetry::metrics::{Outcomes, Sheet, Source, family};

/// What was counted. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(in crate::sidecar) struct Counts {
    looks: Outcomes<2>,
    healthy: Arc<AtomicBool>,
}

impl Counts {
    /// One more look, and what is held of the agent since.
    pub(super) fn count(&self, kind: Kind, look: Look, healthy: bool) {
        self.looks.count([kind.label(), look.label()]);
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// A stream of an agent that attaches has come, gone or changed.
    pub(super) fn attended(&self, look: Look, healthy: bool) {
        self.looks.count(["attach", look.label()]);
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// In which ways there were looks so far.
    #[cfg(test)]
    pub(super) fn kinds(&self) -> Vec<&'static str> {
        let rows = self.looks.rows().into_iter();
        let mut kinds: Vec<_> = rows.map(|([kind, _], _)| kind).collect();
        kinds.dedup();
        kinds
    }
}

impl Source for Counts {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let healthy = u8::from(self.healthy.load(Ordering::Relaxed));
        sheet.gauge(&family::AGENT_HEALTHY, [([], f64::from(healthy))]);
        sheet.counter(&family::AGENT_LOOKS, self.looks.rows());
    }
}
