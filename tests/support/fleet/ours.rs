//! What carries calls.

use std::sync::Arc;

use attache::resilience::{
    Ask, Endpoint, Epoch, Kind, Member, Outcome, Permit, Pick, Set, Settings,
};
use rand::{Rng, rngs::SmallRng};
use tokio::time::Instant;

use super::policy::{End, Policy};

/// One [`Set`] of all instances.
pub(crate) struct Ours(Set<usize>);

impl Policy for Ours {
    type Ticket = Permit;

    fn new(instances: usize, now: Instant, random: &mut SmallRng) -> Self {
        let epoch = Epoch::default();
        let members = (0..instances).map(|place| Member {
            endpoint: Arc::new(Endpoint::new(epoch.clone(), None, now)),
            value: place,
            key: random.random(),
            local: false,
            group: 0,
        });
        let settings = Arc::new(Settings::default());
        let set = Set::new(members.collect(), &[], settings, epoch.clone());
        Self(set.of_kind(Kind::new(1)))
    }

    fn pick(
        &mut self,
        not: &[usize],
        now: Instant,
        random: &mut SmallRng,
    ) -> Option<(usize, Permit)> {
        let ask = Ask {
            sticky: None,
            allows: &|place| !not.contains(place),
        };
        match self.0.pick(&ask, now, random) {
            Pick::Taken(place, permit) => Some((*place, permit)),
            Pick::Busy | Pick::Ejected(_) | Pick::Empty => None,
        }
    }

    fn end(&mut self, _: usize, mut permit: Permit, end: End, now: Instant, chance: f64) {
        let outcome = match end {
            End::Answered => {
                permit.first_message(now);
                Outcome::Success
            }
            End::Refused | End::Failed | End::Late => Outcome::Failure,
            End::Full(pause) => Outcome::Overload(Some(pause)),
        };
        permit.finish(outcome, now, chance);
    }

    fn restarted(&mut self, place: usize, _: Instant) {
        self.0.members()[place].endpoint.restarted();
    }
}
