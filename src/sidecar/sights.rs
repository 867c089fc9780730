//! What this sidecar knows of the instances that it calls, as plain values for those who show it.

use std::{sync::Arc, time::Duration};

use crate::{
    domain::{AgentName, InstanceId, Label},
    pb,
    resilience::{Settings, Sight},
};

/// All that a balancer knows at one time.
#[derive(Clone, Debug)]
pub(super) struct Sights {
    /// Every instance of the catalog, in the order of ids.
    pub(super) endpoints: Vec<EndpointSight>,
    /// What tasks asked for of late.
    pub(super) targets: Vec<TargetSight>,
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
    /// Who fits.
    pub(super) members: Vec<InstanceId>,
    /// How many of them get nothing for their failures.
    pub(super) ejected: usize,
    /// Second tries that are left now.
    pub(super) retries_left: f64,
    /// How traffic to them is treated.
    pub(super) settings: Arc<Settings>,
    /// How long ago it was last asked for.
    pub(super) idle: Duration,
}
