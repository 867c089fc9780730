//! A store in one redb file: what a registry without a cluster keeps.
//!
//! Cards, instances, leases, traffic rules and the ledger are on disk before they are answered; heartbeats never
//! are. The file holds the key of page tokens, so only its owner may read it.

use std::{path::Path, sync::Arc};

use prost::Message;
use redb::{
    Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
    backends::FileBackend,
};
use tokio::time::Instant;

use super::Beat;
use super::Granted;
use super::Store;
use super::StoreError;
use super::shelf::Shelf;
use super::writer::Writer;
use crate::domain::InstanceId;
use crate::domain::SpiffeId;
use crate::pb;
use crate::registry::catalog::Entry;
use crate::registry::lease::LeaseId;
use crate::registry::lease::Terms;
use crate::registry::live::Live;
use crate::registry::page::PageKey;
use crate::registry::promises::Broken;
use crate::registry::rules::Placed;
use crate::registry::rules::Rule;
use crate::registry::rules::RuleName;
use crate::registry::rules::Stamp;
use crate::runtime::files::open_private;

/// Version of the tables; another one is refused by name.
const FORMAT: u32 = 1;
/// Memory of redb's page cache in bytes: the catalog is in memory already.
const CACHE: usize = 16 * 1024 * 1024;

pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Instance id to (lease id, [`Row`]).
const ENTRIES: TableDefinition<'_, &str, (&str, &[u8])> = TableDefinition::new("entries");

#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(message, optional, tag = "1")]
    card: Option<pb::AgentCard>,
    #[prost(message, optional, tag = "2")]
    instance: Option<pb::Instance>,
}

/// A store in one file.
#[derive(Debug)]
pub struct RedbStore {
    shelf: Arc<Shelf>,
    page_key: Arc<PageKey>,
    pub(super) writer: Writer,
    pub(super) database: Arc<Database>,
}

impl RedbStore {
    /// [`Self::open_with`] the default terms.
    ///
    /// # Errors
    /// As there.
    pub fn open(path: &Path, now: Instant) -> Result<Self, StoreError> {
        Self::open_with(path, Terms::DEFAULT, now)
    }

    /// Opens the file, or makes it, and gives leases on these terms.
    ///
    /// Who was registered is in the catalog at once, and has one TTL and one heartbeat from `now` on
    /// to be heard from. Blocks for the time of some reads and three syncs.
    ///
    /// # Errors
    /// When the file cannot be opened, is held by another process, is damaged, or was written by
    /// another version; the text names the file.
    pub fn open_with(path: &Path, terms: Terms, now: Instant) -> Result<Self, StoreError> {
        Self::open_at(path, terms, now).map_err(|error| match error {
            StoreError::Failed(text) => StoreError::Failed(format!("{}: {text}", path.display())),
            other @ (StoreError::LeaseUnknown
            | StoreError::Full
            | StoreError::Rule(_)
            | StoreError::Promise(_)
            | StoreError::Closed) => other,
        })
    }

    /// Whether the disk did not take the last change: nobody can join or register until it does.
    pub fn is_failing(&self) -> bool {
        self.writer.is_failing()
    }

    fn open_at(path: &Path, terms: Terms, now: Instant) -> Result<Self, StoreError> {
        let file = open_private(path).map_err(failed)?;
        let database = Database::builder()
            .set_cache_size(CACHE)
            .create_with_backend(FileBackend::new(file)?)?;
        let page_key = prepare(&database)?;
        let shelf = Shelf::new(terms, now);
        let restored = restore(&database, &shelf, now)?;
        let rules = super::rules::restore(&database)?;
        tracing::info!(path = %path.display(), instances = restored, rules = rules.len(), "the store is open");
        shelf.live().set_rules(rules);
        let database = Arc::new(database);
        Ok(Self {
            shelf: Arc::new(shelf),
            page_key: Arc::new(PageKey::new(&page_key)),
            writer: Writer::start(Arc::clone(&database)).map_err(failed)?,
            database,
        })
    }
}

#[tonic::async_trait]
impl Store for RedbStore {
    fn live(&self) -> &Arc<Live> {
        self.shelf.live()
    }

    fn leases(&self) -> (usize, Option<Instant>) {
        self.shelf.leases()
    }

    fn page_key(&self) -> &Arc<PageKey> {
        &self.page_key
    }

