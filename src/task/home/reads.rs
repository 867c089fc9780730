//! What is read from a shard's tasks. Pure; whoever may not see a task hears that there is none.

use std::{cmp::Reverse, ops::Bound, sync::Arc};

use prost::Message;
use uuid::Uuid;

use crate::domain::{Fault, Reason, SpiffeId};
use crate::pb;
use crate::task::journal::blobs::Hash;

use super::dialogue::withheld_from;
use super::kept::Parties;
use super::machine::{Entry, Tasks, not_found};
use super::resting::Folded;
use super::view::{ANSWER_MAX, ListPage, ListQuery, Whole, full as full_view, sees};

/// Most events of a batch.
pub(super) const BATCH: usize = 256;
/// Most bytes of a batch, unless one event is larger.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// Tasks that one look at a list walks over: some milliseconds of the shard's thread.
const SCAN: usize = 10_000;

/// A folded task is read before it can be looked at: microseconds, where another takes a tenth.
const UNFOLDING: usize = 10;

/// Events after a cursor.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) events: Vec<Arc<pb::TaskEvent>>,
}

/// A part of a page, newest first: one shard's, or the archive's.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) tasks: Vec<(Uuid, pb::Task)>,
    /// What is older than this was not looked at.
    pub(super) floor: Option<Uuid>,
    /// Bytes that an answer still has room for.
    room: usize,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            floor: None,
            room: ANSWER_MAX,
        }
    }
}

impl Page {
    /// Takes the next task, if an answer can hold it; whether more may follow.
    pub(super) fn take(&mut self, id: Uuid, task: pb::Task, limit: usize) -> bool {
        let size = task.encoded_len() + 8;
        if size > self.room
            && let Some((last, _)) = self.tasks.last()
        {
            self.floor = Some(*last);
            return false;
        }
        self.room = self.room.saturating_sub(size);
        self.tasks.push((id, task));
        self.tasks.len() < limit
    }
}

/// Chunks of an artifact.
#[derive(Debug)]
pub(super) struct Pieces {
    /// The events that they came in.
    pub(super) chunks: Vec<Arc<pb::TaskEvent>>,
}

/// The task, if it exists for `viewer`.
pub(super) fn entry<'a>(
    tasks: &'a Tasks,
    task: Uuid,
    viewer: &SpiffeId,
) -> Result<&'a Entry, Fault> {
    let found = tasks
        .tasks
        .get(&task)
        .filter(|entry| sees(viewer, &entry.kept.parties));
    found.map(Box::as_ref).ok_or_else(not_found)
}

pub(super) fn get(
    tasks: &Tasks,
    task: Uuid,
    viewer: &SpiffeId,
    full: bool,
) -> Result<Whole, Fault> {
    let entry = entry(tasks, task, viewer)?;
    if !full {
        return Ok(Whole {
            task: entry.basic(),
            ..Whole::default()
        });
    }
    let mut whole = full_view(&entry.kept);
    whole.task = entry.shows(whole.task);
    Ok(whole)
}

/// The part of the task that names a content, as far as it may be shown to `viewer`.
pub(super) fn naming(
    tasks: &Tasks,
    task: Uuid,
    viewer: &SpiffeId,
    hash: Hash,
) -> Result<pb::Part, Fault> {
    let entry = entry(tasks, task, viewer)?;
    let agent = withheld_from(viewer, &entry.kept.task);
    let found = entry.kept.naming(hash, entry.shown(), agent.as_deref());
    found.ok_or_else(no_content)
}

/// Newest first, until the page or [`ANSWER_MAX`] is full, or [`SCAN`] tasks were looked at.
pub(super) fn list(tasks: &Tasks, query: &ListQuery) -> Page {
    let mut page = Page::default();
    let upto = query.before.map_or(Bound::Unbounded, Bound::Excluded);
    let mut unfolded = tasks.tasks.range((Bound::Unbounded, upto)).rev().peekable();
    let mut folded = tasks.resting.iter_before(query.before).rev().peekable();
    let mut looked = 0;
    loop {
        let next = (unfolded.peek().map(|(id, _)| *id)).max(folded.peek().map(|(id, _)| *id));
        let Some(id) = next else { break };
        let task = if let Some((_, entry)) = unfolded.next_if(|(one, _)| *one == id) {
            looked += 1;
            let kept = &entry.kept;
            let wanted = query.wants(&kept.task) && sees(&query.viewer, &kept.parties);
            wanted.then(|| entry.basic())
        } else {
            looked += UNFOLDING;
            let folded = folded.next().map(|(_, folded)| folded);
            // All of it is read for those only that are wanted: of those an answer holds few.
            let is_wanted = |task: &pb::Task| {
                let parties = Parties::of(task);
                query.wants(task) && parties.is_ok_and(|parties| sees(&query.viewer, &parties))
            };
            let folded = folded.filter(|one| one.task().as_ref().is_some_and(is_wanted));
            folded.and_then(Folded::kept).map(|kept| kept.basic())
        };
        if let Some(task) = task
            && !page.take(*id, task, query.limit)
        {
            break;
        }
        if looked >= SCAN {
            page.floor = Some(*id);
            break;
        }
    }
    page
}

