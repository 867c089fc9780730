//! Who is here and what they can do: entries by instance, by agent and by skill.
//!
//! Pure and shared by the registry, the sidecar's mirror and every read. A catalog is a value: a
//! clone shares its entries and the index of every skill that does not change. It refuses nothing;
//! what enters was checked at the door (`card.rs`).

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use parking_lot::Mutex;
use semver::Version;

use crate::domain::AgentName;
use crate::domain::Fault;
use crate::domain::InstanceId;
use crate::domain::SkillName;
use crate::domain::SpiffeId;
use crate::pb;
use crate::registry::digest::schemas_of;
use crate::registry::query::Query;

/// Where a catalog stands: numbers of one generation are comparable, others are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// Random for each opening of a store: a store that restarted has forgotten its changes.
    pub generation: Arc<str>,
    /// One more with every change; 0 is the empty catalog.
    pub number: u64,
}

/// A skill of an entry's card, as queries need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The routing key.
    pub name: SkillName,
    /// Version of its contract; `None` where the card names none, which fits no requirement.
    pub version: Option<Version>,
    /// SHA-256 over both of its schemas; empty where it has neither.
    pub schemas: Vec<u8>,
}

/// One instance with its card.
#[derive(Debug)]
pub struct Entry {
    /// As registered; its `load` is empty, see [`Entry::load`].
    pub instance: pb::Instance,
    /// Whose it is.
    pub id: SpiffeId,
    /// Which copy it is.
    pub instance_id: InstanceId,
    /// `namespace/name` of the member.
    pub agent: AgentName,
    /// Shared by all instances that run the same card.
    pub card: Arc<pb::AgentCard>,
    /// Version of the agent; `None` where the card names none.
    pub version: Option<Version>,
    /// One for each skill of the card, in its order.
    pub offers: Vec<Offer>,
    /// Changes with every heartbeat, which must not make a revision each.
    load: Mutex<Option<pb::Load>>,
}

impl Entry {
    /// Reads the parts of an instance and its card that queries compare.
    ///
    /// # Errors
    /// When an id, a name or a version cannot be read, or the member has no instances.
    pub fn new(mut instance: pb::Instance, card: Arc<pb::AgentCard>) -> Result<Self, Fault> {
        let id: SpiffeId = instance
            .spiffe_id
            .parse()
            .map_err(|wrong| Fault::field("instance.spiffe_id", format!("{wrong}")))?;
        let instance_id = instance
            .id
            .parse()
            .map_err(|wrong| Fault::field("instance.id", format!("{wrong}")))?;
        let agent = id.member.agent_name().cloned().ok_or_else(|| {
            Fault::field(
                "instance.spiffe_id",
                "operators and registries have no instances",
            )
        })?;
        let version = version_of(&card.version, || "card.version".to_owned())?;
        let mut offers = Vec::with_capacity(card.skills.len());
        for (place, skill) in card.skills.iter().enumerate() {
            let path = |part: &str| format!("card.skills[{place}].{part}");
            offers.push(Offer {
                name: skill
                    .name
                    .parse()
                    .map_err(|wrong| Fault::field(path("name"), format!("{wrong}")))?,
                version: version_of(&skill.version, || path("version"))?,
                schemas: schemas_of(skill).to_vec(),
            });
        }
        let load = Mutex::new(instance.load.take());
        Ok(Self {
            instance,
            id,
            instance_id,
            agent,
            card,
            version,
            offers,
            load,
        })
    }

    /// Whether it takes new work.
    pub fn serves(&self) -> bool {
        self.instance.health() == pb::Health::Serving
    }

    /// Load as last reported; between revisions only the registry itself has the newest.
    pub fn load(&self) -> Option<pb::Load> {
        *self.load.lock()
    }

    /// Notes a newer load. No revision is made of it.
    pub fn report(&self, load: Option<pb::Load>) {
        *self.load.lock() = load;
    }

    /// The instance as it is told to others, with its load.
    pub fn published(&self) -> pb::Instance {
        pb::Instance {
            load: self.load(),
            ..self.instance.clone()
        }
    }

    /// The same entry with another health and load.
    #[must_use]
    pub fn with_health(&self, health: pb::Health, load: Option<pb::Load>) -> Self {
        let mut instance = self.instance.clone();
        instance.set_health(health);
        self.rebuilt(instance, Arc::clone(&self.card), load)
    }

    /// The same entry over an equal card that others hold already.
    #[must_use]
    fn sharing(&self, card: &Arc<pb::AgentCard>) -> Self {
        self.rebuilt(self.instance.clone(), Arc::clone(card), self.load())
    }

    /// Whether the two differ in nothing but their load.
    pub fn same_but_load(&self, other: &Self) -> bool {
        self.instance == other.instance && self.card.digest == other.card.digest
    }

    fn rebuilt(
        &self,
        instance: pb::Instance,
        card: Arc<pb::AgentCard>,
        load: Option<pb::Load>,
    ) -> Self {
        Self {
            instance,
            id: self.id.clone(),
            instance_id: self.instance_id.clone(),
            agent: self.agent.clone(),
            card,
            version: self.version.clone(),
            offers: self.offers.clone(),
            load: Mutex::new(load),
        }
    }
}

type Group = Arc<BTreeMap<InstanceId, Arc<Entry>>>;

/// All entries at one revision.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Where it stands.
    pub revision: Revision,
    entries: BTreeMap<InstanceId, Arc<Entry>>,
    by_agent: BTreeMap<AgentName, Group>,
    by_skill: HashMap<SkillName, Group>,
}

impl Catalog {
    /// How many instances there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is here.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of an instance.
    pub fn entry(&self, instance: &InstanceId) -> Option<&Arc<Entry>> {
        self.entries.get(instance)
    }

