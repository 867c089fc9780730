//! Where a client gets its answers from: a registry behind some channel, or a fake in tests.

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use tokio::time::timeout;
use tonic::{Request, Response, Status, body::Body, client::GrpcService};

use crate::domain::Fault;
use crate::domain::Reason;
use crate::pb;
use crate::pb::registry_client::RegistryClient;

/// Longest wait for an answer, and for the first word of a watch.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A catalog's changes as they come in.
pub type Changes = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

/// A registry as its clients see it. Every call ends within [`ANSWER_WITHIN`].
#[tonic::async_trait]
pub trait Source: Send + Sync + 'static {
    /// `Registry.Register`.
    async fn register(&self, ask: pb::RegisterRequest) -> Result<pb::RegisterResponse, Status>;
    /// `Registry.Heartbeat`.
    async fn heartbeat(&self, ask: pb::HeartbeatRequest) -> Result<pb::HeartbeatResponse, Status>;
    /// `Registry.Deregister`.
    async fn deregister(
        &self,
        ask: pb::DeregisterRequest,
    ) -> Result<pb::DeregisterResponse, Status>;
    /// `Registry.GetAgent`, with the metadata that is to go along.
    async fn agent(
        &self,
        ask: Request<pb::GetAgentRequest>,
    ) -> Result<pb::GetAgentResponse, Status>;
    /// `Registry.Watch`.
    async fn watch(&self, ask: pb::WatchRequest) -> Result<Changes, Status>;
}

/// A source over channels of a factory, which is asked for one at every call: it may answer with
/// another registry each time.
#[derive(Clone, Debug)]
pub struct Dialed<F>(pub F);

impl<F, T> Dialed<F>
where
    F: Fn() -> T,
    T: GrpcService<Body>,
    T::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as http_body::Body>::Error:
        Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    fn client(&self) -> RegistryClient<T> {
        RegistryClient::new((self.0)())
    }
}

#[tonic::async_trait]
impl<F, T> Source for Dialed<F>
where
    F: Fn() -> T + Send + Sync + 'static,
    T: GrpcService<Body> + Send + 'static,
    T::Future: Send,
    T::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as http_body::Body>::Error:
        Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    async fn register(&self, ask: pb::RegisterRequest) -> Result<pb::RegisterResponse, Status> {
        let mut client = self.client();
        in_time(client.register(ask)).await
    }

    async fn heartbeat(&self, ask: pb::HeartbeatRequest) -> Result<pb::HeartbeatResponse, Status> {
        let mut client = self.client();
        in_time(client.heartbeat(ask)).await
    }

    async fn deregister(
        &self,
        ask: pb::DeregisterRequest,
    ) -> Result<pb::DeregisterResponse, Status> {
        let mut client = self.client();
        in_time(client.deregister(ask)).await
    }

    async fn agent(
        &self,
        ask: Request<pb::GetAgentRequest>,
    ) -> Result<pb::GetAgentResponse, Status> {
        let mut client = self.client();
        in_time(client.get_agent(ask)).await
    }

    async fn watch(&self, ask: pb::WatchRequest) -> Result<Changes, Status> {
        let mut client = self.client();
        let stream = in_time(client.watch(ask)).await?;
        Ok(Box::pin(stream))
    }
}

