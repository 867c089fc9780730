//! One task in memory: what is on disk of it, and what is not.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::domain::InstanceId;
use crate::pb::journal::Record;
use crate::resilience::Settings;
use crate::task::spec::Moment;

use super::kept::{Kept, RecordError};
use super::lanes::Lane;
use super::request::Maker;
use super::room::Taken;
use super::supply::Supply;
use super::telling::Telling;
use super::turns::Turn;

/// A task with what is not on disk.
#[derive(Debug)]
pub(super) struct Entry {
    /// Shared with the archive while it is moved; nothing changes it then.
    pub(super) kept: Arc<Kept>,
    pub(super) deadline: Instant,
    /// Where it waits, while it does.
    pub(super) lane: Option<Lane>,
    /// Its turn there, also after it has gone: should it come back.
    pub(super) turn: Option<Turn>,
    /// When the executor is lost, unless it is heard before.
    pub(super) lost_at: Option<Instant>,
    pub(super) cancel_by: Option<Instant>,
    /// The one entry of this task in `wakes`.
    pub(super) wake: Option<Instant>,
    /// First record of it that is needed; 0: not known yet.
    pub(super) first_lsn: u64,
    /// First of the copies that its next snapshot names.
    pub(super) copied_lsn: Option<u64>,
    /// Events up to this one are on disk.
    pub(super) shown: u64,
    /// What of `kept.bytes` is in the shard's sums.
    pub(super) counted: usize,
    /// It ended, and is counted so.
    pub(super) filed: bool,
    /// When it ended; `None`: not yet, or in an earlier life.
    pub(super) ended_at: Option<Instant>,
    /// What is being told of it.
    pub(super) telling: Option<Telling>,
    /// Where it is told; `None`: nobody is told of it.
    pub(super) place: Option<Arc<str>>,
    /// What it takes of the room that not all tasks have.
    pub(super) taken: Taken,
    /// It is among those that an agent works on.
    pub(super) working: bool,
    /// It is among those whose agent waits for an answer.
    pub(super) asking: bool,
    /// That an agent took it was counted.
    pub(super) start_counted: bool,
    /// Its last try failed, and it has not been taken since.
    pub(super) again: Option<Again>,
    /// It waits until then on its own account, in no lane.
    pub(super) rests_until: Option<Instant>,
    /// How traffic to where it was last sent is treated.
    pub(super) settings: Option<Arc<Settings>>,
    /// The running attempt has said something.
    pub(super) heard: bool,
    /// Of the tasks that the attempt which ended it might have had made below it, so many were not.
    pub(super) unused: u32,
    /// What the running attempt was given for those.
    pub(super) supply: Supply,
    /// Who made it; `None`: nobody, or an attempt of an earlier life.
    pub(super) maker: Option<Maker>,
    /// It has given back to whoever made it what it did not need.
    pub(super) left_maker: bool,
    /// How long the executor that it was last sent to may say nothing at all before it is lost.
    pub(super) lost_after: Duration,
}

/// A try that failed: the next one is made elsewhere, or here after a while.
#[derive(Clone, Debug)]
pub(super) struct Again {
    /// Where it was made.
    pub(super) instance: InstanceId,
    /// Tries that failed since an agent last took the task.
    pub(super) failed: u32,
    /// Not there again before this.
    pub(super) not_before: Instant,
    /// The next try is taken out of the budget: where the last one was made, somebody is there.
    pub(super) charged: bool,
    /// Nor anywhere else: it was tried as often as it may be without a pause.
    pub(super) anywhere: bool,
}

impl Entry {
    pub(super) fn new(kept: Kept, first_lsn: u64, deadline: Instant) -> Self {
        let place = kept.told_to().map(|target| target.place().into());
        Self {
            kept: Arc::new(kept),
            deadline,
            lane: None,
            turn: None,
            lost_at: None,
            cancel_by: None,
            wake: None,
            first_lsn,
            copied_lsn: None,
            shown: 0,
            counted: 0,
            filed: false,
            ended_at: None,
            telling: None,
            place,
            taken: Taken::default(),
            working: false,
            asking: false,
            start_counted: false,
            again: None,
            rests_until: None,
            settings: None,
            heard: false,
            unused: 0,
            supply: Supply::default(),
            maker: None,
            left_maker: false,
            lost_after: Duration::ZERO,
        }
    }

    /// Number of the last event that may be seen.
    pub(super) fn shown(&self) -> u64 {
        self.shown
    }

    /// Takes one more of its records in.
    pub(super) fn apply(&mut self, record: &Record) -> Result<(), RecordError> {
        // Nobody else has a task that goes on, so nothing is copied.
        Arc::make_mut(&mut self.kept).apply(record)
    }

    /// The same of a record that nobody else needs.
    pub(super) fn take(&mut self, record: Record) -> Result<(), RecordError> {
        Arc::make_mut(&mut self.kept).take(record)
    }

    /// Whether it ended longer ago than `retention`: by the steady clock, as the other one may be set.
    /// What ended in an earlier life has only the other one.
    pub(super) fn outlived(&self, retention: Duration, at: Moment) -> bool {
        match self.ended_at {
            Some(ended) => at.now.saturating_duration_since(ended) > retention,
            None => self.kept.ended_before(at.wall.checked_sub(retention)),
        }
    }

    /// When something is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let telling = self.telling.as_ref().map(|telling| telling.next);
        if self.kept.ended() {
            return telling;
        }
        let others = self.lost_at.into_iter().chain(self.cancel_by);
        let others = others.chain(self.rests_until).chain(telling);
        Some(others.fold(self.deadline, Instant::min))
    }
}
