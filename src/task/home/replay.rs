//! What a journal holds, sorted to the shards before they start.

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::{InstanceId, TaskId};
use crate::pb;
use crate::task::archive::Archive;
use crate::task::journal::Lsn;

use super::config::Keeping;
use super::kept::RecordError;
use super::machine::{Limits, Tasks};
use super::moving::Stay;

/// Tasks of a home that have not ended. What every task costs is in `LIVE_BYTES`.
const LIVE: usize = 100_000;
/// Memory of a home's tasks that have not ended.
const LIVE_BYTES: usize = 1 << 30;
/// Finished tasks that a home can be asked for: in memory, so that a sidecar that did much stays
/// small beside its agent.
const ENDED: usize = 20_000;
/// Memory of a home's finished tasks.
const ENDED_BYTES: usize = 64 << 20;
/// Memory of finished tasks while the archive takes the others.
const STAY_BYTES: usize = 8 << 20;

/// Collects what a journal holds, before the home starts.
#[derive(Debug)]
pub struct Replay {
    pub(super) shards: Vec<Tasks>,
    keeping: Keeping,
    wrong: Option<RecordError>,
}

impl Replay {
    /// For a home of `instance` on so many threads; at least one.
    pub fn new(instance: &InstanceId, threads: usize) -> Self {
        Self::keeping(instance, threads, Keeping::default())
    }

    /// The same for a home that keeps finished tasks so.
    pub fn keeping(instance: &InstanceId, threads: usize, keeping: Keeping) -> Self {
        let threads = threads.max(1);
        let limits = Limits {
            live: LIVE / threads,
            live_bytes: LIVE_BYTES / threads,
            ended: ENDED / threads,
            ended_bytes: ENDED_BYTES / threads,
            retention: keeping.retention,
        };
        let shard = || Tasks::new(instance.clone(), limits, Instant::now());
        Self {
            shards: (0..threads).map(|_| shard()).collect(),
            keeping,
            wrong: None,
        }
    }

    /// The shards, after the last record.
    pub(super) fn finish(mut self) -> Result<(Vec<Tasks>, Option<Archive>, Stay), RecordError> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        for shard in &mut self.shards {
            shard.stash.over()?;
        }
        let stay = Stay {
            tasks: self.keeping.in_memory / self.shards.len(),
            bytes: STAY_BYTES / self.shards.len(),
        };
        Ok((self.shards, self.keeping.archive, stay))
    }

    /// Takes the next record in: what [`Journal::open`] gives.
    pub fn record(&mut self, lsn: Lsn, record: &pb::journal::Record) {
        let replayed = match record.task_id.parse::<TaskId>() {
            Ok(id) => {
                let shard = shard_of(id.uuid, self.shards.len());
                self.shards[shard].replay(id.uuid, lsn, record)
            }
            Err(_) => Err(RecordError::Name(record.task_id.clone())),
        };
        if let Err(wrong) = replayed {
            self.wrong.get_or_insert(wrong);
        }
    }
}

/// Which of so many shards owns a task. The low bits of a version 7 UUID are random.
pub(super) fn shard_of(task: Uuid, shards: usize) -> usize {
    let (_, low) = task.as_u64_pair();
    usize::try_from(low % shards as u64).expect("less than the number of shards")
}
