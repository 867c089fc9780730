//! What came of it.

use std::time::Duration;

use super::world::{Span, Time};

/// Recovery is looked for in steps of this.
const STEP: Duration = Duration::from_millis(250);
/// Share of calls that may fail within a step for it to count as recovered.
const WELL: f64 = 0.01;

/// All calls of one run.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    fault: Span,
    /// Milliseconds of the calls that went well, from their beginning to their answer, in order once
    /// all are there.
    times: Vec<f32>,
    bad: u64,
    first_failed: u64,
    /// First and later tries that went out while something was wrong.
    sent_in_fault: (u64, u64),
    /// By when they began: all calls, and those that failed.
    steps: Vec<(u32, u32)>,
}

impl Figures {
    pub(crate) fn new(fault: Span) -> Self {
        Self {
            fault,
            times: Vec::new(),
            bad: 0,
            first_failed: 0,
            sent_in_fault: (0, 0),
            steps: Vec::new(),
        }
    }

    /// A try goes out.
    pub(crate) fn sent(&mut self, now: Time, tries: u32) {
        if self.fault.has(now) {
            let (first, again) = &mut self.sent_in_fault;
            *if tries == 1 { first } else { again } += 1;
        }
    }

    /// The first try of a call failed.
    pub(crate) fn first_failed(&mut self) {
        self.first_failed += 1;
    }

    /// A call went well in the end.
    pub(crate) fn good(&mut self, begun: Time, now: Time) {
        self.times.push((now - begun).as_secs_f32() * 1e3);
        self.step(begun).0 += 1;
    }

    /// A call failed for good.
    pub(crate) fn bad(&mut self, begun: Time) {
        self.bad += 1;
        let step = self.step(begun);
        step.0 += 1;
        step.1 += 1;
    }

    fn step(&mut self, begun: Time) -> &mut (u32, u32) {
        let at = usize::try_from(begun.as_millis() / STEP.as_millis()).expect("runs are short");
        if self.steps.len() <= at {
            self.steps.resize(at + 1, (0, 0));
        }
        &mut self.steps[at]
    }

    /// All that there is to ask.
    pub(crate) fn sum(mut self) -> Sum {
        self.times.sort_by(f32::total_cmp);
        let all = self.times.len() as f64 + self.bad as f64;
        let share = |part: u64, all: f64| part as f64 / all.max(1.0);
        Sum {
            p50: within(&self.times, 500),
            p99: within(&self.times, 990),
            p999: within(&self.times, 999),
            first_failed: share(self.first_failed, all),
            failed: share(self.bad, all),
            again_in_fault: self.sent_in_fault.1,
            first_in_fault: self.sent_in_fault.0,
            recovery: self.recovery(),
        }
    }

    /// From the end of what was wrong to the end of the last step in which calls failed.
    fn recovery(&self) -> Duration {
        let sick = |(all, bad): &(u32, u32)| f64::from(*bad) > WELL * f64::from(*all);
        let last = self.steps.iter().rposition(sick);
        let end = last.map_or(Time::ZERO, |last| {
            STEP * u32::try_from(last + 1).expect("runs are short")
        });
        end.saturating_sub(self.fault.to)
    }
}

/// Figures of one run, for people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    /// Milliseconds, of calls that went well.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    /// Share of calls whose first try failed, or could not go out.
    pub(crate) first_failed: f64,
    /// Share of calls that failed in the end.
    pub(crate) failed: f64,
    /// Later tries while something was wrong, and first ones.
    pub(crate) again_in_fault: u64,
    pub(crate) first_in_fault: u64,
    /// Until calls went well again.
    pub(crate) recovery: Duration,
}

/// By thousandths.
fn within(sorted: &[f32], share: usize) -> f64 {
    let place = (sorted.len() * share / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().map_or(0.0, f64::from)
}
