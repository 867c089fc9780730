//! The seam between a connection and what answers on it: HTTP/2 with explicit limits.
//!
//! Refuses nobody by itself: who the peer is was proven before, what it may do is the handlers'.

use std::{convert::Infallible, future::Future, pin::Pin, pin::pin, sync::Arc, time::Duration};

use http::{HeaderMap, Request, Response};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tonic::{body::Body, service::Routes};
use tower::ServiceExt;

use crate::domain::Fault;
use crate::domain::Reason;
use crate::identity::Caller;
use crate::identity::Connection;
use crate::runtime::Nursery;
use crate::runtime::Stop;
use crate::telemetry::TraceContext;
use crate::telemetry::call::{Answered, Call, Origin, Received};
use crate::telemetry::metrics::calls::Listener;
use crate::transport::lifetime::{Sightings, around};
use crate::transport::limits::{Limits, Seats};
use crate::transport::opening::{Opened, Opening, PREFACE};
use crate::transport::parting::Parting;
use crate::wire::status;

/// Window of one stream. 64 KiB cost half as much CPU again for payloads of 16 KiB.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
/// Window of a connection: several full streams.
pub(super) const CONNECTION_WINDOW: u32 = 4 << 20;
/// All headers of a request or response together.
pub(super) const HEADER_LIST: u32 = 16 * 1024;
/// Read buffer under TLS, which by itself asks the system for 4 KiB at a time.
pub(super) const READ_BUFFER: usize = 64 * 1024;
/// Streams reset before we looked at them (rapid reset, CVE-2023-44487).
const PENDING_RESETS: usize = 20;
/// Streams that we had to reset (MadeYouReset, CVE-2025-8671).
const LOCAL_RESETS: usize = 256;
/// When a silent peer is asked whether it is there, and when it is taken for dead without an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pings {
    pub(super) after: Duration,
    pub(super) wait: Duration,
}

/// Between members, both ways: who is gone without a word is found out within 25 s. Not more often:
/// servers of gRPC take a PING in less than 10 s for an attack.
pub(super) const PEER_PING: Pings = Pings {
    after: Duration::from_secs(15),
    wait: Duration::from_secs(10),
};
/// To clients of whatever make, which have to answer a server; they may be slow.
const CLIENT_PING: Pings = Pings {
    after: Duration::from_secs(30),
    wait: Duration::from_secs(20),
};

/// What a connection is served with.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) routes: Routes,
    pub(super) limits: Arc<Limits>,
    pub(super) nursery: Nursery,
    pub(super) sightings: Sightings,
    pub(super) counts: Arc<Listener>,
    /// Holds a token of each connection that was not told to go.
    pub(super) staying: TaskTracker,
}

/// Serves one connection to its end: until the peer leaves, the drain or the age is over and the
/// last stream is done, or the peer's certificate ends. The seats are held until it is told to go.
pub(super) async fn serve<I>(
    io: I,
    connection: Connection,
    seats: Option<Seats>,
    context: Context,
    stop: Stop,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = Arc::new(connection);
    let mut stays = Some((seats, context.staying.token()));
    let (io, opened) = Opening::watch(Parting::over(io), PREFACE, None);
    let calls = Calls {
        routes: context.routes.clone(),
        origin: origin(&connection, &context),
        connection: Arc::clone(&connection),
    };
    let mut serving = pin!(builder(&connection.caller, &context).serve_connection(
        TokioIo::new(io),
        hyper::service::service_fn(move |request| calls.answer(request)),
    ));
    let age = around(context.limits.connection_age, rand::random());
    let mut leave = pin!(async {
        tokio::select! {
            () = stop.cancelled() => "drain",
            () = sleep(age) => "age",
        }
    });
    let mut cut = pin!(cut(&connection.caller, &context, opened));
    let mut leaving = false;
    // Told where this future is dropped before its end.
    let mut open = Open(Some(origin(&connection, &context)));
    let ended = loop {
        tokio::select! {
            ended = serving.as_mut() => {
                open.ended();
                break ended;
            }
            why = cut.as_mut() => {
                open.ended();
                tracing::info!(remote = ?connection.remote, why, "connection cut");
                return;
            }
            why = leave.as_mut(), if !leaving => {
                tracing::debug!(remote = ?connection.remote, why, "connection told to go");
                leaving = true;
                // It takes no more calls; those that run may take days, and another one stands by.
                serving.as_mut().graceful_shutdown();
                stays.take();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(remote = ?connection.remote, %error, "connection ended");
    }
}

/// A connection whose end was not reached.
struct Open(Option<Origin>);

impl Open {
    fn ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(Origin { remote, caller, .. }) = &self.0 {
            let why = "the time to drain is over and the peer has not let go";
            tracing::warn!(
                remote = &**remote,
                caller = &**caller,
                why,
                "connection cut"
            );
        }
    }
}

fn builder(caller: &Caller, context: &Context) -> http2::Builder<Nursery> {
    let (streams, ping) = match caller {
        Caller::Member(_) => (context.limits.member_streams, PEER_PING),
        Caller::Local | Caller::Anonymous => (context.limits.other_streams, CLIENT_PING),
    };
    let mut builder = http2::Builder::new(context.nursery.clone());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .keep_alive_interval(ping.after)
        .keep_alive_timeout(ping.wait);
    builder
}

/// Waits for a reason to cut the connection with all its streams.
async fn cut(caller: &Caller, context: &Context, opened: Opened) -> &'static str {
    if timeout(context.limits.handshake_time, opened)
        .await
        .is_err()
    {
        return "no HTTP/2 within the time for a handshake";
    }
    match caller {
        Caller::Member(peer) => context.sightings.end_of(peer).await,
        Caller::Local | Caller::Anonymous => std::future::pending().await,
    }
    "the peer's certificate has ended"
}

/// Answers the calls of one connection.
#[derive(Clone)]
struct Calls {
    routes: Routes,
    origin: Origin,
    connection: Arc<Connection>,
}

type Reply = Response<Answered<Body>>;
type Answer = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

impl Calls {
    fn answer(&self, mut request: Request<Incoming>) -> Answer {
        let limit = deadline(request.headers());
        let call = Call::begin(&self.origin, request.uri().path(), limit);
        call.notes().traced(TraceContext::of(request.headers()));
        let extensions = request.extensions_mut();
        extensions.insert(Arc::clone(&self.connection));
        extensions.insert(call.notes());
        let request = request.map(|body| Body::new(Received::new(body, call.notes())));
        let answer = self.routes.clone().oneshot(request);
        Box::pin(async move {
            let answered = match limit {
                None => answer.await?,
                Some(limit) => match timeout(limit, answer).await {
                    Ok(answered) => answered?,
                    Err(_) => late(),
                },
            };
            Ok(call.answered(answered))
        })
    }
}

/// Who calls, as every line of its calls names it.
fn origin(connection: &Connection, context: &Context) -> Origin {
    let caller = match &connection.caller {
        Caller::Member(peer) => peer.id.to_string(),
        Caller::Local => "local".to_owned(),
        Caller::Anonymous => "anonymous".to_owned(),
    };
    let remote = connection.remote.map(|remote| remote.to_string());
    Origin {
        listener: Arc::clone(&context.counts),
        caller: caller.into(),
        remote: remote.unwrap_or_else(|| "-".to_owned()).into(),
    }
}

fn late() -> Response<Body> {
    let text = "the call's deadline passed before the answer began";
    status::to_status(Fault::new(Reason::DeadlineExceeded, text)).into_http()
}

/// What the caller's `grpc-timeout` leaves.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    crate::h2::grpc::timeout(headers.get("grpc-timeout")?.as_bytes())
}
