//! Leases and catalog in memory, changed together: the inside of every store.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Beat;
use super::Granted;
use super::INSTANCES_MAX;
use super::StoreError;
use crate::domain::InstanceId;
use crate::registry::catalog::Entry;
use crate::registry::lease::LeaseId;
use crate::registry::lease::Leases;
use crate::registry::lease::Terms;
use crate::registry::live::Change;
use crate::registry::live::Live;

/// Leases and catalog. The leases' lock is taken first and held over a change of the catalog, so
/// that an entry is in exactly as long as its lease.
#[derive(Debug)]
pub(super) struct Shelf {
    live: Arc<Live>,
    leases: Mutex<Leases>,
}

impl Shelf {
    /// An empty one; nothing expires for a while, see [`Leases::new`].
    pub(super) fn new(terms: Terms, now: Instant) -> Self {
        Self {
            live: Arc::new(Live::new(rand::random())),
            leases: Mutex::new(Leases::new(terms, now)),
        }
    }

    pub(super) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Whether an instance has a place: it is in already, or one more fits.
    pub(super) fn has_room(&self, instance: &InstanceId) -> bool {
        self.live
            .read(|all| all.len() < INSTANCES_MAX || all.entry(instance).is_some())
    }

    pub(super) fn grant(&self, lease: LeaseId, entry: Arc<Entry>, now: Instant) -> Granted {
        let mut leases = self.leases.lock();
        let terms = leases.grant(lease.clone(), entry.instance_id.clone(), now);
        let revision = self.live.apply([Change::Put(entry)]);
        Granted {
            lease,
            terms,
            revision,
        }
    }

    /// Renews a lease; true when the health changed.
    pub(super) fn renew(
        &self,
        lease: &LeaseId,
        owner: &InstanceId,
        beat: Beat,
        now: Instant,
    ) -> Result<(Terms, bool), StoreError> {
        let mut leases = self.leases.lock();
        let terms = leases.renew(lease, owner, now)?;
        let entry = self.live.read(|catalog| catalog.entry(owner).cloned());
        let entry = entry.ok_or(StoreError::LeaseUnknown)?;
        let changed = entry.instance.health() != beat.health;
        if changed {
            let entry = entry.with_health(beat.health, beat.load);
            self.live.apply([Change::Put(Arc::new(entry))]);
        } else {
            entry.report(beat.load);
        }
        Ok((terms, changed))
    }

    pub(super) fn holds(&self, lease: &LeaseId, owner: &InstanceId) -> bool {
        self.leases.lock().holds(lease, owner)
    }

    pub(super) fn lease_of(&self, instance: &InstanceId) -> Option<LeaseId> {
        self.leases.lock().of(instance).cloned()
    }

    pub(super) fn end(&self, lease: &LeaseId, owner: &InstanceId) -> Result<(), StoreError> {
        let mut leases = self.leases.lock();
        leases.end(lease, owner)?;
        if let Some(entry) = self.live.read(|catalog| catalog.entry(owner).cloned()) {
            self.live.apply([Change::Gone(entry)]);
        }
        Ok(())
    }

    /// How many leases there are, and since when the most silent holder was not heard.
    pub(super) fn leases(&self) -> (usize, Option<Instant>) {
        let leases = self.leases.lock();
        (leases.len(), leases.oldest())
    }

    pub(super) fn expired(&self, now: Instant) -> Vec<(LeaseId, InstanceId)> {
        self.leases.lock().expired(now)
    }

    pub(super) fn is_over(&self, lease: &LeaseId, now: Instant) -> bool {
        self.leases.lock().is_over(lease, now)
    }
}
