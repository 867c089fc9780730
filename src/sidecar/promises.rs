//! What the skills of others promise: their schemas, which the catalog that everybody watches leaves
//! out, fetched from the registry when a task is for them and kept by their hash.
//!
//! A home checks what it can. Where the registry is away and the schemas are not at hand, it takes the
//! task: the executor has them always, and checks again.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tonic::Request;

use super::balancer::Balancer;
use crate::{
    contract::{self, Known, hash_of},
    domain::Label,
    pb,
    registry::client::Source,
    runtime::{Nursery, Stop},
    task::Promise,
};

/// How long a submission waits for schemas that are not at hand.
const WITHIN: Duration = Duration::from_secs(1);
/// How long nobody asks again after the registry did not give them: submissions go on meanwhile.
const AGAIN: Duration = Duration::from_secs(5);
/// Different contracts that a submission is held against: agents that offer a skill of one name are
/// taken to offer the same thing.
const PROMISES_MAX: usize = 4;
/// Schemas that are wanted while nobody waits for them; more are wanted again with the next task.
const WANTED: usize = 16;
/// Pages of an agent's instances that are looked through for a card.
const PAGES_MAX: usize = 4;

/// Fetches and keeps schemas.
pub(super) struct Promises {
    known: Known,
    source: Arc<dyn Source>,
    balancer: Arc<Balancer>,
    wanted: mpsc::Sender<Promise>,
    /// Held while one is fetched: all who want it meanwhile find it then.
    fetching: tokio::sync::Mutex<()>,
    /// The registry is not asked before this.
    again: Mutex<Option<Instant>>,
}

impl Promises {
    /// Knows the own card's from the start; others come from `source`.
    pub(super) fn start(
        own: &pb::AgentCard,
        source: Arc<dyn Source>,
        balancer: Arc<Balancer>,
        nursery: &Nursery,
    ) -> Arc<Self> {
        let (wanted, asked) = mpsc::channel(WANTED);
        let promises = Arc::new(Self {
            known: Known::default(),
            source,
            balancer,
            wanted,
            fetching: tokio::sync::Mutex::new(()),
            again: Mutex::new(None),
        });
        for skill in &own.skills {
            promises.keep(skill);
        }
        let fetching = Arc::clone(&promises);
        nursery.start("schemas", |stop| fetching.serve(asked, stop));
        promises
    }

    /// Whose promises a task for this is held against; empty where anybody who fits promises nothing.
    pub(super) fn of(&self, namespace: &Label, selector: &pb::Selector) -> Vec<Promise> {
        let Some(reach) = self.balancer.reach(namespace, selector, Instant::now()) else {
            return Vec::new();
        };
        let mut found: Vec<Promise> = Vec::new();
        for member in reach.set.members() {
            let candidate = &member.value.candidate;
            let schemas = &candidate.contract.schemas;
            if schemas.is_empty() {
                return Vec::new();
            }
            let is_new = found.iter().all(|promise| promise.schemas != *schemas);
            if is_new && found.len() < PROMISES_MAX {
                found.push(Promise {
                    agent: candidate.agent.to_string(),
                    schemas: schemas.clone(),
                    input_modes: self.modes(&candidate.instance, &selector.skill),
                });
            }
        }
        found
    }

    /// The schemas of a promise, if they are at hand or the registry gives them soon.
    pub(super) async fn contract(&self, promise: &Promise) -> Option<Arc<contract::Contract>> {
        if let Some(known) = self.known.get(&promise.schemas) {
            return Some(known);
        }
        let fetching = timeout(WITHIN, Box::pin(self.fetch(promise))).await;
        fetching.ok().flatten()
    }

    /// The schemas of a promise, if they are at hand; where not, they may be the next time.
    pub(super) fn at_hand(&self, promise: &Promise) -> Option<Arc<contract::Contract>> {
        let known = self.known.get(&promise.schemas);
        if known.is_none() && self.wanted.try_send(promise.clone()).is_err() {
            tracing::debug!("more schemas are wanted than are fetched");
        }
        known
    }

    fn modes(&self, instance: &crate::domain::InstanceId, skill: &str) -> Vec<String> {
        let catalog = self.balancer.mirror().catalog();
        let card = catalog.entry(instance).map(|entry| &entry.card);
        let offered = card.and_then(|card| card.skills.iter().find(|one| one.name == skill));
        offered.map_or_else(Vec::new, |offered| offered.input_modes.clone())
    }

