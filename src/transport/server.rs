//! A listener that is served on all data threads, and its drain.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::identity::Credentials;
use crate::runtime::DataThreads;
use crate::runtime::Nursery;
use crate::telemetry::metrics::calls;
use crate::transport::accept::Gate;
use crate::transport::hub::Hubs;
use crate::transport::lifetime::Sightings;
use crate::transport::limits::Limits;
use crate::transport::listen::Listener;
use crate::transport::serve::Context;

/// How long peers that stay may take to be told to go: a thread's turn, on a machine that is busy.
const TOLD: Duration = Duration::from_millis(500);

/// How a listener knows who calls.
#[derive(Clone)]
pub enum Security {
    /// Members only: the handshake demands a certificate of the mesh.
    MutualTls(Credentials),
    /// Nobody is known yet: only the server shows a certificate, with its chain up to the root.
    Enrollment(Credentials),
    /// The own agent, on a Unix socket or loopback.
    Plaintext,
}

/// A running listener. Dropping it does not stop it: [`Server::drain`] does.
#[derive(Debug)]
pub struct Server {
    gate: Arc<Gate>,
    /// The loop that accepts.
    accepting: Nursery,
    address: String,
    counts: Arc<calls::Listener>,
    /// Its own engines, where it does not share others'.
    hubs: Option<Hubs>,
}

impl Server {
    /// Serves `routes(thread)` on every thread; returns at once.
    pub fn start(
        listener: Listener,
        security: Security,
        threads: &DataThreads,
        limits: Limits,
        routes: impl Fn(usize) -> Routes,
    ) -> Self {
        let hubs = Hubs::inside(threads);
        let mut server = Self::start_at(listener, security, threads, limits, (&hubs, routes));
        server.hubs = Some(hubs);
        server
    }

    /// The same with engines that pass calls on. They are to be closed after the drain.
    pub fn start_at(
        listener: Listener,
        security: Security,
        threads: &DataThreads,
        limits: Limits,
        (hubs, routes): (&Hubs, impl Fn(usize) -> Routes),
    ) -> Self {
        let limits = Arc::new(limits);
        let sightings = Sightings::of(security.credentials());
        let counts = calls::Listener::new(security.label());
        let staying = TaskTracker::new();
        let contexts: Vec<Context> = threads
            .handles()
            .enumerate()
            .map(|(thread, handle)| Context {
                routes: routes(thread).prepare(),
                limits: Arc::clone(&limits),
                nursery: Nursery::on(handle.clone()),
                sightings: sightings.clone(),
                counts: Arc::clone(&counts),
                switch: hubs.of(thread),
                staying: staying.clone(),
            })
            .collect();
        let accepting = Nursery::on(contexts[0].nursery.runtime().clone());
        let gate = Arc::new(Gate::new(security, limits, contexts));
        let address = listener.address().to_owned();
        let accepts = Arc::clone(&gate);
        accepting.start("accept", move |stop| accepts.accept(listener.socket, stop));
        Self {
            gate,
            accepting,
            address,
            counts,
            hubs: None,
        }
    }

    /// Where it listens, in gRPC's naming syntax.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it counts, for the process' metrics.
    pub fn served(&self) -> calls::Served {
        let gate = Arc::clone(&self.gate);
        calls::Served {
            counts: Arc::clone(&self.counts),
            open: Box::new(move || gate.connections()),
        }
    }

    /// Open connections, with those in their handshake.
    pub fn connections(&self) -> usize {
        self.gate.connections()
    }

    /// Closes the socket, then tells every peer to go (GOAWAY), and returns once all were told. Their
    /// calls go on, and those that were on their way are still served: a peer that is told to go has
    /// no other place yet, and one that comes back to a socket that still listens would be cut.
    pub async fn leave(&self) {
        self.accepting.close(TOLD).await;
        for context in &self.gate.threads {
            context.nursery.stop_token().cancel();
            context.staying.close();
        }
        for context in &self.gate.threads {
            if timeout(TOLD, context.staying.wait()).await.is_err() {
                tracing::warn!("not every peer could be told to go in time");
                return;
            }
        }
    }

    /// [Leaves](Server::leave), lets running calls finish, and cuts what is left after `grace`.
    pub async fn drain(&self, grace: Duration) {
        let ends = Instant::now() + grace;
        if timeout(grace, self.leave()).await.is_err() {
            tracing::warn!("there is no time to tell every peer to go");
        }
        let left = ends.saturating_duration_since(Instant::now());
        let closing = self.gate.threads.iter();
        join_all(closing.map(|context| context.nursery.close(left))).await;
        if let Some(hubs) = &self.hubs {
            hubs.close(ends.saturating_duration_since(Instant::now()))
                .await;
        }
    }
}

impl Security {
    /// What proves members to this listener, where it asks for them.
    fn credentials(&self) -> Option<&Credentials> {
        match self {
            Self::MutualTls(credentials) => Some(credentials),
            Self::Enrollment(_) | Self::Plaintext => None,
        }
    }

    /// The listener's name in metrics and logs.
    fn label(&self) -> &'static str {
        match self {
            Self::MutualTls(_) => "mtls",
            Self::Enrollment(_) => "enrollment",
            Self::Plaintext => "local",
        }
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MutualTls(_) => "MutualTls",
            Self::Enrollment(_) => "Enrollment",
            Self::Plaintext => "Plaintext",
        })
    }
}
