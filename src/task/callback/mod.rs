//! Whom to tell of a task's changes, what they are told, and when it is tried again. Pure.
//!
//! - `target`: an agent's skill or an https URL, as a caller asked for it. `url`: the latter.
//! - `allowed`: which URLs a sidecar may call. `address`: which addresses are public.
//! - `letter`: what is told, in the same words each time.
//! - `pace`: when the next try is, and what it came to.
//!
//! The home keeps what is still to be told (`task::home`), the courier carries it (`task::courier`).
//! Refused here: what no receiver could be told by.

mod address;
mod allowed;
mod letter;
mod pace;
mod target;
mod url;

pub use allowed::{Allowed, Rule};
pub use letter::{Letter, letter};
pub use pace::{Outcome, RETENTION, TRY, pause};
pub use target::{Target, Tells, asked, tells};
pub use url::Url;

use std::sync::Arc;

use tokio::time::Instant;

use crate::domain::{SpiffeId, TaskId};
use crate::pb;

/// A try that is to be made when its turn comes: what is told is asked for then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The task that changed.
    pub id: TaskId,
    /// Number of the event.
    pub seq: u64,
    /// Which try it is, of all that the home's process makes: what came of an older one is not heard.
    pub number: u64,
    /// [`Target::place`] of whoever is told.
    pub place: Arc<str>,
}

/// One change of a task on its way to whoever is to be told.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// What happened; without its kind where that was not kept by an earlier version.
    pub event: Arc<pb::TaskEvent>,
    /// Who is told.
    pub target: Target,
    /// Nobody is told after this.
    pub until: Instant,
    /// What a task that tells an agent needs to know.
    pub above: Option<Box<Above>>,
}

/// What a task needs to know of the one that it tells of.
#[derive(Clone, Debug)]
pub struct Above {
    /// Its ids and its chain, and nothing else.
    pub task: pb::Task,
    /// Who asked for it: what they may not do is not done for them.
    pub caller: SpiffeId,
    /// What the new task tells of.
    pub tells: Tells,
}
