//! Who fits what tasks ask for, by the catalog as it is now, and how traffic to them is treated.
//!
//! One target for each thing that tasks ask for: its set of instances, made anew when the catalog has
//! changed, and its budget of second tries. Bounded: the one that was asked for the longest ago goes.

mod looks;

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::{
    counted::Picks,
    endpoints::Endpoints,
    told,
    treatment::{Treatment, settings_for},
};
use crate::{
    domain::{AgentName, Label, SkillName},
    pb,
    registry::client::{Entry, Mirror, Query, Rules},
    resilience::{Budget, Endpoint, Kind, Member, Permit, Set},
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
    hasher: RandomState,
    cache: Mutex<Cache>,
    picks: Picks,
}

#[derive(Debug)]
struct Cache {
    /// Where the endpoints stand; `None`: nowhere.
    followed: Option<u64>,
    /// They have seen the whole of the registry's catalog.
    complete: bool,
    /// Rings when the rules may be others than these.
    changes: watch::Receiver<u64>,
    /// As they were when they were last looked at; `None`: never.
    rules: Option<Arc<Rules>>,
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
    /// Whom the set is made of, and by which rules.
    entries: Vec<Arc<Entry>>,
    rules: Arc<Rules>,
    reach: Reach,
    used: Instant,
}

/// Those who fit, as a task finds them.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    pub(super) set: Arc<Set<Arc<Choice>>>,
    pub(super) budget: Arc<Mutex<Budget>>,
}

/// One who fits.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) candidate: Arc<Candidate>,
    pub(super) endpoint: Arc<Endpoint>,
    /// How calls to this very agent are treated.
    pub(super) treatment: Arc<Treatment>,
}

impl Target {
    fn is_for(&self, namespace: &Label, selector: &pb::Selector) -> bool {
        let pb::Selector {
            skill,
            agent,
            tags,
            labels,
            version,
            agent_version,
        } = &self.selector;
        same(agent, &selector.agent)
            && same(skill, &selector.skill)
            && same(version, &selector.version)
            && same(agent_version, &selector.agent_version)
            && *tags == selector.tags
            && *labels == selector.labels
            && self.namespace == *namespace
    }
}

/// Whether texts are the same. Most of these are empty, and an empty one points nowhere: where the C
/// library compares by masked vectors, being asked to look there, for no octets, takes the processor
/// a tenth of a microsecond.
fn same(one: &str, other: &str) -> bool {
    one.len() == other.len() && (one.is_empty() || one == other)
}

impl Balancer {
    pub(super) fn new(mirror: Mirror, endpoints: Endpoints, zone: String) -> Self {
        let cache = Cache {
            followed: None,
            complete: false,
            changes: mirror.changes(),
            rules: None,
            targets: HashMap::new(),
        };
        Self {
            number: mirror.changes(),
            complete: mirror.fresh(),
            mirror,
            endpoints,
            zone,
            hasher: RandomState::new(),
            cache: Mutex::new(cache),
            picks: Picks::default(),
        }
    }

    pub(super) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    pub(super) fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    pub(super) fn picks(&self) -> &Picks {
        &self.picks
    }

    /// Brings the endpoints in line with the catalog, and takes new rules in; sets follow when they
    /// are asked for.
    pub(super) fn follow(&self, now: Instant) {
        let number = *self.number.borrow();
        let mut cache = self.cache.lock();
        self.rules(&mut cache);
        self.endpoints_follow(&mut cache, number, now);
        drop(cache);
        let (catalog, risen) = (self.mirror.catalog(), self.endpoints.take_risen());
        let whose = |instance| (instance, catalog.entry(instance).map(|entry| &entry.agent));
        let risen: Vec<_> = risen.iter().map(whose).collect();
        told::closed(
            &risen,
            "its probe is at work, and nothing bad was heard of it",
        );
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
        let rules = self.rules(&mut cache);
        let same = cache.targets.get_mut(&key);
        let same = same.filter(|target| target.is_for(namespace, selector));
        if let Some(target) = same {
            if target.number != number || !Arc::ptr_eq(&target.rules, &rules) {
                target.number = number;
                self.renew(target, rules, now);
            }
            target.used = now;
            return target.query.is_some().then(|| target.reach.clone());
        }
        let target = self.target(namespace, selector, (number, rules), now);
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
        Permit::outside(endpoint, self.of_agent(&entry.agent).settings, now)
    }

