//! Large content of tasks: named by records, written before them, and put back for whoever is shown
//! a task or works on it.
//!
//! In memory a task has references only, but for what came while the disk was nearly full, what
//! earlier versions wrote, and tasks that have no disk: that is in its records as it always was.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use tokio_stream::Stream;
use uuid::Uuid;

use crate::domain::{Fault, Reason};
use crate::pb;
use crate::pb::journal::{Record, record::Kind as Recorded};
use crate::pb::part::Content;
use crate::task::archive::Archive;
use crate::task::callback::Delivery;
use crate::task::journal::blobs::{Blob, BlobError, Blobs, Hash, Holder, Pin};
use crate::task::parts::{self, beyond, hash_of, named, of_event, of_event_mut, reference};

use super::artifacts::part_bytes;
use super::handle::Home;
use super::kept::Kept;
use super::machine::Tasks;
use super::update::CHUNK_MAX;
use super::view::Whole;

/// Bytes of large content beside the log while new tasks are taken. Tasks are in memory without it,
/// so that their number no longer bounds what they take on disk.
pub(super) const STORED_MAX: u64 = 16 << 30;

/// Contents that wait for their records to be appended.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// `None`: contents stay in their records.
    pub(super) large: Option<usize>,
    /// Place of the record among those that wait, the task, and a content.
    blobs: VecDeque<(usize, Uuid, Blob)>,
}

impl Waiting {
    /// Those of the first `records` records, by task.
    pub(super) fn of(&self, records: usize) -> impl Iterator<Item = (Uuid, &Blob)> {
        let first = self
            .blobs
            .iter()
            .take_while(move |(place, ..)| *place < records);
        first.map(|(_, task, blob)| (*task, blob))
    }

    /// Bytes of what waits for record number `place`.
    pub(super) fn bytes(&self, place: usize) -> usize {
        let blobs = self.blobs.iter().filter(|(of, ..)| *of == place);
        blobs.map(|(.., blob)| blob.bytes.len()).sum()
    }

    /// So many records were appended.
    pub(super) fn appended(&mut self, records: usize) {
        while self
            .blobs
            .pop_front_if(|(place, ..)| *place < records)
            .is_some()
        {}
        for (place, ..) in &mut self.blobs {
            *place -= records;
        }
    }
}

impl Tasks {
    /// Takes large contents out of a record.
    pub(super) fn cut(&self, kind: &mut Recorded) -> Vec<Blob> {
        match self.waiting.large {
            // The room that is left is reserved for records.
            Some(large) if !self.low_space => parts::cut(kind, large),
            Some(_) | None => Vec::new(),
        }
    }

    /// Adds a record to what is to be appended, and what it names.
    pub(super) fn log_with(
        &mut self,
        task_id: String,
        kind: Recorded,
        after_update: u64,
        blobs: Vec<Blob>,
    ) {
        let place = self.records.len();
        let task = task_id.rsplit('.').next();
        let task = task.and_then(|uuid| Uuid::try_parse(uuid).ok());
        for blob in blobs {
            let task = task.expect("a task of ours has an id");
            self.waiting.blobs.push_back((place, task, blob));
        }
        self.records.push(Record {
            task_id,
            kind: Some(kind),
            after_update,
        });
    }

    /// All that its tasks name, by task.
    pub(super) fn named(&self) -> impl Iterator<Item = (Uuid, Hash)> {
        let tasks = self.tasks.iter();
        tasks.flat_map(|(task, entry)| entry.kept.named().map(move |hash| (*task, hash)))
    }
}

impl Kept {
    /// All that it names.
    pub(super) fn named(&self) -> impl Iterator<Item = Hash> {
        let events = self.all_events();
        named(&self.spec.input).chain(events.flat_map(|event| named(of_event(event))))
    }

    /// The part that names a content, of those that may be shown: events up to `shown`, and no answer
    /// that is withheld from `agent`.
    pub(super) fn naming(&self, hash: Hash, shown: u64, agent: Option<&str>) -> Option<pb::Part> {
        let events = self.all_events().filter(|event| event.seq <= shown);
        naming(&self.spec.input, events.map(AsRef::as_ref), hash, agent)
    }
}

/// The part of a task that names a content; `agent`: what others were answered is not looked at.
pub(super) fn naming<'a>(
    input: &'a [pb::Part],
    events: impl Iterator<Item = &'a pb::TaskEvent>,
    hash: Hash,
    agent: Option<&str>,
) -> Option<pb::Part> {
    let said = events
        .filter(|event| !super::dialogue::is_withheld(agent, event))
        .flat_map(of_event);
    let mut parts = input.iter().chain(said);
    let names = |part: &&pb::Part| reference(part).and_then(hash_of) == Some(hash);
    parts.find(names).cloned()
}

/// Whether the parts refer to something.
pub(super) fn refers(parts: &[pb::Part]) -> bool {
    parts.iter().any(|part| reference(part).is_some())
}

/// Puts contents back in place of their references.
///
/// # Errors
/// CONTENT_DAMAGED, STORAGE_FAILED.
pub(super) async fn fill(
    blobs: Option<&Blobs>,
    task: Uuid,
    parts: &mut [pb::Part],
) -> Result<(), Fault> {
    for part in parts {
        let Some(blob) = reference(part) else {
            continue;
        };
        let (Some(blobs), Some(hash)) = (blobs, hash_of(blob)) else {
            return Err(unreadable());
        };
        let bytes = blobs.load(task, hash).await.map_err(|error| {
            // A task that was forgotten meanwhile is no damage.
            let gone = matches!(error, BlobError::Missing(_)) && blobs.pin(hash).is_none();
            if gone {
                super::machine::not_found()
            } else {
                Fault::from(error)
            }
        })?;
        if !parts::fill(part, bytes) {
            return Err(unreadable());
        }
    }
    Ok(())
}

