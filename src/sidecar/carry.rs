//! Carries attempts to their executors: in process to the own agent, over mutual TLS to others.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_stream::Stream;
use tonic::{Code, Request, Status};

use super::{
    balancer::Balancer,
    config::AgentAt,
    judge::{FIRST_WORD, Judge},
    pools::Pools,
};
use crate::{
    domain::{Fault, InstanceId, Reason, SpiffeId},
    identity::Expect,
    pb::{self, executor_client::ExecutorClient},
    registry::client::Entry,
    resilience::{Injected, Permit},
    runtime::DataThreads,
    task::{
        Call, Claims, Connect, Grants, Steps, Updates,
        attach::Desk,
        executor::{Executor, GrpcHandler, HandleStream, HandlerError, HandlerLink, HomePeer},
    },
    telemetry::{
        TraceContext,
        metrics::{calls::Method, peers::PeerCalls, pool::Dials},
    },
    transport::{Channel, Target},
};

/// Where the own agent listens.
pub(super) fn own_agent(address: String) -> Target {
    Target {
        endpoints: vec![address],
        expect: None,
    }
}

/// Opens `Executor.Execute` where an attempt goes.
pub(super) struct Carrier {
    pub(super) own: SpiffeId,
    pub(super) instance: InstanceId,
    pub(super) executor: Executor,
    pub(super) balancer: Arc<Balancer>,
    pub(super) pools: Pools,
    pub(super) calls: PeerCalls,
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carrier")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

/// Where an instance's mutual TLS listener is, pinned to that very instance.
pub(super) fn target(entry: &Entry) -> Target {
    let expect = Expect::Instance(entry.id.clone(), entry.instance_id.clone());
    Target {
        endpoints: entry.instance.endpoints.clone(),
        expect: Some(expect),
    }
}

#[tonic::async_trait]
impl Connect for Carrier {
    async fn execute(
        &self,
        instance: &InstanceId,
        steps: Steps,
        call: Option<Box<Call>>,
        trace: Option<&TraceContext>,
    ) -> Result<Updates, Status> {
        let patience = call
            .as_ref()
            .map(|call| call.patience.unwrap_or(FIRST_WORD));
        if let Some(call) = &call {
            rehearse(call.injected).await?;
        }
        let entry = self.balancer.mirror().catalog().entry(instance).cloned();
        let judge = self.judge(call, entry.clone());
        let opening = self.open(instance, steps, trace, entry);
        judge.over(opening, patience).await
    }

    async fn slots(&self, instance: &InstanceId, claims: Claims) -> Result<Grants, Status> {
        if *instance == self.instance {
            return Ok(self.executor.slots(&self.peer(), claims)?);
        }
        let entry = self.balancer.mirror().catalog().entry(instance).cloned();
        let entry = entry.ok_or_else(|| gone(instance))?;
        let call = self.calls.begin(Method::of("/attache.v1.Executor/Slots"));
        let channel = self.pools.channel(target(&entry));
        match open_slots(channel, Request::new(Outbound(claims))).await {
            Ok(grants) => Ok(Box::pin(call.follows(grants))),
            Err(status) => call.ended(Err(status)),
        }
    }
}

impl Carrier {
    /// Who judges the instance by this call. One that is taken up again was not chosen now: it
    /// counts as well, but is no probe.
    fn judge(&self, call: Option<Box<Call>>, entry: Option<Arc<Entry>>) -> Judge {
        let permit = match (call, &entry) {
            (Some(call), _) => call.permit,
            (None, Some(entry)) => self.balancer.outside(entry, Instant::now()),
            (None, None) => Permit::none(),
        };
        Judge::new(permit, entry)
    }

    /// This sidecar as its own executor sees it.
    fn peer(&self) -> HomePeer {
        HomePeer {
            id: self.own.clone(),
            instance: self.instance.clone(),
        }
    }

    async fn open(
        &self,
        instance: &InstanceId,
        steps: Steps,
        trace: Option<&TraceContext>,
        entry: Option<Arc<Entry>>,
    ) -> Result<Updates, Status> {
        if *instance == self.instance {
            return Ok(self.executor.execute(self.peer(), steps, trace.cloned()));
        }
        let entry = entry.ok_or_else(|| gone(instance))?;
        let call = self.calls.begin(Method::of("/attache.v1.Executor/Execute"));
        let steps = TraceContext::on(trace, Outbound(steps));
        match open_stream(self.pools.channel(target(&entry)), steps).await {
            Ok(updates) => Ok(Box::pin(call.follows(updates))),
            Err(status) => call.ended(Err(status)),
        }
    }
}

/// Does to a call what was asked for on purpose: then it was not sent.
async fn rehearse(injected: Injected) -> Result<(), Status> {
    if let Some(delay) = injected.delay {
        sleep(delay).await;
    }
    let Some(code) = injected.abort.filter(|code| *code != Code::Ok) else {
        return Ok(());
    };
    let text = "a traffic rule asks for this failure: nothing was sent";
    let status = Status::from(Fault::new(Reason::FaultInjected, text));
    let details = bytes::Bytes::copy_from_slice(status.details());
    Err(Status::with_details(code, text, details))
}

fn gone(instance: &InstanceId) -> Status {
    let text = format!("instance {instance} is not in the catalog any more");
    Fault::new(Reason::PeerUnreachable, text).into()
}

/// Messages as a type of its own: the compiler cannot prove `Send` through a boxed trait object here.
struct Outbound<T>(Pin<Box<dyn Stream<Item = T> + Send>>);

impl<T> Stream for Outbound<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.as_mut().poll_next(context)
    }
}

