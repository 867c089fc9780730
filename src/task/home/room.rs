//! How much of a shard's memory which tasks may take. Pure.
//!
//! Those that somebody is to be told of stay until that is done: they take a part of the room and no
//! more, and no receiver takes more than a part of that. Those that tell agents have room of their own:
//! what fills the rest may be waiting for them.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::{Fault, Reason};
use crate::task::callback::Target;
use crate::task::spec::{Moment, NewTask};

use super::entry::Entry;
use super::machine::{Limits, Tasks};
use super::telling::GivenUp;

/// Of the room for tasks, in number and bytes, what those may have that somebody is to be told of:
/// while they run, and until that is done.
const CALLS_SHARE: usize = 4;
/// Of that, in number, what those may have that are told of in one place.
const PLACE_SHARE: usize = 2;
/// Of the bytes for tasks, what those may have that have ended and could not be told of. Beyond it
/// the oldest are given up.
const UNTOLD_SHARE: usize = 8;
/// For so long what has ended is not given up for its size: its receiver may be there.
const UNTOLD_LEAST: Duration = Duration::from_secs(300);
/// What tasks that tell agents may have, in number and bytes, on top of all others.
const TELLS_SHARE: usize = 8;
/// What a submitter is told to wait when there is no room.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// What a submitter is told to wait while too much is untold.
const UNTOLD_RETRY: Duration = Duration::from_secs(30);
/// How many times the memory of finished tasks may be taken while an archive is about to take them:
/// one task alone may be larger than a shard's share.
const UNMOVED: usize = 4;
/// Why what takes too much memory was given up.
const TOO_LARGE: &str = "tasks that have ended and could not be told of take too much memory";

/// What is taken.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    /// By tasks that somebody is to be told of.
    calls: Room,
    /// By those that tell an agent.
    tells: Room,
    /// Of `calls`, by those that have ended.
    untold: Room,
    /// Those, by when their telling began.
    oldest: BTreeSet<(Instant, Uuid)>,
}

#[derive(Debug, Default)]
struct Room {
    tasks: usize,
    bytes: usize,
}

/// What of it is taken by one task.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Bytes; `None`: it is not counted.
    all: Option<usize>,
    untold: Option<(usize, Instant)>,
}

impl Room {
    fn change(&mut self, was: Option<usize>, is: Option<usize>) {
        self.tasks = self.tasks + usize::from(is.is_some()) - usize::from(was.is_some());
        self.bytes = self.bytes + is.unwrap_or_default() - was.unwrap_or_default();
    }

    fn takes(&self, limits: &Limits, share: usize) -> bool {
        self.tasks >= (limits.live / share).max(1) || self.bytes >= limits.live_bytes / share
    }
}

impl Rooms {
    /// Counts what a task takes now.
    fn count(&mut self, task: Uuid, entry: &mut Entry, over: bool) {
        let kept = &entry.kept;
        let bytes = (!over).then_some(kept.bytes);
        let was = std::mem::replace(&mut entry.taken.all, bytes);
        if kept.tells.is_some() {
            return self.tells.change(was, bytes);
        }
        self.calls.change(was, bytes);
        let since = entry.telling.as_ref().map(|telling| telling.since);
        let was = entry.taken.untold.take();
        if let Some((_, since)) = was {
            self.oldest.remove(&(since, task));
        }
        // As long as it was before: the next change is no reason to stay longer.
        let since = was.map(|(_, since)| since).or(since);
        let untold = bytes.filter(|_| kept.ended()).zip(since);
        if let Some((_, since)) = untold {
            self.oldest.insert((since, task));
        }
        let size = |untold: Option<(usize, Instant)>| untold.map(|(bytes, _)| bytes);
        self.untold.change(size(was), size(untold));
        entry.taken.untold = untold;
    }

    /// Tasks that have ended and wait to be told of.
    pub(super) fn untold(&self) -> usize {
        self.untold.tasks
    }
}

impl Tasks {
    /// Whether there is room for a new task.
    pub(super) fn room_for(&self, new: &NewTask) -> Result<(), Fault> {
        let tells = &self.rooms.tells;
        if new.tells.is_some() {
            if tells.takes(&self.limits, TELLS_SHARE) {
                let text = format!("{} tasks that tell agents are under way", tells.tasks);
                return Err(Fault::new(Reason::QueueFull, text).retry_after(UNTOLD_RETRY));
            }
        } else {
            let live = self.here() - self.ended.len() - tells.tasks;
            let bytes = self.live_bytes.saturating_sub(tells.bytes);
            if live >= self.limits.live || bytes >= self.limits.live_bytes {
                let text = format!("{live} tasks are under way on this thread: try again later");
                return Err(Fault::new(Reason::QueueFull, text).retry_after(FULL_RETRY));
            }
        }
        if self.ended_bytes > self.limits.ended_bytes.saturating_mul(UNMOVED) {
            let text = "more tasks have ended than can be kept yet: try again later";
            return Err(Fault::new(Reason::QueueFull, text).retry_after(FULL_RETRY));
        }
        self.callback_room(new)
    }

    /// Whether there is room for one more task that somebody is to be told of.
    fn callback_room(&self, new: &NewTask) -> Result<(), Fault> {
        let callback = new.task.options.as_ref().and_then(|o| o.callback.as_ref());
        let Some(callback) = callback else {
            return Ok(());
        };
        let refuse = |text: String| {
            let text = format!("{text}: submit without a callback, or try again later");
            Err(Fault::new(Reason::QueueFull, text).retry_after(UNTOLD_RETRY))
        };
        let (calls, untold) = (&self.rooms.calls, self.rooms.untold.tasks);
        if calls.takes(&self.limits, CALLS_SHARE) {
            return refuse(format!(
                "{} tasks with callbacks are under way on this thread, of which {untold} have ended and could not be told of yet",
                calls.tasks
            ));
        }
        let place = Target::of(callback, &new.callback_url).map(|target| target.place());
        let there = place.as_ref().map_or(0, |place| self.places.tasks(place));
        if there >= (self.limits.live / CALLS_SHARE / PLACE_SHARE).max(1) {
            return refuse(format!(
                "{there} tasks on this thread are to be told of at {}",
                place.unwrap_or_default()
            ));
        }
        Ok(())
    }

    /// Counts what a task takes of the room that not all have.
    pub(super) fn count_room(&mut self, task: Uuid) {
        let Some(entry) = self.tasks.get_mut(&task) else {
            return;
        };
        let Some(place) = entry.place.clone() else {
            return;
        };
        let over = entry.kept.over();
        match (entry.taken.all.is_some(), over) {
            (false, false) => self.places.enter(&place),
            (true, true) => self.places.leave(&place),
            (false, true) | (true, false) => {}
        }
        self.rooms.count(task, entry, over);
    }

    /// Gives up the oldest of what has ended and could not be told of while it takes too much memory.
    pub(super) fn shed(&mut self, at: Moment) {
        let most = self.limits.live_bytes / UNTOLD_SHARE;
        while self.rooms.untold.bytes > most
            && let Some((since, task)) = self.rooms.oldest.first().copied()
            && since + UNTOLD_LEAST <= at.now
        {
            let entry = self.tasks.get(&task);
            let last = entry.and_then(|entry| Some(entry.kept.owed.back()?.owed.seq));
            let Some(last) = last else { return };
            self.give_up(task, last, (GivenUp::TooLarge, TOO_LARGE), at);
            self.settle(task);
        }
    }
}