    async fn serve(self: Arc<Self>, mut asked: mpsc::Receiver<Promise>, stop: Stop) {
        while let Some(promise) = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            promise = asked.recv() => promise,
        } {
            drop(self.contract(&promise).await);
        }
    }

    async fn fetch(&self, promise: &Promise) -> Option<Arc<contract::Contract>> {
        let _one_at_a_time = self.fetching.lock().await;
        if let Some(known) = self.known.get(&promise.schemas) {
            return Some(known);
        }
        let early = self
            .again
            .lock()
            .is_some_and(|again| Instant::now() < again);
        if early {
            return None;
        }
        // Also where this is dropped because it takes too long.
        *self.again.lock() = Some(Instant::now() + AGAIN);
        self.look(promise).await;
        let found = self.known.get(&promise.schemas);
        if found.is_some() {
            *self.again.lock() = None;
        } else {
            tracing::warn!(
                agent = promise.agent,
                "the registry does not give an agent's schemas: its executor alone checks its tasks"
            );
        }
        found
    }

    /// Keeps all that the registry says of an agent's skills.
    async fn look(&self, promise: &Promise) {
        let mut ask = pb::GetAgentRequest {
            agent: promise.agent.clone(),
            page_size: 1000,
            page_token: String::new(),
        };
        for _ in 0..PAGES_MAX {
            let Ok(page) = self.source.agent(Request::new(ask.clone())).await else {
                return;
            };
            for skill in page.cards.iter().flat_map(|card| &card.skills) {
                self.keep(skill);
            }
            if page.next_page_token.is_empty() || self.known.get(&promise.schemas).is_some() {
                return;
            }
            ask.page_token = page.next_page_token;
        }
    }

    /// Compiles the schemas of a skill, unless they are known.
    fn keep(&self, skill: &pb::Skill) {
        let Ok(hash) = hash_of(&skill.input_schema, &skill.output_schema) else {
            return;
        };
        if contract::is_nothing(&hash) || self.known.get(&hash).is_some() {
            return;
        }
        match contract::Contract::of(skill) {
            Ok(made) => self.known.keep(&hash, Arc::new(made)),
            // A registry of another version took them: nothing is checked, and nobody asks again.
            Err((side, wrong)) => {
                tracing::warn!(skill = skill.name, side = side.field(), %wrong, "a schema does not compile");
                self.known.keep(&hash, Arc::default());
            }
        }
    }
}

impl fmt::Debug for Promises {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Promises").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        registry::{
            client::{Mirror, MirrorConfig, source::fake::Fake},
            fixture::entry_of,
            live::Change,
        },
        sidecar::endpoints::Endpoints,
    };

    const OBJECT: &str = r#"{"type":"object"}"#;

    struct Bench {
        fake: Arc<Fake>,
        promises: Arc<Promises>,
        _nursery: Nursery,
    }

    /// Of each: instance, agent, and the input schema of its skill `s`.
    async fn bench(own: &pb::AgentCard, all: &[(&str, &str, &str)]) -> Bench {
        let (fake, nursery) = (Fake::new(), Nursery::here());
        let put = |(instance, agent, schema): &(&str, &str, &str)| {
            let about = pb::Instance {
                endpoints: vec!["10.0.0.7:7643".into()],
                health: pb::Health::Serving.into(),
                ..Default::default()
            };
            Change::Put(Arc::new(entry_of(instance, agent, card(schema), about)))
        };
        fake.live().apply(all.iter().map(put).collect::<Vec<_>>());
        let mirror = Mirror::start(&nursery, fake.source(), MirrorConfig::default());
        mirror.fresh().wait_for(|fresh| *fresh).await.unwrap();
        let mut changes = mirror.changes();
        while mirror.catalog().len() < all.len() {
            changes.changed().await.unwrap();
        }
        let balancer = Arc::new(Balancer::new(mirror, Endpoints::default(), String::new()));
        let promises = Promises::start(own, fake.source(), balancer, &nursery);
        Bench {
            fake,
            promises,
            _nursery: nursery,
        }
    }

    fn card(schema: &str) -> pb::AgentCard {
        pb::AgentCard {
            skills: vec![pb::Skill {
                name: "s".into(),
                input_schema: schema.into(),
                input_modes: vec!["application/json".into()],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    impl Bench {
        fn of(&self) -> Vec<Promise> {
            let selector = pb::Selector {
                skill: "s".into(),
                ..Default::default()
            };
            self.promises.of(&"default".parse().unwrap(), &selector)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_contract_is_named_once_and_one_without_is_enough_to_check_nothing() {
        let nobody = pb::AgentCard::default();
        let two = [("a", "default/x", OBJECT), ("b", "default/x", OBJECT)];
        let one = bench(&nobody, &two).await.of();
        assert_eq!(one.len(), 1);
        assert_eq!(one[0].schemas, hash_of(OBJECT, "").unwrap());
        assert_eq!(one[0].input_modes, ["application/json"]);
        let other = ("c", "default/y", "false");
        let three = [two[0], two[1], other];
        assert_eq!(bench(&nobody, &three).await.of().len(), 2);
        let free = [two[0], ("c", "default/y", "")];
        assert_eq!(bench(&nobody, &free).await.of(), []);
        assert_eq!(bench(&nobody, &[]).await.of(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn schemas_are_fetched_once_and_a_registry_that_is_away_is_left_alone_for_a_while() {
        let all = [("a", "default/x", OBJECT), ("b", "default/y", "false")];
        let bench = bench(&pb::AgentCard::default(), &all).await;
        let [x, y] = bench.of().try_into().unwrap();
        assert!(bench.promises.contract(&x).await.is_some());
        bench.fake.away(true);
        assert!(bench.promises.contract(&x).await.is_some(), "it is kept");
        assert!(bench.promises.contract(&y).await.is_none());
        bench.fake.away(false);
        assert!(bench.promises.contract(&y).await.is_none(), "too early");
        tokio::time::advance(AGAIN).await;
        assert!(bench.promises.contract(&y).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_at_hand_is_the_next_time_and_the_own_is_from_the_start() {
        let own = card("false");
        let all = [("a", "default/x", OBJECT), ("b", "default/y", "false")];
        let bench = bench(&own, &all).await;
        let [x, y] = bench.of().try_into().unwrap();
        assert!(bench.promises.at_hand(&y).is_some());
        assert!(bench.promises.at_hand(&x).is_none());
        while bench.promises.known.get(&x.schemas).is_none() {
            tokio::task::yield_now().await;
        }
        assert!(bench.promises.at_hand(&x).is_some());
    }
}
