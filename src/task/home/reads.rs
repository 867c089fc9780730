//! What is read from a shard's tasks. Pure; whoever may not see a task hears that there is none.

use std::sync::Arc;

use prost::Message;
use uuid::Uuid;

use crate::domain::{Fault, Reason, SpiffeId};
use crate::pb;

use super::machine::{Entry, Tasks, not_found};
use super::view::{ANSWER_MAX, ListQuery, full as full_view, sees};

/// Most events of a batch.
const BATCH: usize = 256;
/// Most bytes of a batch, unless one event is larger.
const BATCH_BYTES: usize = 1 << 20;

/// Events after a cursor.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) events: Vec<Arc<pb::TaskEvent>>,
}

/// One shard's part of a page, newest first.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) tasks: Vec<pb::Task>,
    /// More would follow than an answer holds.
    pub(super) cut: bool,
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
) -> Result<(pb::Task, bool), Fault> {
    let kept = &entry(tasks, task, viewer)?.kept;
    Ok(if full {
        full_view(kept)
    } else {
        (kept.basic(), false)
    })
}

/// Newest first, until the page or [`ANSWER_MAX`] is full.
pub(super) fn list(tasks: &Tasks, query: &ListQuery) -> Page {
    let mut page = Page::default();
    let mut room = ANSWER_MAX;
    let newest = query.before.map_or(Uuid::max(), |before| before);
    for (id, entry) in tasks.tasks.range(..=newest).rev() {
        if Some(*id) == query.before || !query.fits(&entry.kept) {
            continue;
        }
        let task = entry.kept.basic();
        let size = task.encoded_len() + 8;
        if size > room && !page.tasks.is_empty() {
            page.cut = true;
            break;
        }
        room = room.saturating_sub(size);
        page.tasks.push(task);
        if page.tasks.len() >= query.limit {
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
    let entry = entry(tasks, task, viewer)?;
    let last = entry.kept.task.last_seq;
    if after_seq > last {
        let text = format!("the task's last event is {last}: watch from there");
        let fault = Fault {
            field: Some("after_seq".into()),
            ..Fault::new(Reason::SequenceAhead, text)
        };
        return Err(fault.with("last_seq", last.to_string()));
    }
    reaches(entry, after_seq)
}

/// Whether every event after the cursor is still kept.
fn reaches(entry: &Entry, after_seq: u64) -> Result<(), Fault> {
    let first = entry.kept.first_seq();
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
    reaches(entry, after_seq)?;
    let first = entry.kept.first_seq();
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
    let Some(found) = found else {
        let text = "the task has no such artifact: its ids are in GetTask";
        return Err(Fault::new(Reason::ArtifactNotFound, text));
    };
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

/// One page of the shards' pages, and whether more follow.
pub(super) fn merge(pages: Vec<Page>, limit: usize) -> (Vec<pb::Task>, bool) {
    let (mut all, mut floor) = (Vec::new(), String::new());
    for mut page in pages {
        // Where one shard had to stop, older tasks of the others come on a later page.
        if let Some(last) = page.tasks.last().filter(|_| page.cut) {
            floor = floor.max(last.id.clone());
        }
        all.append(&mut page.tasks);
    }
    let found = all.len();
    all.retain(|task| task.id >= floor);
    // Ids of one home sort by age.
    all.sort_by(|one, other| other.id.cmp(&one.id));
    all.truncate(limit);
    let mut room = ANSWER_MAX;
    let fitting = all.iter().take_while(|task| {
        let size = task.encoded_len() + 8;
        let fits = room >= size;
        room = room.saturating_sub(size);
        fits
    });
    let fitting = fitting.count().max(1);
    all.truncate(fitting);
    let more = !floor.is_empty() || all.len() < found;
    (all, more)
}
