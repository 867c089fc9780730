//! What is read of finished tasks in the archive: the same answers as from memory, in pieces that
//! are bounded alike. Whoever may not see a task hears that there is none.

use std::sync::Arc;

use prost::Message;
use uuid::Uuid;

use crate::domain::{Fault, SpiffeId};
use crate::pb;
use crate::pb::journal::Snapshot;
use crate::task::archive::{Filed, View};
use crate::task::journal::blobs::Hash;
use crate::task::key::IdempotencyKey;

use super::dialogue::{Response, find, may_answer, not_for_agents, takes, withheld_from};
use super::kept::Parties;
use super::large;
use super::machine::{cancel_ended, not_found};
use super::reads::{self, BATCH, BATCH_BYTES, Batch, Page, Pieces};
use super::view::{FullView, ListQuery, Whole, framed, input, sees};

/// Archived tasks that one look at a list walks over: some milliseconds.
const SCAN: usize = 2000;

/// The task, if it exists for `viewer`.
fn seen(view: &View, task: Uuid, viewer: &SpiffeId) -> Result<Filed, Fault> {
    let filed = view.task(task)?.ok_or_else(not_found)?;
    if !parties(task_of(&filed.snapshot)).is_some_and(|parties| sees(viewer, &parties)) {
        return Err(not_found());
    }
    Ok(filed)
}

/// The task that was submitted with this key.
pub(super) fn of_key(view: &View, key: &IdempotencyKey) -> Result<Option<pb::Task>, Fault> {
    let Some(filed) = view.keyed(key.place())? else {
        return Ok(None);
    };
    let submitted = filed.snapshot.submitted.as_ref();
    let known = submitted.and_then(IdempotencyKey::written);
    let same = known.map(|known| key.same(&known)).transpose()?;
    Ok(same.unwrap_or_default().then(|| basic(&filed.snapshot)))
}

pub(super) fn get(view: &View, task: Uuid, viewer: &SpiffeId, full: bool) -> Result<Whole, Fault> {
    let filed = seen(view, task, viewer)?;
    let snapshot = &filed.snapshot;
    if !full {
        return Ok(Whole {
            task: basic(snapshot),
            ..Whole::default()
        });
    }
    let spec = view.spec(&filed)?;
    let mut whole = FullView::of(basic(snapshot), &task_of(snapshot).chain, &spec);
    if snapshot.result > 0 {
        whole.result(&view.event(&filed, snapshot.result)?);
    }
    whole.message(&input(task_of(snapshot), &spec));
    for seq in &snapshot.messages {
        whole.message_of(&view.event(&filed, *seq)?);
    }
    for (place, artifact) in snapshot.artifacts.iter().enumerate() {
        let summary = artifact.summary.as_ref();
        if summary.is_some_and(|summary| summary.superseded) {
            continue;
        }
        // No more of it is read than an answer could hold.
        let (mut chunks, mut size) = (Vec::new(), 0);
        for seq in &artifact.chunks {
            let event = Arc::new(view.event(&filed, *seq)?);
            size += framed(&event);
            chunks.push(event);
            if !whole.has_room(size) {
                break;
            }
        }
        whole.artifact(place, &chunks);
    }
    Ok(whole.done())
}

/// The answer to a cancellation that comes after the end.
pub(super) fn cancel(view: &View, task: Uuid, viewer: &SpiffeId) -> Result<pb::Task, Fault> {
    let filed = seen(view, task, viewer)?;
    let task = basic(&filed.snapshot);
    cancel_ended(task.state())?;
    Ok(task)
}

/// The answer to an answer that comes after the end.
pub(super) fn respond(
    view: &View,
    task: Uuid,
    viewer: &SpiffeId,
    response: &Response,
) -> Result<(pb::Task, bool), Fault> {
    let filed = seen(view, task, viewer)?;
    let task = basic(&filed.snapshot);
    if !parties(&task).is_some_and(|parties| may_answer(viewer, &parties)) {
        return Err(not_for_agents());
    }
    let events = filed.snapshot.dialogue.iter();
    let events: Vec<_> = events
        .map(|seq| view.event(&filed, *seq))
        .collect::<Result<_, _>>()?;
    let found = find(events.iter(), &response.question_id);
    takes(&found, response, (task.state(), None))?;
    Ok((task, true))
}

