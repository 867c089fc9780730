//! Makes one connection to a peer: TCP or Unix socket, TLS with a pin, HTTP/2 spoken.
//!
//! Done only when the peer's SETTINGS have come: in TLS 1.3 a refusal of our certificate shows no
//! earlier, and no stream should be opened before.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::uri::Authority;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::identity::Credentials;
use crate::identity::Mismatch;
use crate::identity::Peer;
use crate::identity::certificate::peer_of;
use crate::identity::credentials::ALPN;
use crate::identity::exporter;
use crate::runtime::Nursery;
use crate::runtime::clock::wall;
use crate::transport::alive::{Alive, cause_of, tune};
use crate::transport::error::DialError;
use crate::transport::lifetime::Sightings;
use crate::transport::opening::Opening;
use crate::transport::pool::Target;
use crate::transport::replay::Replay;
use crate::transport::serve::{
    CONNECTION_WINDOW, HEADER_LIST, PEER_PING, READ_BUFFER, STREAM_WINDOW,
};

/// For name resolution and TCP's handshake: a peer in reach answers in one round trip.
const CONNECT: Duration = Duration::from_secs(2);
/// For TLS and the first words of HTTP/2.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// What TLS wants as a name; the SPIFFE id is what is verified.
const NAME: &str = "mesh.internal";

/// What connections run over.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<I: AsyncRead + AsyncWrite + Unpin + Send> Io for I {}

/// The peer's first words, awaited: a link to send calls on, by whichever implementation.
pub(super) type Speaking<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;
type Speak<T> = fn(Box<dyn Io>, Option<Peer>, Owner) -> Speaking<T>;

/// A connection that was made.
#[derive(Debug)]
pub(super) struct Dialed<T> {
    pub(super) link: T,
    /// What requests without an authority get.
    pub(super) authority: Authority,
    /// Who proved to be there; nobody without TLS.
    pub(super) peer: Option<Peer>,
    /// Keying material of the TLS connection.
    pub(super) exporter: Option<[u8; 32]>,
}

/// Where a connection's tasks and traces live.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) nursery: Nursery,
    pub(super) sightings: Sightings,
    /// Held by the socket for as long as it is open.
    pub(super) alive: Arc<Alive>,
}

/// How to secure a connection.
#[derive(Clone, Debug)]
pub(super) enum Wrap {
    /// Not at all: the own agent on this machine.
    Plain,
    /// Mutual TLS, or enrolment's.
    Tls(Arc<ClientConfig>),
}

impl Wrap {
    /// As a target wants it; `None` where there is nothing to prove ourselves with.
    pub(super) fn of(target: &Target, own: Option<&Credentials>) -> Option<Self> {
        match (&target.expect, own) {
            (None, _) => Some(Self::Plain),
            (Some(_), None) => None,
            (Some(expect), Some(own)) => Some(Self::Tls(own.client_config(expect.clone()))),
        }
    }
}

/// Tries the endpoints in their order until one is right, where `speak` says what follows TLS.
///
/// # Errors
/// What was wrong with each of them.
pub(super) async fn dial<T>(
    endpoints: &[String],
    wrap: &Wrap,
    owner: &Owner,
    speak: Speak<T>,
) -> Result<Dialed<T>, Vec<DialError>> {
    let mut tried = Vec::new();
    for endpoint in endpoints {
        match Box::pin(dial_one(endpoint, wrap, owner, speak)).await {
            Ok(dialed) => return Ok(dialed),
            Err(error) => tried.push(error),
        }
    }
    if tried.is_empty() {
        tried.push(DialError::NoEndpoint);
    }
    Err(tried)
}

