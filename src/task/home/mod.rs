//! The home of tasks: owns them from the acknowledgement to the end, and answers for them.
//!
//! A task has one owner, the shard that its id names; requests go through the shard's bounded inbox.
//!
//! - `machine`, `give`, `attempt`, `update`, `gate`, `lanes`: what happens next; pure.
//! - `kept`: a task as its records make it; `recovery`, `replay`: after a restart; pure.
//! - `reads`, `view`: what is shown of it; pure.
//! - `shard`, `request`, `serve`: carries out what `machine` decided, after the sync.
//! - `counted`: what is counted of it. `dispatch`: carries one attempt. `watch`: one watcher's stream.

mod attempt;
mod config;
mod counted;
mod dispatch;
mod effect;
mod gate;
mod give;
mod handle;
mod kept;
mod lanes;
mod machine;
mod reads;
mod recovery;
mod released;
mod replay;
mod request;
mod serve;
mod shard;
mod update;
mod view;
mod watch;

#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod drive_tests;
#[cfg(test)]
mod tests;

pub use config::{HomeConfig, LOST_AFTER, Submission};
pub use handle::Home;
pub use kept::RecordError;
pub use replay::Replay;
pub use view::{ANSWER_MAX, ListQuery, PAGE};
pub use watch::TaskUpdates;
pub(in crate::task) use watch::sent_away;

use crate::domain::{Fault, Reason};

/// The shard ended: the journal failed, or the process stops.
fn storage_failed() -> Fault {
    Fault::new(
        Reason::StorageFailed,
        "this sidecar's journal cannot be written, or it is stopping: it acknowledges nothing more",
    )
}
