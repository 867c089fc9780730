//! `attache.v1.Registry` for the sidecar's own agent: reads, from the mirror.
//!
//! The agent sees what its sidecar's member may see. Writes are refused: the sidecar registers.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::mirror::Mirror;
use super::source::Source;
use crate::domain::Fault;
use crate::domain::Reason;
use crate::domain::SpiffeId;
use crate::identity::Action;
use crate::identity::authorize;
use crate::pb;
use crate::registry::page::PageKey;
use crate::registry::service::Desk;
use crate::registry::service::Watching;
use crate::registry::sight::Sight;
use crate::runtime::Stop;
use crate::telemetry::TraceContext;

/// How long the registry is waited for before the mirror answers instead of it.
const SCHEMAS_WITHIN: Duration = Duration::from_secs(1);

/// The reads of the registry's service, over a mirror.
#[derive(Clone)]
pub struct LocalRegistryService {
    own: SpiffeId,
    desk: Desk,
    source: Arc<dyn Source>,
}

impl LocalRegistryService {
    /// Reads of `mirror` as `own` may see it; schemas come from `source` while it is reached.
    /// Watches end at `stop`.
    pub fn new(own: SpiffeId, mirror: &Mirror, source: Arc<dyn Source>, stop: Stop) -> Self {
        let key = Arc::new(PageKey::new(&rand::random()));
        let desk = Desk::new(Arc::clone(mirror.live()), key, stop);
        Self { own, desk, source }
    }

    fn sight(&self) -> Sight {
        Sight::of(self.own.clone())
    }
}

impl std::fmt::Debug for LocalRegistryService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalRegistryService")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

/// A member speaks here, and only operators change rules.
fn operators_only<R>(own: &SpiffeId) -> Result<R, Status> {
    let refused = authorize(own, Action::ChangeRules, None).err();
    let text = "traffic rules are changed at the registry, not at a sidecar: `attache rules`";
    Err(refused
        .unwrap_or_else(|| Fault::new(Reason::PermissionDenied, text))
        .into())
}

fn refused<R>() -> Result<R, Status> {
    let text = "the sidecar registers its agent itself; describe the agent in the sidecar's configuration or by Handler.Describe";
    Err(Fault::new(Reason::PermissionDenied, text).into())
}

#[tonic::async_trait]
impl pb::registry_server::Registry for LocalRegistryService {
    async fn register(
        &self,
        _: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        refused()
    }

    async fn heartbeat(
        &self,
        _: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<pb::HeartbeatResponse>, Status> {
        refused()
    }

    async fn deregister(
        &self,
        _: Request<pb::DeregisterRequest>,
    ) -> Result<Response<pb::DeregisterResponse>, Status> {
        refused()
    }

    async fn get_agent(
        &self,
        request: Request<pb::GetAgentRequest>,
    ) -> Result<Response<pb::GetAgentResponse>, Status> {
        let trace = TraceContext::of_request(&request);
        let ask = request.into_inner();
        let sight = self.sight();
        let own = self.desk.read(&sight, |reads| reads.agent(&ask));
        if !ask.page_token.is_empty() {
            // A listing goes on where its token was made: a token that is not the mirror's is the
            // registry's, or nobody's.
            return match own {
                Ok(page) => Ok(page),
                Err(_) => {
                    let ask = TraceContext::on(trace.as_ref(), ask);
                    self.source.agent(ask).await.map(Response::new)
                }
            };
        }
        let ask = TraceContext::on(trace.as_ref(), ask);
        match timeout(SCHEMAS_WITHIN, self.source.agent(ask)).await {
            Ok(Ok(whole)) => Ok(Response::new(whole)),
            Ok(Err(_)) | Err(_) => own,
        }
    }

    async fn list_agents(
        &self,
        request: Request<pb::ListAgentsRequest>,
    ) -> Result<Response<pb::ListAgentsResponse>, Status> {
        let sight = self.sight();
        self.desk
            .read(&sight, |reads| reads.list(request.get_ref()))
    }

    async fn discover(
        &self,
        request: Request<pb::DiscoverRequest>,
    ) -> Result<Response<pb::DiscoverResponse>, Status> {
        let sight = self.sight();
        self.desk
            .read(&sight, |reads| reads.discover(request.get_ref()))
    }

    type WatchStream = Watching;

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.desk.watch(self.sight(), request.get_ref())
    }

