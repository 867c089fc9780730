//! What a caller asks for, read once at the door, and whether an entry fits.
//!
//! Pure. Whether an instance takes work is not asked here: the catalog's `find` does.

use std::collections::BTreeMap;

use semver::{Version, VersionReq};

use crate::domain::AgentName;
use crate::domain::Fault;
use crate::domain::Label;
use crate::domain::SkillName;
use crate::domain::ids::DEFAULT_NAMESPACE;
use crate::pb;
use crate::registry::catalog::Entry;

/// Tags a selector may ask for: as many as a skill may have.
pub const TAGS_MAX: usize = 16;
/// Labels a selector may ask for: as many as a card may have.
pub const LABELS_MAX: usize = 64;
/// Longest version requirement in bytes; real ones are a dozen.
pub const REQUIREMENT_MAX: usize = 256;

/// A selector that was read: all of it must fit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    skill: Option<SkillName>,
    agent: Option<AgentName>,
    namespace: Option<Label>,
    tags: Vec<String>,
    labels: BTreeMap<String, String>,
    version: Option<VersionReq>,
    agent_version: Option<VersionReq>,
}

impl Query {
    /// Reads a selector for a caller of `namespace`: bare names are looked up there, and so is a
    /// skill without an agent. A caller without a namespace (an operator) asks all namespaces for
    /// a bare skill, and `default` for a bare agent.
    ///
    /// # Errors
    /// When a name or requirement cannot be read or a bound is passed; `field` is the path within
    /// the selector.
    pub fn parse(selector: &pb::Selector, namespace: Option<&Label>) -> Result<Self, Fault> {
        if selector.tags.len() > TAGS_MAX {
            return Err(Fault::field("selector.tags", "at most 16 tags"));
        }
        if selector.labels.len() > LABELS_MAX {
            return Err(Fault::field("selector.labels", "at most 64 labels"));
        }
        let skill = given(&selector.skill, "selector.skill", |text| {
            text.parse::<SkillName>().map_err(|e| e.to_string())
        })?;
        let agent = given(&selector.agent, "selector.agent", |text| {
            match namespace {
                Some(own) => AgentName::parse_in(text, own),
                None => text.parse(),
            }
            .map_err(|e| e.to_string())
        })?;
        let version = given(&selector.version, "selector.version", requirement)?;
        if version.is_some() && skill.is_none() {
            return Err(Fault::field(
                "selector.version",
                "is about a skill: name the skill, or use agent_version",
            ));
        }
        Ok(Self {
            skill,
            namespace: if agent.is_some() {
                None
            } else {
                namespace.cloned()
            },
            agent,
            tags: selector.tags.clone(),
            labels: selector.labels.clone().into_iter().collect(),
            version,
            agent_version: given(
                &selector.agent_version,
                "selector.agent_version",
                requirement,
            )?,
        })
    }

    /// All instances that offer a skill within a namespace.
    pub fn for_skill(skill: SkillName, namespace: Option<Label>) -> Self {
        Self {
            skill: Some(skill),
            namespace,
            ..Self::default()
        }
    }

    /// The agent it names.
    pub fn agent(&self) -> Option<&AgentName> {
        self.agent.as_ref()
    }

    /// The skill it names.
    pub fn skill(&self) -> Option<&SkillName> {
        self.skill.as_ref()
    }

    /// The namespace it may see; of the named agent where it names one. `None`: all.
    pub fn namespace(&self) -> Option<&Label> {
        self.agent
            .as_ref()
            .map(|agent| &agent.namespace)
            .or(self.namespace.as_ref())
    }

    /// Whether an entry is what is asked for, health aside.
    pub fn fits(&self, entry: &Entry) -> bool {
        self.agent
            .as_ref()
            .is_none_or(|agent| *agent == entry.agent)
            && self
                .namespace
                .as_ref()
                .is_none_or(|space| *space == entry.agent.namespace)
            && meets(self.agent_version.as_ref(), entry.version.as_ref())
            && carries(entry, &self.labels)
            && self.fits_a_skill(entry)
    }

    /// Skill, its version and all tags must be met by one and the same skill.
    fn fits_a_skill(&self, entry: &Entry) -> bool {
        if self.skill.is_none() && self.tags.is_empty() {
            return true;
        }
        entry
            .offers
            .iter()
            .zip(&entry.card.skills)
            .any(|(offer, skill)| {
                self.skill.as_ref().is_none_or(|name| *name == offer.name)
                    && meets(self.version.as_ref(), offer.version.as_ref())
                    && self.tags.iter().all(|tag| skill.tags.contains(tag))
            })
    }
}

/// The namespace in which a caller's bare names are looked up.
pub fn home_namespace(namespace: Option<&Label>) -> Label {
    namespace.cloned().unwrap_or_else(|| {
        DEFAULT_NAMESPACE
            .parse()
            .expect("the default namespace is a DNS label")
    })
}

