//! A store without a disk: for tests, and for a mesh that may forget.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Beat;
use super::Granted;
use super::Store;
use super::StoreError;
use super::shelf::Shelf;
use crate::domain::AgentName;
use crate::domain::InstanceId;
use crate::domain::SpiffeId;
use crate::identity::Ledger;
use crate::identity::LedgerError;
use crate::identity::MemoryLedger;
use crate::identity::Revocation;
use crate::identity::Revocations;
use crate::identity::ledger::InstanceEntry;
use crate::identity::ledger::Redeemed;
use crate::identity::ledger::Redemption;
use crate::identity::ledger::TokenEntry;
use crate::identity::ledger::TokenHash;
use crate::identity::ledger::TokenRecord;
use crate::registry::catalog::Entry;
use crate::registry::lease::LeaseId;
use crate::registry::lease::Terms;
use crate::registry::live::Live;
use crate::registry::page::PageKey;
use crate::registry::promises::Promises;
use crate::registry::rules::Placed;
use crate::registry::rules::Rule;
use crate::registry::rules::RuleName;
use crate::registry::rules::Rules;
use crate::registry::rules::Stamp;
use crate::registry::rules::audit;

/// Everything in memory.
#[derive(Debug)]
pub struct MemoryStore {
    shelf: Shelf,
    page_key: Arc<PageKey>,
    ledger: MemoryLedger,
    promises: Mutex<HashMap<AgentName, Promises>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(now: Instant) -> Self {
        Self {
            shelf: Shelf::new(Terms::DEFAULT, now),
            page_key: Arc::new(PageKey::new(&rand::random())),
            ledger: MemoryLedger::default(),
            promises: Mutex::default(),
        }
    }
}

#[tonic::async_trait]
impl Store for MemoryStore {
    fn live(&self) -> &Arc<Live> {
        self.shelf.live()
    }

    fn leases(&self) -> (usize, Option<Instant>) {
        self.shelf.leases()
    }

    fn page_key(&self) -> &Arc<PageKey> {
        &self.page_key
    }

    async fn grant(&self, entry: Entry, now: Instant) -> Result<Granted, StoreError> {
        if !self.shelf.has_room(&entry.instance_id) {
            return Err(StoreError::Full);
        }
        let mut promises = self.promises.lock();
        let promised = promises.entry(entry.agent.clone()).or_default();
        promised.take(&entry.card)?;
        let lease = LeaseId::from_random(rand::random());
        Ok(self.shelf.grant(lease, Arc::new(entry), now))
    }

    async fn renew(
        &self,
        lease: &LeaseId,
        owner: &InstanceId,
        beat: Beat,
        now: Instant,
    ) -> Result<Terms, StoreError> {
        self.shelf
            .renew(lease, owner, beat, now)
            .map(|(terms, _)| terms)
    }

    async fn end(&self, lease: &LeaseId, owner: &InstanceId) -> Result<(), StoreError> {
        self.shelf.end(lease, owner)
    }

    fn lease_of(&self, instance: &InstanceId) -> Option<LeaseId> {
        self.shelf.lease_of(instance)
    }

    async fn expire(&self, now: Instant) -> Result<Vec<InstanceId>, StoreError> {
        let mut gone = Vec::new();
        for (lease, owner) in self.shelf.expired(now) {
            self.shelf.end(&lease, &owner)?;
            gone.push(owner);
        }
        Ok(gone)
    }

    async fn put_rule(
        &self,
        rule: Rule,
        expected: Option<u64>,
        stamp: Stamp,
    ) -> Result<Placed, StoreError> {
        let change = |rules: &Rules| rules.put(rule, expected, &stamp);
        let placed = self.live().change_rules(change)?;
        audit::put(&placed, &stamp.by);
        Ok(placed)
    }

    async fn delete_rule(
        &self,
        name: &RuleName,
        expected: Option<u64>,
        by: &SpiffeId,
    ) -> Result<Arc<Rule>, StoreError> {
        let change = |rules: &Rules| rules.delete(name, expected);
        let deleted = self.live().change_rules(change)?;
        audit::deleted(&deleted, by);
        Ok(deleted)
    }
}

#[tonic::async_trait]
impl Ledger for MemoryStore {
    async fn put_token(
        &self,
        hash: TokenHash,
        entry: TokenEntry,
        now: SystemTime,
    ) -> Result<(), LedgerError> {
        self.ledger.put_token(hash, entry, now).await
    }

    async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRecord>, LedgerError> {
        self.ledger.token(hash).await
    }

    async fn redeem(
        &self,
        hash: &TokenHash,
        redemption: Redemption,
    ) -> Result<Redeemed, LedgerError> {
        self.ledger.redeem(hash, redemption).await
    }

    async fn instance(&self, id: &InstanceId) -> Result<Option<InstanceEntry>, LedgerError> {
        self.ledger.instance(id).await
    }

    async fn advance_generation(
        &self,
        id: &InstanceId,
        from: u64,
        key: [u8; 32],
    ) -> Result<u64, LedgerError> {
        self.ledger.advance_generation(id, from, key).await
    }

    async fn revoke(
        &self,
        revocation: Revocation,
        now: SystemTime,
    ) -> Result<(Revocations, usize), LedgerError> {
        self.ledger.revoke(revocation, now).await
    }

    async fn revocations(&self) -> Result<Revocations, LedgerError> {
        self.ledger.revocations().await
    }
}
