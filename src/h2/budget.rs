//! What one peer may ask of us beyond calls: resets, control frames, empty frames.
//!
//! Each of these is cheap to send and costs us something, and none is needed often by a peer that
//! does its work. So every connection has an allowance per kind: a burst, refilled by time, and
//! by work done where work explains the frames (a busy peer sends many WINDOW_UPDATEs). Whoever
//! overdraws gets GOAWAY with ENHANCE_YOUR_CALM and is closed, before anything of it goes to a
//! connection that others share. Owns the counting; what a frame counts as is told by those who
//! read it. What is bounded by itself (header list, block size, streams, bytes parked) is not here.

use tokio::time::Instant;

/// What costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// RST_STREAM by the peer, or one that the peer's fault made us send.
    Reset,
    /// PING that wants an answer.
    Ping,
    /// SETTINGS.
    Settings,
    /// PRIORITY, and frames of types we do not know.
    Priority,
    /// WINDOW_UPDATE.
    WindowUpdate,
    /// DATA without a byte of content that does not end its stream.
    EmptyData,
    /// CONTINUATION.
    Continuation,
    /// HEADERS or DATA on a stream that is over.
    Late,
    /// A DATA frame that we had to cut short because of a tiny window.
    Sliver,
}

impl Cost {
    const COUNT: usize = 9;

    /// Its limit, as the peer reads it in GOAWAY and the operator in the log.
    pub fn limit(self) -> &'static str {
        match self {
            Self::Reset => "too_many_resets",
            Self::Ping => "too_many_pings",
            Self::Settings => "too_many_settings",
            Self::Priority => "too_many_priority_frames",
            Self::WindowUpdate => "too_many_window_updates",
            Self::EmptyData => "too_many_empty_frames",
            Self::Continuation => "too_many_continuations",
            Self::Late => "too_many_late_frames",
            Self::Sliver => "window_too_small",
        }
    }
}

/// Work that explains frames of the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earning {
    /// A call that the peer made and that was answered by somebody else: half a reset. Answers
    /// of our own earn nothing, or asking for what does not exist would pay for itself.
    Answered,
    /// A header block or a DATA frame went to the peer: it may be answered by a PING (measuring
    /// bandwidth) and by two WINDOW_UPDATEs (stream, connection).
    Sent,
    /// A call was answered in full before its request had ended: what was under way by then is no
    /// fault. Two late frames, a message and its end: a caller whose calls are all refused at once
    /// must not lose the others on its connection.
    AnsweredEarly,
}

/// A burst, and what comes back per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// What can be spent at once.
    pub burst: u32,
    /// What time gives back.
    pub per_second: u32,
}

/// The allowances of a kind of connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    allowances: [Allowance; Cost::COUNT],
}

const fn allowance(burst: u32, per_second: u32) -> Allowance {
    Allowance { burst, per_second }
}

impl Limits {
    /// One program that calls. In the order of [`Cost`]:
    /// resets: a client that gives up all of its 100 calls at once, twice; pings: a few probes,
    /// the rest is earned; SETTINGS: once at the start and hardly ever again; PRIORITY: old
    /// clients send a tree at the start; WINDOW_UPDATE: clients that read in small pieces; empty
    /// DATA: flushes; CONTINUATION: 16 KiB of metadata in pieces; late frames: a window's worth
    /// under way when a stream was reset; slivers: readers with tiny buffers.
    pub const CALLER: Self = Self {
        allowances: [
            allowance(200, 50),
            allowance(100, 10),
            allowance(20, 1),
            allowance(200, 20),
            allowance(1000, 200),
            allowance(100, 20),
            allowance(200, 50),
            allowance(400, 100),
            allowance(1000, 100),
        ],
    };

    /// A sidecar that carries the calls of many: each of its callers is held to [`Self::CALLER`]
    /// at its own door, and up to 1,024 streams run at once.
    pub const MESH: Self = Self {
        allowances: [
            allowance(4000, 1000),
            allowance(200, 20),
            allowance(20, 1),
            allowance(200, 20),
            allowance(8000, 2000),
            allowance(1000, 500),
            allowance(2000, 1000),
            allowance(8000, 4000),
            allowance(8000, 2000),
        ],
    };

    /// The same with another allowance for one cost.
    #[must_use]
    pub const fn with(mut self, cost: Cost, allowance: Allowance) -> Self {
        self.allowances[cost as usize] = allowance;
        self
    }
}

/// More than an allowance was spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", cost.limit())]
pub struct Overdrawn {
    /// On what.
    pub cost: Cost,
}

#[derive(Debug, Clone, Copy)]
struct Purse {
    /// Halves of a unit.
    halves: u32,
    since: Instant,
}

