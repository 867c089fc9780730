//! The home of tasks: owns them from the acknowledgement to the end, and answers for them.
//!
//! A task has one owner, the shard that its id names; requests go through the shard's bounded inbox.
//!
//! - `machine`, `admission`, `give`, `pick`, `attempt`, `loss`, `update`, `gate`, `lanes`, `turns`, `hold`: what happens next; pure.
//! - `granted`, `claims`: slots that executors grant to those who wait; pure. `slots`: carries those.
//! - `kept`, `artifacts`: a task as its records make it; `recovery`, `replay`: after a restart; pure.
//! - `snapshot`, `compaction`: written to the log anew, so that old segments can go; pure.
//! - `beside`: carries large content to the journal and back. `large`: large content, by reference; what it takes to show it again.
//! - `children`: tasks that end with the attempt that made them; pure.
//! - `dialogue`: questions of agents, and how an answer lets the task go on; pure.
//! - `ephemeral`: tasks in memory only, in shards of their own.
//! - `handover`: tasks that their agents hand over for good; pure.
//! - `keys`: tasks that were submitted with an idempotency key; pure.
//! - `moving`, `archiving`: what has ended goes to the archive. `finished`: what is read of it there.
//! - `owed`, `telling`: what is still to be told to whoever is called back, and when; `places`: whose turn it is there; pure. `deliver`: how it leaves.
//! - `room`: how much of memory which tasks may take; pure.
//! - `reads`, `view`: what is shown of it; pure.
//! - `submit`: how a task gets in. `calls`: what else callers may ask. `shard`, `sweep`, `request`, `serve`: carries out what `machine` decided, after the sync.
//! - `counted`: what is counted of it. `dispatch`: carries one attempt. `watch`: one watcher's stream.

mod admission;
mod archiving;
mod artifacts;
mod attempt;
mod beside;
mod calls;
mod children;
mod claims;
mod compaction;
mod config;
mod counted;
mod deliver;
mod dialogue;
mod dispatch;
mod effect;
mod entry;
mod ephemeral;
mod finished;
mod gate;
mod give;
mod granted;
mod handle;
mod handover;
mod hold;
mod kept;
mod keys;
mod lanes;
mod large;
mod loss;
mod machine;
mod moving;
mod neighbours;
mod owed;
mod pick;
mod places;
mod reads;
mod recovery;
mod refused;
mod released;
mod replay;
mod request;
mod resting;
mod room;
mod serve;
mod shard;
mod slots;
mod snapshot;
mod steps;
mod submit;
mod supply;
mod sweep;
mod telling;
mod tries;
mod turns;
mod unfit;
mod update;
mod usage;
mod view;
mod watch;

#[cfg(test)]
mod delegation_tests;
#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod drive_tests;
#[cfg(test)]
mod ephemeral_tests;
#[cfg(test)]
mod key_tests;
#[cfg(test)]
mod large_tests;
#[cfg(test)]
mod list_tests;
#[cfg(test)]
mod respond_tests;
#[cfg(test)]
mod telling_tests;
#[cfg(test)]
mod tests;

pub use config::{Held, HomeConfig, IN_MEMORY, Keeping, LOST_AFTER, RETENTION, Submission};
pub use dialogue::Response;
pub use handle::Home;
pub use kept::RecordError;
pub use replay::Replay;
pub use submit::{Below, Submitted};
pub use view::{ANSWER_MAX, ListPage, ListQuery, PAGE};
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
