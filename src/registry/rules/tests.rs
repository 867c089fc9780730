use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use prost::Message;
use tonic::Code;

use super::*;
use crate::domain::Label;
use crate::domain::Reason;
use crate::domain::SkillName;
use crate::pb;
use crate::registry::fixture::entry_of;
use crate::registry::fixture::member;
use crate::registry::fixture::rule;
use crate::registry::fixture::rule_message;

fn millis(millis: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration {
        seconds: millis / 1_000,
        nanos: i32::try_from(millis % 1_000).unwrap() * 1_000_000,
    })
}

/// A rule with everything in it.
pub(super) fn whole() -> pb::TrafficRule {
    pb::TrafficRule {
        name: "all-of-it".into(),
        skill: "billing.pay".into(),
        agent: "default/billing".into(),
        weights: vec![
            pb::RuleWeight {
                agent_version: "^1".into(),
                labels: [("tier".to_owned(), "gold".to_owned())].into(),
                weight: 90,
                ..Default::default()
            },
            pb::RuleWeight {
                version: "2".into(),
                agent: "ledger".into(),
                weight: 10,
                ..Default::default()
            },
        ],
        timeout: millis(2_500),
        retry: Some(pb::RuleRetry {
            attempts: Some(2),
            base: millis(50),
            max: millis(1_000),
            budget_percent: Some(12.5),
            floor_per_second: Some(0),
        }),
        breaker: Some(pb::RuleBreaker {
            enabled: Some(false),
            consecutive: Some(7),
            success_percent: Some(90.0),
            min_calls: Some(10),
            window: millis(10_000),
            cool_down: millis(2_000),
            cool_down_max: millis(30_000),
            max_ejected_percent: Some(25.0),
        }),
        limits: Some(pb::RuleLimits {
            max_in_flight: Some(8),
            max_pending: Some(4),
        }),
        balance: Some(pb::RuleBalance {
            zone_preference: Some(false),
            slow_start: millis(0),
            sticky: Some(false),
        }),
        faults: vec![pb::RuleFault {
            delay: Some(pb::RuleDelay {
                percent: 10.0,
                duration: millis(2_000),
            }),
            abort: Some(pb::RuleAbort {
                percent: 0.5,
                code: "UNAVAILABLE".into(),
            }),
            callers: vec!["web".into(), "spiffe://a/operator/ops".into()],
        }],
        ..Default::default()
    }
}

#[test]
fn a_whole_rule_is_read_with_every_setting() {
    let read = Rule::read(whole()).unwrap();
    let shown: Vec<_> = read.shown();
    let paths: Vec<_> = shown.iter().map(|(path, _)| *path).collect();
    let every: Vec<_> = ["skill", "agent"]
        .iter()
        .chain(Overrides::PATHS)
        .copied()
        .collect();
    assert_eq!(paths, every, "a setting of the contract is not read");
    let words: BTreeMap<_, _> = shown.iter().map(|(p, v)| (*p, v.as_str())).collect();
    assert_eq!(words["agent"], "billing");
    assert_eq!(
        words["weights"],
        "90 to agent_version ^1 tier=gold; 10 to version ^2 agent ledger"
    );
    assert_eq!(words["timeout"], "2500ms");
    assert_eq!(
        words["faults"],
        "10% wait 2s, 0.5% UNAVAILABLE of default/web spiffe://a/operator/ops"
    );
    assert_eq!(read.message().namespace, "default");
    // What it is told as is read as the same.
    assert_eq!(Rule::read(read.message().clone()).unwrap(), read);
}

type Change = fn(&mut pb::TrafficRule);

