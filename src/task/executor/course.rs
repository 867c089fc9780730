//! The course of one handler call, from its first word to the moment its slot is free.
//!
//! Pure: the time is passed in, and the verdicts say what the runner has to do. A handler that
//! never ends is bounded by the deadline, and one that does not listen by [`CANCEL_GRACE`].
//!
//! ```text
//!   Running --last update--> Settling --its stream ends--> Over
//!      |                        '--1 s--> Lingering --ends, or 9 s--> Over
//!      |--abort, deadline--> Ending --its stream ends, or 10 s--> Over
//!      '--ends, fails, breaks the contract--> Over
//! ```

use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use super::handler::HandlerError;
use super::update::{self, Kind};
use crate::domain::Reason;
use crate::pb;

/// How long a handler that was asked to stop may take.
pub const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// How long the last update waits for the end of the stream, so that a second last one is caught.
pub(super) const SETTLE: Duration = Duration::from_secs(1);
/// How early a handler may say that its deadline has passed: clocks and timers are coarse.
const DEADLINE_SLACK: Duration = Duration::from_millis(50);

/// What came from the handler.
#[derive(Debug)]
pub(super) enum Said {
    /// A message of its stream.
    Update(pb::HandleResponse),
    /// Its stream ended with OK.
    Ended,
    /// Its stream ended otherwise.
    Failed(HandlerError),
}

/// What to do now.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Show it to whoever listens.
    Transient(pb::HandleResponse),
    /// Number it.
    Update(pb::HandleResponse),
    /// Number it as the last; `cut`: the handler had not ended by itself.
    Last {
        /// The last word.
        update: pb::HandleResponse,
        /// Whether the stream is reset.
        cut: bool,
    },
    /// Ask the handler to stop, for this reason.
    AskToStop(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Aborted,
    Deadline,
}

#[derive(Debug)]
enum Phase {
    Running,
    Settling {
        last: pb::HandleResponse,
        until: Instant,
    },
    Lingering {
        until: Instant,
    },
    Ending {
        why: Why,
        until: Instant,
    },
    Over,
}

/// One handler call.
#[derive(Debug)]
pub(super) struct Course {
    phase: Phase,
    deadline: Instant,
}

impl Course {
    /// A call that has to end by `deadline`.
    pub(super) fn new(deadline: Instant) -> Self {
        Self {
            phase: Phase::Running,
            deadline,
        }
    }

