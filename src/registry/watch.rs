//! One watcher: a snapshot in pieces, then deltas, pulled from the catalog by cursor.
//!
//! ```text
//!   Snapshot --last piece--> Following --fell out of the ring--> Snapshot{compacted}
//! ```
//! The snapshot is read piece by piece from the living catalog, not from a copy of it: whatever
//! changes meanwhile comes again as a delta, since deltas start at the revision at which the
//! snapshot began. So a thousand watchers that come at once cost no thousand copies, and a slow
//! one holds nothing.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use crate::domain::Fault;
use crate::domain::InstanceId;
use crate::domain::Label;
use crate::domain::Reason;
use crate::pb;
use crate::pb::watch_response::Change as Word;
use crate::registry::card::without_schemas;
use crate::registry::catalog::Entry;
use crate::registry::catalog::Revision;
use crate::registry::live::Change;
use crate::registry::live::Live;
use crate::registry::live::Numbered;
use crate::registry::live::Since;
use crate::registry::query::Query;
use crate::registry::sight::Sight;
use crate::runtime::Stop;

/// Silence after which a sign of life is sent; three of them lost mean a dead watch.
pub const KEEPALIVE: Duration = Duration::from_secs(15);
/// Quiet that is waited for, so that a burst becomes one batch.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Longest wait for quiet.
const DEBOUNCE_MAX: Duration = Duration::from_secs(1);
/// Entries or changes taken at once: what a watcher holds in memory.
const PIECE: usize = 64;
/// Namespaces and selectors of a watch, each: more are better served by no filter.
const FILTERS_MAX: usize = 64;
/// Card digests remembered as sent; beyond it cards are sent again, which does no harm.
const CARDS_SENT_MAX: usize = 65_536;

/// Which entries a watcher gets.
#[derive(Clone, Debug)]
pub struct Filter {
    sight: Sight,
    namespaces: Vec<Label>,
    queries: Vec<Query>,
}

impl Filter {
    /// Reads the filters of a request.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` for a namespace that the caller may not see, `INVALID_FIELD`.
    pub fn parse(sight: Sight, request: &pb::WatchRequest) -> Result<Self, Fault> {
        for (count, path) in [
            (request.namespaces.len(), "namespaces"),
            (request.selectors.len(), "selectors"),
        ] {
            if count > FILTERS_MAX {
                return Err(Fault::field(path, "at most 64; leave it empty for all"));
            }
        }
        let mut namespaces = Vec::new();
        for (place, text) in request.namespaces.iter().enumerate() {
            let namespace = text.parse().map_err(|wrong| {
                Fault::field(format!("namespaces[{place}]"), format!("{wrong}"))
            })?;
            sight.demand(&namespace)?;
            namespaces.push(namespace);
        }
        let queries = request
            .selectors
            .iter()
            .map(|selector| Query::parse(selector, sight.namespace()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            sight,
            namespaces,
            queries,
        })
    }

    /// Whether the watcher may know of an entry at all; never changes for an instance.
    fn sees(&self, entry: &Entry) -> bool {
        let space = &entry.agent.namespace;
        (self.namespaces.is_empty() || self.namespaces.contains(space)) && self.sight.sees(space)
    }

    fn wants(&self, entry: &Entry) -> bool {
        self.queries.is_empty() || self.queries.iter().any(|query| query.fits(entry))
    }
}

#[derive(Debug)]
enum At {
    /// Sending what is there, after this instance.
    Snapshot(Option<InstanceId>),
    /// Sending what changes.
    Following,
}

/// A watch under way.
#[derive(Debug)]
pub struct Watcher {
    live: Arc<Live>,
    bell: watch::Receiver<u64>,
    filter: Filter,
    stop: Stop,
    at: At,
    /// All up to here was sent, or comes with the snapshot under way.
    cursor: Revision,
    cards: HashSet<Vec<u8>>,
    out: VecDeque<pb::WatchResponse>,
}

impl Watcher {
    /// Starts after the revision that the request names, or with a snapshot.
    pub fn new(live: Arc<Live>, filter: Filter, request: &pb::WatchRequest, stop: Stop) -> Self {
        let cursor = Revision {
            generation: request.generation.as_str().into(),
            number: request.after_revision,
        };
        let mut watcher = Self {
            bell: live.changes(),
            live,
            filter,
            stop,
            at: At::Following,
            cursor,
            cards: HashSet::new(),
            out: VecDeque::new(),
        };
        let asked = request.after_revision > 0;
        if !asked || matches!(watcher.live.since(&watcher.cursor, 0), Since::Lost) {
            watcher.begin(asked);
        } else {
            // Tells who comes back at once that nothing was lost.
            watcher.say(Word::Keepalive(pb::WatchKeepalive {}));
        }
        watcher
    }

