//! Connections to peers, one per target, made when needed and replaced before they break.
//!
//! One pool per data thread: its connections live on that thread's runtime. Holds no requests.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::domain::Fault;
use crate::domain::Reason;
use crate::identity::{Credentials, Expect};
use crate::runtime::Nursery;
use crate::telemetry::metrics::pool::{Close, Dials};
use crate::transport::channel::Channel;
use crate::transport::entry::{Entry, Link};
use crate::transport::lifetime::Sightings;
use crate::transport::limits::CONNECTION_AGE;

/// Targets with a connection at a time; the least recently used one goes for a new one.
const MOST: usize = 1024;
/// How often old and idle connections are looked for at least.
pub(super) const SWEEP: Duration = Duration::from_secs(10);
/// Time between two looks, however much is due.
const SWEEP_LEAST: Duration = Duration::from_millis(50);
/// Connections replaced per look at most: a renewal need not shake every hand at once.
const REPLACED: usize = 32;
/// Share of a peer's age at which we move: below the 90% at which it may tell us to go.
pub(super) const MOVE_AT: f64 = 0.75;

/// Whom to reach.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// `host:port` or `unix:/path`, tried in this order.
    pub endpoints: Vec<String>,
    /// Who must be there; `None`: plaintext, for the own agent only.
    pub expect: Option<Expect>,
}

/// How a pool reaches its targets.
#[derive(Clone, Debug)]
pub struct Ways {
    /// What it proves itself with; `None`: it reaches targets without `expect` only.
    pub credentials: Option<Credentials>,
    /// Its peers end connections at about this age: they are replaced before it.
    pub connection_age: Duration,
    /// Where its connections are counted.
    pub counts: Arc<Dials>,
}

/// A thread's connections. Clones share them.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

/// What the entries of a pool share.
pub(super) struct Inner {
    pub(super) credentials: Option<Credentials>,
    pub(super) changes: Option<watch::Receiver<u64>>,
    pub(super) nursery: Nursery,
    pub(super) counts: Arc<Dials>,
    /// Age at which connections are replaced.
    pub(super) age: Duration,
    /// Something is due before the next look.
    pub(super) sooner: Notify,
    pub(super) sightings: Sightings,
    entries: Mutex<HashMap<Arc<Target>, Arc<Entry>>>,
}

impl Pool {
    /// A pool that proves itself with `credentials`. Its tasks and connections live in `nursery`
    /// and end with it.
    pub fn new(credentials: Credentials, nursery: Nursery) -> Self {
        Self::of(Ways::usual(Some(credentials)), nursery)
    }

    /// A pool without credentials: it reaches targets without `expect` only.
    pub fn plaintext(nursery: Nursery) -> Self {
        Self::of(Ways::usual(None), nursery)
    }

    /// A channel to a target. Dials when it is first used; costs nothing until then.
    pub fn channel(&self, target: Target) -> Channel {
        Channel::pooled(Arc::clone(&self.inner), Arc::new(target))
    }

    /// Targets that have a connection or had one lately.
    pub fn len(&self) -> usize {
        self.inner.entries.lock().len()
    }

    /// Whether nothing is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A pool with settings of its own, in `nursery` like the others.
    pub fn of(ways: Ways, nursery: Nursery) -> Self {
        let inner = Arc::new(Inner {
            changes: ways.credentials.as_ref().map(Credentials::changes),
            sightings: Sightings::of(ways.credentials.as_ref()),
            credentials: ways.credentials,
            counts: ways.counts,
            nursery: nursery.clone(),
            age: ways.connection_age.mul_f64(MOVE_AT),
            sooner: Notify::new(),
            entries: Mutex::new(HashMap::new()),
        });
        let swept = Arc::clone(&inner);
        nursery.start("pool", move |stop| async move {
            let mut renewed = swept.changes.clone();
            loop {
                let now = Instant::now();
                let next = swept.sweep(now).clamp(now + SWEEP_LEAST, now + SWEEP);
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = sleep_until(next) => {}
                    () = async {
                        tokio::select! {
                            () = swept.sooner.notified() => {}
                            () = changed(renewed.as_mut()) => {}
                        }
                        // Many that become due together are looked at together.
                        sleep(SWEEP_LEAST).await;
                    } => {}
                }
            }
            // Without its senders an idle connection says goodbye, a busy one ends with its calls.
            for (_, entry) in swept.entries.lock().drain() {
                entry.close(Close::Stopped);
            }
        });
        Self { inner }
    }
}

impl Ways {
    /// To nowhere.
    pub(super) fn none() -> Self {
        Self::usual(None)
    }

    /// The usual age, and counts that nobody reads.
    fn usual(credentials: Option<Credentials>) -> Self {
        Self {
            credentials,
            connection_age: CONNECTION_AGE,
            counts: Dials::new("pool"),
        }
    }
}

impl Inner {
    /// A connection to the target, made now if there is none.
    pub(super) async fn link(self: &Arc<Self>, target: &Arc<Target>) -> Result<Link, Fault> {
        if self.nursery.stop_token().is_cancelled() {
            let text = "this process is stopping and opens no more connections";
            return Err(Fault::new(Reason::PeerUnreachable, text));
        }
        self.entry(target).link(self).await
    }

    /// How often the credentials were replaced.
    pub(super) fn credentials_now(&self) -> u64 {
        self.changes.as_ref().map_or(0, |changes| *changes.borrow())
    }

