//! The tables, and what is written to them: tasks in, the oldest out. It blocks.
//!
//! Refused is a file of another home or another format.

use std::path::Path;

use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageBackend, Table,
    TableDefinition, WriteTransaction, backends::FileBackend,
};
use uuid::Uuid;

use super::error::{ArchiveError, failed};
use super::row::{Encoded, Row};
use crate::runtime::files::open_private;
use crate::task::journal::blobs::Hash;
use crate::task::key::place_of;

/// Version of the tables; another one is refused by name.
const FORMAT: u64 = 1;
/// Memory of redb's page cache in bytes: reads of finished tasks are rare.
const CACHE: usize = 4 << 20;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// UUID of a task to its value.
pub(super) const TASKS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("tasks");
/// UUID and number to an event, or to the specification.
pub(super) const PIECES: TableDefinition<'_, (u128, u64), &[u8]> = TableDefinition::new("pieces");
/// When a task ended, in seconds since 1970, and which, to its bytes and how many pieces it has.
const ENDED: TableDefinition<'_, (u64, u128), (u64, u64)> = TableDefinition::new("ended");

/// Low half of the UUID of a task with an idempotency key, to the newest such task. A file of an
/// earlier version has no such tasks; one of a later version, read by an earlier one, may keep some
/// that are gone.
pub(super) const KEYS: TableDefinition<'_, u64, u128> = TableDefinition::new("keys");

/// UUID of a task and a large content that it names, to the content's size. A file of an earlier version
/// has no such tasks.
pub(super) const BLOBS: TableDefinition<'_, (u128, &[u8; 32]), u64> = TableDefinition::new("blobs");

const BYTES: &str = "bytes";

/// What the archive holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) tasks: u64,
    /// Of tasks and their pieces, about what they take on disk.
    pub(super) bytes: u64,
}

/// What may stay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) tasks: u64,
    pub(super) bytes: u64,
    /// Ended before this, in seconds since 1970, goes.
    pub(super) ended_before: u64,
}

/// Opens the file for `home`, or makes it.
pub(super) fn open(path: &Path, home: &str) -> Result<Database, ArchiveError> {
    // The log lets go of what is in it: its name must be on disk by then.
    let file = open_private(path).map_err(failed)?;
    open_on(FileBackend::new(file)?, home)
}

/// The same on any backend.
pub(super) fn open_on(backend: impl StorageBackend, home: &str) -> Result<Database, ArchiveError> {
    let database = Database::builder()
        .set_cache_size(CACHE)
        .create_with_backend(backend)?;
    let tx = begin(&database)?;
    {
        let mut meta = tx.open_table(META)?;
        for (key, ours) in [
            ("format", &FORMAT.to_be_bytes()[..]),
            ("home", home.as_bytes()),
        ] {
            let found = meta.get(key)?.map(|value| value.value().to_vec());
            match found {
                None => drop(meta.insert(key, ours)?),
                Some(found) if found == ours => {}
                Some(found) => {
                    let found = String::from_utf8_lossy(&found).into_owned();
                    return Err(failed(format!("its {key} is {found:?}: it is not ours")));
                }
            }
        }
        tx.open_table(TASKS)?;
        tx.open_table(PIECES)?;
        tx.open_table(ENDED)?;
        tx.open_table(KEYS)?;
        tx.open_table(BLOBS)?;
    }
    tx.commit()?;
    Ok(database)
}

/// All large contents that its tasks name.
pub(super) fn named(
    database: &Database,
    mut each: impl FnMut(Uuid, Hash),
) -> Result<(), ArchiveError> {
    let tx = database.begin_read()?;
    for row in tx.open_table(BLOBS)?.iter()? {
        let (key, _) = row?;
        let (task, hash) = key.value();
        each(Uuid::from_u128(task), Hash::from(*hash));
    }
    Ok(())
}

/// What is in it.
pub(super) fn held(database: &Database) -> Result<Held, ArchiveError> {
    let tx = database.begin_read()?;
    Ok(Held {
        tasks: tx.open_table(ENDED)?.len()?,
        bytes: bytes_of(&tx.open_table(META)?)?,
    })
}

/// Takes tasks in, durably, all or none. One that is there already is replaced.
pub(super) fn put(
    database: &Database,
    rows: impl Iterator<Item = Row>,
) -> Result<Held, ArchiveError> {
    let tx = begin(database)?;
    let held = {
        let mut tables = Tables::of(&tx)?;
        for row in rows {
            tables.put(&row.encode())?;
        }
        tables.close()?
    };
    tx.commit()?;
    Ok(held)
}

