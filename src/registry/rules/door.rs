//! The door for traffic rules: a message in, a rule out, or the path of what breaks a bound.
//!
//! The same at the registry, which refuses, and at a sidecar, which leaves out what it cannot read.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use prost::Message;
use tonic::Code;

use super::overrides::Overrides;
use super::overrides::Percent;
use super::rule::Caller;
use super::rule::Rehearsal;
use super::rule::Rule;
use super::rule::RuleName;
use super::rule::Target;
use super::rule::Weight;
use crate::config::Span;
use crate::domain::AgentName;
use crate::domain::Fault;
use crate::domain::Label;
use crate::domain::Reason;
use crate::domain::ids::DEFAULT_NAMESPACE;
use crate::pb;
use crate::registry::query::LABELS_MAX;
use crate::registry::query::requirement;
use crate::telemetry::metrics::calls::code_name;

/// Largest rule, encoded, in bytes; real ones are some hundred.
pub const RULE_MAX: usize = 16 * 1024;
/// Most groups of a rule.
pub const WEIGHTS_MAX: usize = 16;
/// Most faults that a rule injects.
pub const FAULTS_MAX: usize = 8;
/// Most callers that a fault names.
pub const CALLERS_MAX: usize = 64;
/// Largest weight.
const WEIGHT_MAX: u32 = 1_000;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// Reads a name of a rule; an empty namespace is `default`.
///
/// # Errors
/// `INVALID_FIELD` with `namespace` or `name`, after `prefix`.
pub(super) fn name(prefix: &str, namespace: &str, name: &str) -> Result<RuleName, Fault> {
    let namespace = match namespace {
        "" => DEFAULT_NAMESPACE,
        given => given,
    };
    let label = |text: &str, part: &str| {
        text.parse::<Label>()
            .map_err(|wrong| Fault::field(format!("{prefix}{part}"), wrong.to_string()))
    };
    Ok(RuleName {
        namespace: label(namespace, "namespace")?,
        name: label(name, "name")?,
    })
}

impl RuleName {
    /// Reads what a request calls a rule; an empty namespace is `default`.
    ///
    /// # Errors
    /// `INVALID_FIELD` with its path.
    pub fn read(namespace: &str, rule: &str) -> Result<Self, Fault> {
        name("", namespace, rule)
    }
}

impl Rule {
    /// Reads a rule as a request carries it, in its field `rule`. What the registry sets is taken
    /// as it is.
    ///
    /// # Errors
    /// `INVALID_FIELD` with the path of what breaks a bound; `PAYLOAD_TOO_LARGE`.
    pub fn read(mut message: pb::TrafficRule) -> Result<Self, Fault> {
        // What the registry adds is not the writer's: a rule that it took it must be able to read again.
        let added = pb::TrafficRule {
            namespace: message.namespace.clone(),
            revision: message.revision,
            updated_at: message.updated_at,
            updated_by: message.updated_by.clone(),
            ..Default::default()
        };
        if message.encoded_len() - added.encoded_len() > RULE_MAX {
            return Err(Fault {
                field: Some("rule".to_owned()),
                ..Fault::new(
                    Reason::PayloadTooLarge,
                    "a rule is at most 16 KiB encoded: name fewer callers or labels",
                )
            });
        }
        let name = name("rule.", &message.namespace, &message.name)?;
        let skill = match message.skill.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|wrong| at("rule.skill", wrong))?),
        };
        let agent = own_agent("rule.agent", &message.agent, &name.namespace)?;
        let overrides = overrides(&message, &name.namespace)?;
        message.namespace = name.namespace.to_string();
        if let Some(agent) = &agent {
            message.agent = agent.name.to_string();
        }
        Ok(Self {
            target: Target {
                skill,
                agent: agent.map(|agent| agent.name),
            },
            name,
            overrides,
            message,
        })
    }
}

fn overrides(message: &pb::TrafficRule, namespace: &Label) -> Result<Overrides, Fault> {
    let mut read = Overrides {
        weights: weights(&message.weights, namespace)?,
        timeout: span(
            "rule.timeout",
            message.timeout.as_ref(),
            Duration::from_millis(10)..=HOUR,
        )?,
        faults: faults(&message.faults, namespace)?,
        ..Overrides::default()
    };
    retry(&mut read, message.retry.unwrap_or_default())?;
    breaker(&mut read, message.breaker.unwrap_or_default())?;
    let limits = message.limits.unwrap_or_default();
    read.max_in_flight = count(
        "rule.limits.max_in_flight",
        limits.max_in_flight,
        0..=10_000,
    )?;
    read.max_pending = count("rule.limits.max_pending", limits.max_pending, 0..=10_000)?;
    let balance = message.balance.unwrap_or_default();
    read.zone_preference = balance.zone_preference;
    read.sticky = balance.sticky;
    read.slow_start = span(
        "rule.balance.slow_start",
        balance.slow_start.as_ref(),
        Duration::ZERO..=HOUR,
    )?;
    Ok(read)
}

