//! One call: counted while it lives, judged when it ends, also when it is only dropped.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::breaker::Turn;
use super::budget::Budget;
use super::endpoint::{Begun, Endpoint};
use super::outcome::Outcome;
use super::pace::Kind;
use super::settings::Settings;

/// A call to an instance. Dropped without a word it says nothing about the instance.
#[derive(Debug, Default)]
pub struct Permit(Option<Call>);

#[derive(Debug)]
struct Call {
    endpoint: Arc<Endpoint>,
    settings: Arc<Settings>,
    begun: Begun,
    /// Whose second tries the end of this call makes more or fewer.
    budget: Option<Arc<Mutex<Budget>>>,
}

impl Permit {
    /// A call that nobody keeps account of.
    pub const fn none() -> Self {
        Self(None)
    }

    /// A call outside of any choice, such as one that is taken up again. Never a probe, and it says
    /// nothing about latency.
    pub fn outside(endpoint: Arc<Endpoint>, settings: Arc<Settings>, now: Instant) -> Self {
        let mut permit = Self::begin(endpoint, settings, (None, false), now).unwrap_or_default();
        if let Some(call) = &mut permit.0 {
            call.endpoint.resumed(&mut call.begun);
        }
        permit
    }

    /// A call that goes out now; `None`: it was to be the probe, and somebody else's is.
    pub(super) fn begin(
        endpoint: Arc<Endpoint>,
        settings: Arc<Settings>,
        (kind, probe): (Option<Kind>, bool),
        now: Instant,
    ) -> Option<Self> {
        let begun = endpoint.begin(kind, probe, now)?;
        Some(Self(Some(Call {
            endpoint,
            settings,
            begun,
            budget: None,
        })))
    }

    /// Tells the budget of the call's target how it went, too.
    pub fn report_to(&mut self, budget: Arc<Mutex<Budget>>) {
        if let Some(call) = &mut self.0 {
            call.budget = Some(budget);
        }
    }

    /// From now on the call counts by these settings: those of its very callee, say.
    pub fn treat(&mut self, settings: Arc<Settings>) {
        if let Some(call) = &mut self.0 {
            call.settings = settings;
        }
    }

    /// How traffic to it is treated.
    pub fn settings(&self) -> Option<&Arc<Settings>> {
        self.0.as_ref().map(|call| &call.settings)
    }

    /// Whether it is the one call that may go through a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.0.as_ref().is_some_and(|call| call.begun.probe)
    }

    /// The call really goes out now: the time before was spent here.
    pub fn sent(&mut self, now: Instant) {
        if let Some(call) = self.0.as_mut().filter(|call| call.begun.waiting) {
            call.endpoint.sent(&mut call.begun, now);
        }
    }

    /// The instance took the call, and works on it.
    pub fn taken(&mut self) {
        if let Some(call) = self.0.as_mut().filter(|call| call.begun.pending) {
            call.endpoint.taken(&mut call.begun);
        }
    }

    /// The instance asks to be left alone for so long, whatever becomes of this call.
    pub fn pause(&mut self, pause: Duration, now: Instant) {
        if let Some(call) = &self.0 {
            call.endpoint.pause(pause, &call.settings.balance, now);
        }
    }

    /// The first message is here. Only the first time counts.
    pub fn first_message(&mut self, now: Instant) -> Option<Turn> {
        let call = self.0.as_mut().filter(|call| call.begun.waiting)?;
        if let Some(budget) = call.budget.take() {
            budget.lock().ended(false);
        }
        call.endpoint.answered(&mut call.begun, &call.settings, now)
    }

    /// The call is over; `chance` from 0 to 1 spreads a cool-down.
    pub fn finish(mut self, outcome: Outcome, now: Instant, chance: f64) -> Option<Turn> {
        self.end(outcome, now, chance)
    }

    fn end(&mut self, outcome: Outcome, now: Instant, chance: f64) -> Option<Turn> {
        let call = self.0.take()?;
        if let Some(budget) = call.budget.filter(|_| outcome != Outcome::Neutral) {
            budget.lock().ended(outcome.is_bad());
        }
        call.endpoint
            .finish(call.begun, outcome, &call.settings, (now, chance))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.end(Outcome::Neutral, Instant::now(), 0.0);
        }
    }
}
