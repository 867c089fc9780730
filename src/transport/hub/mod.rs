//! All connections of a data thread under one engine: callers' on one side, whoever answers on the
//! other.
//!
//! ```text
//!   caller --TLS or socket--> line --.                 .--> line --mutual TLS--> another sidecar
//!                                     +-- exchange ----+--> line --socket------> the own agent
//!   caller --TLS or socket--> line --'   (a policy)    '--> line --pipe--------> our own services
//! ```
//!
//! | file | what |
//! |---|---|
//! | `foreign` | what is not gRPC is told so |
//! | `inside` | the policy where nothing is passed on |
//! | `local` | our own services, behind a pipe per caller |
//! | `upstream` | connections to targets: made, retired, cut |
//!
//! Owns which connections there are. Refuses to know who calls (`accept` proves it) and where calls go
//! (the policy decides, and names targets by numbers that [`Lookup`] explains).

mod foreign;
mod inside;
mod local;
mod upstream;

use std::{fmt, io, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::io::duplex;

use self::upstream::Upstream;
use super::{
    dial::Io,
    drive::{Core, Driver},
    pool::{Target, Ways},
    serve::Context,
};
use crate::{
    h2::{
        connection::Config,
        exchange::{self, Destination, Dial, Policy},
        frame,
        slab::Key,
    },
    identity::Connection,
    runtime::{DataThreads, Nursery, Stop},
};

/// Bytes on their way through the pipe to our own services, each way: what the two ends read at once.
const PIPE: usize = 64 << 10;

/// Where a policy's target is, as of now; `None`: nowhere any more.
pub type Lookup = Arc<dyn Fn(exchange::Target) -> Option<Target> + Send + Sync>;

/// A caller's connection, as policies see it.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Who has proved to be there.
    pub connection: Arc<Connection>,
    /// Who answers what is for us.
    context: Context,
}

impl Arrival {
    pub(super) fn new(connection: Arc<Connection>, context: Context) -> Self {
        Self {
            connection,
            context,
        }
    }
}

/// The engines of all data threads.
pub struct Hubs {
    hubs: Vec<Arc<dyn Switch>>,
    nurseries: Vec<Nursery>,
}

/// A thread's engine, whatever its policy.
pub(super) trait Switch: fmt::Debug + Send + Sync {
    /// Takes a caller's connection.
    fn accept(&self, io: Box<dyn Io>, arrival: Arrival, config: Config) -> Box<dyn Line>;
}

/// A caller's connection. Dropping it ends its calls.
#[tonic::async_trait]
pub(super) trait Line: Send {
    /// Until it is over. May be dropped and called again.
    async fn run(&mut self) -> io::Result<()>;
    /// Closes what is over.
    async fn part(&mut self);
    /// Takes no new calls.
    fn drain(&self);
    /// The rule that the peer has broken, for which it was ended.
    fn failed(&self) -> Option<frame::Error>;
}

#[tonic::async_trait]
impl<P> Line for Driver<Box<dyn Io>, P>
where
    P: Policy + Send,
    P::Peer: Send,
    P::Call: Send,
{
    async fn run(&mut self) -> io::Result<()> {
        Driver::run(self).await
    }

    async fn part(&mut self) {
        Driver::part(self).await;
    }

    fn drain(&self) {
        Driver::drain(self);
    }

    fn failed(&self) -> Option<frame::Error> {
        Driver::failed(self)
    }
}

impl Hubs {
    /// One engine for each thread, with a policy of its own.
    pub fn start<P>(
        threads: &DataThreads,
        ways: &Ways,
        lookup: &Lookup,
        policy: impl Fn() -> P,
    ) -> Self
    where
        P: Policy<Peer = Arrival> + Send + 'static,
        P::Call: Send,
    {
        let nurseries = threads.nurseries();
        let hubs = nurseries.iter().map(|nursery| {
            let hub = Hub {
                core: Core::new(policy()),
                upstream: Upstream::new(ways.clone(), Arc::clone(lookup), nursery.clone()),
                nursery: nursery.clone(),
            };
            hub.start() as Arc<dyn Switch>
        });
        Self {
            hubs: hubs.collect(),
            nurseries,
        }
    }

    /// Engines that pass nothing on: all calls are for our own services.
    pub fn inside(threads: &DataThreads) -> Self {
        let nowhere: Lookup = Arc::new(|_| None);
        Self::start(threads, &Ways::none(), &nowhere, || inside::Inside)
    }

    pub(super) fn of(&self, thread: usize) -> Arc<dyn Switch> {
        Arc::clone(&self.hubs[thread % self.hubs.len()])
    }

    /// Ends all connections to others once their calls are done, and what is left after `grace`. To
    /// be called when the listeners have drained.
    pub async fn close(&self, grace: Duration) {
        join_all(self.nurseries.iter().map(|nursery| nursery.close(grace))).await;
    }
}

impl fmt::Debug for Hubs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hubs").finish_non_exhaustive()
    }
}

/// One thread's.
struct Hub<P: Policy> {
    core: Arc<Core<P>>,
    upstream: Upstream,
    nursery: Nursery,
}

impl<P: Policy> fmt::Debug for Hub<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl<P> Switch for Hub<P>
where
    P: Policy<Peer = Arrival> + Send + 'static,
    P::Call: Send,
{
    fn accept(&self, io: Box<dyn Io>, arrival: Arrival, config: Config) -> Box<dyn Line> {
        Box::new(self.core.accept(io, arrival, config))
    }
}

impl<P> Hub<P>
where
    P: Policy<Peer = Arrival> + Send + 'static,
    P::Call: Send,
{
    fn start(self) -> Arc<Self> {
        let hub = Arc::new(self);
        let clock = Arc::clone(&hub.core);
        hub.nursery.start("deadlines", |stop| async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = clock.keep_time() => {}
            }
        });
        let dials = Arc::clone(&hub);
        hub.nursery
            .start("dials", |stop| async move { dials.make(stop).await });
        hub
    }

    /// Makes the connections that the exchange asks for.
    async fn make(self: Arc<Self>, stop: Stop) {
        loop {
            let Dial { line, to } = tokio::select! {
                () = stop.cancelled() => return,
                dial = self.core.next_dial() => dial,
            };
            match to {
                Destination::Local { caller } => self.pipe(line, caller),
                Destination::Target(target) => {
                    let (core, upstream) = (Arc::clone(&self.core), self.upstream.clone());
                    self.nursery.start("upstream", |stop| async move {
                        upstream.lead(&core, (line, target), stop).await;
                    });
                }
            }
        }
    }

    /// A caller's way to our own services. Its calls there are the listener's, and end with it.
    fn pipe(&self, line: Key, caller: Key) {
        let arrival = self.core.with(|exchange| exchange.peer(caller).cloned());
        let (near, far) = duplex(PIPE);
        let mut driver = self.core.dialed(near, line);
        // Without its caller the pipe's other end is dropped here, which ends it.
        if let Some(arrival) = arrival {
            let nursery = arrival.context.nursery.clone();
            nursery.adopt("local", local::answer(far, arrival));
        }
        self.nursery.adopt("pipe", async move {
            if let Err(error) = driver.run().await {
                tracing::debug!(%error, "a pipe to our own services broke");
            }
        });
    }
}
