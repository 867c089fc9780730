//! Files of traffic rules: TOML or JSON, with the names of the contract.
//!
//! Durations are written as people write them (`250ms`), or as the contract's JSON has them
//! (`0.250s`), so that what `--output json` prints can be put again.

use std::{collections::HashMap, path::Path, time::Duration};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{config, config::Span, pb};

/// Reads the rules of a file; `path` is only named in errors.
///
/// # Errors
/// A sentence with the place of what cannot be read.
pub(in crate::cli) fn parse(path: &Path, text: &str) -> Result<Vec<Written>, String> {
    let json = text.trim_start().starts_with('{');
    let several = if json {
        let read = serde_json::from_str::<serde_json::Value>(text);
        read.is_ok_and(|value| value.get("rules").is_some())
    } else {
        toml::from_str::<toml::Table>(text).is_ok_and(|table| table.contains_key("rules"))
    };
    if several {
        return read::<File>(path, text, json).map(|file| file.rules);
    }
    read(path, text, json).map(|rule| vec![rule])
}

fn read<T: serde::de::DeserializeOwned>(path: &Path, text: &str, json: bool) -> Result<T, String> {
    if json {
        let read = serde_json::from_str(text);
        return read.map_err(|wrong| format!("{}: {wrong}", path.display()));
    }
    config::parse(path, text).map_err(|wrong| wrong.to_string())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rules: Vec<Written>,
}

