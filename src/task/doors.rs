//! The doors between the home, the executor and whoever carries messages between them.
//!
//! Only traits and the plain values that pass through them: nothing here decides.

use std::{fmt, pin::Pin};

use tokio::{sync::watch, time::Instant};
use tokio_stream::Stream;
use tonic::Status;

use crate::domain::{AgentName, InstanceId, Label};
use crate::pb;
use crate::telemetry::TraceContext;

/// What a home looks for when it gives out an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Want {
    /// The caller's namespace: a bare skill or agent name is looked up in it.
    pub namespace: Label,
    /// What has to fit; its skill is never empty.
    pub selector: pb::Selector,
    /// Instances that were tried already, or just said no.
    pub exclude: Vec<InstanceId>,
}

/// An instance that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where the attempt would run.
    pub instance: InstanceId,
    /// Whose skill it is.
    pub agent: AgentName,
    /// Whether its card says that the skill may run twice.
    pub idempotent: bool,
    /// Which run of the instance's process; empty: not known.
    pub boot_id: String,
}

/// Who could run a task now.
pub trait Route: Send + Sync + 'static {
    /// Live instances that fit, the one to take first at the front; the own agent is among them.
    fn candidates(&self, want: &Want) -> Vec<Candidate>;

    /// Moves on whenever an answer of [`Route::candidates`] may have become different.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// What an executor says about one attempt, in order.
pub type Updates = Pin<Box<dyn Stream<Item = Result<pb::ExecuteResponse, Status>> + Send>>;

/// What a home says about one attempt: Start or Resume, then Ack and Abort.
pub type Steps = Pin<Box<dyn Stream<Item = pb::ExecuteRequest> + Send>>;

/// Carries an attempt's stream to an instance.
#[tonic::async_trait]
pub trait Connect: Send + Sync + 'static {
    /// Opens `Executor.Execute` at `instance`; in process where it is the own one. `trace` goes with
    /// it.
    ///
    /// # Errors
    /// A status with reason PEER_UNREACHABLE or PEER_MISMATCH: nothing of `steps` was sent.
    /// Any other: it may have been.
    async fn execute(
        &self,
        instance: &InstanceId,
        steps: Steps,
        trace: Option<&TraceContext>,
    ) -> Result<Updates, Status>;
}

/// The attempt that a handler works on while it submits a child.
#[derive(Clone, Debug)]
pub struct Parent {
    /// The task, BASIC view.
    pub task: pb::Task,
    /// Its current attempt, from 1.
    pub attempt: u32,
    /// When the attempt ends at the latest.
    pub deadline: Instant,
    /// The hops so far, the root first.
    pub chain: Vec<pb::ChainLink>,
    /// What the handler was called with: a child that brings no context of its own goes below it.
    pub trace: Option<TraceContext>,
}

/// Knows the attempts that run on this sidecar by their secret token.
pub trait Parents: Send + Sync + 'static {
    /// The attempt that `token` was made for, while it runs.
    fn parent(&self, token: &str) -> Option<Parent>;
}

macro_rules! opaque {
    ($($door:ident),*) => {$(
        impl fmt::Debug for dyn $door {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($door))
            }
        }
    )*};
}

opaque!(Route, Connect, Parents);