async fn dial_one<T>(
    endpoint: &str,
    wrap: &Wrap,
    owner: &Owner,
    speak: Speak<T>,
) -> Result<Dialed<T>, DialError> {
    let failed = |error: io::Error| explain(endpoint, &error);
    if let Some(path) = endpoint.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        let connecting = UnixStream::connect(path);
        let io = within(CONNECT, connecting).await.map_err(failed)?;
        // Servers refuse a path as authority, see the architecture's page on listeners.
        let authority = Authority::from_static("localhost");
        return Box::pin(secure(Box::new(io), (authority, speak), wrap, owner))
            .await
            .map_err(failed);
    }
    let authority: Option<Authority> = endpoint.parse().ok();
    let authority = authority.filter(|authority| authority.port_u16().is_some());
    let authority = authority.ok_or_else(|| DialError::Unreachable {
        endpoint: endpoint.to_owned(),
        why: "this is no endpoint; it should be host:port or unix:/path".into(),
    })?;
    let io = within(CONNECT, TcpStream::connect(endpoint))
        .await
        .map_err(failed)?;
    tune(&io, matches!(wrap, Wrap::Tls(_))).map_err(failed)?;
    Box::pin(secure(Box::new(io), (authority, speak), wrap, owner))
        .await
        .map_err(failed)
}

async fn secure<T>(
    io: Box<dyn Io>,
    (authority, speak): (Authority, Speak<T>),
    wrap: &Wrap,
    owner: &Owner,
) -> io::Result<Dialed<T>> {
    let Wrap::Tls(config) = wrap else {
        let link = within(HANDSHAKE, speak(io, None, owner.clone())).await?;
        return Ok(Dialed {
            link,
            authority,
            peer: None,
            exporter: None,
        });
    };
    let connector = TlsConnector::from(Arc::clone(config));
    let shaking = async {
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let tls = connector
            .connect(name, BufReader::with_capacity(READ_BUFFER, io))
            .await?;
        if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::other("it does not speak HTTP/2 (ALPN h2)"));
        }
        let peer = peer_behind(&tls).ok_or_else(|| io::Error::other("the peer has no name"))?;
        let now = wall();
        expired(&peer, now)?;
        owner.sightings.saw(&peer, now);
        let exporter = exporter(tls.get_ref().1);
        let spoken = speak(Box::new(tls), Some(peer.clone()), owner.clone()).await;
        if spoken.is_err() {
            // Cut by us under its first words: that is why.
            expired(&peer, wall())?;
        }
        Ok(Dialed {
            link: spoken?,
            authority,
            peer: Some(peer),
            exporter,
        })
    };
    within(HANDSHAKE, shaking).await
}

/// The verifier sees whole seconds; a connection to what ended within one would be cut at once.
fn expired(peer: &Peer, now: SystemTime) -> io::Result<()> {
    if now < peer.not_after {
        return Ok(());
    }
    Err(io::Error::other("the peer's certificate has expired"))
}

fn peer_behind<I>(tls: &TlsStream<I>) -> Option<Peer> {
    let chain = tls.get_ref().1.peer_certificates()?;
    peer_of(chain.first()?).ok()
}

/// For our own engine, which speaks by itself: to a member only after its first word.
pub(super) fn listen(
    io: Box<dyn Io>,
    peer: Option<Peer>,
    owner: Owner,
) -> Speaking<Opening<Box<dyn Io>>> {
    Box::pin(async move {
        let (mut io, _) = Opening::watch(io, Some(owner.alive));
        if peer.is_some() {
            io.listen_first().await?;
        }
        Ok(io)
    })
}

/// By hyper, for calls of our own.
pub(super) fn speak(
    io: Box<dyn Io>,
    peer: Option<Peer>,
    owner: Owner,
) -> Speaking<SendRequest<Replay>> {
    Box::pin(async move { converse(io, peer, &owner).await })
}

