//! One plaintext HTTP/2 connection, dialled when it is needed, and again when it broke.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::{Status, body::Body};

use super::{AgentError, socket::Socket};
use crate::domain::{Fault, Reason};
use crate::runtime::Nursery;
use crate::telemetry::{TraceContext, trace::TRACEPARENT};

/// A socket of the own machine answers at once, or not at all.
const DIAL: Duration = Duration::from_secs(2);

/// A gRPC channel within this machine. Clones share the connection.
#[derive(Clone)]
pub struct Channel {
    shared: Arc<Shared>,
    /// Goes with every call that brings none of its own.
    trace: Option<TraceContext>,
}

struct Shared {
    socket: Socket,
    nursery: Nursery,
    live: Mutex<Option<http2::SendRequest<Body>>>,
}

impl Channel {
    /// A channel to `unix:/path` or a loopback `host:port`; its connection runs in `nursery`.
    /// Calls fail with `PEER_UNREACHABLE` where nobody listens: nothing was sent then.
    ///
    /// # Errors
    /// [`AgentError::Address`].
    pub fn new(address: &str, nursery: Nursery) -> Result<Self, AgentError> {
        Ok(Self {
            shared: Arc::new(Shared {
                socket: address.parse()?,
                nursery,
                live: Mutex::new(None),
            }),
            trace: None,
        })
    }

    /// The same channel, for calls that belong to `trace`.
    pub(super) fn traced(&self, trace: Option<TraceContext>) -> Self {
        let shared = Arc::clone(&self.shared);
        Self { shared, trace }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Channel").field(&self.shared.socket).finish()
    }
}

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(trace) = &self.trace
            && !request.headers().contains_key(TRACEPARENT)
        {
            trace.write(request.headers_mut());
        }
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let mut sender = shared.sender().await?;
            sender
                .send_request(local(request))
                .await
                .map_err(|error| Status::from_error(Box::new(error)))
        })
    }
}

impl Shared {
    /// Two calls at once may dial twice; the later connection stays, both work.
    async fn sender(&self) -> Result<http2::SendRequest<Body>, Fault> {
        let live = self.live.lock().clone();
        if let Some(live) = live
            && !live.is_closed()
        {
            return Ok(live);
        }
        let away = |cause: String| {
            let text = format!("nobody answers at {}: {cause}", self.socket);
            Fault::new(Reason::PeerUnreachable, text)
        };
        let dial = async {
            let io = self.socket.dial().await.map_err(|e| away(e.to_string()))?;
            http2::Builder::new(self.nursery.clone())
                .timer(TokioTimer::new())
                .handshake(TokioIo::new(io))
                .await
                .map_err(|e| away(e.to_string()))
        };
        let (sender, connection) = timeout(DIAL, dial)
            .await
            .map_err(|_| away("timed out".into()))??;
        self.nursery.adopt("local channel", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a local connection broke");
            }
        });
        *self.live.lock() = Some(sender.clone());
        Ok(sender)
    }
}

/// HTTP/2 wants a scheme and an authority, which a path on a Unix socket has not.
fn local(mut request: http::Request<Body>) -> http::Request<Body> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::from_static("localhost"));
    parts
        .path_and_query
        .get_or_insert_with(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path are all set");
    request
}
