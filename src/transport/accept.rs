//! From a listening socket to a proven peer: accept, TLS, limits; one task per connection.
//!
//! One loop accepts for all threads and gives each connection to the thread that has the fewest:
//! several loops on one socket do not balance, least of all on macOS.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::identity::Caller;
use crate::identity::Connection;
use crate::identity::certificate::peer_of;
use crate::identity::credentials::ALPN;
use crate::identity::exporter;
use crate::runtime::Stop;
use crate::runtime::clock::wall;
use crate::telemetry::metrics::calls::Handshake;
use crate::transport::alive::tune;
use crate::transport::limits::{Counted, Limits, Pace, Seating, Seats, Tally};
use crate::transport::listen::Bound;
use crate::transport::serve::{Context, READ_BUFFER, serve};
use crate::transport::server::Security;

/// How long, and for how many bytes, a refused peer is listened to after its alert.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: u64 = 64 * 1024;
/// Pause after the system ran out of something: descriptors come back as connections end.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What all connections of a listener share.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) security: Security,
    pub(super) limits: Arc<Limits>,
    pub(super) threads: Vec<Context>,
    /// Connections by thread.
    pub(super) load: Arc<Tally<usize>>,
    addresses: Arc<Tally<std::net::IpAddr>>,
    seating: Seating,
    handshakes: Semaphore,
    pace: Mutex<Pace>,
}

/// A connection's places in the counts, given back when it ends.
type Places = (Counted<usize>, Option<Counted<std::net::IpAddr>>);

impl Gate {
    pub(super) fn new(security: Security, limits: Arc<Limits>, threads: Vec<Context>) -> Self {
        Self {
            handshakes: Semaphore::new(limits.handshakes),
            pace: Mutex::new(Pace::new(
                limits.handshake_rate,
                u32::try_from(limits.handshakes).unwrap_or(u32::MAX),
                Instant::now(),
            )),
            security,
            limits,
            threads,
            load: Tally::new(),
            addresses: Tally::new(),
            seating: Seating::new(),
        }
    }

    /// Open connections.
    pub(super) fn connections(&self) -> usize {
        (0..self.threads.len())
            .map(|thread| self.load.count(&thread))
            .sum()
    }

    /// Accepts until told to stop; the socket is closed then.
    pub(super) async fn accept(self: Arc<Self>, socket: Bound, stop: Stop) {
        let accepting = async {
            match socket {
                Bound::Tcp(socket) => match TcpListener::from_std(socket) {
                    Ok(listener) => self.accept_tcp(listener).await,
                    Err(error) => tracing::error!(%error, "cannot listen"),
                },
                Bound::Unix(socket, file) => {
                    match UnixListener::from_std(socket) {
                        Ok(listener) => self.accept_unix(listener).await,
                        Err(error) => tracing::error!(%error, "cannot listen"),
                    }
                    drop(file);
                }
            }
        };
        // Dropping the loop closes the socket and removes its file.
        tokio::select! {
            () = stop.cancelled() => {}
            () = accepting => {}
        }
    }