/// Changes of [`whole`] that each break a bound, and the path that is told.
const BOUNDS: &[(Change, &str)] = &[
    (|r| r.name.clear(), "rule.name"),
    (|r| r.name = "A".into(), "rule.name"),
    (|r| r.namespace = "a.b".into(), "rule.namespace"),
    (|r| r.skill = "Pay!".into(), "rule.skill"),
    (|r| r.agent = "prod/billing".into(), "rule.agent"),
    (|r| r.agent = "a/b/c".into(), "rule.agent"),
    (|r| r.timeout = millis(9), "rule.timeout"),
    (|r| r.timeout = millis(3_600_001), "rule.timeout"),
    (|r| r.timeout = millis(-1_000), "rule.timeout"),
    (|r| r.timeout.as_mut().unwrap().nanos = 1, "rule.timeout"),
    (|r| r.weights[1].weight = 1_001, "rule.weights[1].weight"),
    (
        |r| r.weights[1].version = "~~".into(),
        "rule.weights[1].version",
    ),
    (
        |r| r.weights[0].agent_version = "one".into(),
        "rule.weights[0].agent_version",
    ),
    (
        |r| r.weights[1].agent = "prod/x".into(),
        "rule.weights[1].agent",
    ),
    (
        |r| r.weights[0].labels = (0..65).map(|n| (n.to_string(), String::new())).collect(),
        "rule.weights[0].labels",
    ),
    (
        |r| r.weights = vec![r.weights[0].clone(); 17],
        "rule.weights",
    ),
    (
        |r| r.weights.iter_mut().for_each(|w| w.weight = 0),
        "rule.weights",
    ),
    (|r| retry(r).attempts = Some(0), "rule.retry.attempts"),
    (|r| retry(r).attempts = Some(6), "rule.retry.attempts"),
    (|r| retry(r).base = millis(0), "rule.retry.base"),
    (|r| retry(r).max = millis(60_001), "rule.retry.max"),
    (|r| retry(r).max = millis(49), "rule.retry.max"),
    (
        |r| retry(r).budget_percent = Some(101.0),
        "rule.retry.budget_percent",
    ),
    (
        |r| retry(r).budget_percent = Some(f64::NAN),
        "rule.retry.budget_percent",
    ),
    (
        |r| retry(r).floor_per_second = Some(1_001),
        "rule.retry.floor_per_second",
    ),
    (
        |r| breaker(r).consecutive = Some(0),
        "rule.breaker.consecutive",
    ),
    (
        |r| breaker(r).success_percent = Some(-1.0),
        "rule.breaker.success_percent",
    ),
    (|r| breaker(r).min_calls = Some(0), "rule.breaker.min_calls"),
    (|r| breaker(r).window = millis(999), "rule.breaker.window"),
    (
        |r| breaker(r).cool_down = millis(9),
        "rule.breaker.cool_down",
    ),
    (
        |r| breaker(r).cool_down_max = millis(1_999),
        "rule.breaker.cool_down_max",
    ),
    (
        |r| breaker(r).max_ejected_percent = Some(100.5),
        "rule.breaker.max_ejected_percent",
    ),
    (
        |r| r.limits.as_mut().unwrap().max_in_flight = Some(10_001),
        "rule.limits.max_in_flight",
    ),
    (
        |r| r.limits.as_mut().unwrap().max_pending = Some(10_001),
        "rule.limits.max_pending",
    ),
    (
        |r| r.balance.as_mut().unwrap().slow_start = millis(3_600_001),
        "rule.balance.slow_start",
    ),
    (|r| r.faults = vec![r.faults[0].clone(); 9], "rule.faults"),
    (|r| r.faults[0] = pb::RuleFault::default(), "rule.faults[0]"),
    (|r| delay(r).percent = 100.1, "rule.faults[0].delay.percent"),
    (
        |r| delay(r).duration = None,
        "rule.faults[0].delay.duration",
    ),
    (
        |r| delay(r).duration = millis(0),
        "rule.faults[0].delay.duration",
    ),
    (|r| abort(r).percent = -0.1, "rule.faults[0].abort.percent"),
    (|r| abort(r).code = "OK".into(), "rule.faults[0].abort.code"),
    (
        |r| abort(r).code = "unavailable".into(),
        "rule.faults[0].abort.code",
    ),
    (
        |r| r.faults[0].callers[1] = "spiffe://".into(),
        "rule.faults[0].callers[1]",
    ),
    (
        |r| r.faults[0].callers[0] = "A".into(),
        "rule.faults[0].callers[0]",
    ),
    (
        |r| r.faults[0].callers = vec!["a".into(); 65],
        "rule.faults[0].callers",
    ),
];

