//! Faults on purpose, to rehearse: a share of the calls of some callers is delayed or fails.

use std::time::Duration;

use tonic::Code;

/// What is done to calls of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Injection {
    /// Wait before the call goes out.
    pub delay: Option<Delay>,
    /// Fail instead of going out.
    pub abort: Option<Abort>,
}

/// A share of calls that wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delay {
    /// From 0 to 1.
    pub share: f64,
    /// How long.
    pub time: Duration,
}

/// A share of calls that fail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Abort {
    /// From 0 to 1.
    pub share: f64,
    /// With this.
    pub code: Code,
}

/// What happens to one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// It waits first.
    pub delay: Option<Duration>,
    /// Then it fails instead of going out.
    pub abort: Option<Code>,
}

impl Injection {
    /// Decides for one call, by two chances from 0 (inclusive) to 1 (exclusive).
    pub fn decide(&self, (delay, abort): (f64, f64)) -> Injected {
        Injected {
            delay: self
                .delay
                .filter(|own| delay < own.share)
                .map(|own| own.time),
            abort: self
                .abort
                .filter(|own| abort < own.share)
                .map(|own| own.code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_shares() {
        let rehearsal = Injection {
            delay: Some(Delay {
                share: 0.25,
                time: Duration::from_secs(1),
            }),
            abort: Some(Abort {
                share: 1.0,
                code: Code::Unavailable,
            }),
        };
        let hit = (0..100).filter(|n| {
            rehearsal
                .decide((f64::from(*n) / 100.0, 0.99))
                .delay
                .is_some()
        });
        assert_eq!(hit.count(), 25);
        assert_eq!(rehearsal.decide((0.9, 0.99)).abort, Some(Code::Unavailable));
        assert_eq!(Injection::default().decide((0.0, 0.0)), Injected::default());
    }
}
