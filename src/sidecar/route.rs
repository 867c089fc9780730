//! Who gets a task: of those who fit, one that may be called, by what the balancer knows of them.

use std::{sync::Arc, time::Duration};

use rand::Rng;
use tokio::{sync::watch, time::Instant};

use super::balancer::{Balancer, Reach, named};
use crate::{
    domain::SpiffeId,
    resilience::{self, Ask, Set},
    runtime::{Nursery, Stop},
    task::{Call, Candidate, Pick, Route, Want},
};

/// When a second try that has no budget asks again: the floor of the budget lets three go in a second.
const BUDGET_AGAIN: Duration = Duration::from_millis(333);
/// When to look again at instances whose bound of calls is reached: a call that ends may be another
/// thread's, and rings no bell.
const ROOM_AGAIN: Duration = Duration::from_millis(20);

/// Routes by the mirror of the catalog.
#[derive(Debug)]
pub(super) struct CatalogRoute {
    balancer: Arc<Balancer>,
    changed: watch::Sender<u64>,
}

impl CatalogRoute {
    /// Routes by a balancer, which it keeps in line with the catalog until `nursery` closes.
    pub(super) fn start(balancer: Arc<Balancer>, nursery: &Nursery) -> Self {
        let changed = watch::Sender::new(0);
        let (kept, tell) = (balancer.clone(), changed.clone());
        nursery.start("balancer", |stop| keep(kept, tell, stop));
        Self { balancer, changed }
    }
}

impl Route for CatalogRoute {
    fn pick(&self, want: &Want<'_>, now: Instant) -> Pick {
        let reach = self.balancer.reach(want.namespace, want.selector, now);
        reach.map_or(Pick::Nobody, |reach| {
            Asked { reach, want, now }.pick(&mut rand::rng())
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// Follows the catalog, and tells of every change of it and of every breaker.
async fn keep(balancer: Arc<Balancer>, tell: watch::Sender<u64>, stop: Stop) {
    let mut catalog = balancer.mirror().changes();
    let mut complete = balancer.mirror().fresh();
    let mut breakers = balancer.endpoints().changes();
    loop {
        balancer.follow(Instant::now());
        tell.send_modify(|number| *number += 1);
        let changed = tokio::select! {
            () = stop.cancelled() => return,
            changed = catalog.changed() => changed,
            changed = complete.changed() => changed,
            changed = breakers.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// One question, and whom it may be answered with.
struct Asked<'a> {
    reach: Reach,
    want: &'a Want<'a>,
    now: Instant,
}

impl Asked<'_> {
    fn pick(&self, random: &mut impl Rng) -> Pick {
        let (want, now) = (self.want, self.now);
        let fits = |candidate: &Arc<Candidate>| self.fits(candidate);
        let fresh = |candidate: &Arc<Candidate>| fits(candidate) && !self.is_excluded(candidate);
        let members = || self.set().members().iter().map(|member| &member.value);
        if !members().any(fits) {
            return Pick::Nobody;
        }
        if want.again && self.left() < 1.0 {
            return Pick::OverBudget(now + BUDGET_AGAIN);
        }
        if want.exclude.is_empty() {
            return self.pick_of(&fits, random);
        }
        if members().any(fresh) {
            let picked = self.pick_of(&fresh, random);
            if matches!(picked, Pick::Go(..)) || self.set().flows(&fresh, now) {
                return picked;
            }
        }
        // Where it failed is the last choice, but better than none: an agent that is alone comes back.
        self.pick_of(&fits, random)
    }

    /// One of those, if they have room.
    fn pick_of(&self, among: &dyn Fn(&Arc<Candidate>) -> bool, random: &mut impl Rng) -> Pick {
        let (want, now) = (self.want, self.now);
        let allows = |to: &Arc<Candidate>| among(to) && (want.allows)(&to.instance);
        let ask = Ask {
            sticky: (!want.context.is_empty()).then(|| named(want.context)),
            allows: &allows,
        };
        match self.set().pick(&ask, now, random) {
            resilience::Pick::Taken(to, permit) => {
                let mut call = Box::new(Call {
                    permit,
                    injected: self.inject(want.caller, random),
                });
                let retry = &self.set().settings().retry;
                let mut budget = self.reach.budget.lock();
                if !want.again {
                    budget.first(now);
                } else if !budget.again(retry, now) {
                    return Pick::OverBudget(now + BUDGET_AGAIN);
                }
                drop(budget);
                call.permit.report_to(self.reach.budget.clone());
                Pick::Go(to.clone(), call)
            }
            resilience::Pick::Busy if self.set().flows(among, now) => Pick::Busy(self.opens()),
            resilience::Pick::Busy => Pick::Ejected(self.set().opens(now)),
            resilience::Pick::Ejected(until) => Pick::Ejected(until),
            resilience::Pick::Empty => Pick::Nobody,
        }
    }

    fn set(&self) -> &Set<Arc<Candidate>> {
        &self.reach.set
    }

    fn fits(&self, candidate: &Candidate) -> bool {
        let contract = self.want.contract;
        contract.is_none_or(|contract| candidate.contract.fits(contract))
    }

    fn is_excluded(&self, candidate: &Candidate) -> bool {
        self.want.exclude.contains(&candidate.instance)
    }

    /// Second tries that the budget has left.
    fn left(&self) -> f64 {
        let retry = &self.set().settings().retry;
        self.reach.budget.lock().left(retry, self.now)
    }

    fn opens(&self) -> Option<Instant> {
        let bounded = self.set().settings().balance.max_in_flight > 0;
        let room = bounded.then(|| self.now + ROOM_AGAIN);
        self.set().opens(self.now).into_iter().chain(room).min()
    }

    fn inject(&self, _caller: &SpiffeId, random: &mut impl Rng) -> resilience::Injected {
        let injection = &self.reach.injection;
        if injection.delay.is_none() && injection.abort.is_none() {
            return resilience::Injected::default();
        }
        injection.decide((random.random(), random.random()))
    }
}
