//! What the end of a call says about its callee.

use std::time::Duration;

use tonic::Code;

/// What a call says about the instance that it went to; never about the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered as it should. A refusal of the request is an answer.
    Success,
    /// It could not be reached, broke off, or failed on its own account.
    Failure,
    /// It has too much to do. Counts in the rate and not in the row; with a time: it asks to be left
    /// alone that long.
    Overload(Option<Duration>),
    /// Nothing: the caller gave up, or the call never went out.
    Neutral,
}

impl Outcome {
    /// By status code. Validation, authorization and answers of the application never count as
    /// failures; a deadline counts only where the callee had most of the time that there was.
    pub fn of(code: Code) -> Self {
        match code {
            Code::Unavailable
            | Code::Internal
            | Code::Unknown
            | Code::DataLoss
            | Code::DeadlineExceeded => Self::Failure,
            Code::ResourceExhausted => Self::Overload(None),
            Code::Cancelled => Self::Neutral,
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Self::Success,
        }
    }

    /// Whether it is bad news.
    pub(super) fn is_bad(self) -> bool {
        matches!(self, Self::Failure | Self::Overload(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_caller_did_wrong_is_never_held_against_the_callee() {
        for code in 0..17 {
            let code = Code::from_i32(code);
            let bad = matches!(
                code,
                Code::Unavailable
                    | Code::Internal
                    | Code::Unknown
                    | Code::DataLoss
                    | Code::DeadlineExceeded
                    | Code::ResourceExhausted
            );
            assert_eq!(Outcome::of(code).is_bad(), bad, "{code:?}");
        }
        assert_eq!(Outcome::of(Code::Cancelled), Outcome::Neutral);
        assert_eq!(Outcome::of(Code::PermissionDenied), Outcome::Success);
    }
}