    fn entry(&self, target: &Arc<Target>) -> Arc<Entry> {
        let mut entries = self.entries.lock();
        if let Some(found) = entries.get(target) {
            return Arc::clone(found);
        }
        if entries.len() >= MOST {
            let oldest = entries.iter().min_by_key(|(_, entry)| entry.last_used());
            let oldest = oldest.map(|(target, _)| Arc::clone(target));
            if let Some(entry) = oldest.and_then(|oldest| entries.remove(&oldest)) {
                entry.close(Close::Evicted);
            }
        }
        let entry = Arc::new(Entry::new(Arc::clone(target), Instant::now()));
        entries.insert(Arc::clone(target), Arc::clone(&entry));
        entry
    }

    /// Looks after every entry; when the next look is due.
    fn sweep(self: &Arc<Self>, now: Instant) -> Instant {
        let entries: Vec<Arc<Entry>> = self.entries.lock().values().map(Arc::clone).collect();
        let mut replaced = 0;
        for entry in &entries {
            if replaced < REPLACED && entry.tend(self, now) {
                replaced += 1;
            }
        }
        let mut held = self.entries.lock();
        held.retain(|_, entry| !entry.is_over(now));
        let due = held.values().filter_map(|entry| entry.due(self, now));
        due.min().unwrap_or(now + SWEEP)
    }
}

async fn changed(changes: Option<&mut watch::Receiver<u64>>) {
    let gone = match changes {
        Some(changes) => changes.changed().await.is_err(),
        None => true,
    };
    if gone {
        std::future::pending::<()>().await;
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("targets", &self.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use tonic::{body::Body, service::Routes};
    use tower::ServiceExt;

    use super::*;
    use crate::runtime::DataThreads;
    use crate::telemetry::metrics::{Format, Metrics};
    use crate::transport::{Limits, Listener, Security, Server};

    const MINUTE: Duration = Duration::from_mins(1);

    /// A pool with one connection that was just used, and its counts on a page.
    struct Bench {
        pool: Pool,
        target: Target,
        metrics: Metrics,
        _server: (DataThreads, Server),
    }

    impl Bench {
        async fn new(connection_age: Duration) -> Self {
            let threads = DataThreads::start(1).unwrap();
            let listener = Listener::tcp("127.0.0.1:0").unwrap();
            let target = Target {
                endpoints: vec![listener.address().to_owned()],
                expect: None,
            };
            let (plain, limits) = (Security::Plaintext, Limits::default());
            let server = Server::start(listener, plain, &threads, limits, |_| Routes::default());
            let counts = Dials::new("test");
            let metrics = Metrics::new("test");
            metrics.add(vec![Arc::clone(&counts)]);
            let ways = Ways {
                credentials: None,
                connection_age,
                counts,
            };
            let bench = Self {
                pool: Pool::of(ways, Nursery::here()),
                target,
                metrics,
                _server: (threads, server),
            };
            bench.call().await;
            bench.shows("connections{pool=\"test\"} 1").await;
            bench
        }

        async fn call(&self) {
            let request = Request::post("/nobody").body(Body::empty()).unwrap();
            let channel = self.pool.channel(self.target.clone());
            drop(channel.oneshot(request).await.unwrap());
        }

        async fn shows(&self, row: &str) {
            let limit = Instant::now() + Duration::from_secs(10);
            while !self.metrics.page(Format::Text).contains(row) {
                assert!(Instant::now() < limit, "{row}");
                tokio::task::yield_now().await;
            }
        }

        async fn closed(&self, reason: &str) {
            let row = format!("closes_total{{pool=\"test\",reason=\"{reason}\"}} 1");
            self.shows(&row).await;
        }
    }

    #[tokio::test]
    async fn a_connection_without_calls_is_closed_after_a_quarter_of_an_hour() {
        let bench = Bench::new(Duration::from_hours(9)).await;
        bench.pool.inner.sweep(Instant::now() + 13 * MINUTE);
        bench.shows("connections{pool=\"test\"} 1").await;
        bench.pool.inner.sweep(Instant::now() + 17 * MINUTE);
        bench.closed("idle").await;
        bench.shows("connections{pool=\"test\"} 0").await;
    }

    #[tokio::test]
    async fn a_connection_is_replaced_before_the_age_at_which_its_peer_ends_it() {
        let bench = Bench::new(4 * MINUTE).await;
        bench.pool.inner.sweep(Instant::now() + MINUTE * 26 / 10);
        bench.shows("connections{pool=\"test\"} 1").await;
        // The peer ends it from 3.6 min on.
        bench.pool.inner.sweep(Instant::now() + MINUTE * 34 / 10);
        bench.closed("replaced").await;
        bench.shows("connections{pool=\"test\"} 1").await;
    }

    #[tokio::test]
    async fn the_least_used_connection_makes_room_for_one_more_target() {
        let bench = Bench::new(Duration::from_hours(9)).await;
        for port in 0..MOST {
            let endpoints = vec![format!("127.0.0.1:{port}")];
            let expect = None;
            bench
                .pool
                .inner
                .entry(&Arc::new(Target { endpoints, expect }));
        }
        assert_eq!(bench.pool.len(), MOST);
        bench.closed("evicted").await;
        bench.shows("connections{pool=\"test\"} 0").await;
    }
}
