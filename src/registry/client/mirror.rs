//! The sidecar's copy of the catalog and the traffic rules, kept up to date by a watch.
//!
//! It starts from the copy on disk, serves what it knows while the registry is away, and reads
//! everything again once in a while, so that no lost change stays lost.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tonic::Status;

use super::copy;
use super::follow::Follow;
use super::follow::Step;
use super::follow::difference;
use super::source::Changes;
use super::source::Source;
use crate::pb;
use crate::pb::watch_response::Change as Word;
use crate::registry::catalog::Catalog;
use crate::registry::catalog::Revision;
use crate::registry::live::Change;
use crate::registry::live::Live;
use crate::registry::rules::Rules;
use crate::registry::watch::KEEPALIVE;
use crate::runtime::Backoff;
use crate::runtime::Nursery;
use crate::runtime::Stop;
use crate::telemetry::metrics::{self, Sheet, family};

/// Silence after which a watch is taken for dead: three keepalives.
const DEAD_AFTER: Duration = KEEPALIVE.saturating_mul(3);
/// How often all is read again in a small mesh.
const RELIST: Duration = Duration::from_secs(60);
/// Instances up to which [`RELIST`] holds; each doubling adds one more of it, since every sidecar
/// reads every instance.
const RELIST_SMALL: usize = 128;
/// How long a watch must have held before a break counts as the first one again.
const HEALTHY: Duration = Duration::from_secs(10);
/// Least time between two copies on disk: a burst of changes is one write.
const COPY_EVERY: Duration = Duration::from_secs(1);
/// How long who starts waits for the registry's own word: its copy may be as old as [`COPY_EVERY`]
/// even when nothing was lost. A registry at hand answers in milliseconds; one that is away must
/// not keep a sidecar from what it knows.
const WORD_WAIT: Duration = COPY_EVERY;
/// Messages taken before readers see them, if so many wait already.
const BATCH: usize = 256;

/// How a mirror is kept.
#[derive(Clone, Debug, Default)]
pub struct MirrorConfig {
    /// Where the copy on disk is; `None`: nowhere. Its directory must exist.
    pub copy: Option<PathBuf>,
    /// Only these namespaces; empty: all that the member may see.
    pub namespaces: Vec<String>,
}

/// A catalog that follows the registry's. Clones share it.
#[derive(Clone, Debug)]
pub struct Mirror {
    live: Arc<Live>,
    fresh: watch::Receiver<bool>,
    heard: watch::Receiver<Option<Instant>>,
    loaded: watch::Receiver<bool>,
}

impl Mirror {
    /// Starts following in `nursery`, until it closes.
    pub fn start(nursery: &Nursery, source: Arc<dyn Source>, config: MirrorConfig) -> Self {
        let live = Arc::new(Live::new(rand::random()));
        let (tell, fresh) = watch::channel(false);
        let (word, heard) = watch::channel(None);
        let (read, loaded) = watch::channel(false);
        let keeper = Keeper {
            live: Arc::clone(&live),
            source,
            config,
            fresh: tell,
            heard: word,
            loaded: read,
            ruled: false,
            revision: Revision::default(),
            saved: Revision::default(),
            saved_rules: live.rules(),
            saved_at: None,
        };
        nursery.start("mirror", |stop| keeper.run(stop));
        Self {
            live,
            fresh,
            heard,
            loaded,
        }
    }

    /// Waits until the catalog is the registry's, or the copy on disk if that does not answer
    /// within 1 s. Before that the catalog is empty or behind, and who is told that a peer is not
    /// there takes it for the truth.
    pub async fn settled(&self) {
        let (mut loaded, mut fresh) = (self.loaded.clone(), self.fresh.clone());
        // An error: it was told to stop first, and nobody needs the catalog any more.
        drop(loaded.wait_for(|loaded| *loaded).await);
        drop(timeout(WORD_WAIT, fresh.wait_for(|fresh| *fresh)).await);
    }

    /// The catalog as it is known now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.live.catalog()
    }

    /// The traffic rules as they are known now. The same `Arc` until they change.
    pub fn rules(&self) -> Arc<Rules> {
        self.live.rules()
    }

    /// Rings after every change, of the catalog or of the rules. The numbers are the mirror's own,
    /// and count changes of the catalog only.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.live.changes()
    }

    /// Whether the watch stands and its snapshot was complete; while it is not, the catalog is
    /// what was known before.
    pub fn fresh(&self) -> watch::Receiver<bool> {
        self.fresh.clone()
    }

    pub(super) fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