    async fn grant(&self, entry: Entry, now: Instant) -> Result<Granted, StoreError> {
        if !self.shelf.has_room(&entry.instance_id) {
            return Err(StoreError::Full);
        }
        let lease = LeaseId::from_random(rand::random());
        let (entry, shelf) = (Arc::new(entry), Arc::clone(&self.shelf));
        let (kept, id) = (Arc::clone(&entry), lease.clone());
        let granted = self.writer.write(
            move |tx| {
                if let Err(broken) = super::promised::take(tx, &kept)? {
                    return Ok(Err(broken));
                }
                put_row(tx, &id, &kept).map(Ok)
            },
            move |kept: Result<(), Broken>| kept.map(|()| shelf.grant(lease, entry, now)),
        );
        Ok(granted.await??)
    }

    async fn renew(
        &self,
        lease: &LeaseId,
        owner: &InstanceId,
        beat: Beat,
        now: Instant,
    ) -> Result<Terms, StoreError> {
        let (terms, changed) = self.shelf.renew(lease, owner, beat, now)?;
        if changed && let Some(entry) = self.live().read(|all| all.entry(owner).cloned()) {
            let lease = lease.clone();
            // Kept so that a restart does not show it as it was registered; should this be lost,
            // the next beat tells it again.
            self.writer.write_later(move |tx| {
                if holds_row(tx, &lease, &entry.instance_id)? {
                    put_row(tx, &lease, &entry)?;
                }
                Ok(())
            });
        }
        Ok(terms)
    }

    async fn end(&self, lease: &LeaseId, owner: &InstanceId) -> Result<(), StoreError> {
        if !self.shelf.holds(lease, owner) {
            return Err(StoreError::LeaseUnknown);
        }
        let shelf = Arc::clone(&self.shelf);
        let (id, instance) = (lease.clone(), owner.clone());
        let (lease, owner) = (lease.clone(), owner.clone());
        self.writer
            .write(
                move |tx| drop_row(tx, &id, &instance),
                move |()| shelf.end(&lease, &owner),
            )
            .await?
    }

    fn lease_of(&self, instance: &InstanceId) -> Option<LeaseId> {
        self.shelf.lease_of(instance)
    }

    async fn expire(&self, now: Instant) -> Result<Vec<InstanceId>, StoreError> {
        let silent = self.shelf.expired(now);
        if silent.is_empty() {
            return Ok(Vec::new());
        }
        let (looking, ending) = (Arc::clone(&self.shelf), Arc::clone(&self.shelf));
        self.writer
            .write(
                move |tx| {
                    let mut over = silent;
                    // A beat may have come in while this waited.
                    over.retain(|(lease, _)| looking.is_over(lease, now));
                    for (lease, owner) in &over {
                        drop_row(tx, lease, owner)?;
                    }
                    Ok(over)
                },
                move |over| {
                    let ended = over
                        .into_iter()
                        .filter(|(lease, owner)| ending.end(lease, owner).is_ok());
                    ended.map(|(_, owner)| owner).collect()
                },
            )
            .await
    }

    async fn put_rule(
        &self,
        rule: Rule,
        expected: Option<u64>,
        stamp: Stamp,
    ) -> Result<Placed, StoreError> {
        super::rules::put(self, rule, expected, stamp).await
    }

    async fn delete_rule(
        &self,
        name: &RuleName,
        expected: Option<u64>,
        by: &SpiffeId,
    ) -> Result<Arc<Rule>, StoreError> {
        super::rules::delete(self, name.clone(), expected, by.clone()).await
    }
}

/// Makes the tables where they are missing, and checks whose they are; the page key.
fn prepare(database: &Database) -> Result<[u8; 32], StoreError> {
    let tx = database.begin_write()?;
    tx.open_table(ENTRIES)?;
    super::tokens::prepare(&tx)?;
    super::rules::prepare(&tx)?;
    super::promised::prepare(&tx)?;
    let key = {
        let mut meta = tx.open_table(META)?;
        let format = meta.get("format")?.map(|value| value.value().to_vec());
        match format {
            None => drop(meta.insert("format", FORMAT.to_be_bytes().as_slice())?),
            Some(found) if found == FORMAT.to_be_bytes() => {}
            Some(found) => {
                let text = format!("format {found:?} was written by another version of attache");
                return Err(StoreError::Failed(text));
            }
        }
        let known = meta.get("page_key")?.map(|value| value.value().to_vec());
        match known {
            Some(known) => known
                .try_into()
                .map_err(|_| failed("the page key is damaged"))?,
            None => {
                let made: [u8; 32] = rand::random();
                meta.insert("page_key", made.as_slice())?;
                made
            }
        }
    };
    tx.commit()?;
    Ok(key)
}

