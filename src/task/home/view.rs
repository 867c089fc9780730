//! What callers see of a task: the FULL view, a page of a list, pieces of an artifact. Pure.

use std::{collections::VecDeque, future::Future, sync::Arc};

use futures_util::stream;
use prost::Message;
use tokio_stream::Stream;
use uuid::Uuid;

use crate::domain::{Fault, InstanceId, SpiffeId};
use crate::identity::may_see_task;
use crate::pb;
use crate::pb::part::Content;
use crate::pb::task_event::Kind;

use crate::task::journal::blobs::{Blobs, Pin};
use crate::task::parts::{beyond, named, of_event};

use super::dialogue::said;
use super::kept::{Kept, Parties};
use super::large::fill;
use super::reads::Pieces;
use super::update::part_of;

/// Most bytes of an answer: the rest of the 4 MiB is for its envelope.
pub const ANSWER_MAX: usize = 3 << 20;
/// Most bytes of what a handler is called with, for the list of artifacts to be in it: gRPC takes 4
/// MiB, and input, answers and checkpoint may be 3 of them.
const START_MAX: usize = 7 << 19;
/// Tasks of a page where the caller names no number, and the most.
pub const PAGE: (usize, usize) = (100, 1000);

/// Which tasks a list is about, newest first.
#[derive(Clone, Debug)]
pub struct ListQuery {
    /// Who asks.
    pub viewer: Arc<SpiffeId>,
    /// What they asked for; its page fields are not looked at.
    pub filter: pb::ListTasksRequest,
    /// Only tasks older than this one.
    pub before: Option<Uuid>,
    /// Most tasks, at least one.
    pub limit: usize,
}

/// A task as it is shown, before large contents are put in.
#[derive(Clone, Debug, Default)]
pub(super) struct Whole {
    pub(super) task: pb::Task,
    /// Something was left out.
    pub(super) truncated: bool,
    /// Bytes that may be put into its result and messages; its artifacts have their room.
    pub(super) room: usize,
    /// Parts of artifacts that go on with the one before: number of the artifact, and of the part.
    pub(super) joins: Vec<(usize, usize)>,
}

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListPage {
    /// Tasks in the BASIC view, newest first; may be fewer than asked for, also none.
    pub tasks: Vec<pb::Task>,
    /// What follows is older than this; `None`: nothing follows.
    pub next: Option<Uuid>,
}

impl ListQuery {
    /// Whether the task passes the filter; whether the viewer may see it is asked apart.
    pub(super) fn wants(&self, task: &pb::Task) -> bool {
        let filter = &self.filter;
        let same = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
        let agent = task
            .executor
            .as_ref()
            .map_or(task.agent.as_str(), |ran| ran.agent.as_str());
        let created = task.created_at.map(|at| (at.seconds, at.nanos));
        let bound = |at: Option<prost_types::Timestamp>| at.map(|at| (at.seconds, at.nanos));
        (filter.states.is_empty() || filter.states.contains(&task.state))
            && same(&filter.skill, &task.skill)
            && same(&filter.agent, agent)
            && same(&filter.caller, &task.caller)
            && same(&filter.context_id, &task.context_id)
            && same(&filter.correlation_id, &task.correlation_id)
            && same(&filter.parent_task_id, &task.parent_task_id)
            && same(&filter.root_task_id, &task.root_task_id)
            && bound(filter.created_after).is_none_or(|after| created >= Some(after))
            && bound(filter.created_before).is_none_or(|before| created < Some(before))
    }
}

impl Kept {
    /// What the executor of the running attempt is sent; `remaining` is set when it goes out.
    pub(super) fn start(&self, home: &InstanceId) -> pb::Start {
        let chain = self.task.chain.clone();
        let inputs = [self.input_now()].into_iter().chain(self.talked());
        let mut handle = pb::HandleRequest {
            task: Some(self.basic()),
            attempt: self.task.attempt,
            inputs: inputs.collect(),
            checkpoint: self.checkpoint.clone(),
            parent_token: String::new(),
            context: self.spec.context.clone(),
        };
        if let Some(task) = &mut handle.task {
            task.skill = self.skill().to_owned();
        }
        if let Some(task) = &mut handle.task
            && !self.artifacts.is_empty()
            && self.start_bytes() > START_MAX
        {
            task.artifacts.clear();
        }
        pb::Start {
            handle: Some(handle),
            home: home.to_string(),
            chain,
            descendants_left: Some(self.running.as_ref().map_or(0, |one| one.descendants)),
            grants_descendants: true,
            ..pb::Start::default()
        }
    }

