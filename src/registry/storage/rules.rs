//! Traffic rules in the embedded store: decided from what is on disk, in the transaction that writes.

use std::sync::Arc;

use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::Store;
use super::StoreError;
use super::embedded::META;
use super::embedded::RedbStore;
use super::embedded::failed;
use crate::domain::SpiffeId;
use crate::pb;
use crate::registry::rules::Placed;
use crate::registry::rules::Refused;
use crate::registry::rules::Rule;
use crate::registry::rules::RuleName;
use crate::registry::rules::Rules;
use crate::registry::rules::Stamp;
use crate::registry::rules::audit;

/// `namespace/name` to the rule, as it is told.
const RULES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rules");
/// Where in [`META`] the number of the last change is: it never goes back, not even when the rule
/// of that number is deleted.
const REVISION: &str = "rules_revision";

/// Makes the table where it is missing.
pub(super) fn prepare(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(RULES)?;
    Ok(())
}

/// All rules that are kept.
pub(super) fn restore(database: &Database) -> Result<Rules, StoreError> {
    let tx = database.begin_read()?;
    read(&tx.open_table(RULES)?, &tx.open_table(META)?)
}

/// Puts one in.
pub(super) async fn put(
    store: &RedbStore,
    rule: Rule,
    expected: Option<u64>,
    stamp: Stamp,
) -> Result<Placed, StoreError> {
    let by = stamp.by.clone();
    let decide = move |tx: &WriteTransaction, rules: &Rules| {
        let (next, placed) = match rules.put(rule, expected, &stamp) {
            Ok(decided) => decided,
            Err(refused) => return Ok(Err(refused)),
        };
        if !placed.is_unchanged() {
            let row = placed.rule.message().encode_to_vec();
            let key = placed.rule.name.to_string();
            tx.open_table(RULES)?.insert(key.as_str(), row.as_slice())?;
        }
        Ok(Ok((next, placed)))
    };
    change(store, decide, move |placed| audit::put(placed, &by)).await
}

/// Takes one out.
pub(super) async fn delete(
    store: &RedbStore,
    name: RuleName,
    expected: Option<u64>,
    by: SpiffeId,
) -> Result<Arc<Rule>, StoreError> {
    let decide = move |tx: &WriteTransaction, rules: &Rules| {
        let (next, deleted) = match rules.delete(&name, expected) {
            Ok(decided) => decided,
            Err(refused) => return Ok(Err(refused)),
        };
        tx.open_table(RULES)?.remove(name.to_string().as_str())?;
        Ok(Ok((next, deleted)))
    };
    change(store, decide, move |deleted| audit::deleted(deleted, &by)).await
}

/// The outer error is the store's and undoes the transaction, the inner one is a refusal and
/// changes nothing.
type Decided<T> = Result<Result<(Rules, T), Refused>, StoreError>;

/// Decides on the rules as they are on disk: changes that share a commit see each other. What was
/// decided is written down where it is done: the caller may have gone.
async fn change<T: Send + 'static>(
    store: &RedbStore,
    decide: impl FnOnce(&WriteTransaction, &Rules) -> Decided<T> + Send + 'static,
    write_down: impl FnOnce(&T) + Send + 'static,
) -> Result<T, StoreError> {
    let live = Arc::clone(store.live());
    let work = move |tx: &WriteTransaction| -> Decided<T> {
        let rules = read(&tx.open_table(RULES)?, &tx.open_table(META)?)?;
        let decided = decide(tx, &rules)?;
        if let Ok((next, _)) = &decided
            && next.revision() != rules.revision()
        {
            let revision = next.revision().to_be_bytes();
            tx.open_table(META)?.insert(REVISION, revision.as_slice())?;
        }
        Ok(decided)
    };
    let then = move |decided: Result<(Rules, T), Refused>| {
        let (rules, answer) = decided?;
        live.set_rules(rules);
        write_down(&answer);
        Ok(answer)
    };
    store.writer.write(work, then).await?
}

fn read(
    rules: &impl ReadableTable<&'static str, &'static [u8]>,
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Rules, StoreError> {
    let mut kept = pb::TrafficRules::default();
    if let Some(revision) = meta.get(REVISION)? {
        let revision = revision.value().try_into();
        let revision =
            revision.map_err(|_| failed("the revision of the traffic rules is damaged"))?;
        kept.revision = u64::from_be_bytes(revision);
    }
    for row in rules.iter()? {
        let (_, row) = row?;
        kept.rules
            .push(pb::TrafficRule::decode(row.value()).map_err(failed)?);
    }
    Ok(Rules::read(kept))
}
