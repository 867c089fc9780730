//! What this sidecar knows of those it calls, as JSON for its admin listener.

use serde_json::{Value, json};

use super::sights::{EndpointSight, Sights, TargetSight};
use crate::{
    config::Span,
    pb,
    registry::client::Rules,
    resilience::{Phase, Settings, Sight, Trip},
};

/// Most instances on the page: a mesh may have tens of thousands.
const INSTANCES_MAX: usize = 1000;

/// What a query asks for.
pub(super) struct Asked {
    /// Only who would get such a task; `None`: all.
    pub(super) selector: Option<pb::Selector>,
    /// Most instances.
    pub(super) limit: usize,
}

/// Reads a query, such as `skill=billing.pay&agent=billing&limit=20`: names need no escapes.
pub(super) fn asked(query: &str) -> Asked {
    let given = |key: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let mut own = pairs.filter(|(name, _)| *name == key);
        own.next().map_or("", |(_, value)| value).to_owned()
    };
    let (skill, agent) = (given("skill"), given("agent"));
    let selector = (!skill.is_empty()).then(|| pb::Selector {
        skill,
        agent,
        ..Default::default()
    });
    let limit = given("limit").parse().unwrap_or(INSTANCES_MAX);
    Asked {
        selector,
        limit: limit.min(INSTANCES_MAX),
    }
}

/// The page of it.
pub(super) fn page(sights: &Sights, rules: &Rules) -> Value {
    let known: Vec<Value> = sights.endpoints.iter().map(instance).collect();
    let targets = sights.targets.iter();
    let asked: Vec<Value> = targets.map(|one| target(one, rules)).collect();
    json!({
        "instances": known,
        "instances_left_out": sights.endpoints_left_out,
        "targets": asked,
        "targets_left_out": sights.targets_left_out,
    })
}

fn instance(one: &EndpointSight) -> Value {
    let sight = &one.sight;
    let millis = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
    let (good, bad) = sight.window;
    json!({
        "instance": one.instance.as_str(),
        "agent": one.agent.to_string(),
        "zone": one.zone,
        "serves": one.serves,
        "breaker": phase(sight.phase),
        "reason": reason(sight),
        "opened": sight.trips,
        "probe_in_ms": sight.left.map(millis),
        "failures_in_a_row": sight.consecutive,
        "window": {"good": good, "bad": bad},
        "in_flight": sight.in_flight,
        "pending": sight.pending,
        "latency_ms": sight.latency.map(millis),
        "penalty_ms": millis(sight.penalty),
        "paused_ms": sight.paused.map(millis),
        "share": sight.share,
    })
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Closed => "closed",
        Phase::Open => "open",
        Phase::HalfOpen => "half-open",
    }
}

/// Why calls do not flow, or flow slowly; empty: they do.
fn reason(sight: &Sight) -> String {
    let why = match sight.why {
        Some(Trip::Consecutive(count)) => format!("{count} failures in a row"),
        Some(Trip::Rate { good, all }) => format!("{good} of {all} calls succeeded"),
        Some(Trip::Probe) => "its probe failed".to_owned(),
        None => String::new(),
    };
    match (sight.phase, sight.left, sight.paused) {
        (Phase::Open, Some(left), _) => format!("{why}; a probe goes in {}", short(left)),
        (Phase::HalfOpen, _, _) => format!("{why}; the next call is its probe"),
        (_, _, Some(left)) => format!("asked to be left alone for {}", short(left)),
        (Phase::Open | Phase::Closed, _, _) if sight.share < 1.0 => {
            format!("new: {:.0}% of its share", sight.share * 100.0)
        }
        (Phase::Open | Phase::Closed, _, _) => why,
    }
}

