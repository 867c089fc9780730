//! What a registry keeps, and the contract that every way of keeping it fulfils.
//!
//! A store owns leases, revisions and the change feed. What it answers as done is durable, save
//! for heartbeats: they are never written, and nobody expires right after a restart instead.

mod embedded;
mod memory;
mod promised;
mod rules;
mod shelf;
mod tokens;
mod writer;

#[cfg(test)]
mod contract;

use std::{fmt, sync::Arc};

use tokio::time::Instant;

use crate::domain::Fault;
use crate::domain::InstanceId;
use crate::domain::Reason;
use crate::domain::SpiffeId;
use crate::identity::Ledger;
use crate::pb;
use crate::registry::catalog::Entry;
use crate::registry::catalog::Revision;
use crate::registry::lease::LeaseId;
use crate::registry::lease::Terms;
use crate::registry::lease::Unknown;
use crate::registry::live::Live;
use crate::registry::page::PageKey;
use crate::registry::promises::Broken;
use crate::registry::rules::Placed;
use crate::registry::rules::Refused;
use crate::registry::rules::Rule;
use crate::registry::rules::RuleName;
use crate::registry::rules::Stamp;

pub use embedded::RedbStore;
pub use memory::MemoryStore;

/// Most instances of one registry, each a few KiB: five times the size this was laid out for.
pub const INSTANCES_MAX: usize = 50_000;

/// Why a store did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The lease is unknown, has run out, or is somebody else's.
    #[error("the lease is unknown or has run out: register again")]
    LeaseUnknown,
    /// The catalog has no room for one more instance.
    #[error("the catalog is full: stop instances that are not needed")]
    Full,
    /// The traffic rules stay as they are.
    #[error(transparent)]
    Rule(#[from] Refused),
    /// A skill's schemas are others than under the same version before.
    #[error(transparent)]
    Promise(#[from] Broken),
    /// The store could not be written or read.
    #[error("the registry's store failed: {0}")]
    Failed(String),
    /// The store was closed.
    #[error("the registry is about to stop: try another one, or again in a moment")]
    Closed,
}

impl From<Unknown> for StoreError {
    fn from(_: Unknown) -> Self {
        Self::LeaseUnknown
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        let reason = match &error {
            StoreError::Promise(broken) => return broken.clone().into(),
            StoreError::LeaseUnknown => Reason::LeaseUnknown,
            StoreError::Full => Reason::QueueFull,
            StoreError::Rule(Refused::Changed(_)) => Reason::RuleChanged,
            StoreError::Rule(Refused::Unknown(_)) => Reason::RuleNotFound,
            StoreError::Rule(Refused::Full) => Reason::RulesFull,
            StoreError::Failed(inside) => {
                tracing::error!(error = inside, "the registry's store failed");
                let text = "the registry could not write its store; nothing was changed";
                return Self::new(Reason::StorageFailed, text);
            }
            StoreError::Closed => Reason::Draining,
        };
        Self::new(reason, error.to_string())
    }
}

/// A lease with the revision that its entry made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// To be named in every heartbeat.
    pub lease: LeaseId,
    /// How long it holds and how often to beat.
    pub terms: Terms,
    /// The catalog with this entry.
    pub revision: Revision,
}

/// What a heartbeat reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beat {
    /// Whether the instance takes work.
    pub health: pb::Health,
    /// How much it does.
    pub load: Option<pb::Load>,
}

/// Keeps the catalog and its leases, the traffic rules, and the ledger of identities beside them. Time is monotonic
/// and passed in.
#[tonic::async_trait]
pub trait Store: Ledger + fmt::Debug {
    /// The catalog as it stands, to be read at any time.
    fn live(&self) -> &Arc<Live>;

    /// The key of this store's page tokens; the same after a restart.
    fn page_key(&self) -> &Arc<PageKey>;

    /// How many leases are held, and since when the most silent holder was not heard.
    fn leases(&self) -> (usize, Option<Instant>);

    /// Puts an entry in, over an older one of the same instance, whose lease ends. What its card
    /// promises is remembered, also when the entry is gone.
    ///
    /// # Errors
    /// When the catalog is full, the card breaks what its agent has promised before, or the store fails; nothing is changed then.
    async fn grant(&self, entry: Entry, now: Instant) -> Result<Granted, StoreError>;

    /// Keeps a lease. Another health makes a revision, another load does not.
    ///
    /// # Errors
    /// `LeaseUnknown` when it is not `owner`'s.
    async fn renew(
        &self,
        lease: &LeaseId,
        owner: &InstanceId,
        beat: Beat,
        now: Instant,
    ) -> Result<Terms, StoreError>;

    /// Ends a lease and takes its entry out.
    ///
    /// # Errors
    /// `LeaseUnknown` when it is not `owner`'s; or the store fails.
    async fn end(&self, lease: &LeaseId, owner: &InstanceId) -> Result<(), StoreError>;

    /// The lease that an instance holds.
    fn lease_of(&self, instance: &InstanceId) -> Option<LeaseId>;

    /// Takes out whoever was not heard from in time; to be called once a second.
    ///
    /// # Errors
    /// When the store fails; those that stay are tried again.
    async fn expire(&self, now: Instant) -> Result<Vec<InstanceId>, StoreError>;

    /// Puts a traffic rule in, over one of the same name; the live rules have it then, and who did
    /// it is written down, whether the caller still waits or not.
    ///
    /// # Errors
    /// As [`Rules::put`](crate::registry::rules::Rules::put); or the store fails.
    async fn put_rule(
        &self,
        rule: Rule,
        expected: Option<u64>,
        stamp: Stamp,
    ) -> Result<Placed, StoreError>;

    /// Takes a traffic rule out, and writes down who did.
    ///
    /// # Errors
    /// As [`Rules::delete`](crate::registry::rules::Rules::delete); or the store fails.
    async fn delete_rule(
        &self,
        name: &RuleName,
        expected: Option<u64>,
        by: &SpiffeId,
    ) -> Result<Arc<Rule>, StoreError>;
}
