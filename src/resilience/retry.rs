//! What may be tried again. Only where it cannot be done twice, or may be.

use std::time::Duration;

use tonic::Code;

use super::settings::RetrySettings;

/// What doing it twice would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safety {
    /// Nothing: it reads, or says the same again.
    Read,
    /// Nothing: it carries a key by which the second is known.
    Keyed,
    /// It may do harm.
    Once,
}

/// How far a call had come when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing of it was sent, or the peer said that it had not looked at it: no connection,
    /// REFUSED_STREAM, a GOAWAY that does not count it in.
    NotSent,
    /// It was sent, and nothing came back.
    Sent,
    /// Response headers or a first message had come.
    Answered,
}

/// What the callee said about when (gRFC A6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// After this long.
    After(Duration),
    /// Not at all.
    Never,
}

/// A try that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// With what.
    pub code: Code,
    /// How far it had come.
    pub progress: Progress,
    /// The callee says that it did nothing (`attache-not-processed: 1`).
    pub not_processed: bool,
    /// When it wants to see the next try.
    pub pushback: Option<Pushback>,
    /// Whether somebody nearer to the failure has tried again already, and gave up
    /// (`attache-retry-exhausted`).
    pub exhausted: bool,
    /// Tries so far, at least 1.
    pub tries: u32,
}

/// How long to wait before the next try, on another instance; `None`: there is none. `chance` from 0
/// to 1 picks within the backoff. The budget is asked after this.
pub fn retry_after(
    safety: Safety,
    failed: &Failed,
    settings: &RetrySettings,
    chance: f64,
) -> Option<Duration> {
    let attempts = settings.attempts.clamp(1, RetrySettings::ATTEMPTS_MAX);
    if failed.exhausted || failed.tries >= attempts || !is_safe(safety, failed) {
        return None;
    }
    match failed.pushback {
        Some(Pushback::Never) => None,
        Some(Pushback::After(wait)) => Some(wait),
        None => Some(backoff(settings, failed.tries, chance)),
    }
}

/// Wait before the next try after so many, at least 1: any time up to a ceiling that doubles (full
/// jitter). For calls that are never given up, such as those that were accepted for good.
pub fn backoff(settings: &RetrySettings, tries: u32, chance: f64) -> Duration {
    let doublings = tries.saturating_sub(1);
    let ceiling = settings
        .base
        .saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
    ceiling.min(settings.max).mul_f64(chance.clamp(0.0, 1.0))
}

fn is_safe(safety: Safety, failed: &Failed) -> bool {
    let harmless = safety != Safety::Once;
    match failed.progress {
        Progress::NotSent => return true,
        Progress::Answered => return false,
        Progress::Sent => {}
    }
    match failed.code {
        Code::Unavailable => harmless || failed.not_processed,
        Code::ResourceExhausted => failed.pushback.is_some() && (harmless || failed.not_processed),
        Code::Aborted => harmless,
        // Once: a fault that does not go away would be met at every instance.
        Code::Internal | Code::Unknown | Code::DataLoss => {
            safety == Safety::Read && failed.tries == 1
        }
        Code::Ok
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(code: Code, progress: Progress) -> Failed {
        Failed {
            code,
            progress,
            not_processed: false,
            pushback: None,
            exhausted: false,
            tries: 1,
        }
    }

    /// R: reads, K: with a key, O: once. The table of what is safe, as it stands in the documents.
    #[test]
    fn the_table() {
        use Progress::{Answered, NotSent, Sent};
        let table = [
            (Code::Unavailable, NotSent, "RKO"),
            (Code::Unavailable, Sent, "RK"),
            (Code::Unavailable, Answered, ""),
            (Code::ResourceExhausted, Sent, ""),
            (Code::Aborted, Sent, "RK"),
            (Code::DeadlineExceeded, Sent, ""),
            (Code::Cancelled, Sent, ""),
            (Code::Internal, Sent, "R"),
            (Code::Unknown, Sent, "R"),
            (Code::DataLoss, Sent, "R"),
            (Code::Internal, Answered, ""),
            (Code::InvalidArgument, Sent, ""),
            (Code::NotFound, Sent, ""),
            (Code::AlreadyExists, Sent, ""),
            (Code::PermissionDenied, Sent, ""),
            (Code::Unauthenticated, Sent, ""),
            (Code::FailedPrecondition, Sent, ""),
            (Code::OutOfRange, Sent, ""),
            (Code::Unimplemented, Sent, ""),
            (Code::Ok, Sent, ""),
        ];
        let kinds = [
            (Safety::Read, 'R'),
            (Safety::Keyed, 'K'),
            (Safety::Once, 'O'),
        ];
        for (code, progress, allowed) in table {
            for (safety, letter) in kinds {
                let again = retry_after(safety, &failed(code, progress), &settings(), 1.0);
                assert_eq!(
                    again.is_some(),
                    allowed.contains(letter),
                    "{code:?} {progress:?} {safety:?}"
                );
            }
        }
    }

    fn settings() -> RetrySettings {
        RetrySettings::default()
    }

    #[test]
    fn who_says_that_it_did_nothing_is_believed() {
        let said = Failed {
            not_processed: true,
            ..failed(Code::Unavailable, Progress::Sent)
        };
        assert!(retry_after(Safety::Once, &said, &settings(), 1.0).is_some());
        let busy = Failed {
            code: Code::ResourceExhausted,
            ..said
        };
        assert_eq!(retry_after(Safety::Once, &busy, &settings(), 1.0), None);
        let wait = Duration::from_secs(7);
        let busy = Failed {
            pushback: Some(Pushback::After(wait)),
            ..busy
        };
        assert_eq!(
            retry_after(Safety::Once, &busy, &settings(), 0.1),
            Some(wait)
        );
    }

    #[test]
    fn reads_meet_a_fault_of_the_callee_twice_at_most() {
        let again = Failed {
            tries: 2,
            ..failed(Code::Internal, Progress::Sent)
        };
        assert_eq!(retry_after(Safety::Read, &again, &settings(), 1.0), None);
    }

    #[test]
    fn tries_are_counted_waits_double_and_a_no_is_a_no() {
        let many = RetrySettings {
            attempts: 99,
            ..settings()
        };
        let mut waits = Vec::new();
        for tries in 1.. {
            let failed = Failed {
                tries,
                ..failed(Code::Unavailable, Progress::NotSent)
            };
            match retry_after(Safety::Once, &failed, &many, 1.0) {
                Some(wait) => waits.push(wait.as_millis()),
                None => break,
            }
        }
        assert_eq!(waits, [100, 200, 400, 800], "five tries at most");
        let no = Failed {
            pushback: Some(Pushback::Never),
            ..failed(Code::Unavailable, Progress::NotSent)
        };
        assert_eq!(retry_after(Safety::Read, &no, &settings(), 1.0), None);
        let above = Failed {
            exhausted: true,
            ..failed(Code::Unavailable, Progress::NotSent)
        };
        assert_eq!(retry_after(Safety::Read, &above, &settings(), 1.0), None);
    }
}
