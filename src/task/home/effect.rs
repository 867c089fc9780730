//! What a decision sees and bounds it, and what follows from it once the disk has it.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::InstanceId;
use crate::pb;
use crate::task::callback::Ticket;
use crate::task::descendants::Given;
use crate::task::doors::{Call, Route};
use crate::task::spec::Moment;
use crate::telemetry::metrics::callbacks::Report;

use super::request::{Asker, Drawn, Maker};

/// Bounds of one shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Tasks that have not ended.
    pub(super) live: usize,
    /// Their bytes in memory.
    pub(super) live_bytes: usize,
    /// Tasks that ended and can still be asked for.
    pub(super) ended: usize,
    /// Their bytes in memory.
    pub(super) ended_bytes: usize,
    /// How long after its end a task is kept.
    pub(super) retention: Duration,
}

/// What one call sees of the world.
#[derive(Clone, Copy)]
pub(super) struct World<'a> {
    pub(super) at: Moment,
    pub(super) route: &'a dyn Route,
    /// From 0 to 1: spreads waits.
    pub(super) chance: f64,
}

/// What is to be done once the records before it are synced, in this order.
#[derive(Debug)]
pub(super) enum Effect {
    /// Events up to this one are on disk: whoever watches may see them.
    Shown { task: Uuid, seq: u64, ended: bool },
    /// Live watchers may see this.
    Transient {
        task: Uuid,
        transient: pb::Transient,
    },
    /// Send the attempt to its executor.
    Start {
        to: Carrying,
        start: Box<pb::Start>,
        call: Box<Call>,
    },
    /// Take an attempt up again after this home was away.
    Resume { to: Carrying, after_update: u64 },
    /// The executor may forget its updates up to this one.
    Ack {
        task: Uuid,
        attempt: u32,
        update: u64,
    },
    /// Ask the executor to stop; go on listening.
    Abort {
        task: Uuid,
        attempt: u32,
        reason: String,
    },
    /// The task is not in memory and log any more: nor is what it named needed there.
    LetGo { task: Uuid },
    /// The attempt has been given so many tasks to be made below it.
    Give {
        task: Uuid,
        attempt: u32,
        given: Given,
    },
    /// An attempt needs so many more, of whoever made its task.
    Draw { by: Asker, from: Maker, count: u32 },
    /// So many were given, or none, to an attempt that asked.
    Drawn { by: Asker, drawn: Drawn },
    /// A child has ended, and needs so many of the tasks no more that it was given.
    GiveBack { to: Maker, count: u32 },
    /// A detached child of the attempt with this token has ended.
    LeaveParent { token: String },
    /// Have the courier tell of a change when its turn comes.
    Tell(Box<Ticket>),
    /// Count and say what became of telling a change.
    Told(Box<Report>),
    /// The attempt is over here, whatever it still says; with a reason: tell it to stop.
    Release {
        task: Uuid,
        attempt: u32,
        abort: Option<String>,
    },
}

/// An attempt on its way.
#[derive(Clone, Debug)]
pub(super) struct Carrying {
    pub(super) task: Uuid,
    pub(super) task_id: String,
    pub(super) attempt: u32,
    pub(super) instance: InstanceId,
    pub(super) deadline: Instant,
}
