//! Counts of how tasks find their way out of this sidecar, for its page of metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::balancer::Balancer;
use crate::{
    resilience::Phase,
    task::Pick,
    telemetry::metrics::{Sheet, Source, family},
};

/// Sets that nobody asked for longer than this say nothing of who is left out now.
pub(super) const OF_LATE: Duration = Duration::from_mins(1);

/// What came of looks for an instance, and what was done to calls on purpose. Shared by all threads.
#[derive(Debug, Default)]
pub(super) struct Picks {
    outcomes: [AtomicU64; OUTCOMES.len()],
    injected: [AtomicU64; INJECTED.len()],
}

const OUTCOMES: [&str; 5] = ["taken", "busy", "ejected", "over_budget", "nobody"];
const INJECTED: [&str; 2] = ["delay", "abort"];

impl Picks {
    /// Somebody looked for an instance.
    pub(super) fn count(&self, pick: &Pick) {
        let place = match pick {
            Pick::Go(_, call) => {
                let injected = [call.injected.delay.is_some(), call.injected.abort.is_some()];
                for (count, _) in self.injected.iter().zip(injected).filter(|(_, is)| *is) {
                    count.fetch_add(1, Relaxed);
                }
                0
            }
            Pick::Busy(_) => 1,
            Pick::Ejected(_) => 2,
            Pick::OverBudget(_) => 3,
            Pick::Nobody => 4,
        };
        self.outcomes[place].fetch_add(1, Relaxed);
    }
}

/// Reads a balancer at every scrape.
#[derive(Debug)]
pub(super) struct Counted(pub(super) Arc<Balancer>);

impl Source for Counted {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let (balancer, now) = (&self.0, Instant::now());
        let counts = balancer.endpoints().epoch().counts();
        let picks = balancer.picks();
        let read = |labels: &'static [&'static str], counts: &[AtomicU64]| {
            let counts = counts.iter().map(|count| count.load(Relaxed) as f64);
            let rows: Vec<_> = labels.iter().map(|label| [*label]).zip(counts).collect();
            rows
        };
        let rows = |counts: &[(&'static str, u64)]| {
            let rows = counts
                .iter()
                .map(|(label, count)| ([*label], *count as f64));
            rows.collect::<Vec<_>>()
        };
        sheet.counter(&family::PICKS, read(&OUTCOMES, &picks.outcomes));
        sheet.counter(&family::DISPATCHES, rows(&counts.ended));
        sheet.counter(&family::FAULTS_INJECTED, read(&INJECTED, &picks.injected));
        let mut phases = [("closed", 0), ("open", 0), ("half_open", 0)];
        balancer.endpoints().each(|endpoint| {
            let place = match endpoint.phase(now) {
                Phase::Closed => 0,
                Phase::Open => 1,
                Phase::HalfOpen => 2,
            };
            phases[place].1 += 1;
        });
        sheet.gauge(&family::BREAKERS, rows(&phases));
        sheet.counter(&family::BREAKER_OPENINGS, rows(&counts.opened));
        sheet.counter(&family::BREAKER_CLOSINGS, rows(&counts.closed));
        let ejected = balancer.ejected_of_late(now) as f64;
        sheet.gauge(&family::EJECTED, [([], ejected)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{resilience::Injected, task::Call};

    #[test]
    fn every_look_is_counted_once() {
        let picks = Picks::default();
        let go = |injected| {
            let call = Call {
                injected,
                ..Call::default()
            };
            let candidate = crate::task::Candidate {
                wants_descendants: true,
                instance: "i1".parse().unwrap(),
                agent: "default/a".parse().unwrap(),
                idempotent: false,
                boot_id: String::new(),
                contract: Default::default(),
            };
            Pick::Go(Arc::new(candidate), Box::new(call))
        };
        let delay = Injected {
            delay: Some(Duration::from_secs(1)),
            abort: None,
        };
        let both = Injected {
            abort: Some(tonic::Code::Unavailable),
            ..delay
        };
        for pick in [
            go(Injected::default()),
            go(delay),
            go(both),
            Pick::Busy(None),
            Pick::Busy(None),
            Pick::Ejected(None),
            Pick::OverBudget(Instant::now()),
            Pick::Nobody,
        ] {
            picks.count(&pick);
        }
        let read = |counts: &[AtomicU64]| -> Vec<u64> {
            counts.iter().map(|count| count.load(Relaxed)).collect()
        };
        assert_eq!(read(&picks.outcomes), [3, 2, 1, 1, 1]);
        assert_eq!(read(&picks.injected), [2, 1]);
    }
}