/// The answer, or `DEADLINE_EXCEEDED`. Boxed: generated client futures are large.
async fn in_time<R: Send>(
    call: impl Future<Output = Result<Response<R>, Status>> + Send,
) -> Result<R, Status> {
    match timeout(ANSWER_WITHIN, Box::pin(call)).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Fault::new(
            Reason::DeadlineExceeded,
            "the registry did not answer within 5 s",
        )
        .into()),
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A registry without a network, that can be away, restart, and be asked what it heard.

    use std::sync::Arc;

    use futures_util::stream;
    use parking_lot::Mutex;
    use tokio::{sync::watch, time::Instant};

    use super::*;
    use crate::domain::InstanceId;
    use crate::domain::SpiffeId;
    use crate::registry::card::Door;
    use crate::registry::card::Who;
    use crate::registry::engine::Engine;
    use crate::registry::fixture::member;
    use crate::registry::live::Live;
    use crate::registry::page::PageKey;
    use crate::registry::reads::Reads;
    use crate::registry::sight::Sight;
    use crate::registry::storage::MemoryStore;
    use crate::registry::watch::Filter;
    use crate::registry::watch::Watcher;
    use crate::runtime::Stop;

    /// Calls come from instance `i1` of `default/x`.
    pub(crate) struct Fake {
        caller: SpiffeId,
        instance: InstanceId,
        engine: Mutex<(Engine, Stop)>,
        away: watch::Sender<bool>,
        /// It is of a version that has none.
        ruleless: watch::Sender<bool>,
        /// Health of every beat that came in.
        pub(crate) beats: Mutex<Vec<pb::Health>>,
    }

    fn new_engine() -> (Engine, Stop) {
        let store = MemoryStore::new(Instant::now());
        let door = Door { loopback: true };
        (Engine::new(Arc::new(store), door), Stop::new())
    }

    impl Fake {
        pub(crate) fn new() -> Arc<Self> {
            Arc::new(Self {
                caller: member("default/x"),
                instance: "i1".parse().unwrap(),
                engine: Mutex::new(new_engine()),
                away: watch::Sender::new(false),
                ruleless: watch::Sender::new(false),
                beats: Mutex::new(Vec::new()),
            })
        }

        pub(crate) fn source(self: &Arc<Self>) -> Arc<dyn Source> {
            Arc::clone(self) as Arc<dyn Source>
        }

        pub(crate) fn engine(&self) -> Engine {
            self.engine.lock().0.clone()
        }

        pub(crate) fn live(&self) -> Arc<Live> {
            Arc::clone(self.engine.lock().0.store().live())
        }

        /// From now on nobody is reached, and watches end; or all is well again.
        pub(crate) fn away(&self, away: bool) {
            self.away.send_replace(away);
        }

        /// From now on no message has traffic rules.
        pub(crate) fn knows_no_rules(&self) {
            self.ruleless.send_replace(true);
        }

        /// Forgets everything, as a registry without a disk does.
        pub(crate) fn restart(&self) {
            let (_, stop) = std::mem::replace(&mut *self.engine.lock(), new_engine());
            stop.cancel();
        }

        fn reached(&self) -> Result<(Engine, Stop), Status> {
            if *self.away.borrow() {
                return Err(Fault::new(Reason::PeerUnreachable, "away").into());
            }
            Ok(self.engine.lock().clone())
        }

        fn who(&self) -> Who<'_> {
            Who {
                id: &self.caller,
                instance: Some(&self.instance),
            }
        }
    }

    #[tonic::async_trait]
    impl Source for Fake {
        async fn register(&self, ask: pb::RegisterRequest) -> Result<pb::RegisterResponse, Status> {
            let (engine, _) = self.reached()?;
            Ok(engine.register(self.who(), ask).await?)
        }

        async fn heartbeat(
            &self,
            ask: pb::HeartbeatRequest,
        ) -> Result<pb::HeartbeatResponse, Status> {
            let (engine, _) = self.reached()?;
            self.beats.lock().push(ask.health());
            Ok(engine.heartbeat(self.who(), ask).await?)
        }

        async fn deregister(
            &self,
            ask: pb::DeregisterRequest,
        ) -> Result<pb::DeregisterResponse, Status> {
            let (engine, _) = self.reached()?;
            Ok(engine.deregister(self.who(), ask).await?)
        }

        async fn agent(
            &self,
            ask: Request<pb::GetAgentRequest>,
        ) -> Result<pb::GetAgentResponse, Status> {
            let ask = ask.into_inner();
            let (engine, _) = self.reached()?;
            let (sight, key) = (Sight::of(self.caller.clone()), PageKey::new(&[0; 32]));
            let catalog = engine.store().live().catalog();
            let reads = Reads {
                catalog: &catalog,
                sight: &sight,
                key: &key,
            };
            Ok(reads.agent(&ask)?)
        }

        async fn watch(&self, ask: pb::WatchRequest) -> Result<Changes, Status> {
            let (engine, stop) = self.reached()?;
            let filter = Filter::parse(Sight::of(self.caller.clone()), &ask)?;
            let live = Arc::clone(engine.store().live());
            let watcher = Watcher::new(live, filter, &ask, stop);
            let away = self.away.subscribe();
            let ruleless = *self.ruleless.borrow();
            let state = Some((watcher, away));
            Ok(Box::pin(stream::unfold(state, move |state| async move {
                let (mut watcher, mut away) = state?;
                let next = tokio::select! {
                    next = watcher.next() => next,
                    _ = away.wait_for(|away| *away) => {
                        Err(Fault::new(Reason::PeerUnreachable, "away"))
                    }
                };
                Some(match next {
                    Ok(mut word) => {
                        word.rules.take_if(|_| ruleless);
                        (Ok(word), Some((watcher, away)))
                    }
                    Err(fault) => (Err(fault.into()), None),
                })
            })))
        }
    }
}