impl metrics::Source for Mirror {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let known = self.live.read(Catalog::len);
        let fresh = u8::from(*self.fresh.borrow());
        let heard = *self.heard.borrow();
        let age = heard.map(|heard| ([], heard.elapsed().as_secs_f64()));
        sheet.gauge(&family::CATALOG_INSTANCES, [([], known as f64)]);
        sheet.gauge(&family::CATALOG_FRESH, [([], f64::from(fresh))]);
        sheet.gauge(&family::CATALOG_AGE, age);
    }
}

/// The one task that changes a mirror.
struct Keeper {
    live: Arc<Live>,
    source: Arc<dyn Source>,
    config: MirrorConfig,
    fresh: watch::Sender<bool>,
    /// When the registry last said anything.
    heard: watch::Sender<Option<Instant>>,
    loaded: watch::Sender<bool>,
    /// Rules came since the last snapshot began, or with it.
    ruled: bool,
    /// The registry's revision that the mirror has.
    revision: Revision,
    saved: Revision,
    saved_rules: Arc<Rules>,
    saved_at: Option<Instant>,
}

/// Why a watch ended.
enum End {
    /// Time to read everything again.
    Relist,
    /// It broke, or the registry ended it.
    Lost(String),
    /// What came cannot be followed: only a snapshot helps.
    Broken(String),
}

impl Keeper {
    async fn run(mut self, stop: Stop) {
        let following = async {
            self.load().await;
            self.loaded.send_replace(true);
            self.follow_for_ever().await;
        };
        // A stop drops the watch at any await; the last copy is written after it.
        let _stopped = stop.run_until_cancelled(following).await;
        self.save().await;
    }

    async fn load(&mut self) {
        let Some(path) = &self.config.copy else {
            return;
        };
        if let Some(copied) = copy::read(path).await {
            tracing::info!(
                instances = copied.entries.len(),
                rules = copied.rules.len(),
                "starting from the catalog's copy"
            );
            self.live.set_rules(copied.rules);
            self.live.apply(copied.entries.into_iter().map(Change::Put));
            self.saved_rules = self.live.rules();
            self.saved = copied.revision.clone();
            self.revision = copied.revision;
        }
    }

    async fn follow_for_ever(&mut self) {
        let mut backoff = Backoff::RECONNECT;
        loop {
            let began = Instant::now();
            let end = match self.open().await {
                Ok(changes) => self.follow(changes).await,
                Err(status) => End::Lost(status.to_string()),
            };
            let why = match end {
                End::Relist => {
                    self.revision = Revision::default();
                    backoff.reset();
                    continue;
                }
                End::Lost(why) => why,
                End::Broken(why) => {
                    self.revision = Revision::default();
                    why
                }
            };
            self.fresh.send_replace(false);
            // Nothing more comes for a while, and a crash meanwhile should find all that was known.
            self.save().await;
            if began.elapsed() >= HEALTHY {
                backoff.reset();
            }
            let wait = backoff.next(rand::random());
            tracing::warn!(
                why,
                ?wait,
                "the registry's watch ended; going on with what is known"
            );
            tokio::time::sleep(wait).await;
        }
    }

    async fn open(&self) -> Result<Changes, Status> {
        let ask = pb::WatchRequest {
            after_revision: self.revision.number,
            generation: self.revision.generation.to_string(),
            namespaces: self.config.namespaces.clone(),
            selectors: Vec::new(),
        };
        self.source.watch(ask).await
    }

    async fn follow(&mut self, mut changes: Changes) -> End {
        let mut follow = Follow::new(self.revision.clone(), &self.live.catalog());
        let mut heard = Instant::now();
        let relist = heard + relist_after(self.live.read(Catalog::len), rand::random());
        loop {
            let save = self.save_due();
            let wake = relist.min(heard + DEAD_AFTER);
            let wake = save.map_or(wake, |save| wake.min(save));
            if let Ok(message) = timeout_at(wake, changes.next()).await {
                heard = Instant::now();
                if matches!(message, Some(Ok(_))) {
                    self.heard.send_replace(Some(heard));
                }
                if let Err(end) = self.take(message, &mut changes, &mut follow) {
                    return end;
                }
            }
            let now = Instant::now();
            if save.is_some_and(|save| save <= now) {
                self.save().await;
            }
            if now >= relist {
                return End::Relist;
            }
            if now >= heard + DEAD_AFTER {
                return End::Lost("no sign of life for 45 s".to_owned());
            }
        }
    }

