//! A fleet that is only simulated: callers, instances and their faults on virtual time.
//!
//! No socket, no task and no clock: events in the order of their times. The same seed draws the same
//! world (arrivals, work of every call, faults) for every policy, so that policies are compared and
//! nothing else. What is not modelled: the network between them (half a millisecond each way, always
//! there) and the catalog (a restart is told 200 ms later; nothing else is).

pub(crate) mod baselines;
pub(crate) mod envoy;
pub(crate) mod field;
pub(crate) mod figures;
pub(crate) mod ours;
pub(crate) mod policy;
pub(crate) mod scenario;
pub(crate) mod server;
pub(crate) mod simulation;
pub(crate) mod world;
