//! Runs attempts on the sidecar's own agent, for this and other homes.
//!
//! It keeps nothing on disk: an attempt that it does not know is lost, and never starts later.

mod admission;
pub mod attempt;
mod book;
mod call;
mod course;
mod door;
mod engine;
mod grants;
mod guests;
pub mod handler;
mod line;
mod offers;
mod parents;
mod pauses;
mod refusal;
mod run;
pub mod service;
mod session;
mod shares;
mod slot;
mod slots;
mod spans;
mod suspicion;
#[cfg(test)]
mod tests;
mod tokens;
mod update;

use tonic::Status;

use crate::domain::Reason;
use crate::pb;
use crate::pb::execute_response::Step;

pub use course::CANCEL_GRACE;
pub use door::HomePeer;
pub use engine::{Executor, ExecutorConfig, SLOTS};
pub use handler::{GrpcHandler, HandleStream, HandlerError, HandlerLink};
pub use offers::Offers;
pub use run::ORPHAN_KEEP;
pub use service::ExecutorService;

/// One message to a home. Boxed: a queue of them has room for 32 from the start.
type Answer = Box<Result<pb::ExecuteResponse, Status>>;

fn answer(step: Step) -> pb::ExecuteResponse {
    pb::ExecuteResponse { step: Some(step) }
}

fn accepted(boot_id: &str) -> Step {
    Step::Accepted(pb::Accepted {
        boot_id: boot_id.to_owned(),
    })
}

fn refused(reason: Reason, retry_after: Option<std::time::Duration>) -> pb::ExecuteResponse {
    answer(Step::Refused(pb::Refused {
        reason: reason.label().into(),
        retry_after: retry_after.and_then(|wait| wait.try_into().ok()),
    }))
}
