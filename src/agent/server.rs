//! Serves `attache.v1.Handler` for one handler, until it is told to stop.

use std::{collections::HashMap, env, sync::Arc, time::Duration};

use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait, service::Routes};
use tower::ServiceExt as _;

use super::socket::{Io, Listener, Socket};
use super::task::Asking;
use super::{AgentError, Attached, Failure, Sidecar, Task, TaskResult};
use crate::pb;
use crate::pb::handle_response::Update;
use crate::pb::handler_server::HandlerServer;
use crate::runtime::{Nursery, Stop};
use crate::telemetry::TraceContext;

/// What stands in `$ATTACHE_LISTEN` of an agent that attaches.
const ATTACH: &str = "attach";
/// Largest message either way, as the contract has it.
const MESSAGE_MAX: usize = 4 << 20;
/// Updates on their way to the sidecar; behind them the handler waits.
const OUT_QUEUE: usize = 16;
/// How long attempts that run may take to end once the agent is told to stop.
pub(super) const GRACE: Duration = Duration::from_secs(30);
/// After a failed accept, such as for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Does tasks. Implemented by every `Fn(Task) -> impl Future`, or for a type of your own with
/// [`async_trait`].
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Runs one attempt. Its future is dropped when the task is cancelled.
    ///
    /// # Errors
    /// A [`Failure`], made of any error by `?`: the task fails with it.
    async fn handle(&self, task: Task) -> Result<TaskResult, Failure>;
}

#[async_trait]
impl<F, Fut> Handler for F
where
    F: Fn(Task) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<TaskResult, Failure>> + Send + 'static,
{
    async fn handle(&self, task: Task) -> Result<TaskResult, Failure> {
        self(task).await
    }
}

/// Serves `handler` on `$ATTACHE_LISTEN` until SIGTERM or Ctrl-C; what runs then has 30 s to end.
/// `$ATTACHE_SIDECAR`, where set, is the way to other agents. Where `$ATTACHE_LISTEN` is `attach`,
/// it does not listen: see [`serve_attached`]. `card`: what the agent says of itself; `None` leaves
/// it to the sidecar's configuration.
///
/// # Errors
/// When it cannot listen, or as [`serve_attached`].
pub async fn serve(card: Option<pb::AgentCard>, handler: impl Handler) -> Result<(), AgentError> {
    let listen = env::var("ATTACHE_LISTEN").map_err(|_| AgentError::Unset("ATTACHE_LISTEN"))?;
    if listen == ATTACH {
        return serve_attached(card, handler).await;
    }
    let sidecar = env::var("ATTACHE_SIDECAR").ok();
    let agent = Agent::bind(&listen, sidecar.as_deref(), card, handler).await?;
    until_told(|stop| agent.run(stop)).await
}

/// Serves `handler` without a port: over a stream that it opens to the sidecar at
/// `$ATTACHE_SIDECAR`, and opens again whenever that breaks, until SIGTERM or Ctrl-C; what runs then
/// has 30 s to end. The sidecar's configuration has to say `agent = "attach"`.
///
/// # Errors
/// When the sidecar refuses it for good, or the address is wrong.
pub async fn serve_attached(
    card: Option<pb::AgentCard>,
    handler: impl Handler,
) -> Result<(), AgentError> {
    let sidecar = env::var("ATTACHE_SIDECAR").map_err(|_| AgentError::Unset("ATTACHE_SIDECAR"))?;
    let agent = Attached::new(&sidecar, card, handler)?;
    let mut ended = Ok(());
    until_told(async |stop| ended = agent.run(stop).await).await?;
    ended
}

/// Runs until SIGTERM or Ctrl-C, or until it ends by itself.
async fn until_told<F>(run: impl FnOnce(Stop) -> F) -> Result<(), AgentError>
where
    F: Future<Output = ()>,
{
    let cannot = |cause| AgentError::Bind {
        address: "signals".into(),
        cause,
    };
    let mut terminated = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(cannot)?;
    let stop = Stop::new();
    let mut run = std::pin::pin!(run(stop.clone()));
    tokio::select! {
        () = &mut run => return Ok(()),
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    stop.cancel();
    run.await;
    Ok(())
}

/// An agent that listens; [`serve`] is the short way.
#[derive(Debug)]
pub struct Agent {
    listener: Listener,
    address: Socket,
    routes: Routes,
    nursery: Nursery,
    /// Connections to the sidecar, which running attempts need to their end.
    outward: Nursery,
}

impl Agent {
    /// Listens on `listen` (`unix:/path` or a loopback `host:port`, port 0: any).
    ///
    /// # Errors
    /// When an address is wrong or taken.
    pub async fn bind(
        listen: &str,
        sidecar: Option<&str>,
        card: Option<pb::AgentCard>,
        handler: impl Handler,
    ) -> Result<Self, AgentError> {
        let (nursery, outward) = (Nursery::here(), Nursery::here());
        let socket: Socket = listen.parse()?;
        let cannot = |cause| AgentError::Bind {
            address: listen.to_owned(),
            cause,
        };
        let listener = socket.listen().await.map_err(cannot)?;
        let address = listener.address().map_err(cannot)?;
        let sidecar = sidecar
            .map(|address| Sidecar::new(address, outward.clone()))
            .transpose()?;
        let service = Service::new(handler, card, sidecar, nursery.clone());
        let service = HandlerServer::new(service)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        Ok(Self {
            listener,
            address,
            routes: Routes::new(service).prepare(),
            nursery,
            outward,
        })
    }

    /// Where it listens, as in `$ATTACHE_LISTEN`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Serves until `stop`, then lets what runs end, for 30 s at most.
    pub async fn run(self, stop: Stop) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok(io) => self.connection(io),
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        sleep(ACCEPT_AGAIN).await;
                    }
                },
            }
        }
        drop(self.listener);
        self.nursery.close(GRACE).await;
        self.outward.abort().await;
    }

    fn connection(&self, io: Box<dyn Io>) {
        let routes = self.routes.clone();
        let exec = self.nursery.clone();
        self.nursery
            .start("sidecar's connection", |stop| async move {
                let answer = service_fn(move |request: http::Request<Incoming>| {
                    let routes = routes.clone();
                    routes.oneshot(request)
                });
                let connection = http2::Builder::new(exec)
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(io), answer);
                let mut connection = std::pin::pin!(connection);
                let ended = tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = stop.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "the sidecar's connection broke");
                }
            });
    }
}

