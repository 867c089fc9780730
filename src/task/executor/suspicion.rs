//! What the executor sees of its own agent: calls in a row that never got a word out of it.
//!
//! Pure but for the counter that it moves on. It condemns nobody: whoever probes the agent looks at
//! once, and decides.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Code;

use super::course::Said;
use super::handler::HandlerError;

/// Calls in a row without a word that make an agent suspect: as many as missed probes make it
/// unhealthy.
const SUSPECT: u32 = 3;

/// What the first words of a handler say about its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    /// It works, be it by refusing.
    Answered,
    /// It could not be reached, went away, or is UNAVAILABLE.
    Silent,
}

impl Sight {
    fn of(first: &Said) -> Self {
        match first {
            Said::Failed(HandlerError::Unreachable(_) | HandlerError::Lost(_)) => Self::Silent,
            Said::Failed(HandlerError::Status(status)) if status.code() == Code::Unavailable => {
                Self::Silent
            }
            Said::Failed(HandlerError::Status(_)) | Said::Update(_) | Said::Ended => Self::Answered,
        }
    }
}

/// Counts what is seen.
#[derive(Debug, Default)]
struct Suspicion {
    silent: u32,
}

impl Suspicion {
    /// Takes one call in; whether the agent is suspect now. It begins to count anew then.
    fn note(&mut self, sight: Sight) -> bool {
        match sight {
            Sight::Answered => self.silent = 0,
            Sight::Silent => self.silent += 1,
        }
        let suspect = self.silent >= SUSPECT;
        if suspect {
            self.silent = 0;
        }
        suspect
    }
}

/// Sees the attempts of one executor. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Witness {
    seen: Arc<Mutex<Suspicion>>,
    suspicions: Arc<watch::Sender<u64>>,
}

impl Witness {
    /// The first words of a handler.
    pub(super) fn saw(&self, first: &Said) {
        if self.seen.lock().note(Sight::of(first)) {
            self.suspicions.send_modify(|suspicions| *suspicions += 1);
        }
    }

    /// Moves on when the agent becomes suspect.
    pub(super) fn suspicions(&self) -> watch::Receiver<u64> {
        self.suspicions.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;
    use crate::pb;

    #[test]
    fn three_silent_calls_in_a_row_are_suspect_and_no_two_are() {
        for (calls, suspicions) in [
            ("ss", 0),
            ("sss", 1),
            ("ssassa", 0),
            ("asssa", 1),
            ("sssss", 1),
            ("ssssss", 2),
        ] {
            let mut suspicion = Suspicion::default();
            let sights = calls.chars().map(|call| match call {
                's' => Sight::Silent,
                _ => Sight::Answered,
            });
            let times = sights.filter(|sight| suspicion.note(*sight)).count();
            assert_eq!(times, suspicions, "{calls}");
        }
    }

    #[test]
    fn only_silence_counts_against_an_agent() {
        let status = |code| Said::Failed(HandlerError::Status(Status::new(code, "")));
        let lost = HandlerError::Lost("reset".into());
        let unreachable = HandlerError::Unreachable("refused".into());
        for (said, sight) in [
            (Said::Failed(lost), Sight::Silent),
            (Said::Failed(unreachable), Sight::Silent),
            (status(Code::Unavailable), Sight::Silent),
            (status(Code::ResourceExhausted), Sight::Answered),
            (status(Code::InvalidArgument), Sight::Answered),
            (status(Code::Internal), Sight::Answered),
            (Said::Update(pb::HandleResponse::default()), Sight::Answered),
            (Said::Ended, Sight::Answered),
        ] {
            assert_eq!(Sight::of(&said), sight, "{said:?}");
        }
    }
}