pub(super) fn check_cursor(
    tasks: &Tasks,
    task: Uuid,
    viewer: &SpiffeId,
    after_seq: u64,
) -> Result<(), Fault> {
    let kept = &entry(tasks, task, viewer)?.kept;
    fits_cursor(kept.task.last_seq, after_seq)?;
    reaches(kept.first_seq(), after_seq)
}

/// Whether the cursor can be one of this task.
pub(super) fn fits_cursor(last: u64, after_seq: u64) -> Result<(), Fault> {
    if after_seq <= last {
        return Ok(());
    }
    let text = format!("the task's last event is {last}: watch from there");
    let fault = Fault {
        field: Some("after_seq".into()),
        ..Fault::new(Reason::SequenceAhead, text)
    };
    Err(fault.with("last_seq", last.to_string()))
}

/// Whether every event after the cursor is still kept, of which `first` is the oldest.
pub(super) fn reaches(first: u64, after_seq: u64) -> Result<(), Fault> {
    if after_seq + 1 >= first {
        return Ok(());
    }
    let text =
        format!("events before {first} are no longer kept: get the task, then watch from there");
    Err(Fault::new(Reason::SequenceGone, text).with("first_seq", first.to_string()))
}

/// What may be shown after the cursor.
pub(super) fn next(tasks: &Tasks, task: Uuid, after_seq: u64) -> Result<Batch, Fault> {
    let entry = tasks.tasks.get(&task).ok_or_else(not_found)?;
    let first = entry.kept.first_seq();
    reaches(first, after_seq)?;
    let skip = usize::try_from((after_seq + 1).saturating_sub(first)).unwrap_or(usize::MAX);
    let shown = entry.shown();
    let mut bytes = 0;
    let events = entry.kept.events.iter().skip(skip).take(BATCH);
    let events = events.take_while(|event| {
        let fits = bytes == 0 || bytes + event.encoded_len() <= BATCH_BYTES;
        bytes += event.encoded_len();
        fits && event.seq <= shown
    });
    Ok(Batch {
        events: events.cloned().collect(),
    })
}

/// The event of that number, while it is kept.
pub(super) fn event(tasks: &Tasks, task: Uuid, seq: u64) -> Option<Arc<pb::TaskEvent>> {
    let kept = &tasks.tasks.get(&task)?.kept;
    let place = usize::try_from(seq.checked_sub(kept.first_seq())?).ok()?;
    kept.events.get(place).cloned()
}

/// The artifact's chunks from number `from` on, as far as they may be shown; none: it ends there.
pub(super) fn pieces(
    tasks: &Tasks,
    (task, viewer): (Uuid, &SpiffeId),
    artifact: &str,
    from: usize,
) -> Result<Pieces, Fault> {
    let entry = entry(tasks, task, viewer)?;
    let shown = entry.shown();
    let visible = |event: &&Arc<pb::TaskEvent>| event.seq <= shown;
    let found = entry
        .kept
        .artifact(artifact)
        .filter(|kept| kept.chunks.iter().any(|e| visible(&e)));
    let found = found.ok_or_else(no_artifact)?;
    let mut bytes = 0;
    let chunks = found
        .chunks
        .iter()
        .skip(from)
        .take(BATCH)
        .take_while(visible);
    let chunks = chunks.take_while(|event| {
        let fits = bytes < BATCH_BYTES;
        bytes += event.encoded_len();
        fits
    });
    Ok(Pieces {
        chunks: chunks.cloned().collect(),
    })
}

/// The answer where a task has no artifact of this id.
pub(super) fn no_artifact() -> Fault {
    let text = "the task has no such artifact: its ids are in GetTask";
    Fault::new(Reason::ArtifactNotFound, text)
}

/// The answer where a task names no content of this hash, whoever else does.
pub(super) fn no_content() -> Fault {
    let text = "the task has no content of this hash that you may read: what it refers to is in GetTask, FULL view";
    Fault::new(Reason::ArtifactNotFound, text)
}

/// One page of the shards' and the archive's pages; a task that is in two of them is shown as the
/// first has it.
pub(super) fn merge(pages: Vec<Page>, limit: usize) -> ListPage {
    // Where one of them had to stop, older tasks of the others come on a later page.
    let floor = pages.iter().filter_map(|page| page.floor).max();
    let mut all: Vec<_> = pages.into_iter().flat_map(|page| page.tasks).collect();
    all.retain(|(id, _)| floor.is_none_or(|floor| *id >= floor));
    // Version 7 UUIDs sort by age. Stable: of the same task the first stays.
    all.sort_by_key(|(id, _)| Reverse(*id));
    all.dedup_by_key(|(id, _)| *id);
    let found = all.len();
    all.truncate(limit);
    let mut room = ANSWER_MAX;
    let fitting = all.iter().take_while(|(_, task)| {
        let size = task.encoded_len() + 8;
        let fits = room >= size;
        room = room.saturating_sub(size);
        fits
    });
    let fitting = fitting.count().max(1);
    all.truncate(fitting);
    let next = if all.len() < found {
        all.last().map(|(id, _)| *id)
    } else {
        floor
    };
    ListPage {
        tasks: all.into_iter().map(|(_, task)| task).collect(),
        next,
    }
}
