//! `attache.v1.Registry` over gRPC: who asks, then the engine or a read. No decisions here.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};

use crate::domain::Fault;
use crate::identity::Connection;
use crate::identity::Peer;
use crate::pb;
use crate::registry::card::Who;
use crate::registry::engine::Engine;
use crate::registry::live::Live;
use crate::registry::page::PageKey;
use crate::registry::places::Place;
use crate::registry::places::Places;
use crate::registry::reads::Reads;
use crate::registry::reads::asked_namespace;
use crate::registry::sight::Sight;
use crate::registry::watch::Filter;
use crate::registry::watch::Watcher;
use crate::runtime::Stop;
use crate::telemetry::call::CallNotes;
use crate::telemetry::metrics::{self, Sheet, family};

/// A stream of catalog changes.
pub type Watching = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

/// What answers reads: the registry over its store, a sidecar over its mirror.
#[derive(Clone, Debug)]
pub(super) struct Desk {
    live: Arc<Live>,
    key: Arc<PageKey>,
    places: Places,
    /// Messages sent on watches.
    sent: Arc<AtomicU64>,
    stop: Stop,
}

impl Desk {
    pub(super) fn new(live: Arc<Live>, key: Arc<PageKey>, stop: Stop) -> Self {
        Self {
            live,
            key,
            places: Places::default(),
            sent: Arc::default(),
            stop,
        }
    }

    pub(super) fn read<R>(
        &self,
        sight: &Sight,
        answer: impl FnOnce(Reads<'_>) -> Result<R, Fault>,
    ) -> Result<Response<R>, Status> {
        let read = self.live.read(|catalog| {
            answer(Reads {
                catalog,
                sight,
                key: &self.key,
            })
        });
        Ok(Response::new(read?))
    }

    pub(super) fn rules(
        &self,
        sight: &Sight,
        request: &pb::ListRulesRequest,
    ) -> Result<Response<pb::ListRulesResponse>, Status> {
        let asked = asked_namespace(sight, &request.namespace)?;
        let rules = self.live.rules();
        let seen = rules.message(|space| {
            asked.as_ref().is_none_or(|asked| asked == space) && sight.sees(space)
        });
        Ok(Response::new(pb::ListRulesResponse { rules: seen.rules }))
    }

    pub(super) fn watch(
        &self,
        sight: Sight,
        request: &pb::WatchRequest,
    ) -> Result<Response<Watching>, Status> {
        let place = self.places.take(sight.id())?;
        let filter = Filter::parse(sight, request)?;
        let live = Arc::clone(&self.live);
        let watcher = Watcher::new(live, filter, request, self.stop.clone());
        Ok(Response::new(Box::pin(stream::unfold(
            Some((watcher, place, Arc::clone(&self.sent))),
            step,
        ))))
    }
}

type Step = (Watcher, Place, Arc<AtomicU64>);

/// One message of a watch; after a fault the stream ends.
async fn step(state: Option<Step>) -> Option<(Result<pb::WatchResponse, Status>, Option<Step>)> {
    let (mut watcher, place, sent) = state?;
    match watcher.next().await {
        Ok(word) => {
            sent.fetch_add(1, Relaxed);
            Some((Ok(word), Some((watcher, place, sent))))
        }
        Err(fault) => Some((Err(fault.into()), None)),
    }
}

/// The registry's service, for the mutual TLS listener.
#[derive(Clone, Debug)]
pub struct RegistryService {
    engine: Engine,
    desk: Desk,
}

impl RegistryService {
    /// A service over an engine; its watches end at `stop`.
    pub fn new(engine: Engine, stop: Stop) -> Self {
        let store = engine.store();
        let desk = Desk::new(Arc::clone(store.live()), Arc::clone(store.page_key()), stop);
        Self { engine, desk }
    }
}

impl metrics::Source for RegistryService {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let store = self.engine.store();
        let mut health = [0_u32; HEALTH.len()];
        let revision = store.live().read(|catalog| {
            for entry in catalog.entries_after(None) {
                let reported = entry.instance.health();
                let place = HEALTH.iter().position(|(known, _)| *known == reported);
                health[place.unwrap_or(0)] += 1;
            }
            catalog.revision.number
        });
        let (leases, oldest) = store.leases();
        let oldest = oldest.map(|heard| ([], heard.elapsed().as_secs_f64()));
        let instances = HEALTH.iter().zip(health);
        let instances = instances.map(|((_, label), count)| ([*label], f64::from(count)));
        sheet.gauge(&family::REGISTRY_INSTANCES, instances);
        sheet.gauge(&family::REGISTRY_LEASES, [([], leases as f64)]);
        sheet.gauge(&family::REGISTRY_BEAT_AGE, oldest);
        sheet.gauge(&family::REGISTRY_REVISION, [([], revision as f64)]);
        let watches = self.desk.places.taken();
        sheet.gauge(&family::REGISTRY_WATCHES, [([], watches as f64)]);
        let sent = self.desk.sent.load(Relaxed);
        sheet.counter(&family::REGISTRY_WATCH_MESSAGES, [([], sent as f64)]);
    }
}

