//! How many attempts an instance gets at once, learnt from what it accepts and refuses. Whether it
//! can be reached, and how fast it is, is not asked here.
//!
//! Without it a home with many waiting tasks would send them all to an executor with four slots and
//! journal every refusal. Pure; one per shard.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::domain::InstanceId;

/// Attempts that an instance gets before it accepted any.
const FIRST_CAP: u32 = 64;
/// Most attempts of one shard at one instance; HTTP/2 allows 1,024 streams per connection.
const MOST_CAP: u32 = 1024;
/// A refusal this soon after an end may only mean that the slot was not free yet.
const SETTLE: Duration = Duration::from_millis(100);
/// Shortest waits after a refusal that says nothing of its own; they double.
const BUSY_WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Waits while a slot settles; they double.
const SETTLE_WAIT: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(200));
/// More gates than this are swept of those that say nothing.
const SWEEP_AT: usize = 1024;

/// What is known of one instance.
#[derive(Debug)]
struct Gate {
    in_flight: u32,
    cap: u32,
    /// One attempt above `cap` is under way to see whether there is more room.
    probing: bool,
    /// It refused once: from then on room is looked for one by one.
    refused: bool,
    refusals: u32,
    closed_until: Option<Instant>,
    last_end: Option<Instant>,
    /// It grants its slots to those who wait.
    grants: bool,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            in_flight: 0,
            cap: FIRST_CAP,
            probing: false,
            refused: false,
            refusals: 0,
            closed_until: None,
            last_end: None,
            grants: false,
        }
    }
}

/// The gates of all instances that matter now.
#[derive(Debug, Default)]
pub(super) struct Gates {
    by: HashMap<InstanceId, Gate>,
}

impl Gates {
    /// Whether one more attempt may go there now.
    pub(super) fn allows(&self, instance: &InstanceId, now: Instant) -> bool {
        self.by.get(instance).is_none_or(|gate| {
            gate.closed_until.is_none_or(|until| until <= now)
                && (gate.in_flight < gate.cap || !gate.probing)
        })
    }

    /// An attempt goes there.
    pub(super) fn sent(&mut self, instance: &InstanceId, now: Instant) {
        if self.by.len() > SWEEP_AT {
            let closed = |gate: &Gate| gate.closed_until.is_some_and(|until| until > now);
            self.by
                .retain(|_, gate| gate.in_flight > 0 || gate.grants || closed(gate));
        }
        let gate = self.by.entry(instance.clone()).or_default();
        gate.probing |= gate.in_flight >= gate.cap;
        gate.in_flight += 1;
    }

    /// An attempt goes there with a grant: there is room for it.
    pub(super) fn sent_with_grant(&mut self, instance: &InstanceId) {
        let gate = self.by.entry(instance.clone()).or_default();
        gate.in_flight += 1;
        gate.cap = gate.cap.max(gate.in_flight).min(MOST_CAP);
    }

    /// Whether it grants its slots to those who wait.
    pub(super) fn set_grants(&mut self, instance: &InstanceId, grants: bool) {
        self.by.entry(instance.clone()).or_default().grants = grants;
    }

    /// Whether those who wait for it are granted its slots.
    pub(super) fn grants(&self, instance: &InstanceId) -> bool {
        self.by.get(instance).is_some_and(|gate| gate.grants)
    }

    /// Whether it has said that it has no more room than is used here.
    pub(super) fn is_full(&self, instance: &InstanceId) -> bool {
        self.by.get(instance).is_some_and(|gate| gate.refused)
    }

    /// It took the attempt. Says whether more may go there than before.
    pub(super) fn accepted(&mut self, instance: &InstanceId) -> bool {
        let Some(gate) = self.by.get_mut(instance) else {
            return false;
        };
        let opens = gate.probing || gate.closed_until.is_some();
        gate.refusals = 0;
        gate.closed_until = None;
        if gate.probing {
            gate.probing = false;
            gate.cap = if gate.refused {
                gate.cap + 1
            } else {
                gate.cap * 2
            }
            .min(MOST_CAP);
        }
        opens
    }

    /// An attempt there is over.
    pub(super) fn ended(&mut self, instance: &InstanceId, now: Instant) {
        let Some(gate) = self.by.get_mut(instance) else {
            return;
        };
        gate.in_flight = gate.in_flight.saturating_sub(1);
        // The probe may have ended unanswered: nothing else would ever let another one go.
        gate.probing &= gate.in_flight > gate.cap;
        gate.closed_until = None;
        gate.last_end = Some(now);
    }

