//! The identity ledger in the embedded store: join tokens and instances.
//!
//! The records decide (`identity::ledger`); here they are read, asked and written, all in one
//! transaction.

use std::{fmt::Display, time::SystemTime};

use redb::{
    ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};

use super::StoreError;
use super::embedded::RedbStore;
use super::embedded::failed;
use crate::domain::InstanceId;
use crate::identity::Ledger;
use crate::identity::LedgerError;
use crate::identity::Revocation;
use crate::identity::Revocations;
use crate::identity::ledger::INSTANCES_MAX;
use crate::identity::ledger::InstanceEntry;
use crate::identity::ledger::Redeemed;
use crate::identity::ledger::Redemption;
use crate::identity::ledger::TOKENS_MAX;
use crate::identity::ledger::TokenEntry;
use crate::identity::ledger::TokenHash;
use crate::identity::ledger::TokenRecord;

type Tokens = TableDefinition<'static, [u8; 32], &'static [u8]>;
type Instances = TableDefinition<'static, &'static str, &'static [u8]>;

/// Token hash to its record, as JSON.
const TOKENS: Tokens = TableDefinition::new("tokens");
/// Instance id to its record, as JSON.
const INSTANCES: Instances = TableDefinition::new("instances");

type Lists = TableDefinition<'static, &'static str, &'static [u8]>;

/// The list of revocations, as JSON, under [`REVOKED`].
const REVOCATIONS: Lists = TableDefinition::new("revocations");
const REVOKED: &str = "all";

/// Makes the tables where they are missing.
pub(super) fn prepare(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(TOKENS)?;
    tx.open_table(INSTANCES)?;
    let mut lists = tx.open_table(REVOCATIONS)?;
    if lists.get(REVOKED)?.is_none() {
        lists.insert(REVOKED, &*written(&Revocations::none())?)?;
    }
    Ok(())
}

/// The outer error is the store's and undoes the transaction, the inner one is a refusal and
/// changes nothing.
type Decided<T> = Result<Result<T, LedgerError>, StoreError>;

#[tonic::async_trait]
impl Ledger for RedbStore {
    async fn put_token(
        &self,
        hash: TokenHash,
        entry: TokenEntry,
        now: SystemTime,
    ) -> Result<(), LedgerError> {
        self.decide(move |tx| put_token(tx, hash, entry, now)).await
    }

    async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRecord>, LedgerError> {
        // A point read of a small file: no disk is waited for but at the first time.
        let read = || -> Result<_, StoreError> {
            let table = self.database.begin_read()?.open_table(TOKENS)?;
            table.get(hash)?.map(|row| read(row.value())).transpose()
        };
        read().map_err(store)
    }

    async fn redeem(
        &self,
        hash: &TokenHash,
        redemption: Redemption,
    ) -> Result<Redeemed, LedgerError> {
        let hash = *hash;
        self.decide(move |tx| redeem(tx, &hash, redemption)).await
    }

    async fn instance(&self, id: &InstanceId) -> Result<Option<InstanceEntry>, LedgerError> {
        let read = || -> Result<_, StoreError> {
            let table = self.database.begin_read()?.open_table(INSTANCES)?;
            table
                .get(id.as_str())?
                .map(|row| read(row.value()))
                .transpose()
        };
        read().map_err(store)
    }

    async fn advance_generation(
        &self,
        id: &InstanceId,
        from: u64,
        key: [u8; 32],
    ) -> Result<u64, LedgerError> {
        let id = id.clone();
        self.decide(move |tx| advance(tx, &id, from, key)).await
    }

    async fn revoke(
        &self,
        revocation: Revocation,
        now: SystemTime,
    ) -> Result<(Revocations, usize), LedgerError> {
        self.decide(move |tx| revoke(tx, revocation, now)).await
    }

    async fn revocations(&self) -> Result<Revocations, LedgerError> {
        let read = || -> Result<_, StoreError> {
            let table = self.database.begin_read()?.open_table(REVOCATIONS)?;
            let row = table.get(REVOKED)?.map(|row| read(row.value()));
            row.unwrap_or_else(|| Err(StoreError::Failed("no list of revocations".into())))
        };
        read().map_err(store)
    }
}

