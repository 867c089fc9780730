//! How traffic of one kind is treated: by the traffic rules as they are known here, and by the defaults
//! where no rule says otherwise. The one place where rules come in.

use std::{sync::Arc, time::Duration};

use rand::Rng;

use crate::{
    domain::{AgentName, Label, SkillName, SpiffeId},
    registry::client::{Effective, Entry, Rules},
    resilience::{Injected, Settings},
};

/// Second tries per second that tasks always have: they are never given up, and without any would wait
/// for others to come and pay for theirs.
const FLOOR_LEAST: f64 = 0.1;

/// What holds for calls of one kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Treatment {
    /// Balancing, breaking, retries.
    pub(super) settings: Arc<Settings>,
    /// How calls are split between groups; empty: not at all.
    pub(super) weights: Vec<u32>,
    /// Longest wait for an executor's first word; `None`: the usual one.
    pub(super) patience: Option<Duration>,
    effective: Effective,
}

/// What holds for calls of `skill` to `agent` in a namespace; what is `None` is not known.
pub(super) fn settings_for(
    rules: &Rules,
    namespace: &Label,
    skill: Option<&SkillName>,
    agent: Option<&AgentName>,
) -> Treatment {
    // Rules are about the agents of their namespace.
    let own = agent.filter(|agent| agent.namespace == *namespace);
    let effective = rules.effective(namespace, skill, own.map(|agent| &agent.name));
    let mut settings = effective.settings();
    settings.retry.floor = settings.retry.floor.max(FLOOR_LEAST);
    Treatment {
        settings: Arc::new(settings),
        weights: effective.weights(),
        patience: effective.timeout(),
        effective,
    }
}

impl Treatment {
    /// Which of the weights an instance has, for calls of `skill`; `None`: for calls of no skill.
    pub(super) fn group(&self, skill: Option<&SkillName>, entry: &Entry) -> usize {
        self.effective.group(skill, entry)
    }

    /// What is done on purpose to a call of this caller. Each fault is drawn by itself: waits add
    /// up, and of several failures the first one counts.
    pub(super) fn inject(&self, caller: &SpiffeId, random: &mut impl Rng) -> Injected {
        let mut all = Injected::default();
        for injection in self.effective.injections(caller) {
            let one = injection.decide((random.random(), random.random()));
            let waits = all.delay.into_iter().chain(one.delay).sum::<Duration>();
            all.delay = (!waits.is_zero()).then_some(waits);
            all.abort = all.abort.or(one.abort);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pb, registry::client::Rule};

    fn rules(all: Vec<pb::TrafficRule>) -> Rules {
        Rules::new(all.into_iter().map(|rule| Rule::read(rule).unwrap()), 1)
    }

    fn millis(millis: i32) -> Option<prost_types::Duration> {
        Some(prost_types::Duration {
            seconds: 0,
            nanos: millis * 1_000_000,
        })
    }

    #[test]
    fn second_tries_never_run_dry() {
        let floor = |floor_per_second: Option<u32>| {
            let rule = pb::TrafficRule {
                name: "dry".into(),
                retry: Some(pb::RuleRetry {
                    floor_per_second,
                    ..Default::default()
                }),
                ..Default::default()
            };
            let namespace = "default".parse().unwrap();
            let treated = settings_for(&rules(vec![rule]), &namespace, None, None);
            treated.settings.retry.floor
        };
        assert_eq!(floor(Some(0)), FLOOR_LEAST);
        assert_eq!(floor(Some(2)), 2.0);
    }

    #[test]
    fn rules_of_the_namespace_hold_for_its_agents_and_faults_for_their_callers() {
        let fault = |caller: &str| pb::RuleFault {
            delay: Some(pb::RuleDelay {
                percent: 100.0,
                duration: millis(50),
            }),
            callers: vec![caller.into()],
            ..Default::default()
        };
        let rule = pb::TrafficRule {
            name: "slow".into(),
            agent: "worker".into(),
            timeout: millis(700),
            faults: vec![fault("a"), fault("a")],
            ..Default::default()
        };
        let rules = rules(vec![rule]);
        let (namespace, skill) = ("default".parse().unwrap(), "s".parse().unwrap());
        let treated = |agent: &str| {
            let agent: AgentName = agent.parse().unwrap();
            settings_for(&rules, &namespace, Some(&skill), Some(&agent))
        };
        let worker = treated("default/worker");
        assert_eq!(worker.patience, Some(Duration::from_millis(700)));
        assert_eq!(treated("default/other").patience, None);
        assert_eq!(
            treated("else/worker").patience,
            None,
            "of another namespace"
        );
        let injected = |caller: &str| {
            let caller = format!("spiffe://a/ns/default/agent/{caller}")
                .parse()
                .unwrap();
            worker.inject(&caller, &mut rand::rng())
        };
        assert_eq!(
            injected("a").delay,
            Some(Duration::from_millis(100)),
            "waits add up"
        );
        assert_eq!(injected("b"), Injected::default());
    }
}
