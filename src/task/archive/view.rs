//! What a reader sees: the archive as of one moment. It blocks; each call reads no more than asked.

use std::ops::Bound;

use prost::Message;
use redb::{Database, ReadOnlyTable, ReadableDatabase};
use uuid::Uuid;

use crate::pb;
use crate::pb::journal::{Archived, ArchivedSummary, Snapshot};
use crate::task::journal::blobs::Hash;

use super::error::{ArchiveError, failed};
use super::row::SPEC;
use super::store::{BLOBS, KEYS, PIECES, TASKS};

/// The archive as of one moment.
#[derive(Debug)]
pub struct View {
    tasks: ReadOnlyTable<u128, &'static [u8]>,
    pieces: ReadOnlyTable<(u128, u64), &'static [u8]>,
    keys: ReadOnlyTable<u64, u128>,
    blobs: ReadOnlyTable<(u128, &'static [u8; 32]), u64>,
}

/// An archived task.
#[derive(Clone, Debug)]
pub struct Filed {
    /// Which.
    pub task: Uuid,
    /// All of it but its events; without the specification where that is large.
    pub snapshot: Snapshot,
    /// Its events, where they are small together.
    inline: Vec<pb::TaskEvent>,
}

impl View {
    pub(super) fn of(database: &Database) -> Result<Self, ArchiveError> {
        let tx = database.begin_read()?;
        Ok(Self {
            tasks: tx.open_table(TASKS)?,
            pieces: tx.open_table(PIECES)?,
            keys: tx.open_table(KEYS)?,
            blobs: tx.open_table(BLOBS)?,
        })
    }

    /// A task, if it is here.
    ///
    /// # Errors
    /// `Failed`.
    pub fn task(&self, task: Uuid) -> Result<Option<Filed>, ArchiveError> {
        let Some(value) = self.tasks.get(task.as_u128())? else {
            return Ok(None);
        };
        let Archived { snapshot, events } = Archived::decode(value.value()).map_err(failed)?;
        Ok(Some(Filed {
            task,
            snapshot: snapshot.unwrap_or_default(),
            inline: events,
        }))
    }

    /// The newest task with an idempotency key at this place (the low half of its id), if it is here.
    ///
    /// # Errors
    /// `Failed`.
    pub fn keyed(&self, place: u64) -> Result<Option<Filed>, ArchiveError> {
        match self.keys.get(place)? {
            Some(task) => self.task(Uuid::from_u128(task.value())),
            None => Ok(None),
        }
    }

    /// Whether a task names a large content.
    ///
    /// # Errors
    /// `Failed`.
    pub fn names(&self, task: Uuid, hash: Hash) -> Result<bool, ArchiveError> {
        let found = self.blobs.get((task.as_u128(), hash.as_bytes()))?;
        Ok(found.is_some())
    }

    /// What was asked for, whole.
    ///
    /// # Errors
    /// `Failed`.
    pub fn spec(&self, filed: &Filed) -> Result<pb::TaskSpec, ArchiveError> {
        let submitted = filed.snapshot.submitted.as_ref();
        if let Some(spec) = submitted.and_then(|submitted| submitted.spec.clone()) {
            return Ok(spec);
        }
        match self.pieces.get((filed.task.as_u128(), SPEC))? {
            Some(piece) => pb::TaskSpec::decode(piece.value()).map_err(failed),
            None => Err(incomplete(filed, SPEC)),
        }
    }

    /// One event.
    ///
    /// # Errors
    /// `Failed`, also when it is not there.
    pub fn event(&self, filed: &Filed, seq: u64) -> Result<pb::TaskEvent, ArchiveError> {
        if let Some(event) = filed.inline.iter().find(|event| event.seq == seq) {
            return Ok(event.clone());
        }
        match self.pieces.get((filed.task.as_u128(), seq))? {
            Some(piece) => pb::TaskEvent::decode(piece.value()).map_err(failed),
            None => Err(incomplete(filed, seq)),
        }
    }

    /// The tasks that are older than `before`, the newest first.
    ///
    /// # Errors
    /// `Failed`, here and with each task.
    pub fn older(
        &self,
        before: Option<Uuid>,
    ) -> Result<impl Iterator<Item = Result<(Uuid, Snapshot), ArchiveError>>, ArchiveError> {
        let upto = before.map_or(Bound::Unbounded, |before| Bound::Excluded(before.as_u128()));
        let rows = self.tasks.range::<u128>((Bound::Unbounded, upto))?.rev();
        Ok(rows.map(|row| {
            let (task, value) = row?;
            let summary = ArchivedSummary::decode(value.value()).map_err(failed)?;
            let task = Uuid::from_u128(task.value());
            Ok((task, summary.snapshot.unwrap_or_default()))
        }))
    }
}

fn incomplete(filed: &Filed, piece: u64) -> ArchiveError {
    failed(format!("task {}: piece {piece} is not there", filed.task))
}

#[cfg(test)]
impl Filed {
    pub(super) fn bare(task: Uuid) -> Self {
        Self {
            task,
            snapshot: Snapshot::default(),
            inline: Vec::new(),
        }
    }
}