    async fn list_rules(
        &self,
        request: Request<pb::ListRulesRequest>,
    ) -> Result<Response<pb::ListRulesResponse>, Status> {
        self.desk.rules(&self.sight(), request.get_ref())
    }

    async fn put_rule(
        &self,
        _: Request<pb::PutRuleRequest>,
    ) -> Result<Response<pb::PutRuleResponse>, Status> {
        operators_only(&self.own)
    }

    async fn delete_rule(
        &self,
        _: Request<pb::DeleteRuleRequest>,
    ) -> Result<Response<pb::DeleteRuleResponse>, Status> {
        operators_only(&self.own)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::pb::registry_server::Registry;
    use crate::registry::client::mirror::MirrorConfig;
    use crate::registry::client::source::fake::Fake;
    use crate::registry::fixture::member;
    use crate::registry::fixture::rule;
    use crate::registry::fixture::shared;
    use crate::registry::live::Change;
    use crate::registry::rules::Stamp;
    use crate::runtime::Nursery;
    use crate::wire::status::reason_of;

    #[tokio::test(start_paused = true)]
    async fn schemas_come_from_the_registry_and_the_rest_from_the_mirror() {
        let fake = Fake::new();
        fake.live()
            .apply([Change::Put(shared("a", "default/x", &["s"]))]);
        let nursery = Nursery::here();
        let mirror = Mirror::start(&nursery, fake.source(), MirrorConfig::default());
        mirror.fresh().wait_for(|fresh| *fresh).await.unwrap();
        let own = member("default/x");
        let service = LocalRegistryService::new(own, &mirror, fake.source(), Stop::new());
        let schema = async || {
            let ask = pb::GetAgentRequest {
                agent: "x".into(),
                ..Default::default()
            };
            let found = service.get_agent(Request::new(ask)).await.unwrap();
            found.into_inner().cards[0].skills[0].input_schema.clone()
        };
        assert_eq!(schema().await, r#"{"type":"object"}"#);
        fake.away(true);
        assert_eq!(schema().await, "");
        let write = service
            .register(Request::new(pb::RegisterRequest::default()))
            .await;
        assert_eq!(write.unwrap_err().code(), Code::PermissionDenied);
        nursery.close(SCHEMAS_WITHIN).await;
    }

    #[tokio::test(start_paused = true)]
    async fn rules_are_read_here_and_written_elsewhere() {
        let fake = Fake::new();
        let stamp = Stamp {
            by: "spiffe://a/operator/ops".parse().unwrap(),
            at: std::time::SystemTime::UNIX_EPOCH,
        };
        let engine = fake.engine();
        let put = engine
            .store()
            .put_rule(rule("default", "slow"), None, stamp);
        let kept = put.await.unwrap().rule;
        let nursery = Nursery::here();
        let mirror = Mirror::start(&nursery, fake.source(), MirrorConfig::default());
        mirror.fresh().wait_for(|fresh| *fresh).await.unwrap();
        fake.away(true);
        let own = member("default/x");
        let service = LocalRegistryService::new(own, &mirror, fake.source(), Stop::new());
        let all = service
            .list_rules(Request::new(pb::ListRulesRequest::default()))
            .await
            .unwrap();
        assert_eq!(all.into_inner().rules, [kept.message().clone()]);
        let other = pb::ListRulesRequest {
            namespace: "prod".into(),
        };
        let refused = service.list_rules(Request::new(other)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let put = pb::PutRuleRequest {
            rule: Some(kept.message().clone()),
            ..Default::default()
        };
        let refused = service.put_rule(Request::new(put)).await.map(drop);
        let deleted = service
            .delete_rule(Request::new(pb::DeleteRuleRequest::default()))
            .await
            .map(drop);
        for refused in [refused, deleted] {
            let reason = reason_of(&refused.unwrap_err());
            assert_eq!(reason.as_deref(), Some("OPERATORS_ONLY"));
        }
        nursery.close(SCHEMAS_WITHIN).await;
    }
}