    /// Takes a message and those that wait behind it, and shows them together.
    fn take(
        &mut self,
        first: Option<Result<pb::WatchResponse, Status>>,
        changes: &mut Changes,
        follow: &mut Follow,
    ) -> Result<(), End> {
        let mut next = Some(first);
        let mut batch = Vec::new();
        let mut end = Ok(());
        for _ in 0..BATCH {
            let Some(message) = next else { break };
            end = match message {
                Some(Ok(message)) => self.step(follow, message, &mut batch),
                Some(Err(status)) => Err(End::Lost(status.to_string())),
                None => Err(End::Lost("the registry ended it".to_owned())),
            };
            next = if end.is_ok() {
                changes.next().now_or_never()
            } else {
                None
            };
        }
        self.live.apply(batch);
        self.revision = follow.revision().clone();
        self.fresh.send_if_modified(|fresh| {
            let was = std::mem::replace(fresh, end.is_ok() && follow.is_complete());
            was != *fresh
        });
        end
    }

    fn step(
        &mut self,
        follow: &mut Follow,
        mut message: pb::WatchResponse,
        batch: &mut Vec<Change>,
    ) -> Result<(), End> {
        let rules = message.rules.take();
        let begins = matches!(message.change, Some(Word::SnapshotBegin(_)));
        self.ruled = rules.is_some() || self.ruled && !begins;
        let step = follow.take(message);
        let step = step.map_err(|broken| End::Broken(broken.to_string()))?;
        if let Some(rules) = rules {
            self.live.set_rules(Rules::read(rules));
        }
        match step {
            Step::Nothing => {}
            Step::Put(entry) => batch.push(Change::Put(entry)),
            // Both look at what is there, so what came before must be there.
            Step::Gone(id) => {
                let catalog = self.flush(batch);
                batch.extend(catalog.entry(&id).cloned().map(Change::Gone));
            }
            Step::Snapshot(all) => {
                if !self.ruled {
                    // A registry from before there were rules, put back in the place of a newer
                    // one: nobody could change those that are known.
                    self.live.set_rules(Rules::default());
                }
                let catalog = self.flush(batch);
                batch.extend(difference(&catalog, all));
            }
        }
        Ok(())
    }

    fn flush(&self, batch: &mut Vec<Change>) -> Arc<Catalog> {
        self.live.apply(batch.drain(..));
        self.live.catalog()
    }

    /// When the copy on disk is to be written, if it is older than what is known.
    fn save_due(&self) -> Option<Instant> {
        let others = || !Arc::ptr_eq(&self.saved_rules, &self.live.rules());
        let stale = self.config.copy.is_some()
            && self.revision != Revision::default()
            && (self.revision != self.saved || others());
        let after = self.saved_at.map(|at| at + COPY_EVERY);
        stale.then(|| after.unwrap_or_else(Instant::now))
    }

    async fn save(&mut self) {
        let (Some(_), Some(path)) = (self.save_due(), &self.config.copy) else {
            return;
        };
        let (catalog, rules) = (self.live.catalog(), self.live.rules());
        let written = copy::write(path, &self.revision, &catalog, &rules);
        if let Err(error) = written.await {
            tracing::warn!(path = %path.display(), %error, "the catalog's copy was not written");
        }
        self.saved = self.revision.clone();
        self.saved_rules = rules;
        self.saved_at = Some(Instant::now());
    }
}

