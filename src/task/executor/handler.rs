//! The way to the agent's own process: `attache.v1.Handler` over whatever carries gRPC.
//!
//! Tells apart what the home has to know apart: nothing was sent, the process was lost, or the
//! agent answered.

use std::{
    error::Error as StdError,
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http_body::Body as HttpBody;
use prost::Message as _;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{
    Code, Status,
    body::Body,
    client::{Grpc, GrpcService},
};

use crate::domain::Reason;
use crate::pb;
use crate::pb::codec::Encoded;
use crate::pb::handler_client::HandlerClient;
use crate::telemetry::TraceContext;
use crate::wire::status;

/// Largest message either way: every payload of the contract fits below it.
const MESSAGE_MAX: usize = 4 << 20;

/// What the agent serves attempts under.
const HANDLE: &str = "/attache.v1.Handler/Handle";

/// What a handler says, in order, until it ends or fails.
pub type HandleStream =
    Pin<Box<dyn Stream<Item = Result<pb::HandleResponse, HandlerError>> + Send>>;

/// Why a handler call ended badly.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// Nothing was sent: the work has not begun.
    #[error("the agent cannot be reached: {0}")]
    Unreachable(String),
    /// The process went away in the middle.
    #[error("the agent's process was lost: {0}")]
    Lost(String),
    /// The agent answered with a status, reset its stream, or sent what cannot be read.
    #[error("the agent answered {code:?}: {text}", code = .0.code(), text = .0.message())]
    Status(Status),
}

/// The sidecar's own agent.
#[tonic::async_trait]
pub trait HandlerLink: Send + Sync + 'static {
    /// Runs one attempt, which may take `remaining` at most; `trace` goes with the call. Dropping the
    /// stream resets it.
    ///
    /// # Errors
    /// All of [`HandlerError`].
    async fn handle(
        &self,
        request: pb::HandleRequest,
        remaining: Duration,
        trace: Option<&TraceContext>,
    ) -> Result<HandleStream, HandlerError>;

    /// Asks the agent to stop an attempt.
    ///
    /// # Errors
    /// UNIMPLEMENTED where the agent cannot be asked.
    async fn cancel(&self, request: pb::CancelRequest) -> Result<(), Status>;

    /// The card that the agent gives of itself; `None` where it leaves that to the configuration.
    ///
    /// # Errors
    /// The agent's status, or UNAVAILABLE.
    async fn describe(&self) -> Result<Option<pb::AgentCard>, Status>;
}

/// A [`HandlerLink`] over a gRPC channel.
#[derive(Clone, Debug)]
pub struct GrpcHandler<T> {
    channel: T,
}

impl<T> GrpcHandler<T>
where
    T: GrpcService<Body> + Clone,
    T::Future: Send + 'static,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
{
    /// A handler behind `channel`, which dials by itself.
    pub fn new(channel: T) -> Self {
        Self { channel }
    }

    fn client(&self) -> HandlerClient<Marked<T>> {
        HandlerClient::new(Marked(self.channel.clone()))
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }
}

#[tonic::async_trait]
impl<T> HandlerLink for GrpcHandler<T>
where
    T: GrpcService<Body> + Clone + Send + Sync + 'static,
    T::Future: Send + 'static,
    T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <T::ResponseBody as HttpBody>::Error: Into<Box<dyn StdError + Send + Sync>> + Send,
{
    async fn handle(
        &self,
        request: pb::HandleRequest,
        remaining: Duration,
        trace: Option<&TraceContext>,
    ) -> Result<HandleStream, HandlerError> {
        let mut request = TraceContext::on(trace, Bytes::from(request.encode_to_vec()));
        request.set_timeout(remaining);
        let mut client = Grpc::new(Marked(self.channel.clone()))
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        let ready = client.ready().await;
        ready.map_err(|error| sorted(Status::from_error(error.into())))?;
        let codec = Encoded::<pb::HandleResponse>::default();
        let answer = client.server_streaming(request, PathAndQuery::from_static(HANDLE), codec);
        let answer = answer.await.map_err(sorted)?;
        Ok(Box::pin(
            answer.into_inner().map(|said| said.map_err(sorted)),
        ))
    }

    async fn cancel(&self, request: pb::CancelRequest) -> Result<(), Status> {
        self.client().cancel(request).await.map(|_| ())
    }

    async fn describe(&self) -> Result<Option<pb::AgentCard>, Status> {
        match self.client().describe(pb::DescribeRequest {}).await {
            Ok(answer) => Ok(answer.into_inner().card),
            Err(status) if status.code() == Code::Unimplemented => Ok(None),
            Err(status) => Err(status),
        }
    }
}