/// What one connection has left. See the module.
#[derive(Debug, Clone)]
pub struct Budget {
    limits: &'static Limits,
    purses: [Purse; Cost::COUNT],
}

impl Budget {
    /// Everything is unspent.
    pub fn new(limits: &'static Limits, now: Instant) -> Self {
        let full = |allowance: &Allowance| Purse {
            halves: allowance.burst * 2,
            since: now,
        };
        let purses = std::array::from_fn(|at| full(&limits.allowances[at]));
        Self { limits, purses }
    }

    /// Spends one.
    ///
    /// # Errors
    /// [`Overdrawn`]: close the connection with ENHANCE_YOUR_CALM.
    #[inline]
    pub fn spend(&mut self, cost: Cost, now: Instant) -> Result<(), Overdrawn> {
        let purse = &mut self.purses[cost as usize];
        if purse.halves < 2 {
            self.refill(cost, now);
        }
        let purse = &mut self.purses[cost as usize];
        purse.halves = purse.halves.checked_sub(2).ok_or(Overdrawn { cost })?;
        Ok(())
    }

    /// Work was done.
    #[inline]
    pub fn earn(&mut self, earning: Earning) {
        match earning {
            Earning::Answered => self.add(Cost::Reset, 1),
            Earning::Sent => {
                self.add(Cost::Ping, 2);
                self.add(Cost::WindowUpdate, 4);
            }
            Earning::AnsweredEarly => self.add(Cost::Late, 4),
        }
    }

    #[inline]
    fn add(&mut self, cost: Cost, halves: u32) {
        let full = self.limits.allowances[cost as usize].burst * 2;
        let purse = &mut self.purses[cost as usize];
        purse.halves = (purse.halves + halves).min(full);
    }

    /// Only looked at when a purse is empty: a busy, honest connection never comes here. Time
    /// since then gives at most a burst.
    #[cold]
    fn refill(&mut self, cost: Cost, now: Instant) {
        let allowance = self.limits.allowances[cost as usize];
        let purse = &mut self.purses[cost as usize];
        let elapsed = now.saturating_duration_since(purse.since).as_millis();
        let halves = elapsed * u128::from(allowance.per_second) / 500;
        let Ok(halves) = u32::try_from(halves.min(u128::from(allowance.burst) * 2)) else {
            return;
        };
        if halves >= 2 {
            purse.since = now;
            purse.halves += halves;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const COSTS: [Cost; Cost::COUNT] = [
        Cost::Reset,
        Cost::Ping,
        Cost::Settings,
        Cost::Priority,
        Cost::WindowUpdate,
        Cost::EmptyData,
        Cost::Continuation,
        Cost::Late,
        Cost::Sliver,
    ];

    fn spent(budget: &mut Budget, cost: Cost, now: Instant) -> u32 {
        (0..100_000)
            .take_while(|_| budget.spend(cost, now).is_ok())
            .count()
            .try_into()
            .unwrap()
    }

    #[test]
    fn every_allowance_has_an_end_and_time_gives_it_back_up_to_a_burst() {
        let now = Instant::now();
        for limits in [&Limits::CALLER, &Limits::MESH] {
            for cost in COSTS {
                let Allowance { burst, per_second } = limits.allowances[cost as usize];
                let mut budget = Budget::new(limits, now);
                assert_eq!(spent(&mut budget, cost, now), burst, "{cost:?}");
                let second = now + Duration::from_secs(1);
                assert_eq!(
                    spent(&mut budget, cost, second),
                    per_second.min(burst),
                    "{cost:?}"
                );
                let hour = now + Duration::from_secs(3601);
                assert_eq!(spent(&mut budget, cost, hour), burst, "{cost:?}");
                assert_eq!(budget.spend(cost, hour), Err(Overdrawn { cost }));
            }
        }
    }

    #[test]
    fn names_are_distinct() {
        let mut names: Vec<_> = COSTS.iter().map(|cost| cost.limit()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Cost::COUNT);
    }

    #[test]
    fn work_explains_updates_and_answers_explain_half_a_reset() {
        let now = Instant::now();
        let mut budget = Budget::new(&Limits::CALLER, now);
        for _ in 0..100_000 {
            budget.earn(Earning::Sent);
            budget.spend(Cost::WindowUpdate, now).unwrap();
            budget.spend(Cost::WindowUpdate, now).unwrap();
            budget.spend(Cost::Ping, now).unwrap();
        }
        let burst = Limits::CALLER.allowances[Cost::Reset as usize].burst;
        for _ in 0..2 * burst {
            budget.earn(Earning::Answered);
        }
        assert_eq!(
            spent(&mut budget, Cost::Reset, now),
            burst,
            "never above a burst"
        );
        for _ in 0..20 {
            budget.earn(Earning::Answered);
        }
        assert_eq!(spent(&mut budget, Cost::Reset, now), 10);
    }
}
