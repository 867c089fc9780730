//! Faults to gRPC statuses and back: the one place that knows which reason has which code.

use std::{collections::HashMap, time::Duration};

use prost_types::{Struct, Value, value::Kind};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::domain::{Fault, Reason};
use crate::pb;

/// `ErrorInfo.domain` of every status that we make.
pub const ERROR_DOMAIN: &str = "attache";

/// The gRPC code of a reason.
pub fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidField
        | Reason::PayloadTooLarge
        | Reason::InputInvalid
        | Reason::SequenceAhead
        | Reason::ParentTokenInvalid
        | Reason::PageTokenInvalid
        | Reason::ProtocolViolation
        | Reason::InvalidCsr => Code::InvalidArgument,
        Reason::Unimplemented => Code::Unimplemented,
        Reason::PermissionDenied
        | Reason::IdentityMismatch
        | Reason::OperatorsOnly
        | Reason::TokenRefused
        | Reason::OutOfScope
        | Reason::RejoinRefused
        | Reason::GenerationStale => Code::PermissionDenied,
        Reason::IdempotencyKeyReused => Code::AlreadyExists,
        Reason::Unauthenticated => Code::Unauthenticated,
        Reason::TaskNotFound
        | Reason::QuestionNotFound
        | Reason::ArtifactNotFound
        | Reason::AgentNotFound
        | Reason::RuleNotFound
        | Reason::LeaseUnknown => Code::NotFound,
        Reason::TaskNotCancelable
        | Reason::TaskEnded
        | Reason::TaskAsksNothing
        | Reason::QuestionAnswered
        | Reason::HomeElsewhere
        | Reason::NotOwnAgent
        | Reason::DelegationLoop
        | Reason::ContractChanged
        | Reason::NotAttachable
        | Reason::AttemptStale => Code::FailedPrecondition,
        Reason::SequenceGone => Code::OutOfRange,
        Reason::HomeUnavailable
        | Reason::NoRoute
        | Reason::AgentLost
        | Reason::AgentUnavailable
        | Reason::Draining
        | Reason::PeerUnreachable
        | Reason::PeerMismatch
        | Reason::FaultInjected
        | Reason::ConnectionLost => Code::Unavailable,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::RetriesExhausted | Reason::RuleChanged => Code::Aborted,
        Reason::QueueFull
        | Reason::DiskFull
        | Reason::ContentTooLarge
        | Reason::SlotsFull
        | Reason::RulesFull
        | Reason::DescendantsExhausted
        | Reason::RateLimited => Code::ResourceExhausted,
        Reason::AgentError | Reason::OutputInvalid => Code::Unknown,
        Reason::StorageFailed | Reason::Internal => Code::Internal,
        Reason::ContentDamaged => Code::DataLoss,
    }
}

/// The status of a fault, with its `google.rpc` details.
pub fn to_status(fault: Fault) -> Status {
    let facts: HashMap<String, String> = fault
        .metadata
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let mut details = ErrorDetails::new();
    details.set_error_info(fault.reason.label(), ERROR_DOMAIN, facts);
    if let Some(field) = fault.field {
        details.add_bad_request_violation(field, fault.text.clone());
    }
    if let Some(wait) = fault.retry_after {
        details.set_retry_info(Some(wait));
    }
    Status::with_error_details(code(fault.reason), fault.text, details)
}

/// The reason label in a status, if it is one of ours.
pub fn reason_of(status: &Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    (info.domain == ERROR_DOMAIN).then_some(info.reason)
}

/// How long a status asks to wait before another try.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// How a task fails that was refused because of its input: with all that the status says of it.
pub fn failure_of(status: &Status) -> Option<pb::Failure> {
    let info = status.get_details_error_info()?;
    if info.domain != ERROR_DOMAIN || info.reason != Reason::InputInvalid.label() {
        return None;
    }
    let fact = |text| Value {
        kind: Some(Kind::StringValue(text)),
    };
    let facts = info.metadata.into_iter();
    Some(pb::Failure {
        reason: info.reason,
        message: status.message().to_owned(),
        code: status.code().into(),
        retryable: false,
        details: Some(Struct {
            fields: facts.map(|(name, text)| (name, fact(text))).collect(),
        }),
    })
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        to_status(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_carries_reason_field_and_wait() {
        let fault = Fault {
            retry_after: Some(Duration::from_secs(2)),
            ..Fault::field("a.b", "no")
        };
        let status = to_status(fault.with("k", "v"));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(reason_of(&status).as_deref(), Some("INVALID_FIELD"));
        assert_eq!(retry_after(&status), Some(Duration::from_secs(2)));
        let field = status
            .get_details_bad_request()
            .unwrap()
            .field_violations
            .remove(0);
        assert_eq!(
            (field.field.as_str(), field.description.as_str()),
            ("a.b", "no")
        );
        assert_eq!(status.get_details_error_info().unwrap().metadata["k"], "v");
    }

    #[test]
    fn no_reason_is_ok_or_cancelled() {
        for reason in Reason::ALL {
            assert!(
                !matches!(code(*reason), Code::Ok | Code::Cancelled),
                "{reason}"
            );
        }
    }
}
