//! What a handler may say, and how what goes wrong with it is told to the home.
//!
//! Pure. Refuses empty, unknown and oversize updates with a sentence for the agent's author.

use prost::Message as _;
use tonic::Code;

use super::handler::HandlerError;
use crate::domain::Reason;
use crate::pb;
use crate::pb::handle_response::Update;
use crate::wire::status;

/// Most bytes of an ordinary update: it becomes one event, which is as large at most.
pub(super) const UPDATE_MAX: usize = 256 << 10;
/// Most bytes of an artifact chunk: larger ones hold everything behind them up.
pub(super) const CHUNK_MAX: usize = 128 << 10;
/// Most bytes of a result or a checkpoint.
pub(super) const PAYLOAD_MAX: usize = 1 << 20;
/// Room for the fields around a payload.
const ENVELOPE: usize = 4 << 10;
/// Longest sentence of an agent's status that is passed on, in characters.
const SENTENCE_MAX: usize = 1024;

/// What to do with an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Shown to live watchers, never numbered.
    Transient,
    /// Numbered; more may follow.
    Numbered,
    /// Numbered, and ends the attempt.
    Last,
}

/// Sorts an update, or says how it breaks the handler contract.
///
/// # Errors
/// A sentence for the agent's author.
pub(super) fn sort(response: &pb::HandleResponse) -> Result<Kind, String> {
    let Some(update) = &response.update else {
        return Err(
            "the agent sent an empty update, or one that this version does not know".into(),
        );
    };
    let (name, kind, most) = match update {
        Update::Progress(_) => ("progress", Kind::Numbered, UPDATE_MAX),
        Update::Message(_) => ("message", Kind::Numbered, UPDATE_MAX),
        Update::Usage(_) => ("usage", Kind::Numbered, UPDATE_MAX),
        Update::Artifact(_) => ("artifact chunk", Kind::Numbered, CHUNK_MAX + ENVELOPE),
        Update::Checkpoint(_) => ("checkpoint", Kind::Numbered, PAYLOAD_MAX + ENVELOPE),
        Update::Transient(_) => ("transient", Kind::Transient, UPDATE_MAX),
        Update::Question(_) => ("question", Kind::Last, UPDATE_MAX),
        Update::Result(_) => ("result", Kind::Last, PAYLOAD_MAX + ENVELOPE),
        Update::Failure(_) => ("failure", Kind::Last, UPDATE_MAX),
        Update::Delegation(_) => ("delegation", Kind::Last, PAYLOAD_MAX + ENVELOPE),
        Update::Rejection(_) => ("rejection", Kind::Last, UPDATE_MAX),
        Update::Canceled(_) => ("canceled", Kind::Last, UPDATE_MAX),
    };
    let bytes = response.encoded_len();
    if bytes > most {
        return Err(format!(
            "the agent sent a {name} of {bytes} bytes, at most {most} are taken: \
             send large content as artifact chunks"
        ));
    }
    Ok(kind)
}

/// The agent's own last word; it cannot claim that it was lost, which only the sidecar sees.
pub(super) fn own_words(mut response: pb::HandleResponse) -> pb::HandleResponse {
    if let Some(Update::Failure(failure) | Update::Rejection(failure)) = &mut response.update
        && (failure.reason.is_empty() || failure.reason == Reason::AgentLost.label())
    {
        failure.reason = Reason::AgentError.label().into();
    }
    response
}

/// A failure in the mesh's words.
pub(super) fn failure(reason: Reason, message: impl Into<String>) -> pb::HandleResponse {
    failed(pb::Failure {
        reason: reason.label().into(),
        message: message.into(),
        code: status::code(reason).into(),
        retryable: false,
        details: None,
    })
}

/// The end of an attempt that its caller did not want any more.
pub(super) fn canceled(message: impl Into<String>) -> pb::HandleResponse {
    pb::HandleResponse {
        update: Some(Update::Canceled(pb::Canceled {
            message: message.into(),
        })),
    }
}

/// How the home is told of an error of the handler's stream.
pub(super) fn failure_of(error: &HandlerError) -> pb::HandleResponse {
    match error {
        HandlerError::Unreachable(_) | HandlerError::Lost(_) => failed(pb::Failure {
            reason: Reason::AgentLost.label().into(),
            message: format!("{error}; it may have done part of the work"),
            code: status::code(Reason::AgentLost).into(),
            retryable: true,
            details: None,
        }),
        HandlerError::Status(status) => {
            let sentence: String = status.message().chars().take(SENTENCE_MAX).collect();
            failed(pb::Failure {
                reason: Reason::AgentError.label().into(),
                message: match sentence.as_str() {
                    "" => format!("the agent answered {:?} without a sentence", status.code()),
                    _ => sentence,
                },
                code: status.code().into(),
                retryable: matches!(
                    status.code(),
                    Code::Unavailable | Code::ResourceExhausted | Code::Aborted
                ),
                details: None,
            })
        }
    }
}

pub(super) fn failed(failure: pb::Failure) -> pb::HandleResponse {
    pb::HandleResponse {
        update: Some(Update::Failure(failure)),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn result(bytes: usize) -> pb::HandleResponse {
        let part = pb::Part {
            content: Some(pb::part::Content::Raw(vec![0; bytes].into())),
            ..pb::Part::default()
        };
        pb::HandleResponse {
            update: Some(Update::Result(pb::TaskResult {
                parts: vec![part],
                artifact_ids: vec![],
            })),
        }
    }

    fn reason(response: &pb::HandleResponse) -> &str {
        match &response.update {
            Some(Update::Failure(failure)) => &failure.reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn updates_are_sorted_and_bounded() {
        assert_eq!(sort(&result(PAYLOAD_MAX)), Ok(Kind::Last));
        assert!(
            sort(&result(PAYLOAD_MAX + ENVELOPE))
                .unwrap_err()
                .contains("result")
        );
        assert!(sort(&pb::HandleResponse { update: None }).is_err());
        let progress = |bytes| pb::HandleResponse {
            update: Some(Update::Progress(pb::Progress {
                message: "x".repeat(bytes),
                ..pb::Progress::default()
            })),
        };
        assert_eq!(sort(&progress(10)), Ok(Kind::Numbered));
        assert!(sort(&progress(UPDATE_MAX)).is_err());
        let transient = pb::HandleResponse {
            update: Some(Update::Transient(pb::Part::default())),
        };
        assert_eq!(sort(&transient), Ok(Kind::Transient));
    }

    #[test]
    fn only_the_sidecar_says_that_an_agent_was_lost() {
        let claimed = own_words(failure(Reason::AgentLost, "me"));
        assert_eq!(reason(&claimed), "AGENT_ERROR");
        assert_eq!(
            reason(&own_words(failure(Reason::QueueFull, ""))),
            "QUEUE_FULL"
        );
        assert_eq!(
            reason(&failure_of(&HandlerError::Lost("x".into()))),
            "AGENT_LOST"
        );
        let status = HandlerError::Status(Status::unavailable(""));
        assert_eq!(reason(&failure_of(&status)), "AGENT_ERROR");
    }
}