    /// Whether the handler has ended or is to be cut now: its slot is free.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Whether nobody has asked it to stop, and no last word was said.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// When to call [`Course::tick`] next.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Running => Some(self.deadline),
            Phase::Settling { until, .. }
            | Phase::Lingering { until }
            | Phase::Ending { until, .. } => Some(*until),
            Phase::Over => None,
        }
    }

    /// The handler said something.
    pub(super) fn hear(&mut self, said: Said, now: Instant) -> Option<Verdict> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Running => self.hear_running(said, now),
            Phase::Ending { why, until } => self.hear_ending(why, until, said, now),
            Phase::Settling { last, .. } => Some(match said {
                // The result is whole, whatever became of the process behind it.
                Said::Ended
                | Said::Failed(HandlerError::Lost(_) | HandlerError::Unreachable(_)) => {
                    Verdict::Last {
                        update: last,
                        cut: false,
                    }
                }
                Said::Failed(error @ HandlerError::Status(_)) => over(update::failure_of(&error)),
                Said::Update(_) => cut(update::failure(
                    Reason::AgentError,
                    "the agent sent an update after its last one",
                )),
            }),
            Phase::Lingering { .. } | Phase::Over => None,
        }
    }

    /// The home does not want it any more.
    pub(super) fn abort(&mut self, reason: &str, now: Instant) -> Option<Verdict> {
        if !matches!(self.phase, Phase::Running) {
            return None;
        }
        Some(self.stop(Why::Aborted, reason, now))
    }

    /// The agent cannot be asked to stop.
    pub(super) fn deaf(&mut self) -> Option<Verdict> {
        let Phase::Ending { why, .. } = self.phase else {
            return None;
        };
        self.phase = Phase::Over;
        Some(cut(ended(why)))
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Verdict> {
        if self.wake_at().is_none_or(|at| now < at) {
            return None;
        }
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Running => Some(self.stop(Why::Deadline, "the deadline has passed", now)),
            Phase::Settling { last, until } => {
                let until = until + (CANCEL_GRACE - SETTLE);
                self.phase = Phase::Lingering { until };
                Some(Verdict::Last {
                    update: last,
                    cut: false,
                })
            }
            Phase::Ending { why, .. } => Some(cut(ended(why))),
            Phase::Lingering { .. } | Phase::Over => None,
        }
    }

    fn stop(&mut self, why: Why, reason: &str, now: Instant) -> Verdict {
        let until = now + CANCEL_GRACE;
        self.phase = Phase::Ending { why, until };
        Verdict::AskToStop(reason.to_owned())
    }

    fn hear_running(&mut self, said: Said, now: Instant) -> Option<Verdict> {
        Some(match said {
            Said::Update(response) => return self.take(response, Phase::Running, now),
            Said::Ended => over(update::failure(
                Reason::AgentError,
                "the agent's stream ended without a result: end it with a result, a failure, \
                 a question, a rejection, a delegation or canceled",
            )),
            Said::Failed(HandlerError::Status(status))
                if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
                    && now + DEADLINE_SLACK >= self.deadline =>
            {
                over(ended(Why::Deadline))
            }
            Said::Failed(error) => over(update::failure_of(&error)),
        })
    }

    fn hear_ending(
        &mut self,
        why: Why,
        until: Instant,
        said: Said,
        now: Instant,
    ) -> Option<Verdict> {
        match (said, why) {
            (Said::Update(response), Why::Aborted) => {
                self.take(response, Phase::Ending { why, until }, now)
            }
            // Too late, whatever it is.
            (Said::Update(_), Why::Deadline) => {
                self.phase = Phase::Ending { why, until };
                None
            }
            (Said::Failed(HandlerError::Lost(_)), _) => Some(cut(ended(why))),
            (Said::Ended | Said::Failed(_), _) => Some(over(ended(why))),
        }
    }

    /// An update while `phase` goes on.
    fn take(
        &mut self,
        response: pb::HandleResponse,
        phase: Phase,
        now: Instant,
    ) -> Option<Verdict> {
        match update::sort(&response) {
            Ok(Kind::Last) => {
                self.phase = Phase::Settling {
                    last: update::own_words(response),
                    until: now + SETTLE,
                };
                None
            }
            Ok(kind) => {
                self.phase = phase;
                Some(match kind {
                    Kind::Transient => Verdict::Transient(response),
                    Kind::Numbered | Kind::Last => Verdict::Update(response),
                })
            }
            Err(sentence) => Some(cut(update::failure(Reason::AgentError, sentence))),
        }
    }
}

fn ended(why: Why) -> pb::HandleResponse {
    match why {
        Why::Aborted => update::canceled("cancelled as its caller asked"),
        Why::Deadline => update::failure(
            Reason::DeadlineExceeded,
            "the task's deadline passed while the agent worked on it",
        ),
    }
}

fn over(update: pb::HandleResponse) -> Verdict {
    Verdict::Last { update, cut: false }
}

