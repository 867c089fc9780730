//! How long things may live, as configuration files say it, and the bounds of each.
//!
//! One setting gives all that follows from it: a beat and a grace from a lease, a client's move
//! from a server's age, the moments of a renewal from a certificate's life.

use std::time::Duration;

use crate::app::StartError;
use crate::config::Span;

/// A setting and what it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Its key.
    pub key: &'static str,
    /// At least.
    pub least: Span,
    /// At most.
    pub most: Span,
    /// What it is without a word.
    pub default: Span,
}

/// Life of certificates that the registry signs for sidecars and for itself. Renewal needs a few
/// round trips in half of it; a rejoin is open for a week after it.
pub const CERTIFICATE_LIFE: Bounds = Bounds {
    key: "certificate_life",
    least: Span(Duration::from_secs(10)),
    most: Span(Duration::from_hours(7 * 24)),
    default: Span(Duration::from_hours(1)),
};

/// Age at which a member's connection is told to go.
pub const CONNECTION_AGE: Bounds = Bounds {
    key: "connection_age",
    least: Span(Duration::from_millis(100)),
    most: Span(Duration::from_hours(24)),
    default: Span(Duration::from_mins(30)),
};

/// How long an instance stays in the catalog without a beat. Sidecars beat once a second at most
/// and once a minute at least.
pub const LEASE: Bounds = Bounds {
    key: "lease",
    least: Span(Duration::from_secs(3)),
    most: Span(Duration::from_mins(1)),
    default: Span(Duration::from_secs(15)),
};

/// How long a process may take to end, all of it: running work first, then streams and connections,
/// for which the last 5 s are kept.
pub const DRAIN: Bounds = Bounds {
    key: "drain",
    least: Span(Duration::from_secs(6)),
    most: Span(Duration::from_hours(1)),
    default: Span(Duration::from_secs(30)),
};

/// How long a home waits for a broken stream to an executor before the attempt is lost. Executors
/// keep an attempt for a minute without its home, and say something every 15 s.
pub const AGENT_LOST_AFTER: Bounds = Bounds {
    key: "agent_lost_after",
    least: Span(Duration::from_secs(2)),
    most: Span(Duration::from_mins(1)),
    default: Span(Duration::from_secs(45)),
};

/// How long a finished task can be asked for.
pub const RETENTION: Bounds = Bounds {
    key: "retention",
    least: Span(Duration::from_secs(1)),
    most: Span(Duration::from_hours(365 * 24)),
    default: Span(crate::task::home::RETENTION),
};

impl Bounds {
    /// As [`Self::check`], for a process that starts.
    ///
    /// # Errors
    /// With key and bounds where it is not.
    pub fn within(&self, span: Span) -> Result<Duration, StartError> {
        self.check(span)
            .map_err(|text| StartError::value(self.key, text))
    }

    /// The value, where it is within them.
    ///
    /// # Errors
    /// With the bounds where it is not.
    pub fn check(&self, span: Span) -> Result<Duration, String> {
        if (self.least..=self.most).contains(&span) {
            return Ok(span.0);
        }
        let Self { least, most, .. } = self;
        Err(format!("{span} is not from {least} to {most}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_are_refused_with_the_bounds() {
        for bounds in [
            CERTIFICATE_LIFE,
            CONNECTION_AGE,
            LEASE,
            DRAIN,
            AGENT_LOST_AFTER,
            RETENTION,
        ] {
            for within in [bounds.least, bounds.default, bounds.most] {
                assert_eq!(bounds.check(within), Ok(within.0), "{}", bounds.key);
            }
            let milli = Duration::from_millis(1);
            for outside in [bounds.least.0 - milli, bounds.most.0 + milli] {
                let error = bounds.check(Span(outside)).unwrap_err();
                assert!(error.contains(&bounds.most.to_string()), "{error}");
            }
        }
        let error = LEASE.check(Span(Duration::from_secs(1))).unwrap_err();
        assert_eq!(error, "1s is not from 3s to 1m");
    }
}
