//! Everybody who takes part.

use super::baselines::{LeastRequests, Linkerd, RoundRobin};
use super::envoy::{OverLeastRequests, OverRoundRobin};
use super::figures::Sum;
use super::ours::Ours;
use super::simulation::run;
use super::world::World;

/// One run of one policy.
pub(crate) type Run = fn(&World) -> Sum;

/// What is compared with the others.
pub(crate) const OURS: (&str, Run) = ("attache", |world| run::<Ours>(world).sum());

/// What it is compared with.
pub(crate) const OTHERS: [(&str, Run); 6] = [
    ("round robin", |world| run::<RoundRobin>(world).sum()),
    ("least requests", |world| run::<LeastRequests>(world).sum()),
    ("Envoy over round robin", |world| {
        run::<OverRoundRobin>(world).sum()
    }),
    ("Envoy over least requests", |world| {
        run::<OverLeastRequests>(world).sum()
    }),
    ("Linkerd", |world| run::<Linkerd<false>>(world).sum()),
    ("Linkerd, penalizing", |world| {
        run::<Linkerd<true>>(world).sum()
    }),
];
