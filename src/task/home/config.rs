//! Who a home is, and what it is asked to do.

use crate::domain::{InstanceId, SpiffeId};
use crate::pb;
use crate::telemetry::TraceContext;

/// Who a home is.
#[derive(Clone, Debug)]
pub struct HomeConfig {
    /// The sidecar's instance: the first part of its tasks' ids.
    pub instance: InstanceId,
    /// The sidecar's member: who calls on its local listener.
    pub own: SpiffeId,
}

/// What somebody wants done.
#[derive(Clone, Debug)]
pub struct Submission {
    /// As it came.
    pub spec: pb::TaskSpec,
    /// Who asks, by certificate or as the own agent. Authorized already.
    pub caller: SpiffeId,
    /// What the caller traces it below, if it does.
    pub trace: Option<TraceContext>,
}
