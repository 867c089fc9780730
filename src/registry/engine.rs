//! What members write: registering, beating, leaving; the sweep of those who fell silent; and the
//! traffic rules that operators write.
//!
//! Who writes is what the certificate says. A member writes about its own instance only.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::domain::Fault;
use crate::domain::InstanceId;
use crate::domain::Reason;
use crate::domain::SpiffeId;
use crate::identity::Action;
use crate::identity::Revocation;
use crate::identity::Revocations;
use crate::identity::authorize;
use crate::pb;
use crate::registry::card::Door;
use crate::registry::card::Who;
use crate::registry::catalog::Entry;
use crate::registry::lease::LeaseId;
use crate::registry::lease::Terms;
use crate::registry::rules::Rule;
use crate::registry::rules::RuleName;
use crate::registry::rules::Stamp;
use crate::registry::storage::Beat;
use crate::registry::storage::Store;
use crate::runtime::Stop;
use crate::runtime::clock;

/// How often the silent are looked for: a lease ends at most this much late.
const SWEEP: Duration = Duration::from_secs(1);

/// The registry's use cases over a store.
#[derive(Clone, Debug)]
pub struct Engine {
    store: Arc<dyn Store>,
    door: Door,
}

impl Engine {
    /// An engine over a store.
    pub fn new(store: Arc<dyn Store>, door: Door) -> Self {
        Self { store, door }
    }

    /// What it keeps.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Puts the caller's instance in the catalog and grants a lease.
    ///
    /// # Errors
    /// See [`Door::admit`]; `QUEUE_FULL` when the catalog is full. Nothing is recorded then.
    pub async fn register(
        &self,
        who: Who<'_>,
        request: pb::RegisterRequest,
    ) -> Result<pb::RegisterResponse, Fault> {
        authorize(who.id, Action::Register, who.id.member.namespace())?;
        let entry = self.door.admit(who, request).inspect_err(|fault| {
            if fault.reason == Reason::IdentityMismatch {
                tracing::warn!(caller = %who.id, %fault, "a registration under a foreign name");
            }
        })?;
        let named = entry.instance_id.clone();
        let granted = self.store.grant(entry, Instant::now()).await?;
        tracing::info!(caller = %who.id, instance = %named, "registered");
        Ok(pb::RegisterResponse {
            lease_id: granted.lease.as_str().to_owned(),
            ttl: wire(granted.terms.ttl),
            heartbeat_interval: wire(granted.terms.heartbeat),
            revision: granted.revision.number,
        })
    }

    /// Keeps the caller's lease and notes its health and load.
    ///
    /// # Errors
    /// `LEASE_UNKNOWN` when the lease is not the caller's: register again.
    pub async fn heartbeat(
        &self,
        who: Who<'_>,
        request: pb::HeartbeatRequest,
    ) -> Result<pb::HeartbeatResponse, Fault> {
        let owner = owner(who)?;
        let beat = Beat {
            health: request.health(),
            load: request.load,
        };
        let lease = LeaseId::from_text(&request.lease_id);
        let terms: Terms = self
            .store
            .renew(&lease, owner, beat, Instant::now())
            .await?;
        Ok(pb::HeartbeatResponse {
            ttl: wire(terms.ttl),
            heartbeat_interval: wire(terms.heartbeat),
        })
    }

    /// Takes the caller's instance out.
    ///
    /// # Errors
    /// `LEASE_UNKNOWN` when the lease is not the caller's.
    pub async fn deregister(
        &self,
        who: Who<'_>,
        request: pb::DeregisterRequest,
    ) -> Result<pb::DeregisterResponse, Fault> {
        let owner = owner(who)?;
        let lease = LeaseId::from_text(&request.lease_id);
        self.store.end(&lease, owner).await?;
        tracing::info!(caller = %who.id, instance = %owner, "left");
        Ok(pb::DeregisterResponse {})
    }

    /// Puts a traffic rule in.
    ///
    /// # Errors
    /// `OPERATORS_ONLY`; see [`Rule::read`]; `RULE_CHANGED` and `RULES_FULL`. Nothing is changed
    /// then.
    pub async fn put_rule(
        &self,
        who: &SpiffeId,
        request: pb::PutRuleRequest,
    ) -> Result<pb::PutRuleResponse, Fault> {
        authorize(who, Action::ChangeRules, None)?;
        let rule = request
            .rule
            .ok_or_else(|| Fault::field("rule", "must be set"))?;
        let rule = Rule::read(rule)?;
        let stamp = Stamp {
            by: who.clone(),
            at: clock::wall(),
        };
        let placed = self.store.put_rule(rule, request.expected_revision, stamp);
        let placed = placed.await?;
        Ok(pb::PutRuleResponse {
            rule: Some(placed.rule.message().clone()),
            replaced: placed.replaced.map(|rule| rule.message().clone()),
        })
    }

    /// Takes a traffic rule away.
    ///
    /// # Errors
    /// `OPERATORS_ONLY`, `RULE_NOT_FOUND`, `RULE_CHANGED`, `INVALID_FIELD`.
    pub async fn delete_rule(
        &self,
        who: &SpiffeId,
        request: pb::DeleteRuleRequest,
    ) -> Result<pb::DeleteRuleResponse, Fault> {
        authorize(who, Action::ChangeRules, None)?;
        let name = RuleName::read(&request.namespace, &request.name)?;
        let deleted = self
            .store
            .delete_rule(&name, request.expected_revision, who);
        let deleted = deleted.await?;
        Ok(pb::DeleteRuleResponse {
            deleted: Some(deleted.message().clone()),
        })
    }