fn retry(read: &mut Overrides, retry: pb::RuleRetry) -> Result<(), Fault> {
    let waits = Duration::from_millis(1)..=MINUTE;
    read.attempts = count("rule.retry.attempts", retry.attempts, 1..=5)?;
    read.base = span("rule.retry.base", retry.base.as_ref(), waits.clone())?;
    read.max = span("rule.retry.max", retry.max.as_ref(), waits)?;
    not_below("rule.retry.max", read.max, "base", read.base)?;
    read.budget = percent("rule.retry.budget_percent", retry.budget_percent)?;
    read.floor = count(
        "rule.retry.floor_per_second",
        retry.floor_per_second,
        0..=1_000,
    )?;
    Ok(())
}

fn breaker(read: &mut Overrides, breaker: pb::RuleBreaker) -> Result<(), Fault> {
    let open = Duration::from_millis(10)..=HOUR;
    read.breaker = breaker.enabled;
    read.consecutive = count("rule.breaker.consecutive", breaker.consecutive, 1..=1_000)?;
    read.success = percent("rule.breaker.success_percent", breaker.success_percent)?;
    read.min_calls = count("rule.breaker.min_calls", breaker.min_calls, 1..=10_000)?;
    read.window = span(
        "rule.breaker.window",
        breaker.window.as_ref(),
        Duration::from_secs(1)..=10 * MINUTE,
    )?;
    read.cool_down = span(
        "rule.breaker.cool_down",
        breaker.cool_down.as_ref(),
        open.clone(),
    )?;
    let longest = breaker.cool_down_max.as_ref();
    read.cool_down_max = span("rule.breaker.cool_down_max", longest, open)?;
    not_below(
        "rule.breaker.cool_down_max",
        read.cool_down_max,
        "cool_down",
        read.cool_down,
    )?;
    read.max_ejected = percent(
        "rule.breaker.max_ejected_percent",
        breaker.max_ejected_percent,
    )?;
    Ok(())
}

fn weights(messages: &[pb::RuleWeight], namespace: &Label) -> Result<Option<Arc<[Weight]>>, Fault> {
    if messages.len() > WEIGHTS_MAX {
        return Err(Fault::field("rule.weights", "at most 16 entries"));
    }
    let read = messages.iter().enumerate().map(|(place, message)| {
        let path = |part: &str| format!("rule.weights[{place}].{part}");
        let version = |text: &str, part: &str| match text {
            "" => Ok(None),
            given => requirement(given)
                .map(Some)
                .map_err(|wrong| Fault::field(path(part), wrong)),
        };
        if message.weight > WEIGHT_MAX {
            return Err(Fault::field(path("weight"), "a weight is 0 to 1000"));
        }
        if message.labels.len() > LABELS_MAX {
            return Err(Fault::field(path("labels"), "at most 64 labels"));
        }
        Ok(Weight {
            agent_version: version(&message.agent_version, "agent_version")?,
            version: version(&message.version, "version")?,
            agent: own_agent(&path("agent"), &message.agent, namespace)?,
            labels: message.labels.clone().into_iter().collect(),
            weight: message.weight,
        })
    });
    let read: Arc<[Weight]> = read.collect::<Result<_, _>>()?;
    if !read.is_empty() && read.iter().all(|group| group.weight == 0) {
        let text = "all weights are 0, so nobody would get a call; give one of them a part";
        return Err(Fault::field("rule.weights", text));
    }
    Ok(Some(read).filter(|read| !read.is_empty()))
}

fn faults(
    messages: &[pb::RuleFault],
    namespace: &Label,
) -> Result<Option<Arc<[Rehearsal]>>, Fault> {
    if messages.len() > FAULTS_MAX {
        return Err(Fault::field("rule.faults", "at most 8 faults"));
    }
    let read = messages.iter().enumerate().map(|(place, message)| {
        let path = format!("rule.faults[{place}]");
        rehearsal(&path, message, namespace)
    });
    let read: Arc<[Rehearsal]> = read.collect::<Result<_, _>>()?;
    Ok(Some(read).filter(|read| !read.is_empty()))
}