#[test]
fn what_breaks_a_bound_is_refused_with_its_path() {
    for (change, path) in BOUNDS {
        let mut message = whole();
        change(&mut message);
        let refused = Rule::read(message).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some(*path), "{refused}");
        assert_eq!(refused.reason, Reason::InvalidField, "{path}");
    }
    let mut large = whole();
    large.faults[0].callers = vec!["c".repeat(RULE_MAX / 60); 62];
    let refused = Rule::read(large).unwrap_err();
    assert_eq!(refused.reason, Reason::PayloadTooLarge);
}

#[test]
fn a_rule_that_was_taken_can_be_read_again() {
    let mut message = whole();
    message.faults = vec![message.faults[0].clone(); FAULTS_MAX];
    for fault in &mut message.faults {
        fault.callers.clear();
    }
    for place in (0..FAULTS_MAX * CALLERS_MAX).map(|caller| caller % FAULTS_MAX) {
        let left = RULE_MAX.saturating_sub(message.encoded_len());
        if left < 4 {
            break;
        }
        // Two for what goes before it.
        message.faults[place]
            .callers
            .push("c".repeat((left - 3).min(60)));
    }
    let size = message.encoded_len();
    assert!((RULE_MAX - 4..=RULE_MAX).contains(&size), "{size}");
    let mut kept = Rule::read(message).unwrap().message().clone();
    kept.revision = 1 << 40;
    kept.updated_at = Some(SystemTime::UNIX_EPOCH.into());
    kept.updated_by = "spiffe://attache.local/operator/ops".into();
    assert!(kept.encoded_len() > RULE_MAX);
    assert!(Rule::read(kept).is_ok());
}

fn retry(rule: &mut pb::TrafficRule) -> &mut pb::RuleRetry {
    rule.retry.as_mut().unwrap()
}

fn breaker(rule: &mut pb::TrafficRule) -> &mut pb::RuleBreaker {
    rule.breaker.as_mut().unwrap()
}

fn delay(rule: &mut pb::TrafficRule) -> &mut pb::RuleDelay {
    rule.faults[0].delay.as_mut().unwrap()
}

fn abort(rule: &mut pb::TrafficRule) -> &mut pb::RuleAbort {
    rule.faults[0].abort.as_mut().unwrap()
}