/// Whether an instance, or beneath it its card, carries all these labels with these values.
pub(super) fn carries(entry: &Entry, labels: &BTreeMap<String, String>) -> bool {
    labels.iter().all(|(key, value)| {
        let own = entry.instance.labels.get(key);
        own.or_else(|| entry.card.labels.get(key)) == Some(value)
    })
}

/// Whether a version meets a requirement; no version meets none.
pub(super) fn meets(requirement: Option<&VersionReq>, version: Option<&Version>) -> bool {
    requirement.is_none_or(|wanted| version.is_some_and(|has| wanted.matches(has)))
}

/// Reads a version requirement.
pub(super) fn requirement(text: &str) -> Result<VersionReq, String> {
    if text.len() > REQUIREMENT_MAX {
        return Err("a version requirement is at most 256 bytes".to_owned());
    }
    VersionReq::parse(text).map_err(|wrong| format!("not a version requirement: {wrong}"))
}

fn given<T>(
    text: &str,
    path: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    parse(text)
        .map(Some)
        .map_err(|wrong| Fault::field(path, wrong))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::fixture::entry_of;

    fn subject() -> Entry {
        let card = pb::AgentCard {
            version: "2.1.0".into(),
            labels: [("tier".into(), "gold".into()), ("eu".into(), "1".into())].into(),
            skills: vec![
                pb::Skill {
                    name: "pay".into(),
                    version: "1.4.2".into(),
                    tags: vec!["money".into()],
                    ..Default::default()
                },
                pb::Skill {
                    name: "chat".into(),
                    tags: vec!["text".into()],
                    ..Default::default()
                },
            ],
            ..Default::default()
        };
        let mut instance = pb::Instance::default();
        instance.labels.insert("tier".into(), "silver".into());
        entry_of("i1", "default/billing", card, instance)
    }

    fn selector(fields: &[(&str, &str)]) -> pb::Selector {
        let mut made = pb::Selector::default();
        for (field, value) in fields {
            let value = (*value).to_owned();
            match *field {
                "skill" => made.skill = value,
                "agent" => made.agent = value,
                "version" => made.version = value,
                "agent_version" => made.agent_version = value,
                "tag" => made.tags.push(value),
                label => drop(made.labels.insert(label.to_owned(), value)),
            }
        }
        made
    }

    #[test]
    fn what_fits_and_what_does_not() {
        let subject = subject();
        let table: &[(&[(&str, &str)], bool)] = &[
            (&[], true),
            (&[("skill", "pay")], true),
            (&[("skill", "sell")], false),
            (&[("skill", "pay"), ("version", "^1.4")], true),
            (&[("skill", "pay"), ("version", ">=2")], false),
            // No version meets no requirement.
            (&[("skill", "chat"), ("version", "*")], false),
            (&[("agent", "billing")], true),
            (&[("agent", "other/billing")], false),
            (&[("agent", "billing"), ("agent_version", "2")], true),
            (&[("agent_version", "~2.0")], false),
            (&[("tag", "money")], true),
            // The tag must be the asked skill's own.
            (&[("skill", "chat"), ("tag", "money")], false),
            (&[("tag", "money"), ("tag", "text")], false),
            (&[("eu", "1")], true),
            // Labels of the instance stand over those of the card.
            (&[("tier", "silver")], true),
            (&[("tier", "gold")], false),
            (&[("none", "")], false),
        ];
        let home = "default".parse().unwrap();
        for (fields, fits) in table {
            let query = Query::parse(&selector(fields), Some(&home)).unwrap();
            assert_eq!(query.fits(&subject), *fits, "{fields:?}");
        }
    }

    #[test]
    fn a_bare_skill_stays_in_the_callers_namespace() {
        let (own, other) = ("default".parse().unwrap(), "other".parse().unwrap());
        let bare = selector(&[("skill", "pay")]);
        let named = selector(&[("agent", "default/billing")]);
        let fits = |s: &pb::Selector, space: Option<&Label>| {
            Query::parse(s, space).unwrap().fits(&subject())
        };
        assert!(fits(&bare, Some(&own)) && fits(&bare, None));
        assert!(!fits(&bare, Some(&other)));
        assert!(fits(&named, Some(&other)));
    }

    #[test]
    fn what_cannot_be_read_names_its_field() {
        for (fields, path) in [
            (&[("skill", "Pay!")][..], "selector.skill"),
            (&[("agent", "a/b/c")], "selector.agent"),
            (&[("skill", "pay"), ("version", "one")], "selector.version"),
            (&[("version", "1")], "selector.version"),
            (&[("agent_version", "~~")], "selector.agent_version"),
            (&[("tag", "t"); 17], "selector.tags"),
        ] {
            let fault = Query::parse(&selector(fields), None).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some(path));
        }
    }
}
