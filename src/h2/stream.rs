//! The life of one stream (RFC 9113 sections 5.1 and 8.1).
//!
//! A stream is two messages that pass each other: what the peer sends and what we send. Each goes
//! from its head over its body to its end, and the states of section 5.1 are what the two say
//! together. Pure: knows no frames, no windows and no identifiers. Pushed streams (the reserved
//! states) do not exist here: we say SETTINGS_ENABLE_PUSH 0 and refuse PUSH_PROMISE.
//!
//! ```text
//!   one side:   Head --HEADERS--> Body --END_STREAM (of HEADERS, DATA or trailers)--> Ended
//!                 '--HEADERS 1xx--> Head (answers only)
//!
//!                         received
//!             | Head or Body          | Ended
//!   ----------+-----------------------+----------------------
//!   sent  H/B | open                  | half-closed (remote)
//!       Ended | half-closed (local)   | closed
//!
//!   RST_STREAM, sent or received, closes from everywhere: the stream leaves the table.
//!   Idle streams are not in the table yet; see `connection::streams` for both edges.
//! ```

use super::frame::ErrorCode;

/// How far one message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Its header section has not passed yet.
    Head,
    /// DATA may pass, and trailers.
    Body,
    /// Nothing more will pass.
    Ended,
}

/// What a block of fields is, by where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A request's or a final answer's header section.
    Head,
    /// An answer of status 1xx: the final one is still to come.
    Interim,
    /// The trailer section.
    Trailers,
}

/// A frame that its stream's state does not allow: an error of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// HEADERS or DATA after END_STREAM.
    #[error("HEADERS or DATA after the end of the stream")]
    AfterEnd,
    /// DATA before any HEADERS.
    #[error("DATA before the header section")]
    NoHead,
    /// A second header block that does not end the stream.
    #[error("a trailer section without END_STREAM")]
    Unending,
    /// An interim answer that ends the stream.
    #[error("an interim answer with END_STREAM")]
    InterimEnds,
}

impl Violation {
    /// The code to reset the stream with.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::AfterEnd => ErrorCode::StreamClosed,
            Self::NoHead | Self::Unending | Self::InterimEnds => ErrorCode::Protocol,
        }
    }
}

impl Side {
    /// A whole block of fields passes.
    ///
    /// # Errors
    /// A [`Violation`]; the state is as before.
    #[inline]
    pub fn block(&mut self, interim: bool, end: bool) -> Result<Part, Violation> {
        let part = match (*self, interim, end) {
            (Self::Ended, _, _) => return Err(Violation::AfterEnd),
            (Self::Head, true, true) => return Err(Violation::InterimEnds),
            (Self::Head, true, false) => return Ok(Part::Interim),
            (Self::Head, false, _) => Part::Head,
            (Self::Body, _, true) => Part::Trailers,
            (Self::Body, _, false) => return Err(Violation::Unending),
        };
        *self = if end { Self::Ended } else { Self::Body };
        Ok(part)
    }

    /// A DATA frame passes.
    ///
    /// # Errors
    /// A [`Violation`]; the state is as before.
    #[inline]
    pub fn data(&mut self, end: bool) -> Result<(), Violation> {
        match *self {
            Self::Head => Err(Violation::NoHead),
            Self::Ended => Err(Violation::AfterEnd),
            Self::Body => {
                if end {
                    *self = Self::Ended;
                }
                Ok(())
            }
        }
    }

    /// Whether nothing more passes.
    #[inline]
    pub fn ended(self) -> bool {
        self == Self::Ended
    }
}

/// Both messages of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// What the peer sends.
    pub received: Side,
    /// What we send.
    pub sent: Side,
}

/// The state by its name in section 5.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// Nothing passed yet.
    Idle,
    /// Both sides may send.
    Open,
    /// We have ended.
    HalfClosedLocal,
    /// The peer has ended.
    HalfClosedRemote,
    /// Both have ended.
    Closed,
}

impl State {
    /// Nothing has passed.
    pub const IDLE: Self = Self {
        received: Side::Head,
        sent: Side::Head,
    };

    /// Whether both sides have ended.
    #[inline]
    pub fn closed(self) -> bool {
        self.received.ended() && self.sent.ended()
    }

