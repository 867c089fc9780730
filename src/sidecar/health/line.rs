//! The prober's own HTTP/2 connection to the agent.
//!
//! Apart from the connection that carries work: where the agent allows few streams at once, all of
//! them busy, a question of health would wait behind the work. No pings go over it: gRPC servers
//! take them for an attack.

use std::{
    fmt, io,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tonic::body::Body;

use crate::{
    runtime::{Nursery, Stop},
    transport::answer::{Answer, harmless},
};

/// Bytes both ways.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Connects to `unix:/path` or `host:port`.
pub(super) async fn connected(address: &str) -> io::Result<Box<dyn Io>> {
    Ok(match address.strip_prefix("unix:") {
        Some(path) => Box::new(UnixStream::connect(Path::new(path)).await?),
        None => Box::new(TcpStream::connect(address).await?),
    })
}

/// One connection. Clones share it.
#[derive(Clone)]
pub(super) struct Line {
    sender: SendRequest<Body>,
    closed: Stop,
}

impl Line {
    /// Opens one, which lives in `nursery` until the last clone and the last of its streams are gone.
    ///
    /// # Errors
    /// When nobody listens there.
    pub(super) async fn open(address: &str, nursery: &Nursery) -> io::Result<Self> {
        let io = TokioIo::new(connected(address).await?);
        let (sender, connection) = http2::Builder::new(nursery.clone())
            .timer(TokioTimer::new())
            .handshake(io)
            .await
            .map_err(io::Error::other)?;
        let closed = Stop::new();
        let ends = closed.clone().drop_guard();
        nursery.start("agent's health", |stop| async move {
            let _ends = ends;
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "the connection to the agent's health broke");
                    }
                }
                () = stop.cancelled() => {}
            }
        });
        Ok(Self { sender, closed })
    }

    /// Whether it takes no call any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled() || self.sender.is_closed()
    }

    /// Waits for its end.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl tower::Service<http::Request<Body>> for Line {
    type Response = http::Response<Answer>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // HTTP/2 wants a scheme and an authority, which a path on a Unix socket has not.
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(Authority::from_static("localhost"));
        parts
            .path_and_query
            .get_or_insert_with(|| PathAndQuery::from_static("/"));
        *request.uri_mut() =
            Uri::from_parts(parts).expect("scheme, authority and path are all set");
        let answer = self.sender.send_request(request);
        // An agent may send what it likes, and the generated client panics on some of it.
        Box::pin(async move { answer.await.map(harmless) })
    }
}