/// Opens the stream at another sidecar. Boxed: the generated client's future is large.
fn open_stream(
    channel: Channel,
    steps: Request<Outbound<pb::ExecuteRequest>>,
) -> Pin<Box<dyn Future<Output = Result<Updates, Status>> + Send>> {
    Box::pin(async move {
        let mut client = ExecutorClient::new(channel);
        let updates = client.execute(steps).await?.into_inner();
        Ok(Box::pin(updates) as Updates)
    })
}

/// Opens the stream on which another sidecar grants slots. Boxed as well.
fn open_slots(
    channel: Channel,
    claims: Request<Outbound<pb::SlotsRequest>>,
) -> Pin<Box<dyn Future<Output = Result<Grants, Status>> + Send>> {
    Box::pin(async move {
        let mut client = ExecutorClient::new(channel);
        let grants = client.slots(claims).await?.into_inner();
        Ok(Box::pin(grants) as Grants)
    })
}

/// How this sidecar comes to its own agent.
#[derive(Clone)]
pub(super) enum Reached {
    /// There is none.
    Nobody,
    /// It is called, at this address.
    Dialed(AgentLink, String),
    /// It comes by itself.
    Attached(Desk),
}

impl Reached {
    /// The way to the agent of this instance.
    pub(super) fn new(
        agent: Option<&AgentAt>,
        instance: &InstanceId,
        threads: &DataThreads,
        counts: &Arc<Dials>,
    ) -> Self {
        match agent {
            None => Self::Nobody,
            Some(AgentAt::Listens(address)) => {
                let pools = Pools::plaintext(threads, counts);
                Self::Dialed(AgentLink::new(pools, address.clone()), address.clone())
            }
            Some(AgentAt::Attaches) => {
                Self::Attached(Desk::new(instance.clone(), threads.nurseries()))
            }
        }
    }

    /// What the executor calls.
    pub(super) fn link(&self) -> Arc<dyn HandlerLink> {
        match self {
            Self::Nobody => Arc::new(AgentLink(None)),
            Self::Dialed(link, _) => Arc::new(link.clone()),
            Self::Attached(desk) => Arc::new(desk.clone()),
        }
    }

    /// Where it listens, if it does.
    pub(super) fn address(&self) -> Option<&str> {
        match self {
            Self::Dialed(_, address) => Some(address),
            Self::Nobody | Self::Attached(_) => None,
        }
    }

    /// Where it attaches, if it does.
    pub(super) fn desk(&self) -> Option<Desk> {
        match self {
            Self::Attached(desk) => Some(desk.clone()),
            Self::Nobody | Self::Dialed(..) => None,
        }
    }
}

/// The own agent, reached from whichever data thread runs the attempt; `None`: there is none.
#[derive(Clone)]
pub(super) struct AgentLink(Option<(Pools, Target)>);

impl AgentLink {
    /// A link to the `Handler` at an address.
    pub(super) fn new(pools: Pools, address: String) -> Self {
        Self(Some((pools, own_agent(address))))
    }

    fn handler(&self) -> Result<GrpcHandler<Channel>, HandlerError> {
        let Some((pools, target)) = &self.0 else {
            let text = "this sidecar has no agent";
            return Err(HandlerError::Unreachable(text.into()));
        };
        Ok(GrpcHandler::new(pools.channel(target.clone())))
    }
}

#[tonic::async_trait]
impl HandlerLink for AgentLink {
    async fn handle(
        &self,
        request: pb::HandleRequest,
        remaining: Duration,
        trace: Option<&TraceContext>,
    ) -> Result<HandleStream, HandlerError> {
        self.handler()?.handle(request, remaining, trace).await
    }

    async fn cancel(&self, request: pb::CancelRequest) -> Result<(), Status> {
        self.handler().map_err(away)?.cancel(request).await
    }

    async fn describe(&self) -> Result<Option<pb::AgentCard>, Status> {
        self.handler().map_err(away)?.describe().await
    }
}

fn away(error: HandlerError) -> Status {
    Fault::new(Reason::PeerUnreachable, error.to_string()).into()
}
