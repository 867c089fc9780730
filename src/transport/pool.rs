//! Connections to peers, one per target, made when needed and replaced before they break.
//!
//! One pool per data thread: its connections live on that thread's runtime. Holds no requests.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, interval},
};

use crate::domain::Fault;
use crate::domain::Reason;
use crate::identity::{Credentials, Expect};
use crate::runtime::Nursery;
use crate::transport::channel::Channel;
use crate::transport::entry::{Entry, Link};
use crate::transport::lifetime::Sightings;

/// Targets with a connection at a time; the least recently used one goes for a new one.
const MOST: usize = 1024;
/// How often old, idle and outdated connections are looked for.
const SWEEP: Duration = Duration::from_secs(10);
/// Connections replaced per sweep at most: a renewal need not shake every hand at once.
const REPLACED: usize = 32;

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
    pub(super) sightings: Sightings,
    entries: Mutex<HashMap<Arc<Target>, Arc<Entry>>>,
}

impl Pool {
    /// A pool that proves itself with `credentials`. Its tasks and connections live in `nursery`
    /// and end with it.
    pub fn new(credentials: Credentials, nursery: Nursery) -> Self {
        Self::start(Some(credentials), nursery)
    }

    /// A pool without credentials: it reaches targets without `expect` only.
    pub fn plaintext(nursery: Nursery) -> Self {
        Self::start(None, nursery)
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

    fn start(credentials: Option<Credentials>, nursery: Nursery) -> Self {
        let inner = Arc::new(Inner {
            changes: credentials.as_ref().map(Credentials::changes),
            credentials,
            nursery: nursery.clone(),
            sightings: Sightings::default(),
            entries: Mutex::new(HashMap::new()),
        });
        let swept = Arc::clone(&inner);
        nursery.start("pool", move |stop| async move {
            let mut ticks = interval(SWEEP);
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    _ = ticks.tick() => swept.sweep(Instant::now()),
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

    fn sweep(self: &Arc<Self>, now: Instant) {
        let entries: Vec<Arc<Entry>> = self.entries.lock().values().map(Arc::clone).collect();
        let mut replaced = 0;
        for entry in &entries {
            if replaced < REPLACED && entry.tend(self, now) {
                replaced += 1;
            }
        }
        let mut held = self.entries.lock();
        held.retain(|_, entry| !entry.is_over(now));
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