fn restore(database: &Database, shelf: &Shelf, now: Instant) -> Result<usize, StoreError> {
    let tx = database.begin_read()?;
    let mut count = 0;
    for row in tx.open_table(ENTRIES)?.iter()? {
        let (id, value) = row?;
        let (lease, bytes) = value.value();
        let row = Row::decode(bytes).map_err(failed)?;
        let entry = Entry::new(
            row.instance.unwrap_or_default(),
            Arc::new(row.card.unwrap_or_default()),
        );
        match entry {
            Ok(entry) => drop(shelf.grant(LeaseId::from_text(lease), Arc::new(entry), now)),
            Err(fault) => return Err(failed(format!("instance {}: {fault}", id.value()))),
        }
        count += 1;
    }
    Ok(count)
}

fn put_row(tx: &WriteTransaction, lease: &LeaseId, entry: &Entry) -> Result<(), StoreError> {
    let row = Row {
        card: Some((*entry.card).clone()),
        instance: Some(entry.instance.clone()),
    };
    let mut entries = tx.open_table(ENTRIES)?;
    let value = (lease.as_str(), &*row.encode_to_vec());
    entries.insert(entry.instance_id.as_str(), value)?;
    Ok(())
}

fn holds_row(
    tx: &WriteTransaction,
    lease: &LeaseId,
    owner: &InstanceId,
) -> Result<bool, StoreError> {
    let entries = tx.open_table(ENTRIES)?;
    let row = entries.get(owner.as_str())?;
    Ok(row.is_some_and(|row| row.value().0 == lease.as_str()))
}

/// Takes a row out, unless a newer lease has it.
fn drop_row(tx: &WriteTransaction, lease: &LeaseId, owner: &InstanceId) -> Result<(), StoreError> {
    if holds_row(tx, lease, owner)? {
        tx.open_table(ENTRIES)?.remove(owner.as_str())?;
    }
    Ok(())
}

pub(super) fn failed(error: impl ToString) -> StoreError {
    StoreError::Failed(error.to_string())
}

macro_rules! from_redb {
    ($($error:ty)*) => {
        $(impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                failed(error)
            }
        })*
    };
}

