//! The life of a caller's connection: driven by its thread's engine, told to go, cut.
//!
//! Refuses nobody by itself: who the peer is was proven before, what it may do is the policy's.

use std::{future::pending, pin::pin, sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::h2::connection::Config;
use crate::identity::Caller;
use crate::identity::Connection;
use crate::runtime::Nursery;
use crate::runtime::Stop;
use crate::telemetry::call::Origin;
use crate::telemetry::metrics::calls::Listener;
use crate::transport::dial::Io;
use crate::transport::hub::{Arrival, Switch};
use crate::transport::lifetime::{Cut, Sightings, around};
use crate::transport::limits::{Limits, Seats};

/// Window of one stream. 64 KiB cost half as much CPU again for payloads of 16 KiB.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
/// Window of a connection: several full streams.
pub(super) const CONNECTION_WINDOW: u32 = 4 << 20;
/// All headers of a request or response together.
pub(super) const HEADER_LIST: u32 = 16 * 1024;
/// Read buffer under TLS, which by itself asks the system for 4 KiB at a time.
pub(super) const READ_BUFFER: usize = 64 * 1024;
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
/// To clients of whatever make on another machine, which have to answer a server; they may be slow.
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
    /// The engine of its thread.
    pub(super) switch: Arc<dyn Switch>,
    /// Holds a token of each connection that was not told to go.
    pub(super) staying: TaskTracker,
}

/// Serves one connection to its end: until the peer leaves, the drain or the age is over and the
/// last stream is done, or the peer's certificate ends. The seats are held until it is told to go.
pub(super) async fn serve(
    io: Box<dyn Io>,
    connection: Connection,
    seats: Option<Seats>,
    context: Context,
    stop: Stop,
) {
    let connection = Arc::new(connection);
    let mut stays = Some((seats, context.staying.token()));
    let config = config(&connection.caller, &context.limits);
    let arrival = Arrival::new(Arc::clone(&connection), context.clone());
    let mut line = context.switch.accept(io, arrival, config);
    let age = around(context.limits.connection_age, rand::random());
    let mut leave = pin!(async {
        tokio::select! {
            () = stop.cancelled() => "drain",
            () = sleep(age) => "age",
        }
    });
    let mut cut = pin!(cut(&connection.caller, &context));
    let mut leaving = false;
    // Told where this future is dropped before its end.
    let mut open = Open(Some(origin(&connection, &context)));
    let ended = loop {
        tokio::select! {
            ended = line.run() => {
                open.ended();
                break ended;
            }
            cut = cut.as_mut() => {
                open.ended();
                let caller = &*origin(&connection, &context).caller;
                let why = cut.why();
                tracing::info!(remote = ?connection.remote, caller, why, "connection cut");
                return;
            }
            why = leave.as_mut(), if !leaving => {
                tracing::debug!(remote = ?connection.remote, why, "connection told to go");
                leaving = true;
                // It takes no more calls; those that run may take days, and another one stands by.
                line.drain();
                stays.take();
            }
        }
    };
    if let Some(rule) = line.failed() {
        let caller = &*origin(&connection, &context).caller;
        tracing::info!(remote = ?connection.remote, caller, %rule, "connection ended: its peer broke a rule");
    }
    match ended {
        Ok(()) => line.part().await,
        Err(error) => {
            tracing::debug!(remote = ?connection.remote, %error, "connection ended");
        }
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

/// How a caller's connection is run.
fn config(caller: &Caller, limits: &Limits) -> Config {
    let (config, streams, ping) = match caller {
        Caller::Member(_) => (Config::mesh(), limits.member_streams, Some(PEER_PING)),
        Caller::Anonymous => (Config::caller(), limits.other_streams, Some(CLIENT_PING)),
        // On this machine nobody goes without a word.
        Caller::Local => (Config::caller(), limits.other_streams, None),
    };
    // Strangers get no more for being in a hurry.
    let early_streams = match caller {
        Caller::Local => config.early_streams,
        Caller::Member(_) | Caller::Anonymous => streams,
    };
    let answer = ping.map_or(config.answer, |ping| ping.wait);
    Config {
        max_streams: streams,
        early_streams,
        stream_window: STREAM_WINDOW,
        connection_window: CONNECTION_WINDOW,
        header_list: HEADER_LIST,
        greeting: limits.handshake_time,
        keepalive: ping.map(|ping| ping.after),
        answer,
        ..config
    }
}

/// Waits until the peer may not go on.
async fn cut(caller: &Caller, context: &Context) -> Cut {
    match caller {
        Caller::Member(peer) => context.sightings.end_of(peer).await,
        Caller::Local | Caller::Anonymous => pending().await,
    }
}

/// Who calls, as every line of its calls names it.
pub(super) fn origin(connection: &Connection, context: &Context) -> Origin {
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