    /// About what a Start carries beside the envelope.
    fn start_bytes(&self) -> usize {
        let artifacts = self.artifacts.iter();
        let artifacts: usize = artifacts.map(|kept| kept.summary.encoded_len()).sum();
        let dialogue = self.dialogue.iter();
        let dialogue: usize = dialogue
            .map(|event| event.encoded_len() + beyond(of_event(event)))
            .sum();
        let input = self.spec.encoded_len() + beyond(&self.input_now().parts);
        input + self.checkpoint.len() + dialogue + artifacts
    }

    /// The caller's first message.
    pub(super) fn input(&self) -> pb::Message {
        input(&self.task, &self.spec)
    }

    /// BASIC view: artifacts without parts, and no messages, chain, context or result.
    pub(super) fn basic(&self) -> pb::Task {
        let mut task = self.task.clone();
        task.chain.clear();
        task.question = self.open_question().cloned().map(Box::new);
        task.artifacts = self
            .artifacts
            .iter()
            .map(|kept| kept.summary.clone())
            .collect();
        task
    }
}

/// Whether the task exists for this principal.
pub(super) fn sees(viewer: &SpiffeId, parties: &Parties) -> bool {
    may_see_task(
        viewer,
        &parties.caller,
        &parties.origin,
        parties.executor.as_ref(),
    )
}

/// The caller's first message of a task.
pub(super) fn input(task: &pb::Task, spec: &pb::TaskSpec) -> pb::Message {
    pb::Message {
        message_id: "input".into(),
        parts: spec.input.clone(),
        role: pb::Role::User.into(),
        at: task.created_at,
        by: String::new(),
        to: String::new(),
    }
}

/// Everything that fits into [`ANSWER_MAX`], and whether something was left out.
pub(super) fn full(kept: &Kept) -> Whole {
    let mut whole = FullView::of(kept.basic(), &kept.task.chain, &kept.spec);
    if let Some(event) = &kept.result {
        whole.result(event);
    }
    whole.message(&kept.input());
    for event in &kept.messages {
        whole.message_of(event);
    }
    for (place, artifact) in kept.artifacts.iter().enumerate() {
        if !artifact.summary.superseded {
            whole.artifact(place, &artifact.chunks);
        }
    }
    whole.done()
}

/// A FULL view in the making: what comes first has the room.
pub(super) struct FullView {
    task: pb::Task,
    room: usize,
    truncated: bool,
    /// What is to be put in, beside artifacts.
    beyond: usize,
    joins: Vec<(usize, usize)>,
}

impl FullView {
    /// Begins with the BASIC view.
    pub(super) fn of(basic: pb::Task, chain: &[pb::ChainLink], spec: &pb::TaskSpec) -> Self {
        let mut task = basic;
        task.chain = chain.to_vec();
        task.context.clone_from(&spec.context);
        Self {
            room: ANSWER_MAX.saturating_sub(task.encoded_len()),
            task,
            truncated: false,
            beyond: 0,
            joins: Vec::new(),
        }
    }

    /// Whether a field of this size would fit. Eight bytes hold the tag and the length of any.
    pub(super) fn has_room(&self, size: usize) -> bool {
        size + 8 <= self.room
    }

    /// The result, from its event.
    pub(super) fn result(&mut self, event: &pb::TaskEvent) {
        if let Some(Kind::Result(result)) = &event.kind
            && self.takes_with(result.encoded_len(), beyond(&result.parts))
        {
            self.task.result = Some(result.clone());
        }
    }

