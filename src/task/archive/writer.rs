//! The thread that writes: what waits goes into one durable commit, then the oldest may go.

use std::{sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use redb::Database;
use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use crate::runtime::clock;
use crate::task::journal::blobs::{Blobs, Hash, Holder};

use super::error::ArchiveError;
use super::handle::{ArchiveConfig, ArchiveStats};
use super::row::Row;
use super::slot::{Opener, Slot, caught};
use super::store::{self, Bounds, Held};

/// Writes that may wait: one per shard and some; beyond it nothing is taken, and is offered again.
pub(super) const QUEUE: usize = 64;
/// Writes that one commit takes in: bounds its time and its memory.
const GROUP: usize = 8;
/// Tasks that one commit lets go of.
const RETIRE: usize = 1024;
/// Commits in a row that let go of tasks; other writes get in between.
const RETIRE_TURNS: usize = 8;

/// What is asked of the thread.
pub(super) struct Write {
    /// When, on the clock that ends of tasks are told by.
    pub(super) now: SystemTime,
    /// Encoded on the thread, one by one; `None`: only the oldest may go.
    pub(super) rows: Option<Put>,
}

/// Tasks to take in, and who is told.
pub(super) struct Put {
    pub(super) rows: Box<dyn Iterator<Item = Row> + Send>,
    pub(super) done: Box<dyn FnOnce(Result<(), ArchiveError>) + Send>,
}

/// Who is to know what large contents the tasks name.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) blobs: Option<Blobs>,
    /// It knows of all that were there before.
    told: bool,
}

/// What the thread works with.
pub(super) struct Writer {
    pub(super) opener: Opener,
    pub(super) slot: Arc<Slot>,
    pub(super) config: ArchiveConfig,
    pub(super) stats: Arc<Mutex<ArchiveStats>>,
    /// Who is to know what large contents its tasks name.
    pub(super) names: Arc<Mutex<Names>>,
    pub(super) writes: mpsc::Receiver<Write>,
}

impl Writer {
    /// Body of the thread: opens the file, and writes until nobody can ask any more.
    pub(super) fn run(mut self) {
        let mut file = None;
        if let Err(error) = self.opened(&mut file) {
            self.failed(&error);
        }
        while let Some(first) = self.writes.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(more) = self.writes.try_recv()
            {
                group.push(more);
            }
            self.write(&mut file, group);
        }
    }

    fn write(&self, file: &mut Option<Arc<Database>>, group: Vec<Write>) {
        let now = group.iter().map(|write| write.now).max();
        let (mut rows, mut told) = (Vec::new(), Vec::new());
        for put in group.into_iter().filter_map(|write| write.rows) {
            rows.push(put.rows);
            told.push(put.done);
        }
        let outcome = self.opened(file).and_then(|database| {
            if !rows.is_empty() {
                let mut count = 0;
                let mut named = Vec::new();
                let rows = rows.into_iter().flatten().inspect(|row| {
                    count += 1;
                    let names: Vec<_> = row.named().into_keys().collect();
                    named.extend((!names.is_empty()).then_some((row.task, names)));
                });
                let held = caught(|| store::put(&database, rows))?;
                self.note(held, (count, 0));
                // Before whoever gave them up hears of it, and lets go.
                self.hold(named);
            }
            Ok(database)
        });
        if let Err(error) = &outcome {
            self.give_up(file, error);
        }
        let answer = outcome.as_ref().map(|_| ()).map_err(Clone::clone);
        for done in told {
            done(answer.clone());
        }
        let Ok(database) = outcome else { return };
        if let Err(error) = self.tell(&database) {
            return self.give_up(file, &error);
        }
        if let Err(error) = self.retire(&database, now) {
            self.give_up(file, &error);
        }
    }

    /// After a failed write the file is as it was before, but only a new opening says so.
    fn give_up(&self, file: &mut Option<Arc<Database>>, error: &ArchiveError) {
        *file = None;
        self.failed(error);
    }

    fn retire(&self, database: &Database, now: Option<SystemTime>) -> Result<(), ArchiveError> {
        let oldest = now.and_then(|now| now.checked_sub(self.config.retention));
        let bounds = Bounds {
            tasks: self.config.most_tasks,
            bytes: self.config.most_bytes,
            ended_before: oldest.map_or(0, clock::unix_seconds),
        };
        for _ in 0..RETIRE_TURNS {
            let (held, went) = caught(|| store::retire(database, bounds, RETIRE))?;
            self.note(held, (0, went.len() as u64));
            if let Some(blobs) = &self.names.lock().blobs {
                for task in &went {
                    blobs.let_go(Holder::in_archive(*task));
                }
            }
            if went.len() < RETIRE {
                break;
            }
        }
        Ok(())
    }

    /// Tasks that were taken in name these.
    fn hold(&self, named: Vec<(Uuid, Vec<Hash>)>) {
        if let Some(blobs) = &self.names.lock().blobs {
            for (task, hashes) in named {
                blobs.hold(Holder::in_archive(task), hashes);
            }
        }
    }

    /// Says once what the tasks of earlier lives name: only then may what nobody does go.
    fn tell(&self, database: &Database) -> Result<(), ArchiveError> {
        let mut names = self.names.lock();
        let Names { blobs, told } = &mut *names;
        let Some(blobs) = blobs.as_ref().filter(|_| !*told) else {
            return Ok(());
        };
        caught(|| {
            store::named(database, |task, hash| {
                blobs.hold(Holder::in_archive(task), [hash]);
            })
        })?;
        blobs.settle();
        *told = true;
        Ok(())
    }

    fn opened(&self, file: &mut Option<Arc<Database>>) -> Result<Arc<Database>, ArchiveError> {
        if let Some(open) = file {
            return Ok(Arc::clone(open));
        }
        let began = Instant::now();
        let database = self.slot.open(&self.opener, |database| {
            self.note(store::held(database)?, (0, 0));
            Ok(())
        })?;
        self.stats.lock().last_error = None;
        tracing::debug!(
            took = ?began.elapsed(),
            "the archive of finished tasks is open"
        );
        *file = Some(Arc::clone(&database));
        Ok(database)
    }

    fn note(&self, held: Held, (moved, retired): (u64, u64)) {
        let mut stats = self.stats.lock();
        (stats.tasks, stats.bytes) = (held.tasks, held.bytes);
        stats.moved += moved;
        stats.retired += retired;
    }

    fn failed(&self, error: &ArchiveError) {
        let mut stats = self.stats.lock();
        if stats.last_error.as_ref() != Some(error) {
            tracing::error!(
                file = self.config.file(),
                %error,
                "the archive of finished tasks fails: they stay in memory and in the journal, the oldest are forgotten early"
            );
        }
        stats.last_error = Some(error.clone());
        stats.failures += 1;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // A panic must not leave readers waiting for an opening.
        self.slot.close();
    }
}
