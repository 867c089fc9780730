//! One rule as it is kept: read and checked, with the message that it came from.

use std::{collections::BTreeMap, fmt, time::Duration};

use prost::Message;
use semver::VersionReq;
use tonic::Code;

use super::overrides::Overrides;
use super::overrides::Percent;
use crate::config::Span;
use crate::domain::AgentName;
use crate::domain::Label;
use crate::domain::SkillName;
use crate::domain::SpiffeId;
use crate::pb;
use crate::registry::catalog::Entry;
use crate::registry::query::carries;
use crate::registry::query::meets;
use crate::telemetry::metrics::calls::code_name;

/// What a rule is called by, in its namespace. Orders rules.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleName {
    /// Whose calls it is about.
    pub namespace: Label,
    /// Name within the namespace.
    pub name: Label,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which calls a rule is about. The order is that of precedence: what comes first wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Only this skill.
    pub skill: Option<SkillName>,
    /// Only this agent of the namespace.
    pub agent: Option<Label>,
}

impl Target {
    /// How narrow it is, 0 the narrowest; `None`: it is not about such calls. A call whose skill or
    /// agent is not known yet is met by no rule that names one.
    pub fn rank(&self, skill: Option<&SkillName>, agent: Option<&Label>) -> Option<u8> {
        let meets_skill = self.skill.is_none() || self.skill.as_ref() == skill;
        let meets_agent = self.agent.is_none() || self.agent.as_ref() == agent;
        (meets_skill && meets_agent).then_some(match (&self.skill, &self.agent) {
            (Some(_), Some(_)) => 0,
            (Some(_), None) => 1,
            (None, Some(_)) => 2,
            (None, None) => 3,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.skill, &self.agent) {
            (Some(skill), Some(agent)) => write!(f, "{skill} by {agent}"),
            (Some(skill), None) => write!(f, "{skill}"),
            (None, Some(agent)) => write!(f, "all of {agent}"),
            (None, None) => f.write_str("all"),
        }
    }
}

/// A group of instances and its part of the calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// On the version of the agent's code.
    pub agent_version: Option<VersionReq>,
    /// On the version of the called skill.
    pub version: Option<VersionReq>,
    /// Only of this agent.
    pub agent: Option<AgentName>,
    /// Labels of the instance, or beneath it of its card.
    pub labels: BTreeMap<String, String>,
    /// Its part of the sum of all, 0 to 1000.
    pub weight: u32,
}

impl Weight {
    /// Whether an instance is of this group, for a call of `skill`.
    pub fn fits(&self, skill: Option<&SkillName>, entry: &Entry) -> bool {
        let offer = |wanted: &VersionReq| {
            let mut offers = entry.offers.iter();
            let offer = offers.find(|offer| Some(&offer.name) == skill);
            offer.is_some_and(|offer| meets(Some(wanted), offer.version.as_ref()))
        };
        self.agent
            .as_ref()
            .is_none_or(|agent| *agent == entry.agent)
            && meets(self.agent_version.as_ref(), entry.version.as_ref())
            && self.version.as_ref().is_none_or(offer)
            && carries(entry, &self.labels)
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if let Some(version) = &self.agent_version {
            words.push(format!("agent_version {version}"));
        }
        if let Some(version) = &self.version {
            words.push(format!("version {version}"));
        }
        if let Some(agent) = &self.agent {
            words.push(format!("agent {}", agent.name));
        }
        words.extend(
            self.labels
                .iter()
                .map(|(key, value)| format!("{key}={value}")),
        );
        if words.is_empty() {
            words.push("all".to_owned());
        }
        write!(f, "{} to {}", self.weight, words.join(" "))
    }
}

/// A fault to inject.
#[derive(Clone, Debug, PartialEq)]
pub struct Rehearsal {
    /// Which share of the calls waits, and how long.
    pub delay: Option<(Percent, Duration)>,
    /// Which share of the calls fails, and how; never `Ok`.
    pub abort: Option<(Percent, Code)>,
    /// Only calls of these; empty: of all.
    pub callers: Vec<Caller>,
}

impl Rehearsal {
    /// Whether it is about calls of this caller.
    pub fn concerns(&self, caller: &SpiffeId) -> bool {
        self.callers.is_empty() || self.callers.iter().any(|one| one.is(caller))
    }
}

impl fmt::Display for Rehearsal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if let Some((share, wait)) = self.delay {
            words.push(format!("{share} wait {}", Span(wait)));
        }
        if let Some((share, code)) = self.abort {
            words.push(format!("{share} {}", code_name(code)));
        }
        f.write_str(&words.join(", "))?;
        if !self.callers.is_empty() {
            let callers: Vec<String> = self.callers.iter().map(ToString::to_string).collect();
            write!(f, " of {}", callers.join(" "))?;
        }
        Ok(())
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// An agent or a service, in any trust domain.
    Named(AgentName),
    /// Just this member.
    Id(SpiffeId),
}

impl Caller {
    fn is(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Named(name) => id.member.agent_name() == Some(name),
            Self::Id(own) => own == id,
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "{name}"),
            Self::Id(id) => write!(f, "{id}"),
        }
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What it is called by.
    pub name: RuleName,
    /// Which calls it is about.
    pub target: Target,
    /// What it sets.
    pub overrides: Overrides,
    /// As it was read, with full names.
    pub(super) message: pb::TrafficRule,
}

impl Rule {
    /// As it is told to others.
    pub fn message(&self) -> &pb::TrafficRule {
        &self.message
    }

    /// Number of the change that made it.
    pub fn revision(&self) -> u64 {
        self.message.revision
    }

    /// Bytes of it, encoded.
    pub fn encoded_len(&self) -> usize {
        self.message.encoded_len()
    }

    /// Whether both want the same of the same calls, whoever wrote them and when.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.name == other.name && self.target == other.target && self.overrides == other.overrides
    }

    /// All that it says, in words: path and value.
    pub fn shown(&self) -> Vec<(&'static str, String)> {
        let skill = self.target.skill.as_ref().map(ToString::to_string);
        let agent = self.target.agent.as_ref().map(ToString::to_string);
        let target = [("skill", skill), ("agent", agent)];
        let mut shown: Vec<_> = target
            .into_iter()
            .filter_map(|(path, value)| Some((path, value?)))
            .collect();
        shown.extend(self.overrides.shown());
        shown
    }

    /// What is other than `before` (`None`: nothing was there): path, the old and the new value.
    pub fn changes_from(
        &self,
        before: Option<&Self>,
    ) -> Vec<(&'static str, Option<String>, Option<String>)> {
        let old: BTreeMap<_, _> = before.map(Self::shown).into_iter().flatten().collect();
        let new: BTreeMap<_, _> = self.shown().into_iter().collect();
        let paths = ["skill", "agent"].iter().chain(Overrides::PATHS);
        let changed = paths.filter(|path| old.get(*path) != new.get(*path));
        changed
            .map(|path| (*path, old.get(path).cloned(), new.get(path).cloned()))
            .collect()
    }
}
