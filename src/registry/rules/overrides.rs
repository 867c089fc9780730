//! What a rule may set: each setting once, set or left to be inherited.

use std::{fmt, sync::Arc, time::Duration};

use super::rule::Rehearsal;
use super::rule::Weight;
use crate::config::Span;

macro_rules! overrides {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $path:literal,)*) => {
        /// Settings of a rule; `None`: not set by it.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Overrides { $($(#[$doc])* pub $field: Option<$type>,)* }

        impl Overrides {
            /// Path of every setting, as in the contract and in its order.
            pub const PATHS: &'static [&'static str] = &[$($path),*];

            /// Takes from `other` what is not set here; the paths of what was taken.
            pub fn inherit(&mut self, other: &Self) -> Vec<&'static str> {
                let mut taken = Vec::new();
                $(if self.$field.is_none() && other.$field.is_some() {
                    self.$field.clone_from(&other.$field);
                    taken.push($path);
                })*
                taken
            }

            /// What is set, in words: path and value.
            pub fn shown(&self) -> Vec<(&'static str, String)> {
                let mut shown = Vec::new();
                $(if let Some(value) = &self.$field {
                    shown.push(($path, value.shown()));
                })*
                shown
            }
        }
    };
}

overrides! {
    /// Groups of instances and their parts of the calls; never empty.
    weights: Arc<[Weight]> = "weights",
    /// Longest wait for an executor's first word.
    timeout: Duration = "timeout",
    /// Attempts in all, 1 to 5.
    attempts: u32 = "retry.attempts",
    /// Longest wait before the second attempt; doubled for each further one.
    base: Duration = "retry.base",
    /// Longest wait before any attempt.
    max: Duration = "retry.max",
    /// Retries per call of the last 10 s.
    budget: Percent = "retry.budget_percent",
    /// Retries per second that are free of the budget.
    floor: u32 = "retry.floor_per_second",
    /// Whether instances are cut off at all.
    breaker: bool = "breaker.enabled",
    /// Failures in a row that open a breaker.
    consecutive: u32 = "breaker.consecutive",
    /// Share of successes below which a breaker opens.
    success: Percent = "breaker.success_percent",
    /// Calls below which the share does not count.
    min_calls: u32 = "breaker.min_calls",
    /// What the share is looked at over.
    window: Duration = "breaker.window",
    /// First time that a breaker stays open.
    cool_down: Duration = "breaker.cool_down",
    /// Longest time that it does.
    cool_down_max: Duration = "breaker.cool_down_max",
    /// Share of three or more instances that may be cut off at once.
    max_ejected: Percent = "breaker.max_ejected_percent",
    /// Dispatches under way at once at one instance.
    max_in_flight: u32 = "limits.max_in_flight",
    /// Those of them that wait until the instance takes them.
    max_pending: u32 = "limits.max_pending",
    /// Whether instances of the own zone come first.
    zone_preference: bool = "balance.zone_preference",
    /// Time until a new instance has its full share; zero: none.
    slow_start: Duration = "balance.slow_start",
    /// Whether one context stays with one instance.
    sticky: bool = "balance.sticky",
    /// Faults to inject; never empty.
    faults: Arc<[Rehearsal]> = "faults",
}

/// A share in percent, from 0 to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Percent(f64);

impl Percent {
    /// A share; `None` for what is none.
    pub fn new(percent: f64) -> Option<Self> {
        (0.0..=100.0).contains(&percent).then_some(Self(percent))
    }

    /// As a part of one.
    pub fn share(self) -> f64 {
        self.0 / 100.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A value in words.
trait Shown {
    fn shown(&self) -> String;
}

impl Shown for Duration {
    fn shown(&self) -> String {
        Span(*self).to_string()
    }
}

impl Shown for bool {
    fn shown(&self) -> String {
        if *self { "on" } else { "off" }.to_owned()
    }
}

impl Shown for u32 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for Percent {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl<T: fmt::Display> Shown for Arc<[T]> {
    fn shown(&self) -> String {
        let all: Vec<String> = self.iter().map(ToString::to_string).collect();
        all.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_stays_and_what_is_not_is_inherited() {
        let mut own = Overrides {
            attempts: Some(1),
            sticky: Some(false),
            ..Overrides::default()
        };
        let other = Overrides {
            attempts: Some(5),
            timeout: Some(Duration::from_millis(250)),
            success: Percent::new(99.5),
            ..Overrides::default()
        };
        assert_eq!(own.inherit(&other), ["timeout", "breaker.success_percent"]);
        let shown: Vec<_> = own
            .shown()
            .iter()
            .map(|(p, v)| format!("{p} {v}"))
            .collect();
        assert_eq!(
            shown,
            [
                "timeout 250ms",
                "retry.attempts 1",
                "breaker.success_percent 99.5%",
                "balance.sticky off"
            ]
        );
        assert!(own.inherit(&other).is_empty());
    }

    #[test]
    fn shares_are_of_a_hundred() {
        assert_eq!(Percent::new(20.0).map(Percent::share), Some(0.2));
        for none in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Percent::new(none), None, "{none}");
        }
    }
}