async fn converse(
    io: Box<dyn Io>,
    peer: Option<Peer>,
    owner: &Owner,
) -> io::Result<SendRequest<Replay>> {
    let (mut io, opened) = Opening::watch(io, Some(Arc::clone(&owner.alive)));
    let mesh = peer.is_some();
    if mesh {
        io.listen_first().await?;
    }
    let mut builder = http2::Builder::new(Executor::new(owner, peer));
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST);
    if mesh {
        // Foreign servers take pings for an attack by default; a local one needs none.
        builder
            .keep_alive_interval(PEER_PING.after)
            .keep_alive_timeout(PEER_PING.wait);
    }
    // Boxed: each stream's task has room for a whole connection, whatever that is over.
    let handshake = builder.handshake(TokioIo::new(Box::new(io)));
    let (sender, connection) = handshake.await.map_err(io::Error::other)?;
    let alive = Arc::clone(&owner.alive);
    owner.nursery.adopt("dispatch", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
            alive.ends(cause_of(&error));
        }
    });
    opened
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::UnexpectedEof.into()))?;
    Ok(sender)
}

/// What the first task of a connection is watched with; nothing where nobody is proven.
type First = Option<(Peer, Arc<Alive>)>;

/// Starts a connection's tasks. The first is the connection itself: it ends with the peer's
/// certificate, and its streams with it.
#[derive(Clone, Debug)]
struct Executor {
    nursery: Nursery,
    sightings: Sightings,
    first: Arc<Mutex<First>>,
}

impl Executor {
    fn new(owner: &Owner, peer: Option<Peer>) -> Self {
        Self {
            nursery: owner.nursery.clone(),
            sightings: owner.sightings.clone(),
            first: Arc::new(Mutex::new(
                peer.map(|peer| (peer, Arc::clone(&owner.alive))),
            )),
        }
    }
}

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let Some((peer, alive)) = self.first.lock().take() else {
            return self.nursery.execute(task);
        };
        let sightings = self.sightings.clone();
        self.nursery.adopt("connection", async move {
            tokio::select! {
                _ = task => {}
                cut = sightings.end_of(&peer) => {
                    alive.ends(cut.into());
                    tracing::info!(peer = %peer.id, why = cut.why(), "connection cut");
                }
            }
        });
    }
}

