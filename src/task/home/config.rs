//! Who a home is, and what it is asked to do.

use std::time::Duration;

use crate::domain::{Fault, InstanceId, SpiffeId};
use crate::pb;
use crate::task::archive::Archive;
#[cfg(doc)]
use crate::task::descendants::DESCENDANTS_MAX;
use crate::telemetry::TraceContext;

/// How long a finished task can be asked for, where nothing else is said.
pub const RETENTION: Duration = Duration::from_secs(24 * 3600);
/// Finished tasks that stay in memory, where nothing else is said: whoever submitted one asks for
/// its end at once, and rarely again.
pub const IN_MEMORY: usize = 1000;

/// Who a home is.
#[derive(Clone, Debug)]
pub struct HomeConfig {
    /// The sidecar's instance: the first part of its tasks' ids.
    pub instance: InstanceId,
    /// The sidecar's member: who calls on its local listener.
    pub own: SpiffeId,
    /// An executor is lost after this long without a word; [`LOST_AFTER`] where nothing is said.
    pub lost_after: Duration,
    /// Most tasks below a root that it takes; [`DESCENDANTS_MAX`] everywhere but in tests.
    pub descendants: u32,
}

/// An executor is lost after this long without a word, unless a home is told otherwise. It keeps
/// the attempt for longer than this.
pub const LOST_AFTER: Duration = Duration::from_secs(45);
/// What a home keeps of tasks that have ended.
#[derive(Clone, Debug)]
pub struct Keeping {
    /// How long after its end a task can be asked for.
    pub retention: Duration,
    /// Where finished tasks are moved; `None`: they stay in memory, up to its bounds.
    pub archive: Option<Archive>,
    /// Most finished tasks that stay in memory while the archive takes the others.
    pub in_memory: usize,
}

impl Default for Keeping {
    fn default() -> Self {
        Self {
            retention: RETENTION,
            archive: None,
            in_memory: IN_MEMORY,
        }
    }
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

/// The same, held against what the skill takes.
#[derive(Clone, Debug)]
pub struct Held {
    /// As it was asked for.
    pub asked: Submission,
    /// Why its input is not what the skill takes: it is refused, unless the same submission, by its
    /// key, was taken before.
    pub unfit: Option<Box<Fault>>,
}

/// What the skill takes is not known here.
impl From<Submission> for Held {
    fn from(asked: Submission) -> Self {
        Self { asked, unfit: None }
    }
}