/// When all is read again: 60 s in a small mesh, each doubling of it adds another 60 s; ±20% by
/// `chance` from 0 to 1, so that the sidecars spread out.
fn relist_after(instances: usize, chance: f64) -> Duration {
    let doublings = (instances / RELIST_SMALL)
        .checked_ilog2()
        .map_or(0, |n| n + 1);
    RELIST
        .saturating_mul(doublings + 1)
        .mul_f64(0.8 + 0.4 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::client::source::fake::Fake;
    use crate::registry::fixture::entry;
    use crate::registry::fixture::rule;
    use crate::registry::rules::Stamp;

    fn put(id: &str, skill: &str) -> Change {
        Change::Put(Arc::new(entry(id, "default/x", &[skill])))
    }

    fn ids(catalog: &Catalog) -> Vec<String> {
        catalog
            .entries_after(None)
            .map(|e| e.instance.id.clone())
            .collect()
    }

    async fn until(mirror: &Mirror, expected: &[&str]) {
        let mut bell = mirror.changes();
        while ids(&mirror.catalog()) != expected {
            bell.changed().await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn follows_every_change_and_answers_from_memory_while_the_registry_is_away() {
        let fake = Fake::new();
        fake.live().apply([put("a", "s"), put("b", "s")]);
        let nursery = Nursery::here();
        let mirror = Mirror::start(&nursery, fake.source(), MirrorConfig::default());
        until(&mirror, &["a", "b"]).await;
        mirror.fresh().wait_for(|fresh| *fresh).await.unwrap();
        let b = fake.live().catalog().entry(&"b".parse().unwrap()).cloned();
        fake.live().apply([put("c", "s"), Change::Gone(b.unwrap())]);
        until(&mirror, &["a", "c"]).await;
        fake.away(true);
        mirror.fresh().wait_for(|fresh| !*fresh).await.unwrap();
        assert_eq!(ids(&mirror.catalog()), ["a", "c"]);
        fake.live().apply([put("d", "s")]);
        fake.away(false);
        until(&mirror, &["a", "c", "d"]).await;
        nursery.close(RELIST).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_restarted_is_read_anew() {
        let fake = Fake::new();
        fake.live().apply([put("a", "s"), put("b", "s")]);
        let nursery = Nursery::here();
        let mirror = Mirror::start(&nursery, fake.source(), MirrorConfig::default());
        until(&mirror, &["a", "b"]).await;
        fake.restart();
        fake.live().apply([put("b", "t"), put("c", "s")]);
        until(&mirror, &["b", "c"]).await;
        nursery.close(RELIST).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_change_is_found_again_by_reading_everything() {
        let fake = Fake::new();
        fake.live().apply([put("a", "s")]);
        let nursery = Nursery::here();
        let mirror = Mirror::start(&nursery, fake.source(), MirrorConfig::default());
        until(&mirror, &["a"]).await;
        let start = Instant::now();
        mirror.live.apply([put("ghost", "s")]);
        until(&mirror, &["a"]).await;
        let took = start.elapsed().as_secs();
        assert!((48..=73).contains(&took), "{took} s");
        nursery.close(RELIST).await;
    }

    #[tokio::test]
    async fn starts_from_its_copy() {
        let dir = tempfile::tempdir().unwrap();
        let config = MirrorConfig {
            copy: Some(dir.path().join("catalog")),
            ..MirrorConfig::default()
        };
        let fake = Fake::new();
        fake.live().apply([put("a", "s")]);
        let nursery = Nursery::here();
        let mirror = Mirror::start(&nursery, fake.source(), config.clone());
        until(&mirror, &["a"]).await;
        nursery.close(RELIST).await;
        fake.away(true);
        let nursery = Nursery::here();
        let mirror = Mirror::start(&nursery, fake.source(), config);
        mirror.settled().await;
        assert_eq!(mirror.catalog().len(), 1, "at once");
        assert!(!*mirror.fresh().borrow());
        nursery.close(RELIST).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_starts_waits_for_the_registrys_word_but_not_for_ever() {
        let fake = Fake::new();
        fake.live().apply([put("a", "s")]);
        for (away, known, waits) in [(false, 1, Duration::ZERO), (true, 0, WORD_WAIT)] {
            fake.away(away);
            let nursery = Nursery::here();
            let began = Instant::now();
            let mirror = Mirror::start(&nursery, fake.source(), MirrorConfig::default());
            mirror.settled().await;
            assert_eq!(mirror.catalog().len(), known);
            let took = began.elapsed();
            assert!(took >= waits && took < waits + COPY_EVERY / 10, "{took:?}");
            nursery.close(RELIST).await;
        }
    }

    async fn put_rule(fake: &Fake, name: &str) {
        let stamp = Stamp {
            by: "spiffe://a/operator/ops".parse().unwrap(),
            at: std::time::SystemTime::UNIX_EPOCH,
        };
        let engine = fake.engine();
        let put = engine.store().put_rule(rule("default", name), None, stamp);
        put.await.unwrap();
    }

    /// Waits for these rules, by the paused clock for a while that has several relists.
    async fn until_rules(mirror: &Mirror, expected: &[&str]) {
        let known = |mirror: &Mirror| -> Vec<String> {
            let rules = mirror.rules();
            rules.iter().map(|r| r.name.name.to_string()).collect()
        };
        let waiting = async {
            let mut bell = mirror.changes();
            while known(mirror) != expected {
                bell.changed().await.unwrap();
            }
        };
        let came = timeout(RELIST * 5, waiting).await;
        assert!(came.is_ok(), "{:?} instead of {expected:?}", known(mirror));
    }

    #[tokio::test(start_paused = true)]
    async fn rules_follow_every_change_and_ring() {
        let fake = Fake::new();
        put_rule(&fake, "a").await;
        let nursery = Nursery::here();
        let mirror = Mirror::start(&nursery, fake.source(), MirrorConfig::default());
        until_rules(&mirror, &["a"]).await;
        put_rule(&fake, "b").await;
        until_rules(&mirror, &["a", "b"]).await;
        // Away, it goes on with those that it knows; what changed meanwhile comes with the watch.
        fake.away(true);
        mirror.fresh().wait_for(|fresh| !*fresh).await.unwrap();
        let known = mirror.rules();
        assert_eq!(known.len(), 2);
        let engine = fake.engine();
        let name = crate::registry::rules::RuleName::read("", "a").unwrap();
        let by = "spiffe://a/operator/ops".parse().unwrap();
        engine.store().delete_rule(&name, None, &by).await.unwrap();
        fake.away(false);
        until_rules(&mirror, &["b"]).await;
        // A relist does not change them.
        let known = mirror.rules();
        tokio::time::sleep(RELIST * 3).await;
        assert!(Arc::ptr_eq(&known, &mirror.rules()));
        // Nor do those of a registry that has forgotten all stay.
        fake.restart();
        until_rules(&mirror, &[]).await;
        nursery.close(RELIST).await;
    }

    #[tokio::test(start_paused = true)]
    async fn rules_do_not_outlive_a_registry_that_knew_them() {
        let fake = Fake::new();
        put_rule(&fake, "a").await;
        let nursery = Nursery::here();
        let mirror = Mirror::start(&nursery, fake.source(), MirrorConfig::default());
        until_rules(&mirror, &["a"]).await;
        fake.restart();
        put_rule(&fake, "b").await;
        until_rules(&mirror, &["b"]).await;
        // The same catalog again, by a registry that cannot tell of rules.
        fake.knows_no_rules();
        until_rules(&mirror, &[]).await;
        nursery.close(RELIST).await;
    }

    #[tokio::test(start_paused = true)]
    async fn rules_are_in_the_copy_also_when_nothing_else_changed() {
        let dir = tempfile::tempdir().unwrap();
        let config = MirrorConfig {
            copy: Some(dir.path().join("catalog")),
            ..MirrorConfig::default()
        };
        let fake = Fake::new();
        fake.live().apply([put("a", "s")]);
        let nursery = Nursery::here();
        let mirror = Mirror::start(&nursery, fake.source(), config.clone());
        mirror.fresh().wait_for(|fresh| *fresh).await.unwrap();
        tokio::time::sleep(COPY_EVERY * 3).await;
        put_rule(&fake, "late").await;
        until_rules(&mirror, &["late"]).await;
        nursery.close(RELIST).await;
        fake.away(true);
        let nursery = Nursery::here();
        let mirror = Mirror::start(&nursery, fake.source(), config);
        until_rules(&mirror, &["late"]).await;
        assert!(!*mirror.fresh().borrow());
        nursery.close(RELIST).await;
    }

    #[test]
    fn large_meshes_are_read_less_often() {
        for (instances, chance, seconds) in [
            (0, 0.5, 60),
            (127, 0.0, 48),
            (127, 1.0, 72),
            (128, 0.5, 120),
            (256, 0.5, 180),
            (10_000, 0.5, 480),
        ] {
            let expected = Duration::from_secs(seconds);
            let after = relist_after(instances, chance);
            assert!(
                after.abs_diff(expected) < Duration::from_millis(1),
                "{after:?}"
            );
        }
    }
}
