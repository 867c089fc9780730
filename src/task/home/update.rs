//! What a handler said, checked against its bounds and turned into what the home does about it.
//!
//! Pure. A handler that breaks a bound of one update has broken its contract, and its attempt ends
//! as AGENT_ERROR; one that says too much in all ends as CONTENT_TOO_LARGE.

use prost::Message;

use crate::domain::Reason;
use crate::pb;
use crate::pb::handle_response::Update;
use crate::pb::part::Content;
use crate::pb::task_event::Kind;
use crate::task::spec::check_part;

use super::artifacts::{begins_anew, part_bytes};
use super::dialogue::asked;
use super::kept::Kept;

/// Most bytes of an event without a result, encoded.
pub(super) const EVENT_MAX: usize = 256 << 10;
/// Most bytes of a result and of a checkpoint.
pub(super) const RESULT_MAX: usize = 1 << 20;
/// What a message may add to its payload.
const ENVELOPE: usize = 16 << 10;
/// Most bytes of an artifact chunk's content; a `ReadArtifact` answer is no larger.
pub(super) const CHUNK_MAX: usize = 128 << 10;
/// Most bytes of all artifacts and messages of a task.
pub(super) const CONTENT_MAX: usize = 64 << 20;
/// Most bytes that the attempts of a task may say before their last word: an agent that never stops
/// ends before it fills the disk.
pub(super) const SAID_MAX: usize = 512 << 20;
/// Most artifacts of a task: BASIC views list them all.
const ARTIFACTS_MAX: usize = 1000;
/// Most bytes of an artifact's id, and of its name.
const NAME_MAX: usize = 256;
/// Most bytes of an artifact's description.
const DESCRIPTION_MAX: usize = 1024;

/// What to do about an update.
#[derive(Debug)]
pub(super) enum Taken {
    /// Number it; the task is in this state after it.
    Event(Kind, pb::TaskState),
    /// Keep it for the next attempt.
    Checkpoint(Vec<u8>),
    /// Show it to whoever watches now.
    Transient(pb::Part),
    /// Somebody else is to do it, if they may.
    HandOver(pb::Delegation),
    /// A bound is broken: the attempt ends here.
    Breach(Breach),
}

/// How a handler broke a bound.
#[derive(Debug, thiserror::Error)]
pub(super) enum Breach {
    #[error("the agent broke the handler contract: {0}")]
    Contract(String),
    #[error("the agent says more than a task may hold: {0}")]
    TooLarge(String),
}

impl Breach {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Contract(_) => Reason::AgentError,
            Self::TooLarge(_) => Reason::ContentTooLarge,
        }
    }
}

impl From<String> for Breach {
    fn from(text: String) -> Self {
        Self::Contract(text)
    }
}

impl Taken {
    /// What the update of the task's running attempt means; a breach is a failure of the agent.
    pub(super) fn from_update(kept: &Kept, update: Option<Update>) -> Self {
        Self::fitting(kept, update).unwrap_or_else(Self::Breach)
    }

    fn fitting(kept: &Kept, update: Option<Update>) -> Result<Self, Breach> {
        let event = |kind| Ok(Self::Event(kind, pb::TaskState::Working));
        if let Some(update) = &update
            && goes_on(update)
        {
            holds("updates", kept.said, SAID_MAX)?;
        }
        match update {
            None => Err("an update without content".to_owned().into()),
            Some(Update::Progress(progress)) => {
                progress_fits(&progress)?;
                event(Kind::Progress(progress))
            }
            Some(Update::Message(mut message)) => {
                message.by.clear();
                message.to.clear();
                message_fits(kept, &message)?;
                event(Kind::Message(message))
            }
            Some(Update::Artifact(chunk)) => {
                chunk_fits(kept, &chunk)?;
                event(Kind::Artifact(chunk))
            }
            Some(Update::Usage(usage)) => {
                fits("usage", usage.encoded_len(), EVENT_MAX)?;
                event(Kind::Usage(usage))
            }
            Some(Update::Checkpoint(saved)) => {
                fits("a checkpoint", saved.data.len(), RESULT_MAX)?;
                Ok(Self::Checkpoint(saved.data))
            }
            Some(Update::Transient(part)) => {
                fits("a transient", part.encoded_len(), EVENT_MAX)?;
                parts_fit(std::slice::from_ref(&part))?;
                Ok(Self::Transient(part))
            }
            Some(Update::Result(result)) => {
                result_fits(kept, &result)?;
                Ok(Self::Event(Kind::Result(result), pb::TaskState::Completed))
            }
            Some(Update::Failure(failure)) => Ok(Self::Event(
                Kind::Failure(told(failure)),
                pb::TaskState::Failed,
            )),
            Some(Update::Rejection(failure)) => Ok(Self::Event(
                Kind::Failure(told(failure)),
                pb::TaskState::Rejected,
            )),
            Some(Update::Canceled(canceled)) => Ok(Self::Event(
                Kind::StateChanged(ended_by_request(kept, canceled)),
                pb::TaskState::Canceled,
            )),
            Some(Update::Question(question)) => {
                let (kind, state) = asked(kept, question)?;
                Ok(Self::Event(kind, state))
            }
            Some(Update::Delegation(delegation)) => Ok(Self::HandOver(delegation)),
        }
    }
}

