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
const MOVE_AT: f64 = 0.75;

/// Whom to reach.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// `host:port` or `unix:/path`, tried in this order.
    pub endpoints: Vec<String>,
    /// Who must be there; `None`: plaintext, for the own agent only.
    pub expect: Option<Expect>,
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
        Self::start(Some(credentials), nursery, CONNECTION_AGE)
    }

    /// The same for peers that end connections at about this age: they are replaced before it.
    pub fn aged(credentials: Credentials, nursery: Nursery, connection_age: Duration) -> Self {
        Self::start(Some(credentials), nursery, connection_age)
    }

    /// A pool without credentials: it reaches targets without `expect` only.
    pub fn plaintext(nursery: Nursery) -> Self {
        Self::start(None, nursery, CONNECTION_AGE)
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

    fn start(credentials: Option<Credentials>, nursery: Nursery, age: Duration) -> Self {
        let inner = Arc::new(Inner {
            changes: credentials.as_ref().map(Credentials::changes),
            credentials,
            nursery: nursery.clone(),
            age: age.mul_f64(MOVE_AT),
            sooner: Notify::new(),
            sightings: Sightings::default(),
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
            swept.entries.lock().clear();
        });
        Self { inner }
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
            oldest.map(|oldest| entries.remove(&oldest));
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
