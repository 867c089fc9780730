//! A registry whose calls are counted.

use std::sync::Arc;

use tonic::{Request, Status};

use super::source::{Changes, Source};
use crate::pb;
use crate::telemetry::metrics::{
    calls::Method,
    peers::{PeerCall, PeerCalls},
};

/// The same source, its calls counted as calls to other members.
pub fn counted(source: Arc<dyn Source>, calls: PeerCalls) -> Arc<dyn Source> {
    Arc::new(Counted { source, calls })
}

struct Counted {
    source: Arc<dyn Source>,
    calls: PeerCalls,
}

impl Counted {
    fn begin(&self, path: &str) -> PeerCall {
        self.calls.begin(Method::of(path))
    }
}

#[tonic::async_trait]
impl Source for Counted {
    async fn register(&self, ask: pb::RegisterRequest) -> Result<pb::RegisterResponse, Status> {
        let call = self.begin("/attache.v1.Registry/Register");
        call.ended(self.source.register(ask).await)
    }

    async fn heartbeat(&self, ask: pb::HeartbeatRequest) -> Result<pb::HeartbeatResponse, Status> {
        let call = self.begin("/attache.v1.Registry/Heartbeat");
        call.ended(self.source.heartbeat(ask).await)
    }

    async fn deregister(
        &self,
        ask: pb::DeregisterRequest,
    ) -> Result<pb::DeregisterResponse, Status> {
        let call = self.begin("/attache.v1.Registry/Deregister");
        call.ended(self.source.deregister(ask).await)
    }

    async fn agent(
        &self,
        ask: Request<pb::GetAgentRequest>,
    ) -> Result<pb::GetAgentResponse, Status> {
        let call = self.begin("/attache.v1.Registry/GetAgent");
        call.ended(self.source.agent(ask).await)
    }

    async fn watch(&self, ask: pb::WatchRequest) -> Result<Changes, Status> {
        let call = self.begin("/attache.v1.Registry/Watch");
        match self.source.watch(ask).await {
            Ok(changes) => Ok(Box::pin(call.follows(changes))),
            Err(status) => call.ended(Err(status)),
        }
    }
}
