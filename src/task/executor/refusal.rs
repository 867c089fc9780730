//! Work that the agent has not begun: the home gives it to somebody else.
//!
//! Pure. What an agent says after its first update is never a refusal.

use std::time::Duration;

use tonic::{Code, Status, metadata::MetadataMap};

use super::course::Said;
use super::handler::HandlerError;
use crate::wire::status;

/// Metadata or trailer by which an agent says that it has not begun; its value is `1`.
const NOT_PROCESSED: &str = "attache-not-processed";
/// When to come again, in milliseconds, as gRPC's retry design has it.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// When a home may offer work again to an agent that says nothing of it.
pub(super) const AGENT_RETRY: Duration = Duration::from_secs(1);
/// Longest wait that an agent may ask for: it may not put itself out of use for ever.
const RETRY_MOST: Duration = Duration::from_secs(300);

/// When to offer work here again, where these first words of a handler say that the work was not
/// begun.
pub(super) fn refusal(first: &Said) -> Option<Duration> {
    match first {
        Said::Failed(HandlerError::Unreachable(_)) => Some(AGENT_RETRY),
        Said::Failed(HandlerError::Status(status)) if not_processed(status) => Some(wait(status)),
        Said::Failed(HandlerError::Status(_) | HandlerError::Lost(_))
        | Said::Update(_)
        | Said::Ended => None,
    }
}

fn not_processed(status: &Status) -> bool {
    let marked = text(status.metadata(), NOT_PROCESSED) == Some("1");
    marked && matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
}

/// The pushback wins over the details. A negative or unreadable one means: not again, if possible.
fn wait(status: &Status) -> Duration {
    let asked = match status.metadata().get(PUSHBACK) {
        None => status::retry_after(status).unwrap_or(AGENT_RETRY),
        Some(_) => text(status.metadata(), PUSHBACK)
            .and_then(|millis| millis.trim().parse().ok())
            .map_or(RETRY_MOST, Duration::from_millis),
    };
    asked.min(RETRY_MOST)
}

fn text<'a>(metadata: &'a MetadataMap, key: &str) -> Option<&'a str> {
    metadata.get(key)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;
    use crate::pb;

    type Marks = &'static [(&'static str, &'static str)];

    fn said(code: Code, marks: Marks) -> Said {
        let mut details = ErrorDetails::new();
        details.set_retry_info(Some(Duration::from_secs(7)));
        let mut status = Status::with_error_details(code, "no", details);
        for (key, value) in marks {
            status.metadata_mut().insert(*key, value.parse().unwrap());
        }
        Said::Failed(HandlerError::Status(status))
    }

    #[test]
    fn only_what_was_not_begun_is_refused_and_the_wait_is_bounded() {
        const MARK: (&str, &str) = (NOT_PROCESSED, "1");
        let millis = |millis| Some(Duration::from_millis(millis));
        let table: [(Code, Marks, Option<Duration>); 12] = [
            (Code::Unavailable, &[MARK], millis(7000)),
            (Code::ResourceExhausted, &[MARK], millis(7000)),
            (Code::Unavailable, &[], None),
            (Code::ResourceExhausted, &[], None),
            (Code::Unavailable, &[(NOT_PROCESSED, "0")], None),
            (Code::Internal, &[MARK], None),
            (Code::InvalidArgument, &[MARK], None),
            (Code::Unavailable, &[MARK, (PUSHBACK, "40")], millis(40)),
            (Code::Unavailable, &[MARK, (PUSHBACK, "0")], millis(0)),
            (
                Code::Unavailable,
                &[MARK, (PUSHBACK, "900000")],
                Some(RETRY_MOST),
            ),
            (
                Code::Unavailable,
                &[MARK, (PUSHBACK, "-1")],
                Some(RETRY_MOST),
            ),
            (
                Code::Unavailable,
                &[MARK, (PUSHBACK, "soon")],
                Some(RETRY_MOST),
            ),
        ];
        for (code, marks, wait) in table {
            assert_eq!(refusal(&said(code, marks)), wait, "{code:?} {marks:?}");
        }
        let bare = Status::unavailable("");
        let mut marked = bare.clone();
        marked
            .metadata_mut()
            .insert(NOT_PROCESSED, "1".parse().unwrap());
        let status = |status| Said::Failed(HandlerError::Status(status));
        assert_eq!(refusal(&status(marked)), Some(AGENT_RETRY));
        assert_eq!(refusal(&status(bare)), None);
    }

    #[test]
    fn what_was_never_sent_was_not_begun() {
        let unsent = Said::Failed(HandlerError::Unreachable("refused".into()));
        assert_eq!(refusal(&unsent), Some(AGENT_RETRY));
        let lost = Said::Failed(HandlerError::Lost("reset".into()));
        assert_eq!(refusal(&lost), None);
        assert_eq!(refusal(&Said::Update(pb::HandleResponse::default())), None);
    }
}