/// Marks the errors of the channel itself: a status that the agent passes on from somewhere else
/// may look just the same, and must not be taken for a call that was never sent.
#[derive(Clone, Debug)]
struct Marked<T>(T);

impl<T> tower::Service<http::Request<Body>> for Marked<T>
where
    T: GrpcService<Body>,
    T::Future: Send + 'static,
{
    type Response = http::Response<T::ResponseBody>;
    type Error = ChannelError;
    type Future = MarkedFuture<T::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        self.0
            .poll_ready(cx)
            .map_err(|error| ChannelError(Status::from_error(error.into())))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        MarkedFuture(Box::pin(self.0.call(request)))
    }
}

struct MarkedFuture<F>(Pin<Box<F>>);

impl<F, R, E> Future for MarkedFuture<F>
where
    F: Future<Output = Result<R, E>>,
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    type Output = Result<R, ChannelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0
            .as_mut()
            .poll(cx)
            .map_err(|error| ChannelError(Status::from_error(error.into())))
    }
}

/// Without a `source`, so that tonic keeps it whole instead of finding the status in it.
#[derive(Debug)]
struct ChannelError(Status);

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.message())
    }
}

impl StdError for ChannelError {}

/// Whose error it is.
fn sorted(error: Status) -> HandlerError {
    let text = || error.message().to_owned();
    let mut cause = StdError::source(&error);
    if let Some(channel) = cause.and_then(|cause| cause.downcast_ref::<ChannelError>()) {
        let reason = status::reason_of(&channel.0);
        let unsent = [Reason::PeerUnreachable, Reason::PeerMismatch]
            .iter()
            .any(|unsent| reason.as_deref() == Some(unsent.label()));
        return if unsent {
            HandlerError::Unreachable(text())
        } else {
            HandlerError::Lost(text())
        };
    }
    if cause.is_none() {
        return HandlerError::Status(error);
    }
    while let Some(inner) = cause {
        if let Some(h2) = inner.downcast_ref::<h2::Error>()
            && h2.is_reset()
            && h2.is_remote()
        {
            return HandlerError::Status(Status::new(
                error.code(),
                format!("the agent reset its stream: {h2}"),
            ));
        }
        cause = inner.source();
    }
    HandlerError::Lost(text())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Fault;

    #[test]
    fn a_status_that_an_agent_passes_on_is_not_a_call_that_was_never_sent() {
        let fault = || Status::from(Fault::new(Reason::PeerUnreachable, "away"));
        let answered = sorted(fault());
        assert!(matches!(answered, HandlerError::Status(_)), "{answered}");
        let unsent = sorted(Status::from_error(Box::new(ChannelError(fault()))));
        assert!(matches!(unsent, HandlerError::Unreachable(_)), "{unsent}");
        let other = Status::from(Fault::new(Reason::Internal, "cut"));
        let lost = sorted(Status::from_error(Box::new(ChannelError(other))));
        assert!(matches!(lost, HandlerError::Lost(_)), "{lost}");
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let lost = sorted(Status::from_error(Box::new(broken)));
        assert!(matches!(lost, HandlerError::Lost(_)), "{lost}");
    }
}