/// The same for an event.
pub(super) async fn filled(
    blobs: Option<&Blobs>,
    task: Uuid,
    event: &pb::TaskEvent,
) -> Result<pb::TaskEvent, Fault> {
    let mut event = event.clone();
    fill(blobs, task, of_event_mut(&mut event)).await?;
    Ok(event)
}

/// The same for what an attempt begins with.
pub(super) async fn fill_start(
    blobs: Option<&Blobs>,
    task: Uuid,
    start: &mut pb::Start,
) -> Result<(), Fault> {
    let Some(handle) = &mut start.handle else {
        return Ok(());
    };
    for input in &mut handle.inputs {
        fill(blobs, task, &mut input.parts).await?;
    }
    Ok(())
}

/// The same for a FULL view: what fits is put in, what does not stays a reference.
pub(super) async fn fill_whole(
    blobs: Option<&Blobs>,
    task: Uuid,
    whole: &mut Whole,
) -> Result<(), Fault> {
    let mut room = whole.room;
    let shown = &mut whole.task;
    let mut parts: Vec<&mut pb::Part> = Vec::new();
    if let Some(result) = &mut shown.result {
        parts.extend(&mut result.parts);
    }
    for message in &mut shown.messages {
        parts.extend(&mut message.parts);
    }
    for part in parts {
        let size = beyond(std::slice::from_ref(part));
        if size > 0 && size <= room {
            room -= size;
            fill(blobs, task, std::slice::from_mut(part)).await?;
        }
    }
    for artifact in &mut shown.artifacts {
        fill(blobs, task, &mut artifact.parts).await?;
    }
    // From the last on, so that the places of those before stay what they are.
    for (artifact, place) in whole.joins.drain(..).rev() {
        let parts = &mut shown.artifacts[artifact].parts;
        let more = parts.remove(place);
        if let Some(before) = parts[..place].last_mut() {
            join(before, more);
        }
    }
    Ok(())
}

/// Appends what goes on with a part.
fn join(before: &mut pb::Part, more: pb::Part) {
    match (&mut before.content, more.content) {
        (Some(Content::Text(text)), Some(Content::Text(more))) => text.push_str(&more),
        (Some(Content::Raw(raw)), Some(Content::Raw(more))) => {
            *raw = [raw.as_ref(), more.as_ref()].concat().into();
        }
        _ => {}
    }
}

impl Home {
    /// What is told of a change, with its contents.
    ///
    /// # Errors
    /// CONTENT_DAMAGED, STORAGE_FAILED.
    pub async fn whole_delivery(
        &self,
        task: Uuid,
        mut delivery: Delivery,
    ) -> Result<Delivery, Fault> {
        if refers(of_event(&delivery.event)) {
            let event = filled(self.blobs(), task, &delivery.event).await?;
            delivery.event = Arc::new(event);
        }
        Ok(delivery)
    }
}

/// From here on large contents go beside the log; those that nobody names any more may go once
/// shards and archive have said what they name.
pub(super) fn begin(blobs: Option<&Blobs>, shards: &mut [Tasks], archive: Option<&Archive>) {
    let Some(blobs) = blobs else { return };
    for tasks in shards {
        tasks.waiting.large = Some(blobs.large());
        for (task, hash) in tasks.named() {
            blobs.hold(Holder::in_log(task), [hash]);
        }
    }
    match archive {
        Some(archive) => archive.names(blobs),
        None => blobs.settle(),
    }
}

fn unreadable() -> Fault {
    let text = "a record names content that this sidecar cannot read: restore its journal's directory from a copy, with its *.pack files";
    Fault::new(Reason::ContentDamaged, text)
}

/// A content in pieces, from `offset` on; `pin` keeps it meanwhile.
pub(super) fn content_stream(
    (blobs, pin): (Blobs, Pin),
    task: Uuid,
    part: pb::Part,
    offset: u64,
) -> impl Stream<Item = Result<pb::Part, Fault>> + Send {
    let start = (blobs, pin, part, offset);
    stream::try_unfold(start, move |(blobs, pin, part, offset)| async move {
        let size = part_bytes(Some(&part)) as u64;
        // One of nothing is one piece of nothing.
        if offset >= size {
            return Ok(None);
        }
        let mut whole = part.clone();
        // Read and checked anew for each piece: whoever reads slowly keeps nothing in memory.
        fill(Some(&blobs), task, std::slice::from_mut(&mut whole)).await?;
        let (piece, next) = piece_of(whole, offset);
        Ok(Some((piece, (blobs, pin, part, next))))
    })
}

/// A piece of a whole part, and where the next one begins.
fn piece_of(mut part: pb::Part, offset: u64) -> (pb::Part, u64) {
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let mut next = u64::MAX;
    match &mut part.content {
        Some(Content::Text(text)) => {
            let from = text.ceil_char_boundary(from.min(text.len()));
            let to = text.floor_char_boundary(text.len().min(from + CHUNK_MAX));
            *text = text[from..to].to_owned();
            next = to as u64;
        }
        Some(Content::Raw(raw)) => {
            let to = raw.len().min(from + CHUNK_MAX);
            // A copy: a piece must not keep all of it in memory.
            *raw = Bytes::copy_from_slice(&raw[from.min(to)..to]);
            next = to as u64;
        }
        Some(Content::Url(_) | Content::Data(_) | Content::Blob(_)) | None => {}
    }
    (part, next)
}
