//! What rules want, as those take it who carry it out, with the defaults of what no rule sets.

use std::time::Duration;

use super::effective::Effective;
use super::overrides::Overrides;
use super::overrides::Percent;
use super::rule::Rehearsal;
use crate::domain::SkillName;
use crate::domain::SpiffeId;
use crate::registry::catalog::Entry;
use crate::resilience::Abort;
use crate::resilience::BalanceSettings;
use crate::resilience::BreakerSettings;
use crate::resilience::Delay;
use crate::resilience::Injection;
use crate::resilience::RetrySettings;
use crate::resilience::Settings;

impl Effective {
    /// How traffic is treated; what no rule sets is at its default.
    pub fn settings(&self) -> Settings {
        self.overrides.over(&Settings::default())
    }

    /// Longest wait for an executor's first word; `None`: the home's own.
    pub fn timeout(&self) -> Option<Duration> {
        self.overrides.timeout
    }

    /// The weights of the groups that share the calls; empty: there is one group.
    pub fn weights(&self) -> Vec<u32> {
        let groups = self.overrides.weights.iter().flat_map(|all| all.iter());
        groups.map(|group| group.weight).collect()
    }

    /// Which of [`Self::weights`] is an instance's, for calls of `skill`; beyond them: none.
    pub fn group(&self, skill: Option<&SkillName>, entry: &Entry) -> usize {
        let groups = self.overrides.weights.as_deref().unwrap_or_default();
        let own = groups.iter().position(|group| group.fits(skill, entry));
        own.unwrap_or(groups.len())
    }

    /// The faults to inject into calls of a caller. Each is decided by itself: of several that
    /// wait, the waits add up; of several that fail, the first one counts.
    pub fn injections(&self, caller: &SpiffeId) -> Vec<Injection> {
        let faults = self.overrides.faults.iter().flat_map(|all| all.iter());
        let own = faults.filter(|fault| fault.concerns(caller));
        own.map(Rehearsal::injection).collect()
    }
}

impl Rehearsal {
    fn injection(&self) -> Injection {
        Injection {
            delay: self.delay.map(|(percent, time)| Delay {
                share: percent.share(),
                time,
            }),
            abort: self.abort.map(|(percent, code)| Abort {
                share: percent.share(),
                code,
            }),
        }
    }
}

impl Overrides {
    /// These settings, changed where something is set here.
    fn over(&self, base: &Settings) -> Settings {
        let Settings {
            breaker,
            balance,
            retry,
        } = base;
        let share = |own: Option<Percent>, base: f64| own.map_or(base, Percent::share);
        let cool_down = self.cool_down.unwrap_or(breaker.cool_down);
        let cool_down_max = self.cool_down_max.unwrap_or(breaker.cool_down_max);
        let first = self.base.unwrap_or(retry.base);
        Settings {
            breaker: BreakerSettings {
                enabled: self.breaker.unwrap_or(breaker.enabled),
                consecutive: self.consecutive.unwrap_or(breaker.consecutive),
                success_rate: share(self.success, breaker.success_rate),
                min_calls: self.min_calls.unwrap_or(breaker.min_calls),
                window: self.window.unwrap_or(breaker.window),
                cool_down,
                // Set by different rules, they may have crossed.
                cool_down_max: cool_down_max.max(cool_down),
                max_ejected: share(self.max_ejected, breaker.max_ejected),
                ..breaker.clone()
            },
            balance: BalanceSettings {
                slow_start: self.slow_start.unwrap_or(balance.slow_start),
                max_in_flight: self.max_in_flight.unwrap_or(balance.max_in_flight),
                max_pending: self.max_pending.unwrap_or(balance.max_pending),
                zone: self.zone_preference.unwrap_or(balance.zone),
                sticky: self.sticky.unwrap_or(balance.sticky),
                ..balance.clone()
            },
            retry: RetrySettings {
                attempts: self.attempts.unwrap_or(retry.attempts),
                base: first,
                max: self.max.unwrap_or(retry.max).max(first),
                budget: share(self.budget, retry.budget),
                floor: self.floor.map_or(retry.floor, f64::from),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::rules::Rule;
    use crate::registry::rules::Rules;
    use crate::registry::rules::tests::whole;

    #[test]
    fn what_no_rule_sets_is_at_its_default() {
        let nothing = Effective::default();
        assert_eq!(nothing.settings(), Settings::default());
        assert_eq!((nothing.timeout(), nothing.weights()), (None, Vec::new()));
        let anybody = "spiffe://a/operator/ops".parse().unwrap();
        assert_eq!(nothing.injections(&anybody), []);
    }

    #[test]
    fn every_setting_is_carried_over() {
        let rule = Rule::read(whole()).unwrap();
        let (skill, agent) = (rule.target.skill.clone(), rule.target.agent.clone());
        let namespace = rule.name.namespace.clone();
        let rules = Rules::new([rule], 1);
        let effective = rules.effective(&namespace, skill.as_ref(), agent.as_ref());
        let default = Settings::default();
        let expected = Settings {
            breaker: BreakerSettings {
                enabled: false,
                consecutive: 7,
                success_rate: 0.9,
                min_calls: 10,
                window: Duration::from_secs(10),
                cool_down: Duration::from_secs(2),
                cool_down_max: Duration::from_secs(30),
                max_ejected: 0.25,
                ..default.breaker
            },
            balance: BalanceSettings {
                slow_start: Duration::ZERO,
                max_in_flight: 8,
                max_pending: 4,
                zone: false,
                sticky: false,
                ..default.balance
            },
            retry: RetrySettings {
                attempts: 2,
                base: Duration::from_millis(50),
                max: Duration::from_secs(1),
                budget: 0.125,
                floor: 0.0,
            },
        };
        assert_eq!(effective.settings(), expected);
        assert_eq!(effective.timeout(), Some(Duration::from_millis(2_500)));
        assert_eq!(effective.weights(), [90, 10]);
        let ops = "spiffe://a/operator/ops".parse().unwrap();
        let injected = effective.injections(&ops);
        let delay = Delay {
            share: 0.1,
            time: Duration::from_secs(2),
        };
        assert_eq!(injected[0].delay, Some(delay));
        assert_eq!(injected[0].abort.unwrap().code, tonic::Code::Unavailable);
        let stranger = "spiffe://a/operator/else".parse().unwrap();
        assert_eq!(effective.injections(&stranger), []);
    }

    #[test]
    fn longest_waits_that_were_set_apart_do_not_fall_below_the_first() {
        let crossed = Overrides {
            base: Some(Duration::from_secs(20)),
            cool_down: Some(Duration::from_secs(600)),
            ..Overrides::default()
        };
        let settings = crossed.over(&Settings::default());
        assert_eq!(settings.retry.max, settings.retry.base);
        assert_eq!(settings.breaker.cool_down_max, settings.breaker.cool_down);
    }
}
