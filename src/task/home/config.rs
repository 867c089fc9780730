//! Who a home is, and what it is asked to do.

use std::time::Duration;

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
    /// An executor is lost after this long without a word; [`LOST_AFTER`] where nothing is said.
    pub lost_after: Duration,
}

/// An executor is lost after this long without a word, unless a home is told otherwise. It keeps
/// the attempt for longer than this.
pub const LOST_AFTER: Duration = Duration::from_secs(45);

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
