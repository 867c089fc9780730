//! What is compared: who gets a call, and what is learned from how it went.

use std::time::Duration;

use rand::rngs::SmallRng;
use tokio::time::Instant;

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As it should.
    Answered,
    /// No connection: nothing was sent.
    Refused,
    /// UNAVAILABLE after it was sent.
    Failed,
    /// RESOURCE_EXHAUSTED: too much to do; ask again after this long.
    Full(Duration),
    /// The caller's time was over.
    Late,
}

impl End {
    /// Whether proxies count it as a fault of the callee (a 5xx).
    pub(crate) fn is_fault(self) -> bool {
        matches!(self, Self::Refused | Self::Failed | Self::Late)
    }
}

/// A way to choose. One value is the view of one caller.
pub(crate) trait Policy {
    /// What it keeps of a call that is under way.
    type Ticket;

    /// Of so many instances.
    fn new(instances: usize, now: Instant, random: &mut SmallRng) -> Self;

    /// Who gets a call, none of `not`; `None`: nobody does.
    fn pick(
        &mut self,
        not: &[usize],
        now: Instant,
        random: &mut SmallRng,
    ) -> Option<(usize, Self::Ticket)>;

    /// A call is over.
    fn end(&mut self, place: usize, ticket: Self::Ticket, end: End, now: Instant, chance: f64);

    /// The catalog says that another process is there.
    fn restarted(&mut self, place: usize, now: Instant);
}