/// Whether the agent says that it cannot be used now.
pub(super) fn is_unavailable(said: Option<&Update>) -> bool {
    let code = i32::from(tonic::Code::Unavailable);
    matches!(said, Some(Update::Failure(failure)) if failure.code == code) && !is_loss(said)
}

/// Whether the executor says that the agent's process went away in the middle. An agent cannot say
/// so itself: its executor takes that reason from it.
pub(super) fn is_loss(said: Option<&Update>) -> bool {
    let reason = Reason::AgentLost.label();
    matches!(said, Some(Update::Failure(failure)) if failure.reason == reason)
}

/// Whether nothing follows the update in its attempt.
pub(super) fn is_last(update: &Update) -> bool {
    !goes_on(update) && !matches!(update, Update::Transient(_))
}

/// Whether more may follow the update, and it goes to disk.
fn goes_on(update: &Update) -> bool {
    matches!(
        update,
        Update::Progress(_)
            | Update::Message(_)
            | Update::Artifact(_)
            | Update::Usage(_)
            | Update::Checkpoint(_)
    )
}

/// A failure of our own making.
pub(super) fn failure(reason: Reason, text: &str, retryable: bool) -> pb::Failure {
    pb::Failure {
        reason: reason.label().into(),
        message: text.into(),
        code: crate::wire::status::code(reason).into(),
        retryable,
        details: None,
    }
}

/// The end that a handler confirms, in its own words where they are short.
fn ended_by_request(kept: &Kept, canceled: pb::Canceled) -> pb::StateChanged {
    let said = Some(canceled.message).filter(|said| !said.is_empty());
    let said = said.filter(|said| said.len() <= EVENT_MAX / 2);
    pb::StateChanged {
        from: kept.task.state,
        reason: said.unwrap_or_else(|| "CANCELED".into()),
        executor_instance: String::new(),
    }
}

/// The handler's own failure, with a reason and a code where it gave none, within an event's bound.
fn told(mut told: pb::Failure) -> pb::Failure {
    if told.encoded_len() > EVENT_MAX {
        told = failure(
            Reason::AgentError,
            "the agent failed with a report over 256 KiB",
            told.retryable,
        );
    }
    if told.reason.is_empty() {
        told.reason = Reason::AgentError.label().into();
    }
    if told.code == 0 {
        told.code = crate::wire::status::code(Reason::AgentError).into();
    }
    told
}

/// Whether something is as large as it may be.
///
/// # Errors
/// A sentence about it.
pub(super) fn fits(what: &str, size: usize, most: usize) -> Result<(), String> {
    if size <= most {
        Ok(())
    } else {
        Err(format!("{what} of {size} bytes, at most {most} are taken"))
    }
}

/// The same for all that a task holds.
fn holds(what: &str, size: usize, most: usize) -> Result<(), Breach> {
    fits(what, size, most).map_err(Breach::TooLarge)
}

/// Whether the parts are such as a task may carry.
///
/// # Errors
/// A sentence about the first that is not.
pub(super) fn parts_fit(parts: &[pb::Part]) -> Result<(), String> {
    for (place, part) in parts.iter().enumerate() {
        check_part(part, &format!("parts[{place}]")).map_err(|wrong| wrong.text)?;
    }
    Ok(())
}