    /// A message, from its event.
    pub(super) fn message_of(&mut self, event: &pb::TaskEvent) {
        if let Some(message) = said(event) {
            self.message(&message);
        }
    }

    /// The next message.
    pub(super) fn message(&mut self, message: &pb::Message) {
        if self.takes_with(message.encoded_len(), beyond(&message.parts)) {
            self.task.messages.push(message.clone());
        }
    }

    /// The content of artifact number `place`, from the events of its chunks.
    pub(super) fn artifact(&mut self, place: usize, chunks: &[Arc<pb::TaskEvent>]) {
        let size = chunks.iter().map(|event| framed(event)).sum();
        if self.takes(size)
            && let Some(shown) = self.task.artifacts.get_mut(place)
        {
            let (parts, joins) = parts(chunks);
            shown.parts = parts;
            self.joins
                .extend(joins.into_iter().map(|part| (place, part)));
        }
    }

    /// The view, and whether something was left out.
    pub(super) fn done(self) -> Whole {
        Whole {
            task: self.task,
            truncated: self.truncated,
            room: self.beyond,
            joins: self.joins,
        }
    }

    /// Whether a field fits, if only with references to its large contents.
    fn takes_with(&mut self, size: usize, beyond: usize) -> bool {
        if self.has_room(size + beyond) {
            self.beyond += beyond;
            return self.takes(size + beyond);
        }
        self.truncated = true;
        beyond > 0 && self.takes(size)
    }

    fn takes(&mut self, size: usize) -> bool {
        let fitting = self.has_room(size);
        self.room -= if fitting { size + 8 } else { 0 };
        self.truncated |= !fitting;
        fitting
    }
}

/// Bytes of an event's chunk with its frame.
pub(super) fn framed(event: &pb::TaskEvent) -> usize {
    let size = |part: &pb::Part| part.encoded_len() + beyond(std::slice::from_ref(part)) + 8;
    part_of(event).map_or(0, size)
}

/// The artifact's parts, with what was appended joined on; and the numbers of those to be joined to the
/// one before once their contents are there.
fn parts(chunks: &[Arc<pb::TaskEvent>]) -> (Vec<pb::Part>, Vec<usize>) {
    let mut parts: Vec<pb::Part> = Vec::new();
    let mut joins = Vec::new();
    // Bytes of the last part while more may come: joining them one by one would copy them all.
    let mut open: Vec<u8> = Vec::new();
    let close = |parts: &mut Vec<pb::Part>, open: &mut Vec<u8>| {
        if let (false, Some(last)) = (open.is_empty(), parts.last_mut()) {
            last.content = Some(Content::Raw(std::mem::take(open).into()));
        }
    };
    for event in chunks {
        let Some(Kind::Artifact(chunk)) = &event.kind else {
            continue;
        };
        let Some(part) = &chunk.part else { continue };
        let last = parts
            .last_mut()
            .filter(|_| chunk.append)
            .and_then(|part| part.content.as_mut());
        match (last, &part.content) {
            (Some(Content::Text(text)), Some(Content::Text(more))) => text.push_str(more),
            (Some(Content::Raw(raw)), Some(Content::Raw(more))) => {
                if open.is_empty() {
                    open.extend_from_slice(raw);
                }
                open.extend_from_slice(more);
            }
            (last, _) => {
                if last.is_some() {
                    joins.push(parts.len());
                }
                close(&mut parts, &mut open);
                parts.push(part.clone());
            }
        }
    }
    close(&mut parts, &mut open);
    (parts, joins)
}