impl RedbStore {
    async fn decide<T: Send + 'static>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Decided<T> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let decided = self.writer.write(work, |decided| decided).await;
        decided.map_err(store)?
    }
}

fn put_token(
    tx: &WriteTransaction,
    hash: TokenHash,
    entry: TokenEntry,
    now: SystemTime,
) -> Decided<()> {
    let mut tokens = tx.open_table(TOKENS)?;
    let full = |count: u64| usize::try_from(count).is_ok_and(|count| count >= TOKENS_MAX);
    if full(tokens.len()?) {
        tokens.retain(|_, row| {
            read::<TokenRecord>(row).map_or(true, |record| !record.is_over(now))
        })?;
    }
    if full(tokens.len()?) {
        return Ok(Err(LedgerError::Full("join tokens")));
    }
    tokens.insert(hash, &*written(&TokenRecord::new(entry))?)?;
    Ok(Ok(()))
}

fn redeem(tx: &WriteTransaction, hash: &TokenHash, redemption: Redemption) -> Decided<Redeemed> {
    let mut tokens = tx.open_table(TOKENS)?;
    let mut instances = tx.open_table(INSTANCES)?;
    let record = tokens.get(hash)?.map(|row| read(row.value())).transpose()?;
    let Some(mut record): Option<TokenRecord> = record else {
        return Ok(Err(LedgerError::TokenUnknown));
    };
    let id = redemption.instance.clone();
    let known: Option<InstanceEntry> = match &id {
        Some(id) => {
            let row = instances.get(id.as_str())?;
            row.map(|row| read(row.value())).transpose()?
        }
        None => None,
    };
    let full = usize::try_from(instances.len()?).is_ok_and(|count| count >= INSTANCES_MAX);
    if known.is_none() && full {
        return Ok(Err(LedgerError::Full("instances")));
    }
    let (answer, entry) = match record.redeem(redemption, known.as_ref()) {
        Ok(decided) => decided,
        Err(refused) => return Ok(Err(refused)),
    };
    tokens.insert(hash, &*written(&record)?)?;
    if let (Some(id), Some(entry)) = (id, entry) {
        instances.insert(id.as_str(), &*written(&entry)?)?;
    }
    Ok(Ok(answer))
}

fn advance(tx: &WriteTransaction, id: &InstanceId, from: u64, key: [u8; 32]) -> Decided<u64> {
    let mut instances = tx.open_table(INSTANCES)?;
    let known = instances
        .get(id.as_str())?
        .map(|row| read(row.value()))
        .transpose()?;
    let Some(known): Option<InstanceEntry> = known else {
        return Ok(Err(LedgerError::InstanceUnknown));
    };
    let entry = match known.advanced(from, key) {
        Ok(entry) => entry,
        Err(refused) => return Ok(Err(refused)),
    };
    instances.insert(id.as_str(), &*written(&entry)?)?;
    Ok(Ok(entry.generation))
}

fn revoke(
    tx: &WriteTransaction,
    revocation: Revocation,
    now: SystemTime,
) -> Decided<(Revocations, usize)> {
    let mut lists = tx.open_table(REVOCATIONS)?;
    let list = lists.get(REVOKED)?.map(|row| read(row.value()));
    let mut list: Revocations =
        list.unwrap_or_else(|| Err(StoreError::Failed("no list of revocations".into())))?;
    if let Err(refused) = list.add(revocation.clone(), now) {
        return Ok(Err(refused));
    }
    lists.insert(REVOKED, &*written(&list)?)?;
    let mut forgotten = 0;
    // What cannot be read stays, and is told by whoever asks for it.
    tx.open_table(INSTANCES)?.retain(|instance, row| {
        let entry = read::<InstanceEntry>(row);
        let instance = instance.parse().ok();
        let named = entry.is_ok_and(|entry| revocation.names(&entry.id, instance.as_ref()));
        forgotten += usize::from(named);
        !named
    })?;
    tx.open_table(TOKENS)?.retain(|_, row| {
        read::<TokenRecord>(row).map_or(true, |record| !record.is_undone_by(&revocation))
    })?;
    Ok(Ok((list, forgotten)))
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(failed)
}

fn written<T: Serialize>(record: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(failed)
}

fn store(error: impl Display) -> LedgerError {
    LedgerError::Store(error.to_string())
}
