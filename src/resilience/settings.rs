//! How traffic is treated, with the numbers that hold where nobody says otherwise.

use std::time::Duration;

/// All of it, for one kind of request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// When an instance gets no calls.
    pub breaker: BreakerSettings,
    /// Which instance gets the next call.
    pub balance: BalanceSettings,
    /// What is tried again.
    pub retry: RetrySettings,
}

/// When an instance gets no calls for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerSettings {
    /// Off: nobody is ever left out for failures.
    pub enabled: bool,
    /// Failures in a row that open it, at least 1. Envoy has 5, Linkerd 7.
    pub consecutive: u32,
    /// Share of successes below which it opens, from 0 (never) to 1.
    pub success_rate: f64,
    /// Calls that the window must hold before the share means anything, at least 1.
    pub min_calls: u32,
    /// How far back the share looks.
    pub window: Duration,
    /// First time without calls; doubles each time it opens again soon.
    pub cool_down: Duration,
    /// Longest time without calls, jitter aside.
    pub cool_down_max: Duration,
    /// Up to this share is added to each cool-down, so that a fleet does not probe in step.
    pub jitter: f64,
    /// Largest share of a set of three or more that may be left out at a time, from 0 to 1. Of one or
    /// two, all may.
    pub max_ejected: f64,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            consecutive: 5,
            success_rate: 0.8,
            min_calls: 20,
            window: Duration::from_secs(30),
            cool_down: Duration::from_secs(1),
            cool_down_max: Duration::from_secs(60),
            jitter: 0.5,
            max_ejected: 0.5,
        }
    }
}

/// Which instance gets the next call.
#[derive(Clone, Debug, PartialEq)]
pub struct BalanceSettings {
    /// Time in which what was measured loses most of its weight (to 1/e).
    pub decay: Duration,
    /// What is added to the latency that an instance is judged by where all of its last calls failed;
    /// where a share did, that share of it: fast errors must not look like fast answers. Linkerd's
    /// figure.
    pub penalty: Duration,
    /// Longest pause that an instance may ask for.
    pub pushback_max: Duration,
    /// Time over which a new instance comes up to its full share; zero: at once.
    pub slow_start: Duration,
    /// Calls that one instance may have from here at a time; 0: no bound.
    pub max_in_flight: u32,
    /// How many of them may wait at a time until it takes them; 0: no bound.
    pub max_pending: u32,
    /// Whether instances of the own zone are taken while one of them can be.
    pub zone: bool,
    /// Whether calls of one context go to the same instance while that can be.
    pub sticky: bool,
}

impl BalanceSettings {
    /// Calls at one instance that wait to be taken, where nobody says otherwise. An executor says
    /// within a quarter of a second whether it takes one, so these are a thousand in a second: more
    /// would only stand before a door that does not open, while another instance may have room.
    pub const MAX_PENDING: u32 = 256;
}

impl Default for BalanceSettings {
    fn default() -> Self {
        Self {
            decay: Duration::from_secs(10),
            penalty: Duration::from_secs(5),
            pushback_max: Duration::from_mins(5),
            slow_start: Duration::from_secs(10),
            max_in_flight: 0,
            max_pending: Self::MAX_PENDING,
            zone: true,
            sticky: true,
        }
    }
}

/// What is tried again, how often and how soon.
#[derive(Clone, Debug, PartialEq)]
pub struct RetrySettings {
    /// Tries in all, at least 1; [`RetrySettings::ATTEMPTS_MAX`] at most.
    pub attempts: u32,
    /// Longest first wait; doubles with every try.
    pub base: Duration,
    /// Longest wait.
    pub max: Duration,
    /// Second tries per first one within [`RetrySettings::WINDOW`].
    pub budget: f64,
    /// Second tries per second that are always allowed.
    pub floor: f64,
}

impl RetrySettings {
    /// Most tries, whatever is asked for (gRFC A6).
    pub const ATTEMPTS_MAX: u32 = 5;
    /// How far back the budget looks (Linkerd's figure).
    pub const WINDOW: Duration = Duration::from_secs(10);
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            attempts: 3,
            base: Duration::from_millis(100),
            max: Duration::from_secs(2),
            budget: 0.2,
            floor: 3.0,
        }
    }
}