    /// The state's name in RFC 9113 section 5.1.
    pub fn name(self) -> Name {
        match (self.received, self.sent) {
            (Side::Head, Side::Head) => Name::Idle,
            (Side::Ended, Side::Ended) => Name::Closed,
            (Side::Ended, Side::Head | Side::Body) => Name::HalfClosedRemote,
            (Side::Head | Side::Body, Side::Ended) => Name::HalfClosedLocal,
            (Side::Head | Side::Body, Side::Head | Side::Body) => Name::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What passes on one side, and what becomes of it.
    #[derive(Debug, Clone, Copy)]
    enum Pass {
        Block { interim: bool, end: bool },
        Data { end: bool },
    }

    fn pass(side: &mut Side, what: Pass) -> Result<Option<Part>, Violation> {
        match what {
            Pass::Block { interim, end } => side.block(interim, end).map(Some),
            Pass::Data { end } => side.data(end).map(|()| None),
        }
    }

    #[test]
    fn every_frame_in_every_state() {
        use Part::{Head as H, Interim, Trailers};
        use Side::{Body, Ended, Head};
        use Violation::{AfterEnd, InterimEnds, NoHead, Unending};
        let block = |interim, end| Pass::Block { interim, end };
        let data = |end| Pass::Data { end };
        for (from, what, to, answer) in [
            (Head, block(false, false), Body, Ok(Some(H))),
            (Head, block(false, true), Ended, Ok(Some(H))),
            (Head, block(true, false), Head, Ok(Some(Interim))),
            (Head, block(true, true), Head, Err(InterimEnds)),
            (Head, data(false), Head, Err(NoHead)),
            (Head, data(true), Head, Err(NoHead)),
            (Body, data(false), Body, Ok(None)),
            (Body, data(true), Ended, Ok(None)),
            (Body, block(false, true), Ended, Ok(Some(Trailers))),
            (Body, block(false, false), Body, Err(Unending)),
            (Body, block(true, false), Body, Err(Unending)),
            (Ended, data(false), Ended, Err(AfterEnd)),
            (Ended, data(true), Ended, Err(AfterEnd)),
            (Ended, block(false, true), Ended, Err(AfterEnd)),
            (Ended, block(true, false), Ended, Err(AfterEnd)),
        ] {
            let mut side = from;
            assert_eq!(pass(&mut side, what), answer, "{from:?} {what:?}");
            assert_eq!(side, to, "{from:?} {what:?}");
        }
        assert_eq!(AfterEnd.code(), ErrorCode::StreamClosed);
        assert_eq!(Unending.code(), ErrorCode::Protocol);
    }

    #[test]
    fn the_two_sides_name_the_state() {
        use Side::{Body, Ended, Head};
        for (received, sent, name) in [
            (Head, Head, Name::Idle),
            (Body, Head, Name::Open),
            (Body, Body, Name::Open),
            (Ended, Head, Name::HalfClosedRemote),
            (Body, Ended, Name::HalfClosedLocal),
            (Ended, Ended, Name::Closed),
        ] {
            let state = State { received, sent };
            assert_eq!(state.name(), name);
            assert_eq!(state.closed(), name == Name::Closed);
        }
    }

    proptest! {
        /// Whatever comes: one head at most, one trailer section at most, nothing after the end.
        #[test]
        fn a_side_lets_a_well_formed_message_through_and_no_more(
            passes in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..12),
        ) {
            let (mut side, mut seen) = (Side::Head, Vec::new());
            for (is_data, interim, end) in passes {
                let what = if is_data { Pass::Data { end } } else { Pass::Block { interim, end } };
                let before = side;
                match pass(&mut side, what) {
                    Ok(part) => {
                        prop_assert!(!before.ended());
                        seen.push(part);
                        prop_assert_eq!(side.ended(), end);
                    }
                    Err(_) => prop_assert_eq!(side, before),
                }
            }
            let heads = seen.iter().filter(|part| **part == Some(Part::Head)).count();
            let trailers = seen.iter().position(|part| *part == Some(Part::Trailers));
            prop_assert!(heads <= 1 && trailers.is_none_or(|at| at + 1 == seen.len()));
        }
    }
}
