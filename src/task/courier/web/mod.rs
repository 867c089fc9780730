//! Tells a URL: one POST on a connection of its own, over TLS, to an address that was looked up once
//! and found fit.
//!
//! `answer`: what an answer means; pure. `names`: where a name leads. `trust`: whose certificates are believed. Refused: whatever
//! the configuration does not name, addresses that are not public unless it says so, redirects.

mod answer;
mod names;
mod trust;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::runtime::clock;
use crate::task::callback::{Allowed, Delivery, Letter, Outcome, Url, letter};

use super::Post;
use names::Lookups;
pub use trust::{Trust, TrustError};

/// How long one address may take to answer.
const CONNECT: Duration = Duration::from_secs(2);
/// Most bytes of an answer's head; of its body nothing is read.
const HEAD_MAX: usize = 16 << 10;
/// Most header fields of an answer.
const FIELDS_MAX: usize = 64;

/// Names and connections: the system's, or a test's.
#[tonic::async_trait]
pub trait Net: Send + Sync + 'static {
    /// Addresses of a name.
    ///
    /// # Errors
    /// When there is none, or nobody to ask.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;

    /// A connection to just this address.
    ///
    /// # Errors
    /// When nobody answers there.
    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream>;
}

/// The system's names and connections.
#[derive(Clone, Debug, Default)]
pub struct System {
    lookups: Lookups,
}

#[tonic::async_trait]
impl Net for System {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self.lookups.look_up(host, port).await
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}

/// Calls https URLs that the configuration allows.
#[derive(Clone)]
pub struct Web {
    allowed: Arc<Allowed>,
    trust: Trust,
    net: Arc<dyn Net>,
}

/// Why there was no answer, without anything secret.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("this sidecar's callbacks.allow does not name it (any more)")]
    NotAllowed,
    #[error("{0} has no address: {1}")]
    Name(String, io::Error),
    #[error("{0} is at {1}, which is not public and not allowed by callbacks.allow")]
    Address(String, IpAddr),
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("no TLS: {0}")]
    Tls(io::Error),
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("it cannot be asked: {0}")]
    Request(#[from] http::Error),
}

impl Web {
    /// Calls what `allowed` allows, at those whom `trust` believes.
    pub fn new(allowed: Arc<Allowed>, trust: Trust, net: Arc<dyn Net>) -> Self {
        Self {
            allowed,
            trust,
            net,
        }
    }

    async fn call(
        &self,
        url: &Url,
        delivery: &Delivery,
    ) -> Result<http::response::Parts, Unanswered> {
        // The configuration may have changed since the task was taken.
        self.allowed
            .check(url)
            .map_err(|_| Unanswered::NotAllowed)?;
        let stream = self.connected(&self.addresses(url).await?).await?;
        let stream = self.secured(url, stream).await.map_err(Unanswered::Tls)?;
        let request = request(url, delivery, letter(&delivery.event))?;
        exchange(stream, request).await
    }

    /// The addresses that may be called: the name is not looked up again, whatever it says next.
    async fn addresses(&self, url: &Url) -> Result<Vec<SocketAddr>, Unanswered> {
        let host = url.host();
        let found = match host.parse() {
            Ok(ip) => vec![SocketAddr::new(ip, url.port())],
            Err(_) => {
                let found = self.net.resolve(host, url.port()).await;
                found.map_err(|error| Unanswered::Name(host.to_owned(), error))?
            }
        };
        // One that may not be called is no chance for the others: a name like that is up to something.
        if let Some(bad) = found.iter().find(|at| !self.allowed.reaches(url, at.ip())) {
            return Err(Unanswered::Address(host.to_owned(), bad.ip()));
        }
        let port = url.port();
        Ok(found
            .iter()
            .map(|at| SocketAddr::new(at.ip(), port))
            .collect())
    }

    /// A connection to the first of them that answers.
    async fn connected(&self, addresses: &[SocketAddr]) -> Result<TcpStream, Unanswered> {
        let mut failed = io::ErrorKind::NotFound.into();
        for address in addresses {
            match timeout(CONNECT, self.net.connect(*address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failed = error,
                Err(_) => failed = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(Unanswered::Connect(failed))
    }

    async fn secured(&self, url: &Url, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(url.host().to_owned())
            .map_err(|wrong| io::Error::new(io::ErrorKind::InvalidInput, wrong))?;
        let connector = TlsConnector::from(self.trust.config());
        Box::pin(connector.connect(name, stream)).await
    }
}

#[tonic::async_trait]
impl Post for Web {
    async fn post(&self, url: &Url, delivery: &Delivery) -> Outcome {
        match self.call(url, delivery).await {
            Ok(head) => answer::outcome(&head, clock::wall()),
            Err(why) => Outcome::Later {
                why: why.to_string(),
                wait: None,
            },
        }
    }
}

fn request(
    url: &Url,
    delivery: &Delivery,
    letter: Letter,
) -> Result<http::Request<Full<Bytes>>, http::Error> {
    http::Request::post(url.path())
        .header("host", url.authority())
        .header("content-type", "application/json")
        .header("user-agent", concat!("attache/", env!("CARGO_PKG_VERSION")))
        .header("attache-task-id", delivery.event.task_id.as_str())
        .header("attache-seq", delivery.event.seq)
        .header("attache-attempt", delivery.event.attempt)
        .header("idempotency-key", letter.key)
        .header("connection", "close")
        .body(Full::new(letter.text.into()))
}

async fn exchange(
    stream: TlsStream<TcpStream>,
    request: http::Request<Full<Bytes>>,
) -> Result<http::response::Parts, Unanswered> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .max_headers(FIELDS_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    let mut answered = std::pin::pin!(sender.send_request(request));
    let answer: http::Response<Incoming> = tokio::select! {
        biased;
        answer = &mut answered => answer?,
        // It ends with the answer, or says why there is none.
        ended = connection => {
            ended?;
            answered.await?
        }
    };
    Ok(answer.into_parts().0)
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web")
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}