    /// Takes out whom new revocations name until `stop`; to be started in a nursery.
    pub async fn shut_out(self, mut told: watch::Receiver<Arc<Revocations>>, stop: Stop) {
        let mut known: HashSet<_> = told.borrow_and_update().all.iter().cloned().collect();
        loop {
            let list = tokio::select! {
                () = stop.cancelled() => return,
                changed = told.changed() => match changed {
                    Ok(()) => Arc::clone(&told.borrow_and_update()),
                    Err(_) => return,
                },
            };
            let fresh: Vec<_> = list.all.iter().filter(|one| !known.contains(one)).collect();
            for instance in self.named_by(&fresh) {
                self.take_out(&instance).await;
            }
            known = list.all.iter().cloned().collect();
        }
    }

    fn named_by(&self, revocations: &[&Revocation]) -> Vec<InstanceId> {
        let named = |entry: &&Arc<Entry>| {
            let instance = Some(&entry.instance_id);
            revocations.iter().any(|one| one.names(&entry.id, instance))
        };
        self.store.live().read(|catalog| {
            let entries = catalog.entries_after(None).filter(named);
            entries.map(|entry| entry.instance_id.clone()).collect()
        })
    }

    async fn take_out(&self, instance: &InstanceId) {
        // Without a lease it has left meanwhile.
        let Some(lease) = self.store.lease_of(instance) else {
            return;
        };
        match self.store.end(&lease, instance).await {
            Ok(()) => tracing::info!(%instance, "shut out; taken out"),
            Err(error) => tracing::warn!(%instance, %error, "shut out, but not taken out"),
        }
    }

    /// Takes out the silent until `stop`; to be started in a nursery.
    pub async fn sweep(self, stop: Stop) {
        let mut ticks = interval(SWEEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match self.store.expire(Instant::now()).await {
                Ok(gone) => {
                    for instance in gone {
                        tracing::info!(%instance, "not heard from in time; taken out");
                    }
                }
                Err(error) => tracing::error!(%error, "the silent could not be taken out"),
            }
        }
    }
}

/// The instance that writes. Those without one hold no lease, so every lease is unknown to them.
fn owner(who: Who<'_>) -> Result<&InstanceId, Fault> {
    who.instance.ok_or_else(|| {
        Fault::new(
            Reason::LeaseUnknown,
            "the certificate names no instance, so it holds no lease",
        )
    })
}

fn wire(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::fixture::member;
    use crate::registry::fixture::request;
    use crate::registry::storage::MemoryStore;
    use crate::runtime::Nursery;

    fn engine() -> Engine {
        let store = Arc::new(MemoryStore::new(Instant::now()));
        Engine::new(store, Door::default())
    }

    fn who<'a>(id: &'a SpiffeId, instance: &'a InstanceId) -> Who<'a> {
        Who {
            id,
            instance: Some(instance),
        }
    }

    fn beat(lease: &str) -> pb::HeartbeatRequest {
        pb::HeartbeatRequest {
            lease_id: lease.to_owned(),
            health: pb::Health::Serving.into(),
            load: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_registers_under_another_name() {
        let engine = engine();
        let (billing, i1) = (member("default/billing"), "i1".parse().unwrap());
        let mut spoof = request(&["pay"]);
        spoof.card.as_mut().unwrap().name = "ledger".into();
        let refused = engine
            .register(who(&billing, &i1), spoof)
            .await
            .unwrap_err();
        assert_eq!(refused.reason, Reason::IdentityMismatch);
        assert!(engine.store().live().read(|all| all.is_empty()));
        assert_eq!(engine.store().live().revision().number, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_serves_its_owner_only() {
        let engine = engine();
        let (x, a, b) = (
            member("default/x"),
            "a".parse().unwrap(),
            "b".parse().unwrap(),
        );
        let granted = engine.register(who(&x, &a), request(&["s"])).await.unwrap();
        assert_eq!(granted.ttl.unwrap().seconds, 15);
        assert_eq!(granted.heartbeat_interval.unwrap().seconds, 5);
        let lease_id = granted.lease_id;
        let theirs = engine.heartbeat(who(&x, &b), beat(&lease_id)).await;
        assert_eq!(theirs.unwrap_err().reason, Reason::LeaseUnknown);
        let leave = pb::DeregisterRequest {
            lease_id: lease_id.clone(),
        };
        let theirs = engine.deregister(who(&x, &b), leave.clone()).await;
        assert_eq!(theirs.unwrap_err().reason, Reason::LeaseUnknown);
        engine
            .heartbeat(who(&x, &a), beat(&lease_id))
            .await
            .unwrap();
        engine.deregister(who(&x, &a), leave).await.unwrap();
        assert!(engine.store().live().read(|all| all.is_empty()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_sweep_takes_the_silent_out() {
        let engine = engine();
        let nursery = Nursery::here();
        let sweeper = engine.clone();
        nursery.start("sweep", |stop| sweeper.sweep(stop));
        let (x, a) = (member("default/x"), "a".parse().unwrap());
        let start = Instant::now();
        engine.register(who(&x, &a), request(&["s"])).await.unwrap();
        let mut bell = engine.store().live().changes();
        bell.wait_for(|number| *number == 2).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 20);
        nursery.close(SWEEP).await;
    }
}