fn rehearsal(path: &str, message: &pb::RuleFault, namespace: &Label) -> Result<Rehearsal, Fault> {
    let share = |part: &str, percent: f64| {
        let path = format!("{path}.{part}.percent");
        Percent::new(percent).ok_or_else(|| Fault::field(path, SHARE))
    };
    let delay = message.delay.as_ref().map(|delay| {
        let path = format!("{path}.delay.duration");
        let bounds = Duration::from_millis(1)..=10 * MINUTE;
        let wait = span(&path, delay.duration.as_ref(), bounds)?;
        let wait = wait.ok_or_else(|| Fault::field(path, "say how long to wait"))?;
        Ok::<_, Fault>((share("delay", delay.percent)?, wait))
    });
    let abort = message.abort.as_ref().map(|abort| {
        let path = format!("{path}.abort.code");
        let code = code(&abort.code).ok_or_else(|| {
            let text = "must be the name of a gRPC code other than OK, such as UNAVAILABLE";
            Fault::field(path, text)
        })?;
        Ok::<_, Fault>((share("abort", abort.percent)?, code))
    });
    if delay.is_none() && abort.is_none() {
        return Err(Fault::field(path, "must have a delay, an abort, or both"));
    }
    let callers_path = format!("{path}.callers");
    if message.callers.len() > CALLERS_MAX {
        return Err(Fault::field(callers_path, "at most 64 callers"));
    }
    let callers = message.callers.iter().enumerate();
    let callers = callers.map(|(place, text)| {
        caller(text, namespace).map_err(|wrong| at(format!("{callers_path}[{place}]"), wrong))
    });
    Ok(Rehearsal {
        delay: delay.transpose()?,
        abort: abort.transpose()?,
        callers: callers.collect::<Result<_, _>>()?,
    })
}

fn caller(text: &str, namespace: &Label) -> Result<Caller, String> {
    if text.starts_with("spiffe://") {
        let id = text.parse().map_err(|wrong| format!("{wrong}"))?;
        return Ok(Caller::Id(id));
    }
    AgentName::parse_in(text, namespace)
        .map(Caller::Named)
        .map_err(|wrong| wrong.to_string())
}

/// The code of a name, `OK` aside.
fn code(name: &str) -> Option<Code> {
    (1..=16)
        .map(Code::from_i32)
        .find(|code| code_name(*code) == name)
}

/// An agent of the rule's own namespace; `None` for an empty text.
fn own_agent(path: &str, text: &str, namespace: &Label) -> Result<Option<AgentName>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let agent = AgentName::parse_in(text, namespace).map_err(|wrong| at(path, wrong))?;
    if agent.namespace != *namespace {
        let text = format!("is of another namespace than the rule, which is of {namespace}");
        return Err(Fault::field(path, text));
    }
    Ok(Some(agent))
}

fn at(path: impl Into<String>, wrong: impl ToString) -> Fault {
    Fault::field(path, wrong.to_string())
}

const SHARE: &str = "a share is in percent, 0 to 100";

fn percent(path: &str, value: Option<f64>) -> Result<Option<Percent>, Fault> {
    let read = |percent| Percent::new(percent).ok_or_else(|| Fault::field(path, SHARE));
    value.map(read).transpose()
}

fn count(
    path: &str,
    value: Option<u32>,
    bounds: RangeInclusive<u32>,
) -> Result<Option<u32>, Fault> {
    if value.is_none_or(|value| bounds.contains(&value)) {
        return Ok(value);
    }
    let text = format!("must be {} to {}", bounds.start(), bounds.end());
    Err(Fault::field(path, text))
}

fn span(
    path: &str,
    value: Option<&prost_types::Duration>,
    bounds: RangeInclusive<Duration>,
) -> Result<Option<Duration>, Fault> {
    let Some(value) = value else { return Ok(None) };
    let read = Duration::try_from(*value).ok();
    let whole = read.filter(|read| read.subsec_nanos() % 1_000_000 == 0);
    let fits = whole.filter(|read| bounds.contains(read));
    fits.map(Some).ok_or_else(|| {
        let (least, most) = (Span(*bounds.start()), Span(*bounds.end()));
        let text = format!("must be {least} to {most}, in whole milliseconds");
        Fault::field(path, text)
    })
}

fn not_below(
    path: &str,
    most: Option<Duration>,
    name: &str,
    least: Option<Duration>,
) -> Result<(), Fault> {
    match (most, least) {
        (Some(most), Some(least)) if most < least => Err(Fault::field(
            path,
            format!("must not be below {name}, which is {}", Span(least)),
        )),
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}
