//! Who fits what tasks ask for, by the catalog as it is now, and how traffic to them is treated.
//!
//! One target for each thing that tasks ask for: its set of instances, made anew when the catalog has
//! changed, and its budget of second tries. Bounded: the one that was asked for the longest ago goes.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::{
    endpoints::Endpoints,
    sights::{EndpointSight, Sights, TargetSight},
};
use crate::{
    domain::{AgentName, Label, SkillName},
    pb,
    registry::client::{Entry, Mirror, Query},
    resilience::{Budget, Injection, Member, Permit, Set, Settings},
    task::{Candidate, Contract},
};

/// Things asked for at a time: callers name a handful of skills, and labels or tags with a few of
/// them. Beyond it sets are made anew with every task, and budgets are forgotten.
const TARGETS_MAX: usize = 1024;

/// Chooses among the instances of a mirror. Shared by all threads.
#[derive(Debug)]
pub(super) struct Balancer {
    mirror: Mirror,
    /// Of the mirror's changes.
    number: watch::Receiver<u64>,
    complete: watch::Receiver<bool>,
    endpoints: Endpoints,
    /// The own zone; empty: none is preferred.
    zone: String,
    /// For calls of no target.
    defaults: Arc<Settings>,
    hasher: RandomState,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    /// Where the endpoints stand; `None`: nowhere.
    followed: Option<u64>,
    /// They have seen the whole of the registry's catalog.
    complete: bool,
    /// By the hash of what is asked for.
    targets: HashMap<u64, Target>,
}

/// What some tasks ask for.
#[derive(Debug)]
struct Target {
    namespace: Label,
    selector: pb::Selector,
    /// `None`: nobody can fit.
    query: Option<Query>,
    /// The change of the catalog that the set is of.
    number: u64,
    /// Whom the set is made of.
    entries: Vec<Arc<Entry>>,
    reach: Reach,
    used: Instant,
}

/// Those who fit, as a task finds them.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    pub(super) set: Arc<Set<Arc<Candidate>>>,
    pub(super) budget: Arc<Mutex<Budget>>,
    pub(super) injection: Arc<Injection>,
}

impl Target {
    fn sight(&self, now: Instant) -> TargetSight {
        let set = &self.reach.set;
        let member = |member: &Member<Arc<Candidate>>| member.value.instance.clone();
        TargetSight {
            namespace: self.namespace.clone(),
            selector: self.selector.clone(),
            members: set.members().iter().map(member).collect(),
            ejected: set.ejected(now),
            retries_left: self.reach.budget.lock().left(&set.settings().retry, now),
            settings: set.settings().clone(),
            injection: self.reach.injection.clone(),
            idle: now.saturating_duration_since(self.used),
        }
    }
}

/// How traffic of one kind is treated.
#[derive(Clone, Debug, Default)]
pub(super) struct Treatment {
    pub(super) settings: Arc<Settings>,
    /// How it is split between groups; empty: not at all.
    pub(super) weights: Vec<u32>,
    pub(super) injection: Arc<Injection>,
}

impl Treatment {
    /// Which of the weights an instance has.
    fn group(&self, _: &Entry) -> usize {
        self.weights.len()
    }
}

impl Balancer {
    pub(super) fn new(mirror: Mirror, endpoints: Endpoints, zone: String) -> Self {
        Self {
            number: mirror.changes(),
            complete: mirror.fresh(),
            mirror,
            endpoints,
            zone,
            defaults: Arc::default(),
            hasher: RandomState::new(),
            cache: Mutex::default(),
        }
    }

    pub(super) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    pub(super) fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// Brings the endpoints in line with the catalog; sets follow when they are asked for.
    pub(super) fn follow(&self, now: Instant) {
        let number = *self.number.borrow();
        self.endpoints_follow(&mut self.cache.lock(), number, now);
    }

    /// Those who fit; `None`: what is asked for cannot be read.
    pub(super) fn reach(
        &self,
        namespace: &Label,
        selector: &pb::Selector,
        now: Instant,
    ) -> Option<Reach> {
        let number = *self.number.borrow();
        let key = self.key(namespace, selector);
        let mut cache = self.cache.lock();
        self.endpoints_follow(&mut cache, number, now);
        let same =
            |target: &&mut Target| target.selector == *selector && target.namespace == *namespace;
        if let Some(target) = cache.targets.get_mut(&key).filter(same) {
            if target.number != number {
                target.number = number;
                self.renew(target, now);
            }
            target.used = now;
            return target.query.is_some().then(|| target.reach.clone());
        }
        let target = self.target(namespace, selector, number, now);
        let reach = target.query.is_some().then(|| target.reach.clone());
        if cache.targets.len() >= TARGETS_MAX {
            let oldest = cache.targets.iter().min_by_key(|(_, target)| target.used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                cache.targets.remove(&oldest);
            }
        }
        cache.targets.insert(key, target);
        reach
    }

    /// A call to an instance that is not chosen now, such as one that is taken up again.
    pub(super) fn outside(&self, entry: &Entry, now: Instant) -> Permit {
        let endpoint = self.endpoints.of(entry, now);
        Permit::outside(endpoint, self.defaults.clone(), now)
    }