    /// How calls to an agent are treated, whatever the skill.
    fn of_agent(&self, agent: &AgentName) -> Treatment {
        settings_for(&self.mirror.rules(), &agent.namespace, None, Some(agent))
    }

    /// As they are now, also where nobody has followed yet. Asks the mirror only when they may have
    /// changed: it may be busy with its catalog.
    fn rules(&self, cache: &mut Cache) -> Arc<Rules> {
        if cache.changes.has_changed().unwrap_or(false) {
            cache.changes.mark_unchanged();
            cache.rules = None;
        }
        let rules = cache.rules.get_or_insert_with(|| self.mirror.rules());
        rules.clone()
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
        (number, rules): (u64, Arc<Rules>),
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
            rules: Arc::default(),
            reach: Reach {
                set: Arc::new(set),
                budget: Arc::default(),
            },
            used: now,
        };
        self.renew(&mut target, rules, now);
        target
    }

    /// Makes the set anew, unless the catalog has changed elsewhere only.
    fn renew(&self, target: &mut Target, rules: Arc<Rules>, now: Instant) {
        let Some(query) = &target.query else { return };
        let skill = query.skill();
        if skill.is_none() && query.agent().is_none() {
            return;
        }
        let entries = self.mirror.catalog().find(query);
        let pairs = entries.iter().zip(&target.entries);
        let same = entries.len() == target.entries.len()
            && pairs
                .into_iter()
                .all(|(one, other)| Arc::ptr_eq(one, other))
            && Arc::ptr_eq(&rules, &target.rules);
        if same {
            return;
        }
        let mut agents: HashMap<&AgentName, Arc<Treatment>> = HashMap::new();
        for entry in &entries {
            let treated = || settings_for(&rules, &target.namespace, skill, Some(&entry.agent));
            let known = agents.entry(&entry.agent);
            known.or_insert_with(|| Arc::new(treated()));
        }
        // Where only one agent is left, its rules are those of the whole set.
        let only = match agents.len() {
            1 => entries.first().map(|entry| &entry.agent),
            _ => query.agent(),
        };
        let whole = settings_for(&rules, &target.namespace, skill, only);
        let member = |entry: &Arc<Entry>| {
            let treatment = agents.get(&entry.agent)?.clone();
            self.member(entry, skill, (whole.group(skill, entry), treatment), now)
        };
        let members = entries.iter().filter_map(member).collect();
        let epoch = self.endpoints.epoch().clone();
        let set = Set::new(members, &whole.weights, whole.settings, epoch);
        let kind = skill.map_or("", |skill| skill.as_str());
        let set = set.of_kind(Kind::new(named(kind)));
        target.reach.set = Arc::new(set);
        target.entries = entries;
        target.rules = rules;
    }

    /// With a skill only who offers it.
    fn member(
        &self,
        entry: &Arc<Entry>,
        skill: Option<&SkillName>,
        (group, treatment): (usize, Arc<Treatment>),
        now: Instant,
    ) -> Option<Member<Arc<Choice>>> {
        let (idempotent, contract) = match skill {
            None => Default::default(),
            Some(skill) => {
                let mut offers = entry.offers.iter().zip(&entry.card.skills);
                let (offer, has) = offers.find(|(offer, _)| offer.name == *skill)?;
                let contract = Contract {
                    version: offer.version.clone(),
                    schemas: offer.schemas.clone(),
                };
                (has.idempotent, contract)
            }
        };
        let candidate = Candidate {
            wants_descendants: entry.instance.wants_descendants,
            instance: entry.instance_id.clone(),
            agent: entry.agent.clone(),
            idempotent,
            boot_id: entry.instance.boot_id.clone(),
            contract,
        };
        let endpoint = self.endpoints.of(entry, now);
        Some(Member {
            endpoint: endpoint.clone(),
            key: named(entry.instance_id.as_str()),
            local: !self.zone.is_empty() && entry.instance.zone == self.zone,
            group,
            value: Arc::new(Choice {
                candidate: Arc::new(candidate),
                endpoint,
                treatment,
            }),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{looks::SHOWN_MAX, *};
    use crate::{
        registry::{
            client::{MirrorConfig, source::fake::Fake},
            fixture::{entry_of, rule},
            live::Change,
        },
        resilience::{Ask, Outcome, Phase, Pick},
        runtime::Nursery,
        sidecar::{counted::OF_LATE, sights::Sights},
    };

    fn put(instance: &str, agent: &str, skills: &str, boot_id: &str) -> Change {
        let skill = |name: &str| pb::Skill {
            name: name.into(),
            version: "1.2.3".into(),
            ..Default::default()
        };
        let skills = skills.split(' ').map(skill).collect();
        let card = pb::AgentCard {
            skills,
            ..Default::default()
        };
        let about = pb::Instance {
            endpoints: vec!["10.0.0.7:7643".into()],
            health: pb::Health::Serving.into(),
            zone: "z1".into(),
            boot_id: boot_id.into(),
            ..Default::default()
        };
        Change::Put(Arc::new(entry_of(instance, agent, card, about)))
    }

    struct Bench {
        fake: Arc<Fake>,
        balancer: Balancer,
        _nursery: Nursery,
    }

    impl Bench {
        /// Over a mirror that has these, and all of the registry.
        async fn new(changes: Vec<Change>) -> Self {
            let (fake, nursery) = (Fake::new(), Nursery::here());
            let count = changes.len();
            fake.live().apply(changes);
            let mirror = Mirror::start(&nursery, fake.source(), MirrorConfig::default());
            mirror.fresh().wait_for(|fresh| *fresh).await.unwrap();
            let balancer = Balancer::new(mirror, Endpoints::default(), "z1".into());
            let bench = Self {
                fake,
                balancer,
                _nursery: nursery,
            };
            bench.until(|catalog| catalog.len() == count).await;
            bench.balancer.follow(Instant::now());
            bench
        }

        async fn until(&self, holds: impl Fn(&crate::registry::client::Catalog) -> bool) {
            let mut changes = self.balancer.mirror().changes();
            while !holds(&self.balancer.mirror().catalog()) {
                changes.changed().await.unwrap();
            }
        }

        async fn apply(&self, change: Change) {
            self.fake.live().apply([change.clone()]);
            let (entry, gone) = match &change {
                Change::Put(entry) => (entry, false),
                Change::Gone(entry) => (entry, true),
            };
            self.until(|catalog| match catalog.entry(&entry.instance_id) {
                Some(has) => !gone && has.instance.boot_id == entry.instance.boot_id,
                None => gone,
            })
            .await;
        }

        fn reach(&self, skill: &str) -> Reach {
            let selector = pb::Selector {
                skill: skill.into(),
                ..Default::default()
            };
            let namespace = "default".parse().unwrap();
            let reach = self.balancer.reach(&namespace, &selector, Instant::now());
            reach.unwrap()
        }

        fn members(&self, skill: &str) -> Vec<String> {
            let reach = self.reach(skill);
            let members = reach.set.members().iter();
            members
                .map(|member| member.value.candidate.instance.to_string())
                .collect()
        }

        fn break_down(&self, skill: &str) {
            let reach = self.reach(skill);
            let ask = Ask {
                sticky: None,
                allows: &|_| true,
            };
            while let Pick::Taken(_, permit) =
                reach.set.pick(&ask, Instant::now(), &mut rand::rng())
            {
                permit.finish(Outcome::Failure, Instant::now(), 0.0);
            }
        }

        fn phases(&self) -> Vec<(String, Phase)> {
            let sights = self
                .balancer
                .sights(9, Instant::now())
                .endpoints
                .into_iter();
            sights
                .map(|sight| (sight.instance.to_string(), sight.sight.phase))
                .collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_is_who_fits_and_is_made_anew_only_when_they_change() {
        let bench = Bench::new(vec![
            put("a", "default/x", "s", "1"),
            put("b", "default/y", "t", "1"),
        ])
        .await;
        assert_eq!(bench.members("s"), ["a"]);
        assert_eq!(bench.members("nothing"), [""; 0]);
        let before = bench.reach("s");
        assert!(before.set.members()[0].local, "it is in the own zone");
        let contract = &before.set.members()[0].value.candidate.contract;
        assert_eq!(contract.version, "1.2.3".parse().ok());
        assert!(contract.schemas.is_empty(), "it has none");
        bench.apply(put("c", "default/z", "t", "1")).await;
        assert!(
            Arc::ptr_eq(&before.set, &bench.reach("s").set),
            "others came"
        );
        assert_eq!(bench.members("t"), ["b", "c"]);
        bench.apply(put("d", "default/z", "s", "1")).await;
        assert_eq!(bench.members("s"), ["a", "d"]);
        let after = bench.reach("s");
        assert!(Arc::ptr_eq(
            &before.set.members()[0].endpoint,
            &after.set.members()[0].endpoint
        ));
        assert!(Arc::ptr_eq(&before.budget, &after.budget));
        let nowhere = pb::Selector {
            skill: "s".into(),
            version: "not one".into(),
            ..Default::default()
        };
        let namespace = "default".parse().unwrap();
        assert!(
            bench
                .balancer
                .reach(&namespace, &nowhere, Instant::now())
                .is_none()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_an_instance_goes_with_its_process_and_with_itself() {
        let bench = Bench::new(vec![put("a", "default/x", "s", "1")]).await;
        bench.break_down("s");
        assert_eq!(bench.phases(), [("a".to_owned(), Phase::Open)]);
        let sights = bench.balancer.sights(9, Instant::now());
        let target = &sights.targets[0];
        assert_eq!((target.members.len(), target.ejected), (1, 1));
        assert_eq!(target.selector.skill, "s");
        assert!(target.retries_left >= 30.0 && target.idle == Some(Duration::ZERO));
        assert!(target.settings.breaker.enabled);
        let seen = &sights.endpoints[0];
        assert_eq!(
            (seen.agent.to_string().as_str(), seen.zone.as_str()),
            ("default/x", "z1")
        );
        assert!(seen.serves && seen.sight.trips == 1);
        assert_eq!(target.namespace.as_str(), "default");

        bench.apply(put("a", "default/x", "s", "2")).await;
        assert_eq!(
            bench.phases(),
            [("a".to_owned(), Phase::Closed)],
            "another process"
        );
        bench.break_down("s");
        let old = bench.reach("s").set.members()[0].endpoint.clone();
        let entry = bench
            .balancer
            .mirror()
            .catalog()
            .entry(&"a".parse().unwrap())
            .cloned();
        bench.apply(Change::Gone(entry.unwrap())).await;
        assert!(bench.phases().is_empty() && bench.members("s").is_empty());
        bench.apply(put("a", "default/x", "s", "2")).await;
        assert_eq!(
            bench.phases(),
            [("a".to_owned(), Phase::Closed)],
            "it was forgotten"
        );
        assert!(!Arc::ptr_eq(
            &old,
            &bench.reach("s").set.members()[0].endpoint
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn who_serves_a_slow_skill_is_not_slow_for_a_quick_one() {
        let both = |instance| put(instance, "default/x", "slow quick", "1");
        let bench = Bench::new(vec![both("a"), both("b")]).await;
        let call = async |skill: &str, takes: u64, only: &str| {
            let of = |to: &Choice| to.candidate.instance.to_string();
            let reach = bench.reach(skill);
            let ask = Ask {
                sticky: None,
                allows: &|to: &Arc<Choice>| of(to).starts_with(only),
            };
            let Pick::Taken(to, mut permit) =
                reach.set.pick(&ask, Instant::now(), &mut rand::rng())
            else {
                panic!("both are well");
            };
            tokio::time::advance(Duration::from_millis(takes)).await;
            permit.first_message(Instant::now());
            permit.finish(Outcome::Success, Instant::now(), 0.0);
            of(to)
        };
        let mut had = 0;
        for _ in 0..20 {
            call("slow", 2000, "a").await;
            for _ in 0..10 {
                had += usize::from(call("quick", 10, "").await == "a");
            }
        }
        assert!((50..150).contains(&had), "half of 200: {had}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_later_starts_slowly_and_who_was_there_does_not() {
        let bench = Bench::new(vec![put("a", "default/x", "s", "1")]).await;
        tokio::time::advance(Duration::from_secs(60)).await;
        bench.apply(put("b", "default/x", "s", "1")).await;
        let shares = |bench: &Bench| -> Vec<f64> {
            let sights = bench.balancer.sights(9, Instant::now()).endpoints;
            sights.iter().map(|sight| sight.sight.share).collect()
        };
        assert_eq!(shares(&bench), [1.0, 0.1]);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(shares(&bench), [1.0, 1.0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_callers_think_up_is_not_kept_for_ever() {
        let bench = Bench::new(vec![put("a", "default/x", "s", "1")]).await;
        let namespace = "default".parse().unwrap();
        for number in 0..2 * TARGETS_MAX {
            let selector = pb::Selector {
                skill: "s".into(),
                tags: vec![number.to_string()],
                ..Default::default()
            };
            tokio::time::advance(Duration::from_millis(1)).await;
            bench.balancer.reach(&namespace, &selector, Instant::now());
            if number % 100 == 0 {
                bench.reach("s");
            }
        }
        let sights = bench.balancer.sights(9, Instant::now());
        let targets = sights.targets;
        assert_eq!(targets.len(), SHOWN_MAX);
        assert_eq!(targets.len() + sights.targets_left_out, TARGETS_MAX);
        assert!(
            targets.iter().any(|target| target.selector.tags.is_empty()),
            "one in use stays"
        );
        let idle: Vec<_> = targets.iter().map(|target| target.idle).collect();
        assert!(idle.is_sorted(), "the latest first");
    }

    #[tokio::test(start_paused = true)]
    async fn looking_at_what_tasks_would_get_keeps_nothing_and_changes_nothing() {
        let bench = Bench::new(vec![
            put("a", "default/x", "s", "1"),
            put("b", "default/x", "s", "1"),
            put("c", "default/y", "other", "1"),
        ])
        .await;
        let namespace = "default".parse().unwrap();
        let explained = |skill: &str, most| {
            let selector = pb::Selector {
                skill: skill.into(),
                ..Default::default()
            };
            bench
                .balancer
                .explained(&namespace, &selector, most, Instant::now())
        };
        let seen = explained("s", 1).unwrap();
        let target = &seen.targets[0];
        assert_eq!((seen.endpoints.len(), seen.endpoints_left_out), (1, 1));
        assert_eq!((target.members.len(), target.members_left_out), (1, 1));
        assert_eq!((target.idle, target.ejected), (None, 0));
        assert!(explained("no skill!", 1).is_none());
        let nobody = explained("nobody.has", 9).unwrap();
        assert!(nobody.endpoints.is_empty() && nobody.targets[0].members.is_empty());
        let all = bench.balancer.sights(9, Instant::now());
        assert_eq!((all.targets.len(), all.endpoints.len()), (0, 3));

        // One that is in use is shown as it stands, and not as if it were used.
        bench.break_down("s");
        let left = |sights: &Sights| -> Vec<_> {
            let all = sights.endpoints.iter();
            all.map(|one| one.sight.left).collect()
        };
        let before = left(&bench.balancer.sights(9, Instant::now()));
        tokio::time::advance(Duration::from_millis(10)).await;
        let seen = explained("s", 9).unwrap();
        assert_eq!(seen.targets[0].idle, Some(Duration::from_millis(10)));
        assert_eq!(seen.targets[0].ejected, 2);
        let ids = seen.endpoints.iter().map(|one| one.instance.as_str());
        assert_eq!(ids.collect::<Vec<_>>(), ["a", "b"]);
        let after = left(&bench.balancer.sights(9, Instant::now()));
        let passed = |left: &Option<Duration>| left.map(|left| left + Duration::from_millis(10));
        assert_eq!(after.iter().map(passed).collect::<Vec<_>>(), before);
        assert_eq!(bench.balancer.ejected_of_late(Instant::now()), 2);
        tokio::time::advance(2 * OF_LATE).await;
        assert_eq!(bench.balancer.ejected_of_late(Instant::now()), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_left_out_is_seen_before_any_task_asks() {
        let bench = Bench::new(vec![put("a", "default/x", "s", "1")]).await;
        bench.reach("s");
        let (now, catalog) = (Instant::now(), bench.balancer.mirror().catalog());
        let entry = catalog.entry(&"a".parse().unwrap()).unwrap();
        for _ in 0..5 {
            let permit = bench.balancer.outside(entry, now);
            permit.finish(Outcome::Failure, now, 0.0);
        }
        assert_eq!(bench.balancer.ejected_of_late(now), 1);
        assert_eq!(bench.balancer.sights(9, now).targets[0].ejected, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn rules_hold_as_soon_as_they_are_known() {
        let bench = Bench::new(vec![put("a", "default/x", "s", "1")]).await;
        let before = bench.reach("s");
        let rule = rule("default", "slow");
        bench.fake.live().set_rules(Rules::new([rule], 1));
        bench
            .until(|_| bench.balancer.mirror().rules().len() == 1)
            .await;
        // Nobody has followed.
        let after = bench.reach("s");
        assert!(!Arc::ptr_eq(&before.set, &after.set));
        assert!(Arc::ptr_eq(&after.set, &bench.reach("s").set));
    }

    #[tokio::test(start_paused = true)]
    async fn a_breaker_that_closes_by_itself_is_told_of_once() {
        let bench = Bench::new(vec![put("a", "default/x", "s", "1")]).await;
        let follow = || told::tests::lines(|| bench.balancer.follow(Instant::now()));
        let counts = || bench.balancer.endpoints().epoch().counts();
        bench.break_down("s");
        assert_eq!(
            counts().opened,
            [("consecutive", 1), ("rate", 0), ("probe", 0)]
        );
        tokio::time::advance(Duration::from_secs(3)).await;
        let (reach, mut rung) = (bench.reach("s"), bench.balancer.endpoints().changes());
        let ask = Ask {
            sticky: None,
            allows: &|_| true,
        };
        let picked = reach.set.pick(&ask, Instant::now(), &mut rand::rng());
        let Pick::Taken(_, mut probe) = picked else {
            panic!("{picked:?}")
        };
        assert!(probe.is_probe());
        probe.taken();
        tokio::time::advance(Duration::from_secs(6)).await;
        rung.mark_unchanged();
        assert_eq!(follow(), 0, "nobody has looked");
        let next = reach.set.pick(&ask, Instant::now(), &mut rand::rng());
        assert!(matches!(next, Pick::Taken(..)), "{next:?}");
        assert!(rung.has_changed().unwrap(), "for who follows");
        assert_eq!((follow(), follow()), (1, 0));
        drop((next, probe));

        // Another process: it is told of as soon as the catalog says so.
        bench.break_down("s");
        bench.apply(put("a", "default/x", "s", "2")).await;
        assert_eq!((follow(), follow()), (1, 0));
        bench.apply(put("a", "default/x", "s", "3")).await;
        assert_eq!(follow(), 0, "it was not open");
        let closed = [("probe", 0), ("time", 1), ("calls", 0), ("restart", 1)];
        assert_eq!(counts().closed, closed);
        assert_eq!(counts().opened[0].1, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn those_in_trouble_are_shown_first() {
        let all = ["a", "b", "c", "d"];
        let changes = all.map(|one| put(one, &format!("default/{one}"), one, "1"));
        let bench = Bench::new(changes.to_vec()).await;
        bench.break_down("c");
        let sights = bench.balancer.sights(2, Instant::now());
        let ids = sights.endpoints.iter().map(|one| one.instance.as_str());
        assert_eq!(ids.collect::<Vec<_>>(), ["c", "a"]);
        assert_eq!(sights.endpoints_left_out, 2);
    }
}
