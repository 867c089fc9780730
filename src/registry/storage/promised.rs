//! The agents' promises in the embedded store, checked and written with the entry that makes them.

use prost::Message;
use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::StoreError;
use super::embedded::failed;
use crate::registry::catalog::Entry;
use crate::registry::promises::Broken;
use crate::registry::promises::Promises;

/// `namespace/name` of an agent to its [`Promises`].
const PROMISES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("promises");

/// Makes the table where it is missing.
pub(super) fn prepare(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(PROMISES)?;
    Ok(())
}

/// Writes what an entry's card promises. The inner error changes nothing.
pub(super) fn take(tx: &WriteTransaction, entry: &Entry) -> Result<Result<(), Broken>, StoreError> {
    let agent = entry.agent.to_string();
    let mut table = tx.open_table(PROMISES)?;
    let row = table.get(agent.as_str())?;
    let row = row.map(|row| Promises::decode(row.value()));
    let mut promises = row.transpose().map_err(failed)?.unwrap_or_default();
    match promises.take(&entry.card) {
        Ok(false) => Ok(Ok(())),
        Ok(true) => {
            table.insert(agent.as_str(), promises.encode_to_vec().as_slice())?;
            Ok(Ok(()))
        }
        Err(broken) => Ok(Err(broken)),
    }
}