fn cut(update: pb::HandleResponse) -> Verdict {
    Verdict::Last { update, cut: true }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;
    use crate::pb::handle_response::Update;

    const SECOND: Duration = Duration::from_secs(1);

    fn progress() -> Said {
        Said::Update(pb::HandleResponse {
            update: Some(Update::Progress(pb::Progress::default())),
        })
    }

    fn result() -> Said {
        Said::Update(pb::HandleResponse {
            update: Some(Update::Result(pb::TaskResult::default())),
        })
    }

    fn lost() -> Said {
        Said::Failed(HandlerError::Lost("reset".into()))
    }

    fn status() -> Said {
        Said::Failed(HandlerError::Status(Status::internal("boom")))
    }

    fn course() -> (Course, Instant) {
        let now = Instant::now();
        (Course::new(now + 60 * SECOND), now)
    }

    /// What the home would be told, with `!` where the handler was cut.
    fn told(verdict: Option<Verdict>) -> String {
        match verdict {
            None => "nothing".into(),
            Some(Verdict::Transient(_)) => "transient".into(),
            Some(Verdict::Update(_)) => "update".into(),
            Some(Verdict::AskToStop(_)) => "ask".into(),
            Some(Verdict::Last { update, cut }) => {
                let mark = if cut { "!" } else { "" };
                match &update.update {
                    Some(Update::Failure(failure)) => format!("{}{mark}", failure.reason),
                    Some(Update::Result(_)) => format!("result{mark}"),
                    Some(Update::Canceled(_)) => format!("canceled{mark}"),
                    _ => panic!("{update:?}"),
                }
            }
        }
    }

    #[test]
    fn every_end_of_a_handler_has_one_word() {
        let empty = || Said::Update(pb::HandleResponse { update: None });
        let table: Vec<(&str, Vec<Said>, &str)> = vec![
            ("ends at once", vec![Said::Ended], "AGENT_ERROR"),
            ("ends early", vec![progress(), Said::Ended], "AGENT_ERROR"),
            ("result", vec![result(), Said::Ended], "result"),
            ("crash", vec![progress(), lost()], "AGENT_LOST"),
            ("status", vec![status()], "AGENT_ERROR"),
            ("crash after the result", vec![result(), lost()], "result"),
            (
                "error after the result",
                vec![result(), status()],
                "AGENT_ERROR",
            ),
            ("two results", vec![result(), result()], "AGENT_ERROR!"),
            ("empty update", vec![empty()], "AGENT_ERROR!"),
        ];
        for (name, words, end) in table {
            let (mut course, now) = course();
            let last = words
                .into_iter()
                .map(|said| told(course.hear(said, now)))
                .last();
            assert_eq!(last.unwrap(), end, "{name}");
            assert!(course.is_over(), "{name}");
        }
    }

    #[test]
    fn a_cancelled_handler_is_confirmed_by_its_end_and_cut_after_the_grace() {
        for (said, end) in [
            (Some(Said::Ended), "canceled"),
            (Some(status()), "canceled"),
            (Some(lost()), "canceled!"),
            (None, "canceled!"),
        ] {
            let (mut course, now) = course();
            assert_eq!(told(course.abort("enough", now)), "ask");
            assert_eq!(course.abort("again", now), None);
            assert_eq!(told(course.hear(progress(), now)), "update");
            assert_eq!(course.tick(now + CANCEL_GRACE - SECOND), None);
            let last = match said {
                Some(said) => course.hear(said, now),
                None => course.tick(now + CANCEL_GRACE),
            };
            assert_eq!(told(last), end);
            assert!(course.is_over());
        }
        let (mut course, now) = course();
        course.abort("enough", now);
        assert_eq!(told(course.deaf()), "canceled!");
    }

    #[test]
    fn a_result_that_races_a_cancellation_is_told() {
        let (mut course, now) = course();
        course.abort("enough", now);
        assert_eq!(course.hear(result(), now), None);
        assert_eq!(told(course.hear(Said::Ended, now)), "result");
    }

    #[test]
    fn the_deadline_ends_what_never_ends() {
        let (mut course, now) = course();
        let due = now + 60 * SECOND;
        assert_eq!(course.tick(due - SECOND), None);
        assert_eq!(told(course.tick(due)), "ask");
        assert_eq!(course.hear(result(), due), None);
        assert_eq!(told(course.tick(due + CANCEL_GRACE)), "DEADLINE_EXCEEDED!");

        let (mut other, _) = (Course::new(due), ());
        let expired = Said::Failed(HandlerError::Status(Status::cancelled("timeout")));
        assert_eq!(told(other.hear(expired, due)), "DEADLINE_EXCEEDED");
    }

    #[test]
    fn cleaning_up_after_the_result_holds_the_slot_but_not_the_result() {
        let (mut course, now) = course();
        assert_eq!(course.hear(result(), now), None);
        assert_eq!(told(course.tick(now + SETTLE)), "result");
        assert!(!course.is_over());
        assert_eq!(course.tick(now + CANCEL_GRACE), None);
        assert!(course.is_over());
    }
}
