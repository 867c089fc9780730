//! What is shown of a balancer: built of what is there, keeping nothing and changing nothing.

use std::{collections::HashMap, sync::Arc};

use tokio::time::Instant;

use super::{Balancer, Reach, Target};
use crate::{
    domain::{AgentName, InstanceId, Label},
    pb,
    registry::client::Entry,
    sidecar::{
        counted::OF_LATE,
        sights::{EndpointSight, Sights, TargetSight, trouble},
        treatment::Treatment,
    },
};

/// Most of what tasks asked for that is shown, and of the members of each where all are.
pub(super) const SHOWN_MAX: usize = 100;

/// A target that is looked at, out of the cache's lock.
#[derive(Debug)]
struct Looked {
    namespace: Label,
    selector: pb::Selector,
    reach: Reach,
    used: Option<Instant>,
}

impl Looked {
    fn at(target: &Target) -> Self {
        Self {
            namespace: target.namespace.clone(),
            selector: target.selector.clone(),
            reach: target.reach.clone(),
            used: Some(target.used),
        }
    }

    fn sight(self, members: Vec<InstanceId>, ejected: usize, now: Instant) -> TargetSight {
        let set = &self.reach.set;
        TargetSight {
            namespace: self.namespace,
            selector: self.selector,
            members_left_out: set.members().len() - members.len(),
            members,
            ejected,
            retries_left: self.reach.budget.lock().left(&set.settings().retry, now),
            settings: set.settings().clone(),
            idle: self.used.map(|used| now.saturating_duration_since(used)),
        }
    }
}

impl Balancer {
    /// All of it, for those who show it: at most so many instances, and the latest of what tasks
    /// asked for.
    pub(in crate::sidecar) fn sights(&self, most: usize, now: Instant) -> Sights {
        self.follow(now);
        let catalog = self.mirror.catalog();
        let (endpoints, endpoints_left_out) = self.worst(catalog.entries_after(None), most, now);
        let cache = self.cache.lock();
        let readable = cache.targets.values();
        let mut latest: Vec<_> = readable.filter(|one| one.query.is_some()).collect();
        latest.sort_unstable_by_key(|one| std::cmp::Reverse(one.used));
        let targets_left_out = latest.len().saturating_sub(SHOWN_MAX);
        let latest = latest.into_iter().take(SHOWN_MAX);
        let latest: Vec<_> = latest.map(Looked::at).collect();
        drop(cache);
        let sight = |one: Looked| {
            let members = one.reach.set.members().iter().take(SHOWN_MAX);
            let members = members.map(|member| member.value.candidate.instance.clone());
            let (members, ejected) = (members.collect(), one.reach.set.would_eject(now));
            one.sight(members, ejected, now)
        };
        Sights {
            endpoints,
            endpoints_left_out,
            targets: latest.into_iter().map(sight).collect(),
            targets_left_out,
        }
    }

    /// Who would get a task, at most so many of them; `None`: what is asked for cannot be read.
    /// Nothing is kept of the question.
    pub(in crate::sidecar) fn explained(
        &self,
        namespace: &Label,
        selector: &pb::Selector,
        most: usize,
        now: Instant,
    ) -> Option<Sights> {
        self.follow(now);
        let (number, rules) = (*self.number.borrow(), self.mirror.rules());
        let target = self.target(namespace, selector, (number, rules), now);
        target.query.as_ref()?;
        let mut looked = Looked {
            used: None,
            ..Looked::at(&target)
        };
        let cache = self.cache.lock();
        let known = cache.targets.get(&self.key(namespace, selector));
        let known = known.filter(|known| known.is_for(namespace, selector));
        if let Some(known) = known {
            looked.used = Some(known.used);
            looked.reach.budget = known.reach.budget.clone();
        }
        drop(cache);
        let (endpoints, endpoints_left_out) = self.worst(target.entries.iter(), most, now);
        let members = endpoints.iter().map(|one| one.instance.clone()).collect();
        let ejected = looked.reach.set.would_eject(now);
        Some(Sights {
            endpoints,
            endpoints_left_out,
            targets: vec![looked.sight(members, ejected, now)],
            targets_left_out: 0,
        })
    }

    /// Instances that are left out, once for each thing that tasks asked for of late.
    pub(in crate::sidecar) fn ejected_of_late(&self, now: Instant) -> usize {
        let cache = self.cache.lock();
        let late = cache.targets.values();
        let late = late.filter(|one| now.saturating_duration_since(one.used) <= OF_LATE);
        let late: Vec<_> = late.map(|one| one.reach.set.clone()).collect();
        drop(cache);
        late.iter().map(|set| set.would_eject(now)).sum()
    }

    /// At most so many, those in trouble first, and how many more there are.
    fn worst<'a>(
        &self,
        entries: impl Iterator<Item = &'a Arc<Entry>>,
        most: usize,
        now: Instant,
    ) -> (Vec<EndpointSight>, usize) {
        let mut agents: HashMap<&AgentName, Treatment> = HashMap::new();
        let mut seen = |entry: &'a Arc<Entry>| {
            let known = agents.entry(&entry.agent);
            let treated = known.or_insert_with(|| self.of_agent(&entry.agent));
            self.endpoints.of(entry, now).sight(&treated.settings, now)
        };
        let ranked = entries.map(|entry| (trouble(&seen(entry)), entry));
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_by_key(|(trouble, _)| *trouble);
        let left_out = ranked.len().saturating_sub(most);
        let shown = ranked.into_iter().take(most);
        let shown = shown.map(|(_, entry)| EndpointSight {
            instance: entry.instance_id.clone(),
            agent: entry.agent.clone(),
            zone: entry.instance.zone.clone(),
            serves: entry.serves(),
            sight: seen(entry),
        });
        (shown.collect(), left_out)
    }
}