    /// All of it, for those who show it.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the admin listener is about to show it")
    )]
    pub(super) fn sights(&self, now: Instant) -> Sights {
        self.follow(now);
        let catalog = self.mirror.catalog();
        let endpoint = |entry: &Arc<Entry>| EndpointSight {
            instance: entry.instance_id.clone(),
            agent: entry.agent.clone(),
            zone: entry.instance.zone.clone(),
            serves: entry.serves(),
            sight: self.endpoints.of(entry, now).sight(&self.defaults, now),
        };
        let endpoints = catalog.entries_after(None).map(endpoint).collect();
        let cache = self.cache.lock();
        let readable = cache
            .targets
            .values()
            .filter(|target| target.query.is_some());
        let mut targets: Vec<_> = readable.map(|target| target.sight(now)).collect();
        drop(cache);
        targets.sort_by(|one, other| {
            let name =
                |sight: &TargetSight| (sight.namespace.clone(), sight.selector.skill.clone());
            name(one).cmp(&name(other))
        });
        Sights { endpoints, targets }
    }

    /// How traffic for a skill, or to an agent, is treated. The one place where rules come in.
    pub(super) fn settings_for(
        &self,
        _namespace: &Label,
        _skill: &SkillName,
        _agent: Option<&AgentName>,
    ) -> Treatment {
        Treatment::default()
    }

    fn endpoints_follow(&self, cache: &mut Cache, number: u64, now: Instant) {
        let complete = *self.complete.borrow();
        // Completeness is worth a look of its own once: who comes after it is new.
        if cache.followed == Some(number) && (cache.complete || !complete) {
            return;
        }
        self.endpoints.follow(&self.mirror.catalog(), complete, now);
        cache.followed = Some(number);
        cache.complete |= complete;
    }

    fn target(
        &self,
        namespace: &Label,
        selector: &pb::Selector,
        number: u64,
        now: Instant,
    ) -> Target {
        let set = Set::new(
            Vec::new(),
            &[],
            Arc::default(),
            self.endpoints.epoch().clone(),
        );
        let mut target = Target {
            namespace: namespace.clone(),
            selector: selector.clone(),
            query: Query::parse(selector, Some(namespace)).ok(),
            number,
            entries: Vec::new(),
            reach: Reach {
                set: Arc::new(set),
                budget: Arc::default(),
                injection: Arc::default(),
            },
            used: now,
        };
        self.renew(&mut target, now);
        target
    }

    /// Makes the set anew, unless the catalog has changed elsewhere only.
    fn renew(&self, target: &mut Target, now: Instant) {
        let Some(query) = &target.query else { return };
        let Some(skill) = query.skill() else { return };
        let entries = self.mirror.catalog().find(query);
        let same = entries.len() == target.entries.len()
            && entries
                .iter()
                .zip(&target.entries)
                .all(|(one, other)| Arc::ptr_eq(one, other));
        if same {
            return;
        }
        let treatment = self.settings_for(&target.namespace, skill, query.agent());
        let member = |entry: &Arc<Entry>| self.member(entry, skill, &treatment, now);
        let members = entries.iter().filter_map(member).collect();
        let epoch = self.endpoints.epoch().clone();
        let set = Set::new(members, &treatment.weights, treatment.settings, epoch);
        target.reach.set = Arc::new(set);
        target.reach.injection = treatment.injection;
        target.entries = entries;
        target.used = now;
    }

    fn member(
        &self,
        entry: &Arc<Entry>,
        skill: &SkillName,
        treatment: &Treatment,
        now: Instant,
    ) -> Option<Member<Arc<Candidate>>> {
        let mut offers = entry.offers.iter().zip(&entry.card.skills);
        let (offer, has) = offers.find(|(offer, _)| offer.name == *skill)?;
        let candidate = Candidate {
            instance: entry.instance_id.clone(),
            agent: entry.agent.clone(),
            idempotent: has.idempotent,
            boot_id: entry.instance.boot_id.clone(),
            contract: Contract {
                version: offer.version.clone(),
                schemas: offer.schemas.clone(),
            },
        };
        Some(Member {
            endpoint: self.endpoints.of(entry, now),
            key: named(entry.instance_id.as_str()),
            local: !self.zone.is_empty() && entry.instance.zone == self.zone,
            group: treatment.group(entry),
            value: Arc::new(candidate),
        })
    }

    fn key(&self, namespace: &Label, selector: &pb::Selector) -> u64 {
        let pb::Selector {
            skill,
            agent,
            tags,
            labels,
            version,
            agent_version,
        } = selector;
        let mut hash = self.hasher.build_hasher();
        (namespace, skill, agent, tags, version, agent_version).hash(&mut hash);
        // A map has no order.
        let labels = labels.iter().map(|label| self.hasher.hash_one(label));
        labels
            .fold(0, |sum: u64, one| sum.wrapping_add(one))
            .hash(&mut hash);
        hash.finish()
    }
}

/// A number for a name, the same in every process and version (FNV-1a): contexts stay with their
/// instances by it.
pub(super) fn named(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