/// The pieces of an artifact, without its first `offset` bytes; `fetch` gives those from a chunk on.
pub(super) fn artifact_stream<F>(
    first: Pieces,
    fetch: impl Fn(usize) -> F + Send,
    offset: u64,
    (blobs, task): (Option<Blobs>, Uuid),
) -> impl Stream<Item = Result<pb::Part, Fault>> + Send
where
    F: Future<Output = Result<Pieces, Fault>> + Send,
{
    let stand = Reading {
        ready: Ready::of(first, blobs.as_ref()),
        read: 0,
        skip: offset,
        blobs,
    };
    stream::try_unfold((stand, fetch), move |(mut stand, fetch)| async move {
        loop {
            if stand.ready.chunks.is_empty() {
                stand.ready = Ready::of(fetch(stand.read).await?, stand.blobs.as_ref());
            }
            let Some(event) = stand.ready.chunks.pop_front() else {
                return Ok(None);
            };
            stand.read += 1;
            if let Some(part) = part_of(&event)
                && let Some(piece) = stand.piece(part, task).await?
            {
                return Ok(Some((piece, (stand, fetch))));
            }
        }
    })
}

/// How far somebody has read an artifact.
struct Reading {
    ready: Ready,
    /// Chunks so far.
    read: usize,
    /// Bytes that are still to be passed over.
    skip: u64,
    blobs: Option<Blobs>,
}

/// Chunks that come next, and what keeps their contents.
struct Ready {
    chunks: VecDeque<Arc<pb::TaskEvent>>,
    _pins: Vec<Pin>,
}

impl Ready {
    fn of(pieces: Pieces, blobs: Option<&Blobs>) -> Self {
        let named = pieces
            .chunks
            .iter()
            .flat_map(|event| named(of_event(event)));
        let pins = named.filter_map(|hash| blobs?.pin(hash));
        Self {
            _pins: pins.collect(),
            chunks: pieces.chunks.into(),
        }
    }
}

impl Reading {
    /// The next piece; `None`: all of it is passed over.
    async fn piece(&mut self, part: &pb::Part, task: Uuid) -> Result<Option<pb::Part>, Fault> {
        let size = super::artifacts::part_bytes(Some(part)) as u64;
        if self.skip > 0 && self.skip >= size {
            self.skip -= size;
            return Ok(None);
        }
        let mut part = part.clone();
        fill(self.blobs.as_ref(), task, std::slice::from_mut(&mut part)).await?;
        Ok(after_skipping(&part, &mut self.skip))
    }
}

/// A piece of an artifact without its first `skip` bytes; `None`: all of it is skipped. What is left
/// to skip is taken from `skip`.
fn after_skipping(part: &pb::Part, skip: &mut u64) -> Option<pb::Part> {
    let size = super::artifacts::part_bytes(Some(part)) as u64;
    if *skip > 0 && *skip >= size {
        *skip -= size;
        return None;
    }
    let from = usize::try_from(std::mem::take(skip)).unwrap_or(usize::MAX);
    let mut rest = part.clone();
    match &mut rest.content {
        Some(Content::Text(text)) => {
            let from = (from..=text.len())
                .find(|at| text.is_char_boundary(*at))
                .unwrap_or(0);
            drop(text.drain(..from));
        }
        Some(Content::Raw(raw)) => drop(raw.split_to(from)),
        // A url and a JSON value make sense only whole.
        Some(Content::Url(_) | Content::Data(_) | Content::Blob(_)) | None => {}
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(content: Content) -> pb::Part {
        pb::Part {
            content: Some(content),
            ..Default::default()
        }
    }

    #[test]
    fn an_offset_passes_over_empty_pieces_and_into_any() {
        let raw = |bytes: &'static [u8]| part(Content::Raw(bytes.into()));
        let text = |text: &str| part(Content::Text(text.into()));
        let pieces = [raw(b""), raw(b"abc"), text(""), raw(b""), text("d\u{e9}f")];
        let after = |mut skip: u64| -> Vec<pb::Part> {
            let rest = pieces.iter();
            rest.filter_map(|piece| after_skipping(piece, &mut skip))
                .collect()
        };
        assert_eq!(after(0), pieces);
        assert_eq!(after(1), [raw(b"bc"), text(""), raw(b""), text("d\u{e9}f")]);
        assert_eq!(after(3), [text(""), raw(b""), text("d\u{e9}f")]);
        assert_eq!(after(4), [text("\u{e9}f")]);
        assert_eq!(after(7), []);
        assert_eq!(after(u64::MAX), []);
    }
}
