//! What a look finds, in words for metrics, logs and `/readyz`.

use std::{borrow::Cow, error::Error as _};

use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use super::verdict::Look;

/// Longest piece of an agent's own sentence that is passed on, in characters.
const SENTENCE_MAX: usize = 200;

/// One look, and what is wrong with the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) look: Look,
    /// A sentence without its end; empty where nothing is wrong.
    pub(super) why: Cow<'static, str>,
}

/// The agent does not serve what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unserved;

impl Found {
    /// Nothing is wrong.
    pub(super) const SERVING: Self = Self {
        look: Look::Serving,
        why: Cow::Borrowed(""),
    };

    /// A look that found something else.
    pub(super) fn new(look: Look, why: impl Into<Cow<'static, str>>) -> Self {
        let why = why.into();
        Self { look, why }
    }

    /// What an answer of the agent's health service says; `declined`: as what its refusal counts.
    pub(super) fn answer(status: i32, service: &str, declined: Look) -> Self {
        match ServingStatus::try_from(status) {
            Ok(ServingStatus::Serving) => Self::SERVING,
            Ok(ServingStatus::NotServing) => Self::new(declined, "the agent says NOT_SERVING"),
            Ok(ServingStatus::ServiceUnknown) => Self::unknown(declined, service),
            Ok(ServingStatus::Unknown) | Err(_) => {
                Self::new(declined, "the agent's health service says UNKNOWN")
            }
        }
    }

    /// What an error of such a call says.
    ///
    /// # Errors
    /// [`Unserved`].
    pub(super) fn error(status: &Status, service: &str) -> Result<Self, Unserved> {
        // Of the connection, not of the agent.
        if status.source().is_some() {
            return Ok(Self::new(
                Look::Cut,
                "the agent's connection ended under a health check",
            ));
        }
        let code = status.code();
        if code == Code::Unimplemented {
            return Err(Unserved);
        }
        if code == Code::NotFound {
            return Ok(Self::unknown(Look::Missed, service));
        }
        let said: String = status.message().chars().take(SENTENCE_MAX).collect();
        let why = format!("the agent's health service fails with {code:?}: {said}");
        Ok(Self::new(Look::Missed, why))
    }

    fn unknown(look: Look, service: &str) -> Self {
        let why = format!(
            "the agent's health service does not know the service {service:?}: set \
             `agent_health_service` to one that it knows, or `agent_health` to \"connect\""
        );
        Self::new(look, why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_serving_serves_and_only_unimplemented_is_unserved() {
        for (status, look) in [
            (ServingStatus::Serving as i32, Look::Serving),
            (ServingStatus::NotServing as i32, Look::Declined),
            (ServingStatus::ServiceUnknown as i32, Look::Declined),
            (ServingStatus::Unknown as i32, Look::Declined),
            (77, Look::Declined),
        ] {
            let found = Found::answer(status, "x", Look::Declined);
            assert_eq!(found.look, look, "{status}");
            assert_eq!(found.why.is_empty(), look == Look::Serving, "{status}");
        }
        for (status, look) in [
            (Status::unimplemented(""), Err(Unserved)),
            (Status::not_found(""), Ok(Look::Missed)),
            (Status::unavailable("loading"), Ok(Look::Missed)),
            (
                Status::from_error(std::io::Error::other("reset").into()),
                Ok(Look::Cut),
            ),
        ] {
            let found = Found::error(&status, "x").map(|found| found.look);
            assert_eq!(found, look, "{status:?}");
        }
        let unknown = Found::error(&Status::not_found(""), "my.Service").unwrap();
        assert!(unknown.why.contains("my.Service"), "{}", unknown.why);
    }
}