/// A duration to a tenth of a second.
fn short(time: std::time::Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn target(one: &TargetSight, rules: &Rules) -> Value {
    let selector = &one.selector;
    let own = selector.agent.rsplit('/').next().unwrap_or_default();
    let (skill, agent) = (selector.skill.parse().ok(), own.parse().ok());
    let effective = rules.effective(&one.namespace, skill.as_ref(), agent.as_ref());
    let by_rule: Vec<Value> = effective
        .shown()
        .into_iter()
        .map(|(setting, value, rule)| {
            json!({"setting": setting, "value": value, "rule": rule.name.to_string()})
        })
        .collect();
    let members: Vec<&str> = one.members.iter().map(|member| member.as_str()).collect();
    json!({
        "namespace": one.namespace.as_str(),
        "skill": selector.skill,
        "agent": selector.agent,
        "version": selector.version,
        "agent_version": selector.agent_version,
        "members": members,
        "members_left_out": one.members_left_out,
        "ejected": one.ejected,
        "retries_left": one.retries_left,
        "idle_ms": one.idle.map(|idle| u64::try_from(idle.as_millis()).unwrap_or(u64::MAX)),
        "settings": settings(&one.settings),
        "by_rule": by_rule,
    })
}

fn settings(settings: &Settings) -> Value {
    let (breaker, balance, retry) = (&settings.breaker, &settings.balance, &settings.retry);
    let span = |time: std::time::Duration| Span(time).to_string();
    json!({
        "breaker": {
            "enabled": breaker.enabled,
            "consecutive": breaker.consecutive,
            "success_percent": breaker.success_rate * 100.0,
            "min_calls": breaker.min_calls,
            "window": span(breaker.window),
            "cool_down": span(breaker.cool_down),
            "cool_down_max": span(breaker.cool_down_max),
            "max_ejected_percent": breaker.max_ejected * 100.0,
        },
        "balance": {
            "zone_preference": balance.zone,
            "sticky": balance.sticky,
            "slow_start": span(balance.slow_start),
            "max_in_flight": balance.max_in_flight,
            "max_pending": balance.max_pending,
        },
        "retry": {
            "attempts": retry.attempts,
            "base": span(retry.base),
            "max": span(retry.max),
            "budget_percent": retry.budget * 100.0,
            "floor_per_second": retry.floor,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sidecar::sights::trouble;

    fn sight(phase: Phase, why: Option<Trip>) -> Sight {
        Sight {
            phase,
            why,
            left: why.map(|_| Duration::from_millis(1_234)),
            trips: 2,
            consecutive: 0,
            window: (3, 1),
            in_flight: 0,
            pending: 0,
            latency: None,
            penalty: Duration::ZERO,
            paused: None,
            share: 1.0,
        }
    }

    #[test]
    fn a_query_names_what_is_asked_for() {
        let asked_for = asked("agent=billing&skill=billing.pay");
        let selector = asked_for.selector.unwrap();
        assert_eq!(
            (selector.skill, selector.agent),
            ("billing.pay".into(), "billing".into())
        );
        assert_eq!(asked_for.limit, INSTANCES_MAX);
        for (query, limit) in [
            ("limit=7", 7),
            ("limit=0&agent=billing", 0),
            ("limit=1001&skill=", INSTANCES_MAX),
            ("limit=-1", INSTANCES_MAX),
            ("", INSTANCES_MAX),
        ] {
            let asked = asked(query);
            assert_eq!((asked.selector, asked.limit), (None, limit), "{query}");
        }
    }

    #[test]
    fn every_state_says_why() {
        let open = sight(Phase::Open, Some(Trip::Consecutive(5)));
        assert_eq!(reason(&open), "5 failures in a row; a probe goes in 1.2 s");
        let rate = Trip::Rate { good: 15, all: 20 };
        let half = sight(Phase::HalfOpen, Some(rate));
        assert_eq!(
            reason(&half),
            "15 of 20 calls succeeded; the next call is its probe"
        );
        assert_eq!(reason(&sight(Phase::Closed, None)), "");
        let paused = Sight {
            paused: Some(Duration::from_secs(4)),
            ..sight(Phase::Closed, None)
        };
        assert_eq!(reason(&paused), "asked to be left alone for 4.0 s");
        let new = Sight {
            share: 0.25,
            ..sight(Phase::Closed, None)
        };
        assert_eq!(reason(&new), "new: 25% of its share");
        assert!(trouble(&open) < trouble(&half) && trouble(&half) < trouble(&paused));
    }
}
