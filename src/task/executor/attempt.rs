//! The updates of one attempt: numbered from 1, kept until the home has them on disk.
//!
//! Plain data: no stream, no clock. Refuses acknowledgements of what was never said.
//!
//! ```text
//!   Open --the last update--> Closed --all acknowledged--> Settled
//! ```

use std::collections::VecDeque;

use prost::Message as _;

use crate::pb;

/// Unacknowledged bytes from which on the handler is not read any further. A home on a slow disk
/// holds its agents back instead of filling this process.
pub const UNACKNOWLEDGED_MAX: usize = 1 << 20;

/// How far an attempt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// More updates may come.
    Open,
    /// The last update is in; the home lacks some.
    Closed,
    /// The home has everything: the attempt may be forgotten.
    Settled,
}

/// What is told with the last update.
#[derive(Clone, Copy, Debug, Default)]
pub struct Last {
    /// The handler did not end by itself.
    pub cut: bool,
    /// Tasks that were made below the attempt, or may yet be by those.
    pub used: u32,
}

/// A home that speaks of updates which do not exist, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// Beyond the last.
    #[error("update {update} does not exist yet: the last one is {last}")]
    Ahead {
        /// Named by the home.
        update: u64,
        /// Number of the last update, 0 before the first.
        last: u64,
    },
    /// Acknowledged before, so it was let go.
    #[error("the updates after {update} are gone: those up to {acknowledged} were acknowledged")]
    Gone {
        /// Named by the home.
        update: u64,
        /// Acknowledged before.
        acknowledged: u64,
    },
}

/// The numbered updates of one attempt.
#[derive(Debug, Default)]
pub struct Attempt {
    kept: VecDeque<(pb::NumberedUpdate, usize)>,
    kept_bytes: usize,
    acknowledged: u64,
    closed: bool,
}

impl Attempt {
    /// An attempt that has said nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an update and gives its number; `None` once the last one is in.
    pub fn push(&mut self, update: pb::HandleResponse, last: Option<Last>) -> Option<u64> {
        if self.closed {
            return None;
        }
        let number = self.last() + 1;
        let bytes = update.encoded_len();
        self.kept_bytes += bytes;
        self.closed = last.is_some();
        let update = pb::NumberedUpdate {
            number,
            update: Some(update),
            cut: last.is_some_and(|last| last.cut),
            // None is said, too: who says nothing does not count.
            descendants_used: last.map(|last| last.used),
        };
        self.kept.push_back((update, bytes));
        Some(number)
    }

    /// Lets go of everything up to `update`, which the home has on disk.
    ///
    /// # Errors
    /// [`CursorError::Ahead`]; an old acknowledgement changes nothing.
    pub fn acknowledge(&mut self, update: u64) -> Result<(), CursorError> {
        let last = self.last();
        if update > last {
            return Err(CursorError::Ahead { update, last });
        }
        while self.acknowledged < update {
            if let Some((_, bytes)) = self.kept.pop_front() {
                self.kept_bytes -= bytes;
            }
            self.acknowledged += 1;
        }
        Ok(())
    }

    /// The home has all up to `update` and wants the rest.
    ///
    /// # Errors
    /// Both of [`CursorError`].
    pub fn resume(&mut self, update: u64) -> Result<(), CursorError> {
        if update < self.acknowledged {
            return Err(CursorError::Gone {
                update,
                acknowledged: self.acknowledged,
            });
        }
        self.acknowledge(update)
    }

    /// The update that follows `number`, if it was said and is still kept.
    pub fn after(&self, number: u64) -> Option<&pb::NumberedUpdate> {
        let place = number.checked_sub(self.acknowledged)?;
        let place = usize::try_from(place).ok()?;
        self.kept.get(place).map(|(update, _)| update)
    }

    /// Number of the last update; 0 before the first.
    pub fn last(&self) -> u64 {
        self.acknowledged + self.kept.len() as u64
    }

