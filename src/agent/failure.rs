//! How a handler says that it failed: any error by `?`, or a sentence.

use std::error::Error;

use tonic::Status;

use crate::domain::Reason;
use crate::pb;
use crate::wire::status;

/// The end of an attempt that failed. Made of any error, or by [`failure`].
#[derive(Clone, Debug, PartialEq)]
pub struct Failure(pub(super) pb::Failure);

/// A failure with a sentence for the caller.
pub fn failure(message: impl Into<String>) -> Failure {
    Failure(pb::Failure {
        reason: Reason::AgentError.label().into(),
        message: message.into(),
        code: status::code(Reason::AgentError).into(),
        retryable: false,
        details: None,
    })
}

impl Failure {
    /// The same, and a retry of the task may help.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.0.retryable = true;
        self
    }

    /// The same, with a stable reason of the agent's own, in `UPPER_SNAKE`.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.0.reason = reason.into();
        self
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let any: &(dyn Error + 'static) = &error;
        let Some(answered) = any.downcast_ref::<Status>() else {
            return failure(error.to_string());
        };
        let mut told = failure(answered.message());
        told.0.code = answered.code().into();
        if let Some(reason) = status::reason_of(answered) {
            told.0.reason = reason;
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Fault;

    #[test]
    fn errors_become_failures_and_statuses_keep_their_reason() {
        let plain = Failure::from("x".parse::<u8>().unwrap_err());
        assert_eq!(plain.0.reason, "AGENT_ERROR");
        assert!(plain.0.message.contains("digit"), "{}", plain.0.message);
        let status = Status::from(Fault::new(Reason::NoRoute, "nobody"));
        let told = Failure::from(status).0;
        assert_eq!(
            (told.reason.as_str(), told.message.as_str()),
            ("NO_ROUTE", "nobody")
        );
    }
}