/// A rule as it is written in a file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::cli) struct Written {
    name: String,
    namespace: String,
    skill: String,
    agent: String,
    weights: Vec<Weight>,
    timeout: Option<Wait>,
    retry: Option<Retry>,
    breaker: Option<Breaker>,
    limits: Option<Limits>,
    balance: Option<Balance>,
    faults: Vec<Fault>,
    revision: Option<Number>,
    // Printed with a rule, and set by the registry again.
    #[serde(rename = "updated_at")]
    _updated_at: Option<String>,
    #[serde(rename = "updated_by")]
    _updated_by: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Weight {
    agent_version: String,
    version: String,
    agent: String,
    labels: HashMap<String, String>,
    weight: u32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Retry {
    attempts: Option<u32>,
    base: Option<Wait>,
    max: Option<Wait>,
    budget_percent: Option<f64>,
    floor_per_second: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Breaker {
    enabled: Option<bool>,
    consecutive: Option<u32>,
    success_percent: Option<f64>,
    min_calls: Option<u32>,
    window: Option<Wait>,
    cool_down: Option<Wait>,
    cool_down_max: Option<Wait>,
    max_ejected_percent: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limits {
    max_in_flight: Option<u32>,
    max_pending: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Balance {
    zone_preference: Option<bool>,
    slow_start: Option<Wait>,
    sticky: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Fault {
    delay: Option<Delay>,
    abort: Option<Abort>,
    callers: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Delay {
    percent: f64,
    duration: Option<Wait>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Abort {
    percent: f64,
    code: String,
}

impl Written {
    /// The revision that it was read at, if it says so.
    pub(in crate::cli) fn revision(&self) -> Option<u64> {
        self.revision.as_ref().map(|number| number.0)
    }

    /// As the registry takes it.
    pub(in crate::cli) fn into_message(self) -> pb::TrafficRule {
        pb::TrafficRule {
            namespace: self.namespace,
            name: self.name,
            skill: self.skill,
            agent: self.agent,
            weights: self.weights.into_iter().map(Weight::into_message).collect(),
            timeout: wire(self.timeout),
            retry: self.retry.map(|retry| pb::RuleRetry {
                attempts: retry.attempts,
                base: wire(retry.base),
                max: wire(retry.max),
                budget_percent: retry.budget_percent,
                floor_per_second: retry.floor_per_second,
            }),
            breaker: self.breaker.map(Breaker::into_message),
            limits: self.limits.map(|limits| pb::RuleLimits {
                max_in_flight: limits.max_in_flight,
                max_pending: limits.max_pending,
            }),
            balance: self.balance.map(|balance| pb::RuleBalance {
                zone_preference: balance.zone_preference,
                slow_start: wire(balance.slow_start),
                sticky: balance.sticky,
            }),
            faults: self.faults.into_iter().map(Fault::into_message).collect(),
            ..Default::default()
        }
    }
}

impl Weight {
    fn into_message(self) -> pb::RuleWeight {
        pb::RuleWeight {
            agent_version: self.agent_version,
            version: self.version,
            agent: self.agent,
            labels: self.labels,
            weight: self.weight,
        }
    }
}

impl Breaker {
    fn into_message(self) -> pb::RuleBreaker {
        pb::RuleBreaker {
            enabled: self.enabled,
            consecutive: self.consecutive,
            success_percent: self.success_percent,
            min_calls: self.min_calls,
            window: wire(self.window),
            cool_down: wire(self.cool_down),
            cool_down_max: wire(self.cool_down_max),
            max_ejected_percent: self.max_ejected_percent,
        }
    }
}

impl Fault {
    fn into_message(self) -> pb::RuleFault {
        pb::RuleFault {
            delay: self.delay.map(|delay| pb::RuleDelay {
                percent: delay.percent,
                duration: wire(delay.duration),
            }),
            abort: self.abort.map(|abort| pb::RuleAbort {
                percent: abort.percent,
                code: abort.code,
            }),
            callers: self.callers,
        }
    }
}

fn wire(wait: Option<Wait>) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(wait?.0).ok()
}

/// A duration, to the millisecond.
#[derive(Clone, Copy, Debug)]
struct Wait(Duration);

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let seconds = || {
            let (whole, part) = text.strip_suffix('s')?.split_once('.')?;
            let digits = part.len() <= 9 && part.bytes().all(|digit| digit.is_ascii_digit());
            let nanos = format!("{part:0<9}").parse().ok().filter(|_| digits)?;
            Some(Duration::new(whole.parse().ok()?, nanos))
        };
        match text.parse::<Span>() {
            Ok(span) => Ok(Self(span.0)),
            Err(wrong) => seconds().map(Self).ok_or_else(|| D::Error::custom(wrong)),
        }
    }
}

/// A whole number, which the contract's JSON has as text.
#[derive(Clone, Copy, Debug)]
struct Number(u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(from)? {
            Either::Number(number) => Ok(Self(number)),
            Either::Text(text) => text.parse().map(Self).map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::json;

    /// Every key there is.
    const WHOLE: &str = r#"
name = "all-of-it"
namespace = "prod"
skill = "billing.pay"
agent = "billing"
timeout = "2s"
[[weights]]
agent_version = "^1"
version = "2"
agent = "billing"
labels = { tier = "gold" }
weight = 90
[retry]
attempts = 2
base = "50ms"
max = "1s"
budget_percent = 12.5
floor_per_second = 4
[breaker]
enabled = true
consecutive = 7
success_percent = 90
min_calls = 10
window = "10s"
cool_down = "1500ms"
cool_down_max = "5m"
max_ejected_percent = 25
[limits]
max_in_flight = 8
max_pending = 4
[balance]
zone_preference = false
slow_start = "30s"
sticky = true
[[faults]]
delay = { percent = 10, duration = "2s" }
abort = { percent = 0.5, code = "UNAVAILABLE" }
callers = ["web"]
"#;

    fn one(text: &str) -> Result<Written, String> {
        parse(Path::new("x"), text).map(|mut all| all.remove(0))
    }

    #[test]
    fn what_is_printed_as_json_is_read_as_the_same_rule() {
        let read = one(WHOLE).unwrap().into_message();
        let mut kept = read.clone();
        kept.revision = 1 << 60;
        kept.updated_by = "spiffe://a/operator/ops".into();
        kept.updated_at = Some(prost_types::Timestamp::default());
        let printed = json::message("TrafficRule", &kept);
        // The contract has no key that a file has not, and the other way round.
        let keys = printed.as_object().unwrap().len();
        assert_eq!(keys, 14, "{printed}");
        let again = one(&printed.to_string()).unwrap();
        assert_eq!(again.revision(), Some(1 << 60));
        assert_eq!(again.into_message(), read);
        let list = pb::ListRulesResponse {
            rules: vec![kept.clone(), kept],
        };
        let list = json::message("ListRulesResponse", &list).to_string();
        let all = parse(Path::new("x"), &list).unwrap();
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        for (text, said) in [
            ("nam = 'x'", "x:1: nam: unknown key `nam`"),
            (
                "name = 'x'\n[retry]\nattempt = 2",
                "did you mean `attempts`?",
            ),
            ("timeout = '5'", "not a duration"),
            ("timeout = '1.5h'", "not a duration"),
            ("timeout = '-1.5s'", "not a duration"),
            ("{\"name\": \"x\", \"nam\": 1}", "unknown field `nam`"),
            (
                "[[rules]]\nname = 'x'\n[[rules]]\nnam = 'y'",
                "rules[1].nam",
            ),
            ("{", "x: EOF"),
        ] {
            let wrong = one(text).unwrap_err();
            assert!(wrong.contains(said), "{wrong}");
        }
    }
}
