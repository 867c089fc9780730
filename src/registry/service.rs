//! `attache.v1.Registry` over gRPC: who asks, then the engine or a read. No decisions here.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status};

use crate::domain::Fault;
use crate::domain::Reason;
use crate::identity::Connection;
use crate::pb;
use crate::registry::card::Who;
use crate::registry::engine::Engine;
use crate::registry::live::Live;
use crate::registry::page::PageKey;
use crate::registry::reads::Reads;
use crate::registry::sight::Sight;
use crate::registry::watch::Filter;
use crate::registry::watch::Watcher;
use crate::runtime::Stop;

/// Most watches at once: one for each sidecar and as many for operators' tools.
const WATCHES_MAX: usize = 20_000;

/// A stream of catalog changes.
pub type Watching = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

/// What answers reads: the registry over its store, a sidecar over its mirror.
#[derive(Clone, Debug)]
pub(super) struct Desk {
    live: Arc<Live>,
    key: Arc<PageKey>,
    watches: Arc<Semaphore>,
    stop: Stop,
}

impl Desk {
    pub(super) fn new(live: Arc<Live>, key: Arc<PageKey>, stop: Stop) -> Self {
        Self {
            live,
            key,
            watches: Arc::new(Semaphore::new(WATCHES_MAX)),
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

    pub(super) fn watch(
        &self,
        sight: Sight,
        request: &pb::WatchRequest,
    ) -> Result<Response<Watching>, Status> {
        let permit = Arc::clone(&self.watches).try_acquire_owned();
        let permit = permit.map_err(|_| {
            Fault::new(
                Reason::QueueFull,
                "the registry serves as many watches as it can: try another one",
            )
        })?;
        let filter = Filter::parse(sight, request)?;
        let live = Arc::clone(&self.live);
        let watcher = Watcher::new(live, filter, request, self.stop.clone());
        Ok(Response::new(Box::pin(stream::unfold(
            Some((watcher, permit)),
            step,
        ))))
    }
}

type Step = (Watcher, OwnedSemaphorePermit);

/// One message of a watch; after a fault the stream ends.
async fn step(state: Option<Step>) -> Option<(Result<pb::WatchResponse, Status>, Option<Step>)> {
    let (mut watcher, permit) = state?;
    match watcher.next().await {
        Ok(word) => Some((Ok(word), Some((watcher, permit)))),
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

/// What the caller of a read sees.
fn sight<T>(request: &Request<T>) -> Result<Sight, Fault> {
    let connection = Connection::of(request)?;
    Ok(Sight::of(connection.member()?.id.clone()))
}

#[tonic::async_trait]
impl pb::registry_server::Registry for RegistryService {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        let connection = Connection::of(&request)?;
        let peer = connection.member()?;
        let who = Who {
            id: &peer.id,
            instance: peer.instance.as_ref(),
        };
        let granted = self.engine.register(who, request.into_inner()).await?;
        Ok(Response::new(granted))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        let connection = Connection::of(&request)?;
        let peer = connection.member()?;
        let who = Who {
            id: &peer.id,
            instance: peer.instance.as_ref(),
        };
        let kept = self.engine.heartbeat(who, request.into_inner()).await?;
        Ok(Response::new(kept))
    }

    async fn deregister(
        &self,
        request: Request<pb::DeregisterRequest>,
    ) -> Result<Response<pb::DeregisterResponse>, Status> {
        let connection = Connection::of(&request)?;
        let peer = connection.member()?;
        let who = Who {
            id: &peer.id,
            instance: peer.instance.as_ref(),
        };
        let left = self.engine.deregister(who, request.into_inner()).await?;
        Ok(Response::new(left))
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
}
