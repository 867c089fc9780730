//! What this sidecar knows of the instances that it calls, as plain values for those who show it.

use std::{sync::Arc, time::Duration};

use crate::{
    domain::{AgentName, InstanceId, Label},
    pb,
    resilience::{Phase, Settings, Sight},
};

/// What a balancer knows at one time, as much of it as was asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Sights {
    /// Instances, those in trouble first, then in the order of ids.
    pub(super) endpoints: Vec<EndpointSight>,
    /// How many more there are.
    pub(super) endpoints_left_out: usize,
    /// What tasks asked for, the latest first.
    pub(super) targets: Vec<TargetSight>,
    /// How many more there are.
    pub(super) targets_left_out: usize,
}

/// One instance as seen from here.
#[derive(Clone, Debug)]
pub(super) struct EndpointSight {
    /// Which one.
    pub(super) instance: InstanceId,
    /// Whose it is.
    pub(super) agent: AgentName,
    /// Where it runs; empty: not known.
    pub(super) zone: String,
    /// Whether the catalog says that it takes work.
    pub(super) serves: bool,
    /// What calls from here have seen of it.
    pub(super) sight: Sight,
}

/// Those who fit what some tasks ask for.
#[derive(Clone, Debug)]
pub(super) struct TargetSight {
    /// Where bare names are looked up.
    pub(super) namespace: Label,
    /// What is asked for.
    pub(super) selector: pb::Selector,
    /// Who fits, as far as it is shown.
    pub(super) members: Vec<InstanceId>,
    /// How many more do.
    pub(super) members_left_out: usize,
    /// How many of them get nothing for their failures.
    pub(super) ejected: usize,
    /// Second tries that are left now.
    pub(super) retries_left: f64,
    /// How traffic to them is treated.
    pub(super) settings: Arc<Settings>,
    /// How long ago it was last asked for; `None`: it never was.
    pub(super) idle: Option<Duration>,
}

/// Smaller for what is to be seen first.
pub(super) fn trouble(sight: &Sight) -> u8 {
    match sight.phase {
        Phase::Open => 0,
        Phase::HalfOpen => 1,
        Phase::Closed if sight.consecutive > 0 || sight.paused.is_some() => 2,
        Phase::Closed if sight.trips > 0 || sight.latency.is_some() => 3,
        Phase::Closed => 4,
    }
}
