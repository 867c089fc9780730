//! How the agent is asked: the best way that is configured and that it serves.
//!
//! Pure. What it found out holds until the agent's process changes.

use crate::sidecar::Probing;

/// One way to look at an agent, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `grpc.health.v1.Health.Watch`: it pushes every change.
    Watch,
    /// `grpc.health.v1.Health.Check`, now and then.
    Check,
    /// A connection to its address.
    Connect,
}

impl Kind {
    /// Its name in metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Check => "check",
            Self::Connect => "connect",
        }
    }
}

/// The way that is taken now.
#[derive(Debug)]
pub(super) struct Choice {
    asked: Probing,
    kind: Kind,
}

impl Choice {
    /// The best that the configuration allows.
    pub(super) fn new(asked: Probing) -> Self {
        let kind = match asked {
            Probing::Auto | Probing::Watch => Kind::Watch,
            Probing::Check => Kind::Check,
            Probing::Connect => Kind::Connect,
        };
        Self { asked, kind }
    }

    /// How to look.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Another process may serve more than the one before.
    pub(super) fn anew(&mut self) {
        *self = Self::new(self.asked);
    }

    /// A Watch may be all that the agent can answer at once: it is left for Check, where that is
    /// allowed, until another process is there.
    pub(super) fn crowded(&mut self) {
        if self.asked == Probing::Auto && self.kind == Kind::Watch {
            self.kind = Kind::Check;
        }
    }

    /// The agent does not serve the present way: whether there is another one.
    pub(super) fn unserved(&mut self) -> bool {
        let next = match (self.asked, self.kind) {
            (Probing::Auto, Kind::Watch) => Kind::Check,
            (Probing::Auto, Kind::Check) => Kind::Connect,
            (Probing::Auto, Kind::Connect)
            | (Probing::Watch | Probing::Check | Probing::Connect, _) => return false,
        };
        self.kind = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_falls_back_step_by_step_and_what_is_configured_does_not() {
        use Kind::{Check, Connect, Watch};
        for (asked, kinds) in [
            (Probing::Auto, &[Watch, Check, Connect][..]),
            (Probing::Watch, &[Watch]),
            (Probing::Check, &[Check]),
            (Probing::Connect, &[Connect]),
        ] {
            let mut choice = Choice::new(asked);
            let mut found = vec![choice.kind()];
            while choice.unserved() {
                found.push(choice.kind());
            }
            assert_eq!(found, kinds, "{asked:?}");
            choice.anew();
            assert_eq!(choice.kind(), kinds[0], "{asked:?}");
        }
    }
}