from_redb!(
    redb::DatabaseError redb::TransactionError redb::TableError redb::StorageError
    redb::CommitError
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::fixture::entry;
    use crate::registry::fixture::rule;

    fn beat(health: pb::Health) -> Beat {
        Beat { health, load: None }
    }

    #[tokio::test]
    async fn a_restart_keeps_entries_leases_and_page_tokens_and_gives_grace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.redb");
        let start = Instant::now();
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let store = RedbStore::open(&path, start).unwrap();
        let kept = store
            .grant(entry("a", "default/x", &["s"]), start)
            .await
            .unwrap();
        let left = store
            .grant(entry("b", "default/x", &["s"]), start)
            .await
            .unwrap();
        store.end(&left.lease, &b).await.unwrap();
        let draining = beat(pb::Health::Draining);
        store.renew(&kept.lease, &a, draining, start).await.unwrap();
        let token = store.page_key().token("c", "f", "cursor");
        let generation = store.live().revision().generation;
        drop(store);

        let later = start + std::time::Duration::from_secs(3_600);
        let store = RedbStore::open(&path, later).unwrap();
        assert_ne!(store.live().revision().generation, generation);
        assert_eq!(store.live().read(|all| all.len()), 1);
        let health = store
            .live()
            .read(|all| all.entry(&a).unwrap().instance.health());
        assert_eq!(health, pb::Health::Draining);
        assert!(store.page_key().cursor("c", "f", &token).is_ok());
        for second in 0..20 {
            let now = later + std::time::Duration::from_secs(second);
            assert!(store.expire(now).await.unwrap().is_empty());
        }
        store.renew(&kept.lease, &a, draining, later).await.unwrap();
        let over = later + std::time::Duration::from_secs(20);
        assert_eq!(store.expire(over).await.unwrap(), [a]);
        drop(store);
        let store = RedbStore::open(&path, later).unwrap();
        assert!(store.live().read(|all| all.is_empty()));
    }

    #[tokio::test]
    async fn a_beat_that_comes_in_before_the_commit_keeps_the_lease() {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let store = RedbStore::open(&dir.path().join("registry.redb"), start).unwrap();
        let a = "a".parse().unwrap();
        let entry = entry("a", "default/x", &["s"]);
        let lease = store.grant(entry, start).await.unwrap().lease;
        let mut now = start;
        while now < start + std::time::Duration::from_secs(19) {
            now += std::time::Duration::from_secs(1);
            assert!(store.expire(now).await.unwrap().is_empty());
        }
        now += std::time::Duration::from_secs(1);
        let (release, released) = std::sync::mpsc::channel::<()>();
        let wait = move |_: &WriteTransaction| {
            released.recv().map_err(failed)?;
            Ok(())
        };
        let beating = async {
            let serving = beat(pb::Health::Serving);
            store.renew(&lease, &a, serving, now).await.unwrap();
            release.send(()).unwrap();
        };
        let (_, gone, ()) = tokio::join!(
            store.writer.write(wait, |()| ()),
            store.expire(now),
            beating
        );
        assert!(gone.unwrap().is_empty());
        assert!(store.live().read(|all| all.entry(&a).is_some()));
    }

    #[tokio::test]
    async fn what_fails_changes_nothing_and_the_next_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let store = RedbStore::open(&dir.path().join("registry.redb"), start).unwrap();
        let work = |tx: &WriteTransaction| -> Result<(), StoreError> {
            put_row(tx, &LeaseId::from_text("l"), &entry("a", "default/x", &[]))?;
            Err(failed("the disk is full"))
        };
        let outcome = store.writer.write(work, |()| ()).await;
        assert_eq!(outcome, Err(failed("the disk is full")));
        assert!(store.is_failing());
        store
            .grant(entry("b", "default/x", &[]), start)
            .await
            .unwrap();
        assert!(!store.is_failing());
        let tx = store.database.begin_read().unwrap();
        let entries = tx.open_table(ENTRIES).unwrap();
        assert!(entries.get("a").unwrap().is_none());
        assert!(entries.get("b").unwrap().is_some());
    }

    #[tokio::test]
    async fn a_restart_keeps_rules_and_never_gives_a_number_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.redb");
        let stamp = || Stamp {
            by: "spiffe://a/operator/ops".parse().unwrap(),
            at: std::time::SystemTime::UNIX_EPOCH,
        };
        let store = RedbStore::open(&path, Instant::now()).unwrap();
        let put = |name| store.put_rule(rule("default", name), None, stamp());
        let kept = put("kept").await.unwrap().rule;
        let gone = put("gone").await.unwrap().rule;
        store
            .delete_rule(&gone.name, None, &stamp().by)
            .await
            .unwrap();
        drop(store);
        let store = RedbStore::open(&path, Instant::now()).unwrap();
        let rules = store.live().rules();
        assert_eq!(rules.iter().collect::<Vec<_>>(), [&kept]);
        let next = store.put_rule(rule("prod", "next"), None, stamp());
        assert_eq!(next.await.unwrap().rule.revision(), 4);
    }

    #[cfg(unix)]
    #[test]
    fn only_its_owner_reads_the_file_and_one_process_at_a_time() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.redb");
        let _store = RedbStore::open(&path, Instant::now()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = RedbStore::open(&path, Instant::now()).unwrap_err();
        assert!(second.to_string().contains("registry.redb"), "{second}");
    }

    #[test]
    fn another_format_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.redb");
        let store = RedbStore::open(&path, Instant::now()).unwrap();
        let tx = store.database.begin_write().unwrap();
        let newer = 2_u32.to_be_bytes();
        tx.open_table(META)
            .unwrap()
            .insert("format", newer.as_slice())
            .unwrap();
        tx.commit().unwrap();
        drop(store);
        let refused = RedbStore::open(&path, Instant::now()).unwrap_err();
        assert!(refused.to_string().contains("another version"), "{refused}");
    }
}