    async fn accept_tcp(self: &Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, remote)) => {
                    if let Some((thread, places)) = self.admit(Some(remote)) {
                        self.hand_over_tcp(thread, places, stream, remote);
                    }
                }
                Err(error) => pause(&error).await,
            }
        }
    }

    async fn accept_unix(self: &Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Some((thread, places)) = self.admit(None) {
                        self.hand_over_unix(thread, places, stream);
                    }
                }
                Err(error) => pause(&error).await,
            }
        }
    }

    fn admit(&self, remote: Option<SocketAddr>) -> Option<(usize, Places)> {
        if self.connections() >= self.limits.connections {
            tracing::warn!(?remote, "too many connections");
            self.shaken(Handshake::TooMany);
            return None;
        }
        let ip = remote.map(|remote| remote.ip().to_canonical());
        let address = match ip.filter(|ip| !ip.is_loopback()) {
            None => None,
            Some(ip) => match self.addresses.enter(ip, self.limits.per_address) {
                None => {
                    tracing::warn!(%ip, "too many connections of one address");
                    self.shaken(Handshake::TooMany);
                    return None;
                }
                counted => counted,
            },
        };
        let thread = (0..self.threads.len()).min_by_key(|thread| self.load.count(thread))?;
        let counted = self.load.enter(thread, usize::MAX)?;
        Some((thread, (counted, address)))
    }

    fn hand_over_tcp(
        self: &Arc<Self>,
        thread: usize,
        places: Places,
        stream: TcpStream,
        remote: SocketAddr,
    ) {
        let gate = Arc::clone(self);
        let nursery = &self.threads[thread].nursery;
        // Deregistered here, registered again on the thread that serves it.
        let Ok(stream) = stream.into_std() else {
            return;
        };
        nursery.start("connection", move |stop| async move {
            let _places = places;
            let local = stream.local_addr().ok();
            let mesh = matches!(gate.security, Security::MutualTls(_));
            let opened = tune(&stream, mesh).and_then(|()| TcpStream::from_std(stream));
            match opened {
                Ok(stream) => {
                    gate.greet(thread, stream, (Some(remote), local), stop)
                        .await;
                }
                Err(error) => tracing::debug!(%remote, %error, "connection lost"),
            }
        });
    }

    fn hand_over_unix(self: &Arc<Self>, thread: usize, places: Places, stream: UnixStream) {
        let gate = Arc::clone(self);
        let Ok(stream) = stream.into_std() else {
            return;
        };
        let nursery = &self.threads[thread].nursery;
        nursery.start("connection", move |stop| async move {
            let _places = places;
            match UnixStream::from_std(stream) {
                Ok(stream) => gate.greet(thread, stream, (None, None), stop).await,
                Err(error) => tracing::debug!(%error, "connection lost"),
            }
        });
    }

    async fn greet<I>(
        &self,
        thread: usize,
        io: I,
        (remote, local): (Option<SocketAddr>, Option<SocketAddr>),
        stop: Stop,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let context = self.threads[thread].clone();
        let mut connection = Connection {
            caller: Caller::Local,
            remote,
            local,
            exporter: None,
        };
        let config = match &self.security {
            Security::Plaintext => {
                self.shaken(Handshake::Done);
                return Box::pin(serve(Box::new(io), connection, None, context, stop)).await;
            }
            Security::MutualTls(credentials) => credentials.server_config(),
            Security::Enrollment(credentials) => credentials.enrollment_config(),
        };
        let buffered = BufReader::with_capacity(READ_BUFFER, io);
        let shaken = tokio::select! {
            shaken = self.handshake(TlsAcceptor::from(config), buffered) => shaken,
            () = stop.cancelled() => return,
        };
        let tls = match shaken {
            Ok(tls) => tls,
            Err((error, refused)) => {
                tracing::info!(?remote, %error, "handshake failed");
                self.shaken(if error.kind() == io::ErrorKind::TimedOut {
                    Handshake::Late
                } else {
                    Handshake::Failed
                });
                if let Some(refused) = refused {
                    linger(refused).await;
                }
                return;
            }
        };
        connection.exporter = exporter(tls.get_ref().1);
        let seats = match self.recognize(&tls) {
            Ok((caller, seats)) => {
                connection.caller = caller;
                seats
            }
            Err((outcome, why)) => {
                tracing::info!(?remote, why, "a peer is refused after its handshake");
                self.shaken(outcome);
                return linger(tls).await;
            }
        };
        self.shaken(Handshake::Done);
        Box::pin(serve(Box::new(tls), connection, seats, context, stop)).await;
    }

    /// The handshake within its time; of one that failed, the connection for a last word.
    async fn handshake<I>(
        &self,
        acceptor: TlsAcceptor,
        io: I,
    ) -> Result<TlsStream<I>, (io::Error, Option<I>)>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let limit = Instant::now() + self.limits.handshake_time;
        let shaking = async {
            let _place = self.handshakes.acquire().await;
            let turn = self.pace.lock().turn(Instant::now());
            sleep_until(turn).await;
            acceptor.accept(io).into_fallible().await
        };
        match timeout_at(limit, shaking).await {
            Ok(Ok(tls)) => Ok(tls),
            Ok(Err((error, io))) => Err((error, Some(io))),
            Err(_) => Err((io::ErrorKind::TimedOut.into(), None)),
        }
    }

    fn shaken(&self, outcome: Handshake) {
        if let Some(context) = self.threads.first() {
            context.counts.shaken(outcome);
        }
    }

    /// Who the handshake has proven, and its seats.
    fn recognize<I>(
        &self,
        tls: &TlsStream<I>,
    ) -> Result<(Caller, Option<Seats>), (Handshake, &'static str)> {
        if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err((Handshake::Failed, "it did not ask for HTTP/2 (ALPN h2)"));
        }
        if let Security::Enrollment(_) = self.security {
            return Ok((Caller::Anonymous, None));
        }
        let chain = tls.get_ref().1.peer_certificates();
        let leaf = chain
            .and_then(|chain| chain.first())
            .ok_or((Handshake::Nameless, "no certificate"))?;
        let peer = peer_of(leaf).map_err(|_| (Handshake::Nameless, "an unreadable certificate"))?;
        let now = wall();
        if now >= peer.not_after {
            return Err((Handshake::Failed, "its certificate expired just now"));
        }
        let seats = self.seating.enter(&peer, &self.limits);
        let seats = seats.ok_or((
            Handshake::TooMany,
            "too many connections of this member or instance",
        ))?;
        if let Some(context) = self.threads.first() {
            context.sightings.saw(&peer, now);
        }
        Ok((Caller::Member(Arc::new(peer)), Some(seats)))
    }
}

/// Lets a refused peer read the alert that says why. Closing while its bytes are on the way would
/// reset the connection, and the reset may overtake the alert (RFC 1122 section 4.2.2.13).
async fn linger<I: AsyncRead + AsyncWrite + Unpin>(mut refused: I) {
    let reading = async {
        refused.shutdown().await?;
        tokio::io::copy(&mut refused.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    if let Ok(Err(error)) = timeout(LINGER, reading).await {
        tracing::trace!(%error, "a refused peer went away");
    }
}

/// A peer that left before it was accepted is nothing; a lack of descriptors needs time.
async fn pause(error: &io::Error) {
    let gone = [
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::Interrupted,
    ];
    if !gone.contains(&error.kind()) {
        tracing::warn!(%error, "cannot accept; trying again soon");
        sleep(EXHAUSTED).await;
    }
}
