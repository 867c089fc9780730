//! One watcher: a snapshot in pieces, then deltas, pulled from the catalog by cursor.
//!
//! ```text
//!   Snapshot --last piece--> Following --fell out of the ring--> Snapshot{compacted}
//! ```
//! The snapshot is read piece by piece from the living catalog, not from a copy of it: whatever
//! changes meanwhile comes again as a delta, since deltas start at the revision at which the
//! snapshot began. So a thousand watchers that come at once cost no thousand copies, and a slow
//! one holds nothing. The traffic rules go along whole, beside the first message and again after
//! they changed.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
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
use crate::registry::rules::Rule;
use crate::registry::rules::Rules;
use crate::registry::sight::Sight;
use crate::runtime::Stop;

/// Silence after which a sign of life is sent; three of them lost mean a dead watch.
pub const KEEPALIVE: Duration = Duration::from_secs(15);
/// Quiet that is waited for, so that a burst becomes one batch. A change that comes after as much
/// quiet is sent at once.
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
        self.sees_in(&entry.agent.namespace)
    }

    /// Whether it may know of what is in a namespace.
    fn sees_in(&self, space: &Label) -> bool {
        (self.namespaces.is_empty() || self.namespaces.contains(space)) && self.sight.sees(space)
    }

    /// The rules that it may know of.
    fn rules<'a>(&self, rules: &'a Rules) -> impl Iterator<Item = &'a Arc<Rule>> {
        let all = rules.iter();
        all.filter(|rule| self.sees_in(&rule.name.namespace))
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
    /// All up to here is sent without waiting for quiet again: who is behind must catch up.
    settled: u64,
    /// When changes came last.
    rang: Option<Instant>,
    /// When the watcher was last told anything.
    spoke: Instant,
    /// The rules of which those it may see were told last.
    told: Option<Arc<Rules>>,
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
            settled: 0,
            rang: None,
            spoke: Instant::now(),
            told: None,
            cards: HashSet::new(),
            out: VecDeque::new(),
        };
        let asked = request.after_revision > 0;
        if !asked || matches!(watcher.live.since(&watcher.cursor, 0), Since::Lost) {
            watcher.begin(asked);
        } else {
            // Tells who comes back at once that nothing was lost.
            let rules = watcher.news();
            watcher.say_with(Word::Keepalive(pb::WatchKeepalive {}), rules);
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
                self.spoke = Instant::now();
                return Ok(word);
            }
            match &self.at {
                At::Snapshot(after) => {
                    let after = after.clone();
                    self.piece(after.as_ref());
                }
                At::Following if self.cursor.number < self.settled => self.follow(false),
                At::Following => {
                    let quiet = self.wait().await?;
                    self.settled = self.live.revision().number;
                    let rules = self.news();
                    if rules.is_some() {
                        self.say_with(Word::Keepalive(pb::WatchKeepalive {}), rules);
                    }
                    self.follow(quiet);
                }
            }
        }
    }

    fn begin(&mut self, compacted: bool) {
        self.cursor = self.live.revision();
        self.at = At::Snapshot(None);
        let rules = self.news();
        self.say_with(Word::SnapshotBegin(pb::SnapshotBegin { compacted }), rules);
    }

    /// The rules, if those that it may see are others than it was told; an empty set is told too.
    fn news(&mut self) -> Option<pb::TrafficRules> {
        let rules = self.live.rules();
        let told = self.told.replace(Arc::clone(&rules));
        let same = |told: &Arc<Rules>| {
            Arc::ptr_eq(told, &rules) || self.filter.rules(told).eq(self.filter.rules(&rules))
        };
        let known = told.as_ref().is_some_and(same);
        (!known).then(|| rules.message(|space| self.filter.sees_in(space)))
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

    /// Waits for changes to come and to settle; true when a keepalive is due.
    async fn wait(&mut self) -> Result<bool, Fault> {
        let rung = *self.bell.borrow_and_update();
        let rules = self.live.rules();
        let told = self.told.as_ref();
        let behind =
            rung > self.cursor.number || !told.is_some_and(|told| Arc::ptr_eq(told, &rules));
        // Counted from the last word: changes that are none of the watcher's must not silence it.
        let silent_at = self.spoke + KEEPALIVE;
        if !behind {
            let rang = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Fault::new(
                    Reason::Draining,
                    "the registry is about to stop: watch another one, or again in a moment",
                )),
                rang = timeout_at(silent_at, self.bell.changed()) => rang,
            };
            if rang.is_err() {
                return Ok(true);
            }
        }
        let now = Instant::now();
        let before = self.rang.replace(now);
        if before.is_none_or(|before| before + DEBOUNCE <= now) {
            return Ok(silent_at <= now);
        }
        let latest = now + DEBOUNCE_MAX;
        loop {
            let quiet = latest.min(Instant::now() + DEBOUNCE);
            if timeout_at(quiet, self.bell.changed()).await.is_err() {
                self.rang = Some(quiet);
                return Ok(silent_at <= quiet);
            }
        }
    }

    fn follow(&mut self, quiet: bool) {
        let changes = match self.live.since(&self.cursor, PIECE) {
            Since::Changes(changes) => changes,
            Since::Lost => return self.begin(true),
        };
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
        if quiet && self.out.is_empty() {
            self.say(Word::Keepalive(pb::WatchKeepalive {}));
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
        self.say_with(change, None);
    }

    fn say_with(&mut self, change: Word, rules: Option<pb::TrafficRules>) {
        self.out.push_back(pb::WatchResponse {
            revision: self.cursor.number,
            generation: self.cursor.generation.to_string(),
            change: Some(change),
            rules,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::FutureExt;
    use proptest::prelude::*;

    use tokio::time::timeout;

    use super::*;
    use crate::domain::SpiffeId;
    use crate::registry::fixture::entry;
    use crate::registry::fixture::member;
    use crate::registry::fixture::rule;
    use crate::registry::live::CHANGES_KEPT;

    /// What a client has after the messages so far: digests by instance.
    #[derive(Debug, Default)]
    struct Client {
        has: BTreeMap<String, Vec<u8>>,
        cards: HashSet<Vec<u8>>,
        revision: u64,
        generation: String,
        snapshots: usize,
    }

    impl Client {
        fn take(&mut self, word: pb::WatchResponse) {
            assert!(word.revision >= self.revision || self.generation != word.generation);
            let change = word.change.unwrap();
            // A card and its instance share a number: only with both is it reached.
            if !matches!(change, Word::Card(_)) {
                (self.revision, self.generation) = (word.revision, word.generation);
            }
            match change {
                Word::SnapshotBegin(_) => {
                    self.snapshots += 1;
                    self.has.clear();
                }
                Word::Card(card) => assert!(self.cards.insert(card.digest), "a card twice"),
                Word::Instance(instance) => {
                    assert!(self.cards.contains(&instance.card_digest), "no card");
                    self.has.insert(instance.id, instance.card_digest);
                }
                Word::Gone(gone) => drop(self.has.remove(&gone.id)),
                Word::SnapshotEnd(_) | Word::Keepalive(_) => {}
            }
        }

        fn request(&self) -> pb::WatchRequest {
            pb::WatchRequest {
                after_revision: self.revision,
                generation: self.generation.clone(),
                ..Default::default()
            }
        }
    }

    fn put(name: &str, agent: &str, skill: &str) -> Change {
        Change::Put(Arc::new(entry(name, agent, &[skill])))
    }

    fn gone(name: &str) -> Change {
        Change::Gone(Arc::new(entry(name, "default/x", &[])))
    }

    fn watcher(live: &Arc<Live>, request: &pb::WatchRequest) -> Watcher {
        let sight = Sight::of(member("default/web"));
        let filter = Filter::parse(sight, request).unwrap();
        Watcher::new(Arc::clone(live), filter, request, Stop::new())
    }

    /// Takes what comes until nothing does for a second.
    async fn settle(watcher: &mut Watcher, client: &mut Client) {
        while let Ok(word) = timeout(Duration::from_secs(2), watcher.next()).await {
            client.take(word.unwrap());
        }
    }

    fn visible(live: &Live, fits: impl Fn(&Entry) -> bool) -> BTreeMap<String, Vec<u8>> {
        live.read(|catalog| {
            let all = catalog.entries_after(None).filter(|e| fits(e));
            all.map(|e| (e.instance.id.clone(), e.card.digest.clone()))
                .collect()
        })
    }

    fn own(entry: &Entry) -> bool {
        entry.agent.namespace.as_str() == "default"
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_in_pieces_and_whatever_changes_meanwhile() {
        let live = Arc::new(Live::new(1));
        live.apply((100..400).map(|n| put(&format!("i{n}"), "default/x", "s")));
        live.apply([put("z", "prod/x", "s")]);
        let (mut client, request) = (Client::default(), pb::WatchRequest::default());
        let mut watcher = watcher(&live, &request);
        for _ in 0..100 {
            client.take(watcher.next().await.unwrap());
        }
        live.apply([gone("i101"), gone("i399"), put("i102", "default/x", "t")]);
        live.apply([put("i000", "default/x", "s")]);
        settle(&mut watcher, &mut client).await;
        assert_eq!(client.has, visible(&live, own));
        assert_eq!((client.has.len(), client.snapshots), (299, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_fell_behind_starts_again_and_who_did_not_goes_on() {
        let live = Arc::new(Live::new(1));
        live.apply([put("a", "default/x", "s"), put("b", "default/x", "s")]);
        let mut client = Client::default();
        settle(&mut watcher(&live, &client.request()), &mut client).await;
        live.apply([gone("a")]);
        client.cards.clear();
        settle(&mut watcher(&live, &client.request()), &mut client).await;
        assert_eq!((client.has.len(), client.snapshots), (1, 1));
        let mut slow = watcher(&live, &client.request());
        live.apply((0..=CHANGES_KEPT).map(|n| put("c", "default/x", &format!("s{}", n % 2))));
        live.apply([gone("b")]);
        client.cards.clear();
        settle(&mut slow, &mut client).await;
        assert_eq!(client.has, visible(&live, own));
        assert_eq!(client.snapshots, 2);
    }

    /// Names of the rules that come within two seconds, a list for each time that they come.
    async fn told(watcher: &mut Watcher) -> Vec<Vec<String>> {
        let mut all = Vec::new();
        while let Ok(word) = timeout(Duration::from_secs(2), watcher.next()).await {
            let rules = word.unwrap().rules;
            let names = rules.map(|r| r.rules.into_iter().map(|rule| rule.name).collect());
            all.extend(names);
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn rules_come_whole_with_every_start_and_every_change() {
        let live = Arc::new(Live::new(1));
        let set = |names: &[(&str, &str)]| {
            let rules = names.iter().map(|(space, name)| rule(space, name));
            live.set_rules(Rules::new(rules, 1));
        };
        let nothing: [&str; 0] = [];
        let request = pb::WatchRequest::default();
        let mut first = watcher(&live, &request);
        let begin = first.next().await.unwrap();
        assert!(matches!(begin.change, Some(Word::SnapshotBegin(_))));
        assert!(
            begin.rules.unwrap().rules.is_empty(),
            "none is told as none"
        );
        assert!(told(&mut first).await.is_empty());
        set(&[("default", "a"), ("default", "b"), ("prod", "c")]);
        assert_eq!(told(&mut first).await, [["a", "b"]]);
        // What it may not see does not reach it, not even as a change.
        set(&[("default", "a"), ("default", "b"), ("prod", "d")]);
        assert!(told(&mut first).await.is_empty());
        set(&[("default", "b")]);
        assert_eq!(told(&mut first).await, [["b"]]);
        live.apply([put("a", "default/x", "s")]);
        assert!(
            told(&mut first).await.is_empty(),
            "a change of the catalog is none"
        );

        // One that goes on where it was gets them at once, beside a keepalive.
        let revision = live.revision();
        let resumed = pb::WatchRequest {
            after_revision: revision.number,
            generation: revision.generation.to_string(),
            ..Default::default()
        };
        let mut again = watcher(&live, &resumed);
        let word = again.next().now_or_never().unwrap().unwrap();
        assert!(matches!(word.change, Some(Word::Keepalive(_))));
        assert_eq!(word.rules.unwrap().rules.len(), 1);
        set(&[]);
        assert_eq!(told(&mut again).await, [nothing]);

        // They change while a snapshot is under way.
        live.apply((0..200).map(|n| put(&format!("i{n}"), "default/x", "s")));
        let mut slow = watcher(&live, &request);
        slow.next().await.unwrap();
        set(&[("default", "late")]);
        assert_eq!(told(&mut slow).await, [["late"]]);
    }

    #[tokio::test(start_paused = true)]
    async fn rules_of_other_namespaces_than_the_watched_are_left_out() {
        let live = Arc::new(Live::new(1));
        live.set_rules(Rules::new([rule("default", "a"), rule("prod", "b")], 1));
        let operator = "spiffe://a/operator/ops".parse().unwrap();
        for (namespaces, expected) in [(vec!["prod"], vec!["b"]), (vec![], vec!["a", "b"])] {
            let request = pb::WatchRequest {
                namespaces: namespaces.into_iter().map(str::to_owned).collect(),
                ..Default::default()
            };
            let filter = Filter::parse(Sight::of(SpiffeId::clone(&operator)), &request).unwrap();
            let mut watcher = Watcher::new(Arc::clone(&live), filter, &request, Stop::new());
            assert_eq!(told(&mut watcher).await, [expected]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_longer_fits_a_selector_is_gone() {
        let live = Arc::new(Live::new(1));
        live.apply([put("a", "default/x", "s"), put("b", "default/x", "t")]);
        let request = pb::WatchRequest {
            selectors: vec![pb::Selector {
                skill: "s".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let (mut client, mut watcher) = (Client::default(), watcher(&live, &request));
        settle(&mut watcher, &mut client).await;
        assert_eq!(client.has.keys().collect::<Vec<_>>(), ["a"]);
        live.apply([put("a", "default/x", "t"), put("b", "default/x", "s")]);
        settle(&mut watcher, &mut client).await;
        assert_eq!(client.has.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_one_batch_and_silence_has_signs_of_life() {
        let live = Arc::new(Live::new(1));
        let mut watcher = watcher(&live, &pb::WatchRequest::default());
        let mut client = Client::default();
        settle(&mut watcher, &mut client).await;
        let start = Instant::now();
        live.apply([put("b", "default/x", "s")]);
        for _ in 0..2 {
            watcher.next().await.unwrap();
        }
        assert_eq!(
            start.elapsed(),
            Duration::ZERO,
            "a lone change waits for nothing"
        );
        live.apply((0..20).map(|n| put("a", "default/x", &format!("s{n}"))));
        let card = watcher.next().await.unwrap();
        assert_eq!(start.elapsed(), DEBOUNCE);
        let instance = watcher.next().now_or_never().unwrap().unwrap();
        assert!(watcher.next().now_or_never().is_none());
        assert_eq!((card.revision, instance.revision), (21, 21));
        let start = Instant::now();
        let word = watcher.next().await.unwrap();
        assert!(matches!(word.change, Some(Word::Keepalive(_))));
        assert_eq!(start.elapsed(), KEEPALIVE);
    }

    #[tokio::test(start_paused = true)]
    async fn changes_that_it_may_not_see_take_no_sign_of_life_from_a_watcher() {
        let live = Arc::new(Live::new(1));
        let mut watcher = watcher(&live, &pb::WatchRequest::default());
        settle(&mut watcher, &mut Client::default()).await;
        let others = async {
            for n in 0..100 {
                tokio::time::sleep(Duration::from_secs(5)).await;
                live.apply([put("z", "prod/x", &format!("s{n}"))]);
            }
        };
        let words = async {
            let mut spoke = Instant::now();
            for _ in 0..4 {
                let word = watcher.next().await.unwrap();
                assert!(matches!(word.change, Some(Word::Keepalive(_))), "{word:?}");
                assert!(spoke.elapsed() <= KEEPALIVE + DEBOUNCE_MAX);
                spoke = Instant::now();
            }
        };
        tokio::select! {
            () = words => {}
            () = others => panic!("no sign of life for 500 s"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_behind_catches_up_without_waiting_for_quiet() {
        let live = Arc::new(Live::new(1));
        let mut watcher = watcher(&live, &pb::WatchRequest::default());
        let mut client = Client::default();
        settle(&mut watcher, &mut client).await;
        live.apply((0..1_000).map(|n| put(&format!("i{n}"), "default/x", "s")));
        let start = Instant::now();
        while client.has.len() < 1_000 {
            client.take(watcher.next().await.unwrap());
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[test]
    fn only_visible_namespaces_may_be_asked_for() {
        let asked = |namespace: &str, count: usize| {
            let request = pb::WatchRequest {
                namespaces: vec![namespace.into(); count],
                ..Default::default()
            };
            Filter::parse(Sight::of(member("default/web")), &request).map(drop)
        };
        assert_eq!(asked("default", FILTERS_MAX), Ok(()));
        assert_eq!(
            asked("prod", 1).unwrap_err().reason,
            Reason::PermissionDenied
        );
        let many = asked("default", FILTERS_MAX + 1).unwrap_err();
        assert_eq!(many.field.as_deref(), Some("namespaces"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Wherever a watch breaks and is taken up again, the client ends with the catalog.
        #[test]
        fn deltas_from_any_revision_lead_to_the_snapshot(
            steps in prop::collection::vec((0_u8..6, 0_u8..4, any::<bool>()), 1..60),
            read in 0_usize..12,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let live = Arc::new(Live::new(1));
                let mut client = Client::default();
                live.apply([put("i0", "default/x", "s0")]);
                settle(&mut watcher(&live, &client.request()), &mut client).await;
                for (name, what, broken) in steps {
                    let agent = if name == 5 { "prod/x" } else { "default/x" };
                    let name = format!("i{name}");
                    let skill = format!("s{what}");
                    let change = if what == 0 { gone(&name) } else { put(&name, agent, &skill) };
                    live.apply([change]);
                    if broken {
                        client.cards.clear();
                        let mut watcher = watcher(&live, &client.request());
                        for _ in 0..read {
                            if let Ok(word) = timeout(DEBOUNCE * 2, watcher.next()).await {
                                client.take(word.unwrap());
                            }
                        }
                    }
                }
                client.cards.clear();
                settle(&mut watcher(&live, &client.request()), &mut client).await;
                assert_eq!(client.has, visible(&live, own));
                assert_eq!(client.snapshots, 1, "every break was taken up by deltas");
            });
        }
    }
}