    /// It had no room.
    pub(super) fn refused(&mut self, instance: &InstanceId, wait: Option<Duration>, now: Instant) {
        let Some(gate) = self.by.get_mut(instance) else {
            return;
        };
        gate.in_flight = gate.in_flight.saturating_sub(1);
        let settles = gate.last_end.is_some_and(|end| now < end + SETTLE);
        let least = if settles {
            doubled(SETTLE_WAIT, gate.refusals)
        } else {
            gate.cap = gate.in_flight;
            doubled(BUSY_WAIT, gate.refusals).max(wait.unwrap_or_default().min(BUSY_WAIT.1))
        };
        gate.probing = false;
        gate.refused = true;
        gate.refusals += 1;
        gate.closed_until = Some(now + least);
    }

    /// The attempt did not get there, or no agent was there to take it: nothing is known of its
    /// room. Whether it gets another one soon is its breaker's to say.
    pub(super) fn missed(&mut self, instance: &InstanceId) {
        if let Some(gate) = self.by.get_mut(instance) {
            gate.in_flight = gate.in_flight.saturating_sub(1);
            gate.probing &= gate.in_flight > gate.cap;
        }
    }

    /// Attempts under way there.
    #[cfg(test)]
    pub(super) fn in_flight(&self, instance: &InstanceId) -> u32 {
        self.by.get(instance).map_or(0, |gate| gate.in_flight)
    }

    /// When the next closed gate opens.
    pub(super) fn opens(&self, now: Instant) -> Option<Instant> {
        let closed = self.by.values().filter_map(|gate| gate.closed_until);
        closed.filter(|until| *until > now).min()
    }
}

fn doubled((first, most): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn room_is_found_and_respected() {
        let (mut gates, now) = (Gates::default(), Instant::now());
        let there: InstanceId = "i1".parse().unwrap();
        let mut sent = 0;
        while gates.allows(&there, now) {
            gates.sent(&there, now);
            sent += 1;
        }
        assert_eq!(sent, FIRST_CAP + 1, "one above the cap looks for more room");
        for _ in 4..sent {
            gates.refused(&there, Some(Duration::from_millis(80)), now);
        }
        assert!(!gates.allows(&there, now));
        let opens = gates.opens(now).unwrap();
        assert!(opens >= now + Duration::from_millis(80) && gates.allows(&there, opens));
        gates.sent(&there, opens);
        assert!(!gates.allows(&there, opens), "one probe at a time");
        assert!(gates.accepted(&there), "there may be more room");
        gates.ended(&there, opens);
        assert!(gates.allows(&there, opens), "a slot came free");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_did_not_get_there_says_nothing_of_the_room() {
        let (mut gates, now) = (Gates::default(), Instant::now());
        let there: InstanceId = "i1".parse().unwrap();
        gates.sent(&there, now);
        gates.refused(&there, None, now);
        let later = gates.opens(now).unwrap();
        gates.sent(&there, later);
        assert!(!gates.allows(&there, later), "it looks for room");
        gates.missed(&there);
        assert!(gates.allows(&there, later));
        assert_eq!(gates.by[&there].in_flight, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_ends_unanswered_lets_the_next_one_go() {
        let (mut gates, now) = (Gates::default(), Instant::now());
        let there: InstanceId = "i1".parse().unwrap();
        gates.sent(&there, now);
        gates.refused(&there, None, now);
        let later = gates.opens(now).unwrap();
        gates.sent(&there, later);
        assert!(!gates.allows(&there, later), "no room is known there");
        gates.ended(&there, later);
        assert!(gates.allows(&there, later));
    }

    #[tokio::test(start_paused = true)]
    async fn instances_that_never_come_back_are_forgotten() {
        let (mut gates, now) = (Gates::default(), Instant::now());
        for number in 0..=SWEEP_AT {
            let full: InstanceId = format!("i{number}").parse().unwrap();
            gates.sent(&full, now);
            gates.refused(&full, None, now);
        }
        gates.sent(&"next".parse().unwrap(), now + BUSY_WAIT.1);
        assert_eq!(gates.by.len(), 1);
    }
}