    /// The next message. May be dropped and asked again.
    ///
    /// # Errors
    /// `DRAINING` when the registry is about to stop.
    pub async fn next(&mut self) -> Result<pb::WatchResponse, Fault> {
        loop {
            if let Some(word) = self.out.pop_front() {
                return Ok(word);
            }
            match &self.at {
                At::Snapshot(after) => {
                    let after = after.clone();
                    self.piece(after.as_ref());
                }
                At::Following => {
                    let quiet = self.wait().await?;
                    self.follow(quiet);
                }
            }
        }
    }

    fn begin(&mut self, compacted: bool) {
        self.cursor = self.live.revision();
        self.at = At::Snapshot(None);
        self.say(Word::SnapshotBegin(pb::SnapshotBegin { compacted }));
    }

    fn piece(&mut self, after: Option<&InstanceId>) {
        let entries = self.live.entries_after(after, PIECE);
        self.at = match entries.last() {
            Some(last) => At::Snapshot(Some(last.instance_id.clone())),
            None => At::Following,
        };
        for entry in &entries {
            if self.filter.sees(entry) && self.filter.wants(entry) {
                self.put(entry);
            }
        }
        if entries.is_empty() {
            self.say(Word::SnapshotEnd(pb::SnapshotEnd {}));
        }
    }

    /// Waits for changes to come and to settle; true when none came for a keepalive's time.
    async fn wait(&mut self) -> Result<bool, Fault> {
        let behind = *self.bell.borrow_and_update() > self.cursor.number;
        if !behind {
            let rang = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Fault::new(
                    Reason::Draining,
                    "the registry is about to stop: watch another one, or again in a moment",
                )),
                rang = timeout(KEEPALIVE, self.bell.changed()) => rang,
            };
            if rang.is_err() {
                return Ok(true);
            }
        }
        let latest = Instant::now() + DEBOUNCE_MAX;
        loop {
            let quiet = latest.min(Instant::now() + DEBOUNCE);
            if timeout_at(quiet, self.bell.changed()).await.is_err() {
                return Ok(false);
            }
        }
    }

    fn follow(&mut self, quiet: bool) {
        let changes = match self.live.since(&self.cursor, PIECE) {
            Since::Changes(changes) => changes,
            Since::Lost => return self.begin(true),
        };
        if changes.is_empty() {
            if quiet {
                self.say(Word::Keepalive(pb::WatchKeepalive {}));
            }
            return;
        }
        // Of several changes of one instance only the last counts. The order stays, so that the
        // numbers only grow.
        let mut newest = HashSet::new();
        let mut kept: Vec<&Numbered> = changes
            .iter()
            .rev()
            .filter(|numbered| newest.insert(&numbered.change.entry().instance_id))
            .collect();
        kept.reverse();
        for numbered in kept {
            self.cursor.number = numbered.number;
            match &numbered.change {
                Change::Put(entry) if !self.filter.sees(entry) => {}
                Change::Put(entry) if self.filter.wants(entry) => self.put(entry),
                // It may have fitted before: whoever has it must drop it.
                Change::Put(entry) => self.gone(entry),
                Change::Gone(entry) if self.filter.sees(entry) => self.gone(entry),
                Change::Gone(_) => {}
            }
        }
    }

    fn put(&mut self, entry: &Entry) {
        if self.cards.len() >= CARDS_SENT_MAX {
            self.cards.clear();
        }
        if self.cards.insert(entry.card.digest.clone()) {
            self.say(Word::Card(without_schemas(&entry.card)));
        }
        self.say(Word::Instance(entry.published()));
    }

    fn gone(&mut self, entry: &Entry) {
        let id = entry.instance.id.clone();
        self.say(Word::Gone(pb::InstanceGone { id }));
    }

    fn say(&mut self, change: Word) {
        self.out.push_back(pb::WatchResponse {
            revision: self.cursor.number,
            generation: self.cursor.generation.to_string(),
            change: Some(change),
        });
    }
}
