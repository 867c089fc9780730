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
pub use target::{Target, asked, tells};
pub use url::Url;

use std::sync::Arc;
use std::time::SystemTime;

use crate::domain::{SpiffeId, TaskId};
use crate::pb;

/// One change of a task on its way to whoever is to be told.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The task that changed.
    pub id: TaskId,
    /// What happened to it; without its kind where that is no longer kept.
    pub event: Arc<pb::TaskEvent>,
    /// Who is told.
    pub target: Target,
    /// Nobody is told after this.
    pub until: SystemTime,
    /// The task: BASIC view, without artifacts, with its chain.
    pub task: Box<pb::Task>,
    /// Who asked for it: what they may not do is not done for them.
    pub caller: SpiffeId,
}