    /// Every entry after `after`, in the order of instance ids; all of them from `None`.
    pub fn entries_after(&self, after: Option<&InstanceId>) -> impl Iterator<Item = &Arc<Entry>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.range((from, Bound::Unbounded)).map(|(_, e)| e)
    }

    /// The instances of an agent, in the order of their ids.
    pub fn of_agent(&self, agent: &AgentName) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_agent
            .get(agent)
            .into_iter()
            .flat_map(|g| g.values())
    }

    /// The agents from `from` on, in the order of namespace and name, each with its instances.
    pub fn agents_from<'a>(
        &'a self,
        from: Option<&AgentName>,
    ) -> impl Iterator<Item = (&'a AgentName, impl Iterator<Item = &'a Arc<Entry>>)> {
        let from = from.map_or(Bound::Unbounded, Bound::Included);
        self.by_agent
            .range((from, Bound::Unbounded))
            .map(|(agent, group)| (agent, group.values()))
    }

    /// The instances that fit and take new work, in the order of their ids.
    pub fn find(&self, query: &Query) -> Vec<Arc<Entry>> {
        self.matching(query)
            .filter(|entry| entry.serves())
            .cloned()
            .collect()
    }

    /// The instances that fit, whether they take work or not, in the order of their ids.
    pub fn matching<'a>(&'a self, query: &'a Query) -> impl Iterator<Item = &'a Arc<Entry>> {
        let among: Box<dyn Iterator<Item = &'a Arc<Entry>>> = match (query.agent(), query.skill()) {
            (Some(agent), _) => Box::new(self.of_agent(agent)),
            (None, Some(skill)) => Box::new(
                self.by_skill
                    .get(skill)
                    .into_iter()
                    .flat_map(|g| g.values()),
            ),
            (None, None) => Box::new(self.entries.values()),
        };
        among.filter(|entry| query.fits(entry))
    }

    /// Puts an entry in, over an older one of the same instance.
    pub fn put(&mut self, entry: Arc<Entry>) {
        self.remove(&entry.instance_id);
        let twin = self
            .of_agent(&entry.agent)
            .find(|other| other.card.digest == entry.card.digest)
            .filter(|other| !Arc::ptr_eq(&other.card, &entry.card));
        let entry = match twin {
            Some(other) => Arc::new(entry.sharing(&other.card)),
            None => entry,
        };
        insert(
            self.by_agent.entry(entry.agent.clone()).or_default(),
            &entry,
        );
        for offer in &entry.offers {
            insert(self.by_skill.entry(offer.name.clone()).or_default(), &entry);
        }
        self.entries.insert(entry.instance_id.clone(), entry);
    }

    /// Takes an instance out; `None` when it was not in.
    pub fn remove(&mut self, instance: &InstanceId) -> Option<Arc<Entry>> {
        let entry = self.entries.remove(instance)?;
        if let Some(group) = self.by_agent.get_mut(&entry.agent)
            && leave(group, instance)
        {
            self.by_agent.remove(&entry.agent);
        }
        for offer in &entry.offers {
            if let Some(group) = self.by_skill.get_mut(&offer.name)
                && leave(group, instance)
            {
                self.by_skill.remove(&offer.name);
            }
        }
        Some(entry)
    }
}

fn insert(group: &mut Group, entry: &Arc<Entry>) {
    Arc::make_mut(group).insert(entry.instance_id.clone(), Arc::clone(entry));
}

/// Takes an instance out of a group; true when the group is empty then.
fn leave(group: &mut Group, instance: &InstanceId) -> bool {
    let members = Arc::make_mut(group);
    members.remove(instance);
    members.is_empty()
}

fn version_of(text: &str, path: impl Fn() -> String) -> Result<Option<Version>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text
        .parse()
        .map_err(|wrong| Fault::field(path(), format!("not a SemVer version: {wrong}")))?;
    Ok(Some(parsed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::fixture::entry;
    use crate::registry::fixture::query;

    fn ids(found: &[Arc<Entry>]) -> Vec<&str> {
        found.iter().map(|e| e.instance_id.as_str()).collect()
    }

    #[test]
    fn indexes_follow_every_change() {
        let mut catalog = Catalog::default();
        catalog.put(Arc::new(entry("a", "default/billing", &["pay", "check"])));
        catalog.put(Arc::new(entry("b", "default/ledger", &["pay"])));
        assert_eq!(ids(&catalog.find(&query("pay"))), ["a", "b"]);
        catalog.put(Arc::new(entry("a", "default/billing", &["check"])));
        assert_eq!(ids(&catalog.find(&query("pay"))), ["b"]);
        assert_eq!(ids(&catalog.find(&query("check"))), ["a"]);
        catalog.remove(&"b".parse().unwrap());
        catalog.remove(&"a".parse().unwrap());
        assert!(catalog.is_empty() && catalog.by_skill.is_empty() && catalog.by_agent.is_empty());
    }

    #[test]
    fn equal_cards_are_held_once() {
        let mut catalog = Catalog::default();
        catalog.put(Arc::new(entry("a", "default/billing", &["pay"])));
        catalog.put(Arc::new(entry("b", "default/billing", &["pay"])));
        let cards: Vec<_> = catalog.entries_after(None).map(|e| &e.card).collect();
        assert!(Arc::ptr_eq(cards[0], cards[1]));
    }

    #[test]
    fn work_goes_only_to_those_who_take_it() {
        let mut catalog = Catalog::default();
        let one = entry("a", "default/billing", &["pay"]);
        catalog.put(Arc::new(one.with_health(pb::Health::Draining, None)));
        assert!(catalog.find(&query("pay")).is_empty());
        assert_eq!(catalog.of_agent(&"billing".parse().unwrap()).count(), 1);
    }
}