    /// Number up to which the home has everything.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Whether one more update may be taken from the handler.
    pub fn has_room(&self) -> bool {
        self.kept_bytes < UNACKNOWLEDGED_MAX
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        match (self.closed, self.kept.is_empty()) {
            (false, _) => Phase::Open,
            (true, false) => Phase::Closed,
            (true, true) => Phase::Settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(text: &str) -> pb::HandleResponse {
        let progress = pb::Progress {
            message: text.into(),
            ..pb::Progress::default()
        };
        pb::HandleResponse {
            update: Some(pb::handle_response::Update::Progress(progress)),
        }
    }

    #[test]
    fn nothing_follows_the_last_and_all_acknowledged_settles() {
        let mut attempt = Attempt::new();
        assert_eq!(attempt.push(said("a"), None), Some(1));
        assert_eq!(attempt.phase(), Phase::Open);
        assert_eq!(attempt.push(said("b"), Some(Last::default())), Some(2));
        assert_eq!(attempt.push(said("c"), None), None);
        assert_eq!(attempt.phase(), Phase::Closed);
        attempt.acknowledge(1).unwrap();
        assert_eq!(attempt.phase(), Phase::Closed);
        attempt.acknowledge(2).unwrap();
        assert_eq!(attempt.phase(), Phase::Settled);
    }

    #[test]
    fn cursors_outside_of_what_is_kept_are_refused() {
        let mut attempt = Attempt::new();
        attempt.push(said("a"), None);
        attempt.push(said("b"), None);
        assert_eq!(
            attempt.acknowledge(3),
            Err(CursorError::Ahead { update: 3, last: 2 })
        );
        attempt.acknowledge(2).unwrap();
        attempt.acknowledge(1).unwrap();
        let gone = CursorError::Gone {
            update: 1,
            acknowledged: 2,
        };
        assert_eq!(attempt.resume(1), Err(gone));
        assert_eq!(attempt.resume(2), Ok(()));
    }

    #[test]
    fn a_home_that_does_not_acknowledge_holds_the_handler_back() {
        let mut attempt = Attempt::new();
        let text = "x".repeat(UNACKNOWLEDGED_MAX / 4);
        for _ in 0..4 {
            assert!(attempt.has_room());
            attempt.push(said(&text), None);
        }
        assert!(!attempt.has_room());
        attempt.acknowledge(2).unwrap();
        assert!(attempt.has_room());
    }

    #[derive(Clone, Debug)]
    enum Turn {
        Say,
        Receive,
        Acknowledge,
        Reconnect,
    }

    proptest! {
        #[test]
        fn any_cuts_and_resumes_deliver_each_update_once_in_order(
            turns in prop::collection::vec(
                prop_oneof![
                    3 => Just(Turn::Say),
                    3 => Just(Turn::Receive),
                    1 => Just(Turn::Acknowledge),
                    1 => Just(Turn::Reconnect),
                ],
                0..200,
            )
        ) {
            let mut attempt = Attempt::new();
            // What the home has; what the stream carried, which is lost with it.
            let (mut has, mut on_stream, mut said_so_far) = (Vec::new(), 0, 0_u64);
            for turn in turns.into_iter().chain([Turn::Reconnect]) {
                match turn {
                    Turn::Say => {
                        said_so_far += 1;
                        prop_assert_eq!(attempt.push(said("x"), None), Some(said_so_far));
                    }
                    Turn::Receive => {
                        if let Some(update) = attempt.after(on_stream) {
                            has.push(update.number);
                            on_stream = update.number;
                        }
                    }
                    Turn::Acknowledge => attempt.acknowledge(has.len() as u64).unwrap(),
                    Turn::Reconnect => {
                        on_stream = has.len() as u64;
                        attempt.resume(on_stream).unwrap();
                    }
                }
            }
            while let Some(update) = attempt.after(on_stream) {
                on_stream = update.number;
                has.push(on_stream);
            }
            prop_assert_eq!(has, (1..=said_so_far).collect::<Vec<_>>());
        }
    }
}