/// Lets go of what ended first while there is too much or it is too old; at most `most` tasks.
/// Gives what is left and how many went.
pub(super) fn retire(
    database: &Database,
    bounds: Bounds,
    most: usize,
) -> Result<(Held, Vec<Uuid>), ArchiveError> {
    let tx = begin(database)?;
    let mut went = Vec::new();
    let held = {
        let mut tables = Tables::of(&tx)?;
        while went.len() < most
            && let Some(task) = tables.retire_first(bounds)?
        {
            went.push(Uuid::from_u128(task));
        }
        tables.close()?
    };
    if !went.is_empty() {
        tx.commit()?;
    } else {
        tx.abort()?;
    }
    Ok((held, went))
}

/// The tables of one write.
struct Tables<'tx> {
    meta: Table<'tx, &'static str, &'static [u8]>,
    tasks: Table<'tx, u128, &'static [u8]>,
    pieces: Table<'tx, (u128, u64), &'static [u8]>,
    ended: Table<'tx, (u64, u128), (u64, u64)>,
    keys: Table<'tx, u64, u128>,
    blobs: Table<'tx, (u128, &'static [u8; 32]), u64>,
    bytes: u64,
}

impl<'tx> Tables<'tx> {
    fn of(tx: &'tx WriteTransaction) -> Result<Self, ArchiveError> {
        let meta = tx.open_table(META)?;
        let bytes = bytes_of(&meta)?;
        Ok(Self {
            meta,
            tasks: tx.open_table(TASKS)?,
            pieces: tx.open_table(PIECES)?,
            ended: tx.open_table(ENDED)?,
            keys: tx.open_table(KEYS)?,
            blobs: tx.open_table(BLOBS)?,
            bytes,
        })
    }

    fn put(&mut self, row: &Encoded) -> Result<(), ArchiveError> {
        let key = (row.ended, row.task);
        let value = (row.bytes(), row.pieces.len() as u64);
        let before = self.ended.insert(key, value)?.map(|before| before.value());
        if let Some((bytes, pieces)) = before {
            self.bytes = self.bytes.saturating_sub(bytes);
            if pieces > 0 {
                self.drop_pieces(row.task)?;
            }
        }
        self.bytes += value.0;
        self.tasks.insert(row.task, row.value.as_slice())?;
        if row.keyed {
            let place = place_of(Uuid::from_u128(row.task));
            let newest = self.keys.get(place)?.map(|known| known.value());
            self.keys
                .insert(place, newest.unwrap_or_default().max(row.task))?;
        }
        self.drop_names(row.task)?;
        for (hash, size) in &row.named {
            self.blobs.insert((row.task, hash.as_bytes()), size)?;
        }
        for (number, piece) in &row.pieces {
            self.pieces.insert((row.task, *number), piece.as_slice())?;
        }
        Ok(())
    }

    /// The task that ended first, if it went.
    fn retire_first(&mut self, bounds: Bounds) -> Result<Option<u128>, ArchiveError> {
        let full = self.ended.len()? > bounds.tasks || self.bytes > bounds.bytes;
        let Some((key, (bytes, pieces))) = self
            .ended
            .first()?
            .map(|(key, value)| (key.value(), value.value()))
        else {
            return Ok(None);
        };
        let (ended, task) = key;
        if !full && ended >= bounds.ended_before {
            return Ok(None);
        }
        self.ended.remove(key)?;
        self.tasks.remove(task)?;
        let place = place_of(Uuid::from_u128(task));
        let keyed = self.keys.get(place)?.map(|known| known.value());
        if keyed == Some(task) {
            self.keys.remove(place)?;
        }
        if pieces > 0 {
            self.drop_pieces(task)?;
        }
        self.drop_names(task)?;
        self.bytes = self.bytes.saturating_sub(bytes);
        Ok(Some(task))
    }

    fn drop_names(&mut self, task: u128) -> Result<(), ArchiveError> {
        Ok(self
            .blobs
            .retain_in((task, &[0; 32])..=(task, &[0xff; 32]), |_, _| false)?)
    }

    fn drop_pieces(&mut self, task: u128) -> Result<(), ArchiveError> {
        Ok(self
            .pieces
            .retain_in((task, 0)..=(task, u64::MAX), |_, _| false)?)
    }

    /// Writes the sum down.
    fn close(mut self) -> Result<Held, ArchiveError> {
        self.meta
            .insert(BYTES, self.bytes.to_be_bytes().as_slice())?;
        Ok(Held {
            tasks: self.ended.len()?,
            bytes: self.bytes,
        })
    }
}

fn begin(database: &Database) -> Result<WriteTransaction, ArchiveError> {
    let mut tx = database.begin_write()?;
    // A commit costs a little more, and opening a large file after a crash takes no walk over it.
    tx.set_quick_repair(true);
    Ok(tx)
}

fn bytes_of(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<u64, ArchiveError> {
    let bytes = meta.get(BYTES)?.map(|value| value.value().to_vec());
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    Ok(bytes.map_or(0, u64::from_be_bytes))
}