type Attempts = Arc<Mutex<HashMap<(String, u32), Stop>>>;

/// What runs attempts, however they come.
pub(super) struct Service {
    handler: Arc<dyn Handler>,
    card: Option<pb::AgentCard>,
    sidecar: Option<Sidecar>,
    nursery: Nursery,
    running: Attempts,
}

impl Service {
    /// Runs attempts of `handler` in `nursery`.
    pub(super) fn new(
        handler: impl Handler,
        card: Option<pb::AgentCard>,
        sidecar: Option<Sidecar>,
        nursery: Nursery,
    ) -> Self {
        Self {
            handler: Arc::new(handler),
            card,
            sidecar,
            nursery,
            running: Arc::default(),
        }
    }

    /// What the agent says of itself.
    pub(super) fn card(&self) -> Option<pb::AgentCard> {
        self.card.clone()
    }

    /// Begins an attempt; dropping what it says ends it.
    pub(super) fn begin(
        &self,
        request: pb::HandleRequest,
        trace: Option<TraceContext>,
    ) -> mpsc::Receiver<Result<pb::HandleResponse, Status>> {
        let (out, updates) = mpsc::channel(OUT_QUEUE);
        let task = Task {
            request,
            out: out.clone(),
            sidecar: self
                .sidecar
                .as_ref()
                .map(|sidecar| sidecar.traced(trace.clone())),
            trace,
            asking: Asking::default(),
            handed: Arc::default(),
        };
        let handed = task.handed.clone();
        let asked = task.asking.sent.clone();
        let key = (task.id().to_owned(), task.attempt());
        let canceled = Stop::new();
        self.running.lock().insert(key.clone(), canceled.clone());
        let running = Arc::clone(&self.running);
        let listed = Listed { running, key };
        let handler = Arc::clone(&self.handler);
        self.nursery.adopt("handler", async move {
            let _listed = listed;
            let last = tokio::select! {
                biased;
                () = out.closed() => return,
                () = asked.cancelled() => return,
                () = canceled.cancelled() => Update::Canceled(pb::Canceled::default()),
                done = handler.handle(task) => match done {
                    Ok(result) => match handed.get() {
                        Some(to) => Update::Delegation(to.clone()),
                        None => Update::Result(result),
                    },
                    Err(failure) => Update::Failure(failure.0),
                },
            };
            let last = pb::HandleResponse { update: Some(last) };
            if out.send(Ok(last)).await.is_err() {
                tracing::debug!("the sidecar left before the last update");
            }
        });
        updates
    }

    /// Asks an attempt to stop; whether it runs.
    pub(super) fn stop(&self, task: &str, attempt: u32) -> bool {
        let key = (task.to_owned(), attempt);
        let running = self.running.lock().get(&key).cloned();
        running.inspect(|canceled| canceled.cancel()).is_some()
    }
}

/// Takes an attempt off the list of those that can be cancelled.
struct Listed {
    running: Attempts,
    key: (String, u32),
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.running.lock().remove(&self.key);
    }
}

#[async_trait]
impl pb::handler_server::Handler for Service {
    type HandleStream = ReceiverStream<Result<pb::HandleResponse, Status>>;

    async fn handle(
        &self,
        request: Request<pb::HandleRequest>,
    ) -> Result<Response<Self::HandleStream>, Status> {
        let trace = TraceContext::of_request(&request);
        let updates = self.begin(request.into_inner(), trace);
        Ok(Response::new(ReceiverStream::new(updates)))
    }

    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeResponse>, Status> {
        let card = self.card();
        match card {
            Some(_) => Ok(Response::new(pb::DescribeResponse { card })),
            None => Err(Status::unimplemented(
                "the sidecar's configuration has the card",
            )),
        }
    }

    async fn cancel(
        &self,
        request: Request<pb::CancelRequest>,
    ) -> Result<Response<pb::CancelResponse>, Status> {
        let request = request.into_inner();
        if !self.stop(&request.task_id, request.attempt) {
            return Err(Status::not_found("no such attempt runs here"));
        }
        Ok(Response::new(pb::CancelResponse {}))
    }
}