#[test]
fn an_instance_is_of_a_group_by_version_agent_and_labels() {
    let card = pb::AgentCard {
        version: "1.4.0".into(),
        labels: [("tier".to_owned(), "gold".to_owned())].into(),
        skills: vec![pb::Skill {
            name: "billing.pay".into(),
            version: "2.0.0".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let entry = entry_of("i1", "default/billing", card, pb::Instance::default());
    let pay: SkillName = "billing.pay".parse().unwrap();
    let other: SkillName = "billing.other".parse().unwrap();
    let group = |change: fn(&mut pb::RuleWeight)| {
        let mut weight = pb::RuleWeight {
            weight: 1,
            ..Default::default()
        };
        change(&mut weight);
        let message = pb::TrafficRule {
            weights: vec![weight],
            ..rule_message("default", "w")
        };
        Rule::read(message).unwrap().overrides.weights.unwrap()[0].clone()
    };
    type Change = fn(&mut pb::RuleWeight);
    let table: &[(Change, bool)] = &[
        (|_| (), true),
        (|w| w.agent_version = "^1".into(), true),
        (|w| w.agent_version = "^2".into(), false),
        (|w| w.version = "^2".into(), true),
        (|w| w.version = "^1".into(), false),
        (|w| w.agent = "billing".into(), true),
        (|w| w.agent = "ledger".into(), false),
        (
            |w| drop(w.labels.insert("tier".into(), "gold".into())),
            true,
        ),
        (
            |w| drop(w.labels.insert("tier".into(), "lead".into())),
            false,
        ),
    ];
    for (place, (change, fits)) in table.iter().enumerate() {
        assert_eq!(group(*change).fits(Some(&pay), &entry), *fits, "{place}");
    }
    let grouped = Rules::new([Rule::read(whole()).unwrap()], 1);
    let (space, agent) = (&entry.agent.namespace, &entry.agent.name);
    let own = grouped.effective(space, Some(&pay), Some(agent));
    assert_eq!(own.group(Some(&pay), &entry), 0);
    let silver = entry_of(
        "i2",
        "default/billing",
        pb::AgentCard::default(),
        pb::Instance::default(),
    );
    assert_eq!(own.group(Some(&pay), &silver), 2, "beyond them");
    let versioned = group(|w| w.version = "^2".into());
    assert!(!versioned.fits(Some(&other), &entry));
    assert!(!versioned.fits(None, &entry));
}

#[test]
fn a_fault_is_for_its_callers_only() {
    let read = Rule::read(whole()).unwrap().overrides.faults.unwrap();
    let fault = &read[0];
    assert_eq!(
        fault.abort,
        Percent::new(0.5).map(|s| (s, Code::Unavailable))
    );
    let ops = "spiffe://a/operator/ops".parse().unwrap();
    assert!(fault.concerns(&member("default/web")) && fault.concerns(&ops));
    for stranger in ["default/billing", "prod/web"] {
        assert!(!fault.concerns(&member(stranger)), "{stranger}");
    }
    let all = Rehearsal {
        callers: Vec::new(),
        ..fault.clone()
    };
    assert!(all.concerns(&member("prod/web")));
}

fn stamp() -> Stamp {
    Stamp {
        by: "spiffe://a/operator/ops".parse().unwrap(),
        at: SystemTime::UNIX_EPOCH + Duration::from_secs(7),
    }
}

fn name(text: &str) -> RuleName {
    RuleName::read("", text).unwrap()
}

#[test]
fn a_rule_is_put_changed_and_deleted_only_from_where_it_was_expected() {
    let none = Rules::default();
    let stale = none.put(rule("", "a"), Some(1), &stamp()).unwrap_err();
    assert!(matches!(stale, Refused::Changed(_)), "{stale}");
    let (one, placed) = none.put(rule("", "a"), Some(0), &stamp()).unwrap();
    let message = placed.rule.message();
    assert_eq!((message.revision, one.revision()), (1, 1));
    assert_eq!(message.updated_by, "spiffe://a/operator/ops");
    assert_eq!(message.updated_at.unwrap().seconds, 7);
    assert!(placed.replaced.is_none() && !placed.is_unchanged());

    // The same again is no change, not even of who made it.
    let (same, placed) = one.put(rule("", "a"), None, &stamp()).unwrap();
    assert!(placed.is_unchanged());
    assert_eq!(same, one);
    assert!(one.put(rule("", "a"), Some(0), &stamp()).is_err());

    let other = Rule::read(pb::TrafficRule {
        name: "a".into(),
        skill: "s".into(),
        ..Default::default()
    });
    let (two, placed) = one.put(other.unwrap(), Some(1), &stamp()).unwrap();
    assert_eq!(placed.rule.revision(), 2);
    let changes = placed.rule.changes_from(placed.replaced.as_deref());
    let (new, old) = (Some("s".to_owned()), Some("1s".to_owned()));
    assert_eq!(changes, [("skill", None, new), ("timeout", old, None)]);

    let refused = two.delete(&name("a"), Some(1)).unwrap_err();
    assert!(matches!(refused, Refused::Changed(_)), "{refused}");
    assert_eq!(
        two.delete(&name("b"), None).unwrap_err(),
        Refused::Unknown(name("b"))
    );
    let (three, deleted) = two.delete(&name("a"), Some(2)).unwrap();
    assert_eq!(deleted.revision(), 2);
    assert!(three.is_empty());
    // A number is never used again.
    let (_, placed) = three.put(rule("", "a"), Some(0), &stamp()).unwrap();
    assert_eq!(placed.rule.revision(), 4);
}

#[test]
fn rules_are_bounded_in_number_and_in_all() {
    let mut rules = Rules::default();
    for n in 0..RULES_MAX {
        let put = rules.put(rule("", &format!("r{n}")), None, &stamp());
        rules = put.unwrap().0;
    }
    let refused = rules.put(rule("", "more"), None, &stamp()).err();
    assert_eq!(refused, Some(Refused::Full));
    let mut changed = rule_message("", "r0");
    changed.skill = "s".into();
    let put = rules.put(Rule::read(changed).unwrap(), None, &stamp());
    assert!(put.is_ok(), "one of them may be changed");

    let mut rules = Rules::default();
    let large = |n: usize| {
        let mut message = rule_message("", &format!("r{n}"));
        message.faults = whole().faults;
        message.faults[0].callers = vec!["c".repeat(63); 60];
        message.faults = vec![message.faults[0].clone(); 3];
        Rule::read(message).unwrap()
    };
    let fitting = RULES_BYTES_MAX / (large(0).encoded_len() + 50);
    for n in 0..fitting {
        rules = rules.put(large(n), None, &stamp()).unwrap().0;
    }
    let refused = rules.put(large(fitting), None, &stamp()).err();
    assert_eq!(refused, Some(Refused::Full));
}

#[test]
fn what_cannot_be_read_is_left_out_and_the_rest_holds() {
    let bad = rule_message("default", "Bad!");
    let read = Rules::read(pb::TrafficRules {
        rules: vec![bad, rule_message("default", "good")],
        revision: 9,
    });
    assert_eq!((read.len(), read.revision()), (1, 9));
}

#[test]
fn the_narrowest_rule_wins_setting_by_setting() {
    let make = |name: &str, skill: &str, agent: &str, attempts: Option<u32>, timeout| {
        Rule::read(pb::TrafficRule {
            name: name.into(),
            skill: skill.into(),
            agent: agent.into(),
            timeout: millis(timeout).filter(|_| timeout > 0),
            retry: attempts.map(|attempts| pb::RuleRetry {
                attempts: Some(attempts),
                ..Default::default()
            }),
            ..Default::default()
        })
        .unwrap()
    };
    let rules = Rules::new(
        [
            make("z-both", "s", "x", Some(5), 0),
            make("by-skill", "s", "", Some(4), 4_000),
            make("also-by-skill", "s", "", None, 3_000),
            make("by-agent", "", "x", Some(3), 2_000),
            make("all", "", "", Some(1), 1_000),
            make("others", "t", "y", Some(2), 9_000),
            Rule::read(rule_message("prod", "a")).unwrap(),
        ],
        1,
    );
    let own: Label = "default".parse().unwrap();
    let (s, u): (SkillName, SkillName) = ("s".parse().unwrap(), "u".parse().unwrap());
    let (x, z): (Label, Label) = ("x".parse().unwrap(), "z".parse().unwrap());
    let holds = |skill: Option<&SkillName>, agent: Option<&Label>| {
        let effective = rules.effective(&own, skill, agent);
        let shown = effective.shown().into_iter();
        let shown = shown.map(|(path, value, rule)| format!("{path} {value} {}", rule.name.name));
        shown.collect::<Vec<_>>().join(", ")
    };
    // Of two for the same skill, the one whose name comes first.
    assert_eq!(
        holds(Some(&s), Some(&x)),
        "timeout 3s also-by-skill, retry.attempts 5 z-both"
    );
    assert_eq!(
        holds(Some(&s), Some(&z)),
        "timeout 3s also-by-skill, retry.attempts 4 by-skill"
    );
    assert_eq!(holds(Some(&s), None), holds(Some(&s), Some(&z)));
    assert_eq!(
        holds(Some(&u), Some(&x)),
        "timeout 2s by-agent, retry.attempts 3 by-agent"
    );
    assert_eq!(holds(None, None), "timeout 1s all, retry.attempts 1 all");
    let prod = rules.effective(&"prod".parse().unwrap(), Some(&s), Some(&x));
    assert_eq!(prod.source("timeout").unwrap().name.name.as_str(), "a");
    assert_eq!(prod.source("retry.attempts"), None);
}

/// A rule by its number: about one of two skills or agents or none, setting some of two things.
fn drawn(number: usize, (skill, agent, attempts, sticky): (u8, u8, u8, u8)) -> Rule {
    let pick = |which: u8| ["", "a", "b"][usize::from(which)].to_owned();
    Rule::read(pb::TrafficRule {
        name: format!("r{number:02}"),
        skill: pick(skill),
        agent: pick(agent),
        retry: Some(pb::RuleRetry {
            attempts: (attempts > 0).then(|| u32::from(attempts)),
            ..Default::default()
        }),
        balance: Some(pb::RuleBalance {
            sticky: (sticky > 0).then_some(sticky == 1),
            ..Default::default()
        }),
        ..Default::default()
    })
    .unwrap()
}

proptest! {
    /// Whatever the rules and the order in which they came: each setting is that of the narrowest
    /// rule that sets it, first by name among equals; one that none sets is not set.
    #[test]
    fn resolution_is_the_same_in_any_order_and_the_narrowest_wins(
        drawn_rules in prop::collection::vec((0_u8..3, 0_u8..3, 0_u8..6, 0_u8..3), 0..12),
        skill in 0_u8..3,
        agent in 0_u8..3,
        turn in 0_usize..12,
    ) {
        let all: Vec<Rule> = drawn_rules.iter().enumerate().map(|(n, d)| drawn(n, *d)).collect();
        let mut turned = all.clone();
        turned.rotate_left(turn.min(all.len()));
        turned.reverse();
        let own: Label = "default".parse().unwrap();
        let skill: Option<SkillName> = ["", "a", "b"][usize::from(skill)].parse().ok();
        let agent: Option<Label> = ["", "a", "b"][usize::from(agent)].parse().ok();
        let ask = |rules: Vec<Rule>| {
            Rules::new(rules, 0).effective(&own, skill.as_ref(), agent.as_ref())
        };
        let (effective, again) = (ask(all.clone()), ask(turned));
        prop_assert_eq!(&effective.overrides, &again.overrides);

        // The model: sort what is about the call by how much it names, then by name.
        let fits = |rule: &&Rule| {
            let target = &rule.target;
            (target.skill.is_none() || target.skill == skill)
                && (target.agent.is_none() || target.agent == agent)
        };
        let mut about: Vec<&Rule> = all.iter().filter(fits).collect();
        about.sort_by_key(|rule| {
            let named = 2 * u8::from(rule.target.skill.is_some())
                + u8::from(rule.target.agent.is_some());
            (u8::MAX - named, rule.name.name.as_str().to_owned())
        });
        let attempts = about.iter().find(|rule| rule.overrides.attempts.is_some());
        let sticky = about.iter().find(|rule| rule.overrides.sticky.is_some());
        prop_assert_eq!(effective.overrides.attempts, attempts.and_then(|r| r.overrides.attempts));
        prop_assert_eq!(effective.overrides.sticky, sticky.and_then(|r| r.overrides.sticky));
        prop_assert_eq!(
            effective.source("retry.attempts").map(|rule| &rule.name),
            attempts.map(|rule| &rule.name)
        );
        prop_assert_eq!(
            again.source("balance.sticky").map(|rule| &rule.name),
            sticky.map(|rule| &rule.name)
        );
        prop_assert_eq!(effective.overrides.timeout, None);
    }
}