async fn within<T>(limit: Duration, wait: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, wait)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn explain(endpoint: &str, error: &io::Error) -> DialError {
    let endpoint = endpoint.to_owned();
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if let Some(mismatch) = tls.and_then(Mismatch::of) {
        let why = mismatch.to_string();
        return DialError::Mismatch { endpoint, why };
    }
    if let Some(rustls::Error::AlertReceived(alert)) = tls {
        let why = format!("{alert:?}");
        return DialError::Refused { endpoint, why };
    }
    let why = if error.kind() == io::ErrorKind::TimedOut {
        "no answer in time".into()
    } else if error.kind() == io::ErrorKind::UnexpectedEof {
        "the connection was closed during the handshake".into()
    } else {
        error.to_string()
    };
    DialError::Unreachable { endpoint, why }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        sync::mpsc,
        time::{Instant, sleep},
    };
    use tonic::body::Body;

    use super::*;
    use crate::telemetry::metrics::pool::{Close, Dials};
    use crate::transport::alive::Fate;
    use crate::transport::opening::FRAME_HEAD;
    use crate::transport::replay::Recording;

    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const PING: u8 = 6;
    const ACK: u8 = 1;
    const HEADERS: u8 = 1;

    /// A peer that tells what frames come, and answers nothing but PINGs, if anything.
    async fn peer(mut io: DuplexStream, answers: bool, tell: mpsc::Sender<u8>) {
        io.write_all(&SETTINGS).await.unwrap();
        let mut preface = [0; 24];
        io.read_exact(&mut preface).await.unwrap();
        let mut head = [0; FRAME_HEAD];
        while io.read_exact(&mut head).await.is_ok() {
            let size = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut body = vec![0; size as usize];
            io.read_exact(&mut body).await.unwrap();
            tell.try_send(head[3]).unwrap();
            if answers && head[3] == PING && head[4] & ACK == 0 {
                let ack = [[0, 0, 8, PING, ACK, 0, 0, 0, 0].as_slice(), &body].concat();
                io.write_all(&ack).await.unwrap();
            }
        }
    }

    struct Spoken {
        sender: SendRequest<Replay>,
        frames: mpsc::Receiver<u8>,
        fate: Fate,
        nursery: Nursery,
    }

    impl Spoken {
        /// Speaks to such a peer, as to a member of the mesh or not.
        async fn to(answers: bool, mesh: bool) -> Self {
            let (near, far) = tokio::io::duplex(1 << 16);
            let (tell, frames) = mpsc::channel(1024);
            let nursery = Nursery::here();
            nursery.adopt("peer", peer(far, answers, tell));
            let owner = Owner {
                nursery: nursery.clone(),
                sightings: Sightings::default(),
                alive: Arc::new(Alive::new(Dials::new("test"))),
            };
            let member = Peer {
                id: "spiffe://m/ns/default/agent/a".parse().unwrap(),
                instance: None,
                not_before: SystemTime::UNIX_EPOCH,
                not_after: wall() + Duration::from_hours(1),
                serial: "1".into(),
                key: [0; 32],
            };
            let near = Box::new(near);
            let sender = speak(near, mesh.then_some(member), owner.clone())
                .await
                .unwrap();
            Self {
                sender,
                frames,
                fate: owner.alive.fate(),
                nursery,
            }
        }

        /// A call that the peer does not answer: how it ends.
        async fn call(&mut self) -> Result<(), hyper::Error> {
            let body = Recording::new(Body::empty()).play().unwrap();
            let request = http::Request::post("http://peer/call").body(body).unwrap();
            let answer = self.sender.try_send_request(request).await;
            let answer = answer.map_err(hyper::client::conn::TrySendError::into_error)?;
            drop(answer.into_body().collect().await?);
            Ok(())
        }

        fn pings(&mut self) -> usize {
            std::iter::from_fn(|| self.frames.try_recv().ok())
                .filter(|kind| *kind == PING)
                .count()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_silently_gone_is_found_out_within_thirty_seconds() {
        let mut spoken = Spoken::to(false, true).await;
        // A connection that was idle for long is asked as soon as it has a call.
        for idle in [0, 3600] {
            let mut spoken = Spoken::to(false, true).await;
            sleep(Duration::from_secs(idle)).await;
            let began = Instant::now();
            let call = timeout(Duration::from_mins(2), spoken.call()).await;
            let error = call.expect("nobody noticed").unwrap_err();
            let took = began.elapsed();
            assert!(took < Duration::from_secs(30), "{took:?}");
            assert!(error.is_timeout(), "{error:?}");
            assert_eq!(spoken.fate.get(), Some(&Close::Silent));
            assert_eq!(spoken.pings(), 1);
        }
        // Without a call nobody is asked, and nothing ends.
        sleep(Duration::from_mins(10)).await;
        assert_eq!((spoken.pings(), spoken.fate.get()), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_pings_may_take_its_time() {
        let mut spoken = Spoken::to(true, true).await;
        let waited = timeout(Duration::from_mins(10), spoken.call()).await;
        assert!(waited.is_err(), "{waited:?}");
        // No more often than servers of gRPC put up with.
        let pings = spoken.pings();
        assert!((20..=60).contains(&pings), "{pings}");
        assert_eq!(spoken.fate.get(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn own_agents_and_foreign_servers_are_never_pinged() {
        let mut spoken = Spoken::to(false, false).await;
        let waited = timeout(Duration::from_mins(10), spoken.call()).await;
        assert!(waited.is_err(), "{waited:?}");
        let frames: Vec<u8> = std::iter::from_fn(|| spoken.frames.try_recv().ok()).collect();
        assert!(frames.contains(&HEADERS), "{frames:?}");
        assert!(!frames.contains(&PING), "{frames:?}");
        assert_eq!(spoken.fate.get(), None);
        spoken.nursery.abort().await;
    }
}