/// The task for a watcher that has seen the events up to `after_seq`.
pub(super) fn watch(
    view: &View,
    task: Uuid,
    viewer: &SpiffeId,
    after_seq: u64,
) -> Result<pb::Task, Fault> {
    let filed = seen(view, task, viewer)?;
    let task = basic(&filed.snapshot);
    reads::fits_cursor(task.last_seq, after_seq)?;
    reads::reaches(filed.snapshot.first_seq, after_seq)?;
    Ok(task)
}

/// The events after the cursor of a watcher that was let in before.
pub(super) fn next(view: &View, task: Uuid, after_seq: u64) -> Result<Batch, Fault> {
    let filed = view.task(task)?.ok_or_else(not_found)?;
    reads::reaches(filed.snapshot.first_seq, after_seq)?;
    let (mut events, mut bytes) = (Vec::new(), 0);
    for seq in (after_seq + 1..=task_of(&filed.snapshot).last_seq).take(BATCH) {
        let event = view.event(&filed, seq)?;
        bytes += event.encoded_len();
        if bytes > BATCH_BYTES && !events.is_empty() {
            break;
        }
        events.push(Arc::new(event));
    }
    Ok(Batch { events })
}

/// The artifact's chunks from number `from` on; none: it ends there.
pub(super) fn pieces(
    view: &View,
    (task, viewer): (Uuid, &SpiffeId),
    artifact: &str,
    from: usize,
) -> Result<Pieces, Fault> {
    let filed = seen(view, task, viewer)?;
    let found = filed.snapshot.artifacts.iter().rev().find(|kept| {
        let summary = kept.summary.as_ref();
        summary.is_some_and(|summary| summary.artifact_id == artifact)
    });
    let found = found.ok_or_else(reads::no_artifact)?;
    let (mut chunks, mut bytes) = (Vec::new(), 0);
    for seq in found.chunks.iter().skip(from).take(BATCH) {
        let event = view.event(&filed, *seq)?;
        bytes += event.encoded_len();
        chunks.push(Arc::new(event));
        if bytes >= BATCH_BYTES {
            break;
        }
    }
    Ok(Pieces { chunks })
}

/// The part of the task that names a content, as far as it may be shown to `viewer`.
pub(super) fn naming(
    view: &View,
    (task, viewer): (Uuid, &SpiffeId),
    hash: Hash,
) -> Result<pb::Part, Fault> {
    let filed = seen(view, task, viewer)?;
    if !view.names(task, hash)? {
        return Err(reads::no_content());
    }
    let agent = withheld_from(viewer, task_of(&filed.snapshot));
    let spec = view.spec(&filed)?;
    let snapshot = &filed.snapshot;
    let chunks = snapshot.artifacts.iter().flat_map(|kept| &kept.chunks);
    let last = [snapshot.result].into_iter().filter(|seq| *seq > 0);
    let handover = snapshot.handover.iter().map(|handover| handover.seq);
    let held = snapshot.messages.iter().chain(chunks).copied();
    // One by one: none of them is large itself.
    for seq in held.chain(last).chain(handover) {
        let event = view.event(&filed, seq)?;
        let found = large::naming(&[], [&event].into_iter(), hash, agent.as_deref());
        if let Some(part) = found {
            return Ok(part);
        }
    }
    large::naming(&spec.input, [].into_iter(), hash, None).ok_or_else(reads::no_content)
}

/// The archive's part of a page.
pub(super) fn page(view: &View, query: &ListQuery) -> Result<Page, Fault> {
    let mut page = Page::default();
    for (place, row) in view.older(query.before)?.enumerate() {
        let (id, snapshot) = row?;
        let task = task_of(&snapshot);
        let wanted =
            query.wants(task) && parties(task).is_some_and(|parties| sees(&query.viewer, &parties));
        if wanted && !page.take(id, basic(&snapshot), query.limit) {
            break;
        }
        if place + 1 >= SCAN {
            page.floor = Some(id);
            break;
        }
    }
    Ok(page)
}

fn task_of(snapshot: &Snapshot) -> &pb::Task {
    static NONE: std::sync::LazyLock<pb::Task> = std::sync::LazyLock::new(pb::Task::default);
    let submitted = snapshot.submitted.as_ref();
    submitted
        .and_then(|submitted| submitted.task.as_ref())
        .unwrap_or(&NONE)
}

fn parties(task: &pb::Task) -> Option<Parties> {
    Parties::of(task).ok()
}

/// BASIC view.
fn basic(snapshot: &Snapshot) -> pb::Task {
    let mut task = task_of(snapshot).clone();
    task.chain.clear();
    let summaries = snapshot.artifacts.iter();
    task.artifacts = summaries
        .map(|kept| kept.summary.clone().unwrap_or_default())
        .collect();
    task
}