/// What instances report, and its label; what no report says is the first.
const HEALTH: [(pb::Health, &str); 4] = [
    (pb::Health::Unspecified, "unspecified"),
    (pb::Health::Serving, "serving"),
    (pb::Health::NotServing, "not_serving"),
    (pb::Health::Draining, "draining"),
];

/// The member that calls.
fn peer<T>(request: &Request<T>) -> Result<Arc<Peer>, Fault> {
    Ok(Arc::clone(Connection::of(request)?.member()?))
}

/// Whom the member may write about: itself.
fn who(peer: &Peer) -> Who<'_> {
    Who {
        id: &peer.id,
        instance: peer.instance.as_ref(),
    }
}

/// What the member may see.
fn sight<T>(request: &Request<T>) -> Result<Sight, Fault> {
    Ok(Sight::of(peer(request)?.id.clone()))
}

#[tonic::async_trait]
impl pb::registry_server::Registry for RegistryService {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        let peer = peer(&request)?;
        let granted = self.engine.register(who(&peer), request.into_inner());
        Ok(Response::new(granted.await?))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        let peer = peer(&request)?;
        let kept = self.engine.heartbeat(who(&peer), request.into_inner());
        Ok(Response::new(kept.await?))
    }

    async fn deregister(
        &self,
        request: Request<pb::DeregisterRequest>,
    ) -> Result<Response<pb::DeregisterResponse>, Status> {
        let peer = peer(&request)?;
        let left = self.engine.deregister(who(&peer), request.into_inner());
        Ok(Response::new(left.await?))
    }

    async fn get_agent(
        &self,
        request: Request<pb::GetAgentRequest>,
    ) -> Result<Response<pb::GetAgentResponse>, Status> {
        let sight = sight(&request)?;
        self.desk
            .read(&sight, |reads| reads.agent(request.get_ref()))
    }

    async fn list_agents(
        &self,
        request: Request<pb::ListAgentsRequest>,
    ) -> Result<Response<pb::ListAgentsResponse>, Status> {
        let sight = sight(&request)?;
        self.desk
            .read(&sight, |reads| reads.list(request.get_ref()))
    }

    async fn discover(
        &self,
        request: Request<pb::DiscoverRequest>,
    ) -> Result<Response<pb::DiscoverResponse>, Status> {
        if let Some(selector) = &request.get_ref().selector {
            CallNotes::of(&request).skill(&selector.skill);
        }
        let sight = sight(&request)?;
        self.desk
            .read(&sight, |reads| reads.discover(request.get_ref()))
    }

    type WatchStream = Watching;

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let sight = sight(&request)?;
        self.desk.watch(sight, request.get_ref())
    }

    async fn put_rule(
        &self,
        request: Request<pb::PutRuleRequest>,
    ) -> Result<Response<pb::PutRuleResponse>, Status> {
        let peer = peer(&request)?;
        let put = self.engine.put_rule(&peer.id, request.into_inner());
        Ok(Response::new(put.await?))
    }

    async fn list_rules(
        &self,
        request: Request<pb::ListRulesRequest>,
    ) -> Result<Response<pb::ListRulesResponse>, Status> {
        let sight = sight(&request)?;
        self.desk.rules(&sight, request.get_ref())
    }

    async fn delete_rule(
        &self,
        request: Request<pb::DeleteRuleRequest>,
    ) -> Result<Response<pb::DeleteRuleResponse>, Status> {
        let peer = peer(&request)?;
        let deleted = self.engine.delete_rule(&peer.id, request.into_inner());
        Ok(Response::new(deleted.await?))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use futures_util::StreamExt;
    use tonic::Code;
    use tower::{ServiceExt, util::MapRequest};

    use super::*;
    use crate::domain::SpiffeId;
    use crate::identity::Caller;
    use crate::pb::registry_server::Registry;
    use crate::pb::registry_server::RegistryServer;
    use crate::pb::watch_response::Change as Word;
    use crate::registry::card::Door;
    use crate::registry::client::Dialed;
    use crate::registry::client::Source;
    use crate::registry::fixture::member;
    use crate::registry::fixture::request;
    use crate::registry::fixture::rule_message;
    use crate::registry::storage::MemoryStore;
    use crate::wire::status::reason_of;

    fn service(stop: &Stop) -> RegistryService {
        let store = MemoryStore::new(tokio::time::Instant::now());
        let engine = Engine::new(Arc::new(store), Door::default());
        RegistryService::new(engine, stop.clone())
    }

    fn caller(id: SpiffeId, instance: Option<&str>) -> Caller {
        Caller::Member(Arc::new(Peer {
            id,
            instance: instance.map(|text| text.parse().unwrap()),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH,
            serial: String::new(),
            key: [0; 32],
        }))
    }

    /// A client whose calls come from `caller`; `None`: from no connection at all.
    fn dial(service: &RegistryService, caller: Option<Caller>) -> impl Source + use<> {
        let server = RegistryServer::new(service.clone());
        let connection = caller.map(|caller| {
            Arc::new(Connection {
                caller,
                remote: None,
                local: None,
                exporter: None,
            })
        });
        Dialed(move || -> MapRequest<_, _> {
            let connection = connection.clone();
            server
                .clone()
                .map_request(move |mut request: http::Request<tonic::body::Body>| {
                    if let Some(connection) = connection.clone() {
                        request.extensions_mut().insert(connection);
                    }
                    request
                })
        })
    }

    #[tokio::test(start_paused = true)]
    async fn members_write_about_themselves_and_watchers_see_it() {
        let stop = Stop::new();
        let service = service(&stop);
        let x = dial(&service, Some(caller(member("default/x"), Some("i1"))));
        let y = dial(&service, Some(caller(member("default/y"), Some("i2"))));
        let granted = x.register(request(&["s"])).await.unwrap();
        let mut spoof = request(&["s"]);
        spoof.instance.as_mut().unwrap().id = "i1".into();
        let refused = y.register(spoof).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert_eq!(reason_of(&refused).as_deref(), Some("IDENTITY_MISMATCH"));
        let foreign = pb::HeartbeatRequest {
            lease_id: granted.lease_id,
            ..Default::default()
        };
        let refused = y.heartbeat(foreign).await.unwrap_err();
        assert_eq!(reason_of(&refused).as_deref(), Some("LEASE_UNKNOWN"));
        let ask = pb::GetAgentRequest {
            agent: "x".into(),
            ..Default::default()
        };
        assert_eq!(y.agent(Request::new(ask)).await.unwrap().instances.len(), 1);
        let mut words = y.watch(pb::WatchRequest::default()).await.unwrap();
        let mut kinds = Vec::new();
        for _ in 0..4 {
            let word = words.next().await.unwrap().unwrap().change.unwrap();
            kinds.push(match word {
                Word::SnapshotBegin(_) => "begin",
                Word::Card(_) => "card",
                Word::Instance(_) => "instance",
                Word::SnapshotEnd(_) => "end",
                Word::Gone(_) | Word::Keepalive(_) => "other",
            });
        }
        assert_eq!(kinds, ["begin", "card", "instance", "end"]);
        stop.cancel();
        let ended = words.next().await.unwrap().unwrap_err();
        assert_eq!(reason_of(&ended).as_deref(), Some("DRAINING"));
        assert!(words.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_shows_no_certificate_gets_nothing() {
        let service = service(&Stop::new());
        for nobody in [None, Some(Caller::Local), Some(Caller::Anonymous)] {
            let nobody = dial(&service, nobody);
            let statuses = [
                nobody.register(request(&["s"])).await.map(drop),
                nobody
                    .heartbeat(pb::HeartbeatRequest::default())
                    .await
                    .map(drop),
                nobody
                    .deregister(pb::DeregisterRequest::default())
                    .await
                    .map(drop),
                nobody
                    .agent(Request::new(pb::GetAgentRequest::default()))
                    .await
                    .map(drop),
                nobody.watch(pb::WatchRequest::default()).await.map(drop),
            ];
            for status in statuses {
                assert_eq!(status.unwrap_err().code(), Code::Unauthenticated);
            }
        }
        for nobody in [Caller::Local, Caller::Anonymous] {
            let list = Request::new(pb::ListRulesRequest::default());
            let delete = Request::new(pb::DeleteRuleRequest::default());
            let statuses = [
                service
                    .put_rule(from(&nobody, put_request("", "a")))
                    .await
                    .map(drop),
                service.list_rules(from(&nobody, list)).await.map(drop),
                service.delete_rule(from(&nobody, delete)).await.map(drop),
            ];
            for status in statuses {
                assert_eq!(status.unwrap_err().code(), Code::Unauthenticated);
            }
        }
        assert_eq!(service.engine.store().live().revision().number, 0);
    }

    fn put_request(namespace: &str, name: &str) -> Request<pb::PutRuleRequest> {
        Request::new(pb::PutRuleRequest {
            rule: Some(rule_message(namespace, name)),
            ..Default::default()
        })
    }

    /// A request as a connection of this caller would carry it.
    fn from<T>(caller: &Caller, mut request: Request<T>) -> Request<T> {
        request.extensions_mut().insert(Arc::new(Connection {
            caller: caller.clone(),
            remote: None,
            local: None,
            exporter: None,
        }));
        request
    }

    #[tokio::test(start_paused = true)]
    async fn operators_write_rules_and_members_read_those_of_their_namespace() {
        let service = service(&Stop::new());
        let operator = caller("spiffe://a/operator/ops".parse().unwrap(), None);
        let x = caller(member("default/x"), Some("i1"));
        for (namespace, name) in [("", "b"), ("prod", "c"), ("default", "a")] {
            let put = service.put_rule(from(&operator, put_request(namespace, name)));
            let kept = put.await.unwrap().into_inner();
            assert_eq!(kept.rule.unwrap().updated_by, "spiffe://a/operator/ops");
            assert_eq!(kept.replaced, None);
        }
        let delete = pb::DeleteRuleRequest {
            name: "a".into(),
            ..Default::default()
        };
        let refused = [
            service
                .put_rule(from(&x, put_request("", "a")))
                .await
                .map(drop),
            service
                .delete_rule(from(&x, Request::new(delete.clone())))
                .await
                .map(drop),
        ];
        for refused in refused {
            let reason = reason_of(&refused.unwrap_err());
            assert_eq!(reason.as_deref(), Some("OPERATORS_ONLY"));
        }
        let list = async |caller: &Caller, namespace: &str| {
            let ask = pb::ListRulesRequest {
                namespace: namespace.into(),
            };
            let list = service.list_rules(from(caller, Request::new(ask))).await?;
            let rules = list.into_inner().rules.into_iter();
            let names = rules.map(|rule| format!("{}/{}", rule.namespace, rule.name));
            Ok::<_, Status>(names.collect::<Vec<_>>())
        };
        assert_eq!(list(&x, "").await.unwrap(), ["default/a", "default/b"]);
        let all = ["default/a", "default/b", "prod/c"];
        assert_eq!(list(&operator, "").await.unwrap(), all);
        let registry = caller("spiffe://a/registry/r".parse().unwrap(), None);
        assert!(list(&registry, "").await.unwrap().is_empty());
        assert_eq!(list(&operator, "prod").await.unwrap(), ["prod/c"]);
        assert_eq!(
            list(&x, "prod").await.unwrap_err().code(),
            Code::PermissionDenied
        );
        let deleted = service.delete_rule(from(&operator, Request::new(delete.clone())));
        assert!(deleted.await.unwrap().into_inner().deleted.is_some());
        let unknown = service.delete_rule(from(&operator, Request::new(delete)));
        let reason = reason_of(&unknown.await.unwrap_err());
        assert_eq!(reason.as_deref(), Some("RULE_NOT_FOUND"));
        let mut stale = put_request("", "b");
        stale.get_mut().expected_revision = Some(7);
        let refused = service.put_rule(from(&operator, stale)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Aborted);
        assert_eq!(reason_of(&refused).as_deref(), Some("RULE_CHANGED"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_dropped_gives_its_place_back() {
        let service = service(&Stop::new());
        let x = dial(&service, Some(caller(member("default/x"), Some("i1"))));
        let mut words = x.watch(pb::WatchRequest::default()).await.unwrap();
        words.next().await.unwrap().unwrap();
        assert_eq!(service.desk.places.taken(), 1);
        drop(words);
        assert_eq!(service.desk.places.taken(), 0);
    }
}