fn progress_fits(progress: &pb::Progress) -> Result<(), String> {
    fits("progress", progress.encoded_len(), EVENT_MAX)?;
    match progress.fraction {
        Some(fraction) if !(0.0..=1.0).contains(&fraction) => {
            Err(format!("a progress of {fraction}, it goes from 0 to 1"))
        }
        Some(_) | None => Ok(()),
    }
}

fn message_fits(kept: &Kept, message: &pb::Message) -> Result<(), Breach> {
    let size = message.encoded_len();
    fits("a message", size, EVENT_MAX)?;
    parts_fit(&message.parts)?;
    holds("artifacts and messages", kept.content + size, CONTENT_MAX)
}

fn chunk_fits(kept: &Kept, chunk: &pb::ArtifactChunk) -> Result<(), Breach> {
    let Some(part) = &chunk.part else {
        return Err("an artifact chunk without a part".to_owned().into());
    };
    let size = part_bytes(Some(part));
    fits("an artifact chunk", size, CHUNK_MAX)?;
    fits(
        "an artifact chunk with its names",
        chunk.encoded_len(),
        EVENT_MAX,
    )?;
    holds("artifacts and messages", kept.content + size, CONTENT_MAX)?;
    fits(
        "an artifact's name",
        chunk.artifact_id.len().max(chunk.name.len()),
        NAME_MAX,
    )?;
    parts_fit(std::slice::from_ref(part))?;
    fits(
        "an artifact's description",
        chunk.description.len(),
        DESCRIPTION_MAX,
    )?;
    if chunk.artifact_id.is_empty() {
        return Err("an artifact chunk without an artifact id".to_owned().into());
    }
    let before = kept
        .artifact(&chunk.artifact_id)
        .filter(|kept| !kept.summary.superseded)
        .filter(|before| !begins_anew(before, chunk, kept.task.attempt));
    match before {
        None if chunk.append => Err("the first chunk of an artifact cannot append"
            .to_owned()
            .into()),
        None => holds("artifacts", kept.artifacts.len() + 1, ARTIFACTS_MAX),
        Some(before) if before.summary.complete => {
            Err(format!("a chunk after the last one of {:?}", chunk.artifact_id).into())
        }
        Some(before) if chunk.append => {
            Ok(joins(before.chunks.last().and_then(|e| part_of(e)), part)?)
        }
        Some(_) => Ok(()),
    }
}

/// The part that an event's chunk carries.
pub(super) fn part_of(event: &pb::TaskEvent) -> Option<&pb::Part> {
    match &event.kind {
        Some(Kind::Artifact(chunk)) => chunk.part.as_ref(),
        Some(_) | None => None,
    }
}

/// Only text joins text, and bytes bytes.
fn joins(last: Option<&pb::Part>, next: &pb::Part) -> Result<(), String> {
    let last = last.and_then(|part| match part.content.as_ref()? {
        Content::Text(_) => Some(pb::BlobKind::Text),
        Content::Raw(_) => Some(pb::BlobKind::Raw),
        Content::Blob(blob) => Some(blob.kind()),
        Content::Url(_) | Content::Data(_) => None,
    });
    match (last, &next.content) {
        (Some(pb::BlobKind::Text), Some(Content::Text(_)))
        | (Some(pb::BlobKind::Raw), Some(Content::Raw(_))) => Ok(()),
        _ => Err("a chunk can append text to text and bytes to bytes only".into()),
    }
}

fn result_fits(kept: &Kept, result: &pb::TaskResult) -> Result<(), String> {
    let size: usize = result.parts.iter().map(Message::encoded_len).sum();
    fits("a result", size, RESULT_MAX)?;
    fits(
        "a result with its artifact ids",
        result.encoded_len(),
        RESULT_MAX + ENVELOPE,
    )?;
    parts_fit(&result.parts)?;
    match result.artifact_ids.iter().find(|id| {
        kept.artifact(id)
            .is_none_or(|known| known.summary.superseded)
    }) {
        Some(unknown) => Err(format!(
            "a result with artifact {unknown:?}, which was never sent, or by a lost attempt"
        )),
        None => Ok(()),
    }
}
