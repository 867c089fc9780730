//! Carries finished tasks to the archive, a batch of a shard at a time, and hears how it went.
//!
//! The archive has them durably before memory and log let go: right after a crash in between a task
//! is in both, and is moved again. While the archive fails they stay, up to the bounds of memory.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use crate::runtime::clock;
use crate::task::archive::{Archive, ArchiveError, Row};

use super::kept::Kept;
use super::moving::Stay;
use super::request::Request;
use super::shard::{Running, moment};

/// Pause before an archive that failed gets tasks again.
const AGAIN: Duration = Duration::from_secs(30);

/// A shard's way to the archive.
#[derive(Debug)]
pub(super) struct Archiving {
    pub(super) archive: Option<Archive>,
    pub(super) stay: Stay,
    /// Tasks are on their way.
    under_way: bool,
    /// It failed: not before this.
    not_before: Option<Instant>,
}

impl Archiving {
    pub(super) fn new(archive: Option<Archive>, stay: Stay) -> Self {
        Self {
            archive,
            stay,
            under_way: false,
            not_before: None,
        }
    }

    /// Whether what has ended leaves memory by the archive.
    fn takes(&self) -> bool {
        self.archive.is_some() && self.not_before.is_none_or(|until| Instant::now() >= until)
    }

    /// The archive, if it can take tasks now.
    fn ready(&self) -> Option<&Archive> {
        let takes = self.takes() && !self.under_way;
        self.archive.as_ref().filter(|_| takes)
    }
}

impl Running {
    /// Moves finished tasks if it is worth it, or if `all` that is due should go.
    pub(super) fn archive(&mut self, all: bool) {
        self.shard.tasks.archived = self.shard.archiving.takes();
        let archiving = &self.shard.archiving;
        let tasks = &self.shard.tasks;
        if !(all || tasks.worth_moving(archiving.stay)) {
            return;
        }
        let Some(archive) = archiving.ready() else {
            return;
        };
        let at = moment();
        let chosen = tasks.to_move(archiving.stay, at);
        if chosen.is_empty() {
            return;
        }
        let ids: Vec<Uuid> = chosen.iter().map(|(task, _)| *task).collect();
        let rows = chosen.into_iter().map(|(task, kept)| row(task, &kept));
        let shard = self.shard.sender.clone();
        let told = move |outcome| {
            let moved = Request::Moved {
                tasks: ids,
                outcome,
            };
            // On the archive's thread; a shard that has ended hears nothing more.
            drop(shard.blocking_send(moved));
        };
        // Busy: the next sweep offers them again.
        self.shard.archiving.under_way = archive.put(rows, at.wall, told).is_ok();
    }

    pub(super) fn archived(&mut self, tasks: &[Uuid], outcome: Result<(), ArchiveError>) {
        let archiving = &mut self.shard.archiving;
        archiving.under_way = false;
        match outcome {
            Ok(()) => self.world(|all, world| all.moved(tasks, Some(world.at.now))),
            Err(_) => archiving.not_before = Some(Instant::now() + AGAIN),
        }
    }

    /// Lets the archive look for what is too old.
    pub(super) fn retire(&self) {
        if let Some(archive) = &self.shard.archiving.archive {
            // Busy: the next sweep asks again.
            drop(archive.retire(clock::wall()));
        }
    }
}

fn row(task: Uuid, kept: &Arc<Kept>) -> Row {
    Row {
        task,
        ended: kept.ended_at().unwrap_or(std::time::UNIX_EPOCH),
        snapshot: kept.snapshot(),
        events: kept.all_events().cloned().collect(),
    }
}
