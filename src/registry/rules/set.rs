//! All rules of a registry, or those that one sidecar sees: a value, changed by making another.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use super::rule::Rule;
use super::rule::RuleName;
use crate::domain::Label;
use crate::domain::SpiffeId;
use crate::pb;

/// Most rules of a registry: every sidecar holds them all, and looks through them.
pub const RULES_MAX: usize = 256;
/// Most bytes of them, encoded, all together: they are pushed in one message to every sidecar
/// whenever one of them changes.
pub const RULES_BYTES_MAX: usize = 256 * 1024;

/// Why a set does not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is not at the revision that was expected.
    #[error("{0}; somebody else changed it: read it again (`attache rules show`) and decide anew")]
    Changed(At),
    /// There is none of this name.
    #[error("there is no rule {0}; `attache rules list` shows those there are")]
    Unknown(RuleName),
    /// No room for it.
    #[error("a registry keeps at most 256 rules and 256 KiB of them: delete some first")]
    Full,
}

/// Where a rule stands that was expected elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// Which.
    pub name: RuleName,
    /// Its revision now; `None`: there is none.
    pub revision: Option<u64>,
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision {
            Some(revision) => write!(f, "the rule {} is at revision {revision}", self.name),
            None => write!(f, "there is no rule {}", self.name),
        }
    }
}

/// Who changes something, and when.
#[derive(Clone, Debug)]
pub struct Stamp {
    /// Who.
    pub by: SpiffeId,
    /// When, by the wall clock.
    pub at: SystemTime,
}

/// What putting a rule did.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The rule as it is kept.
    pub rule: Arc<Rule>,
    /// What was there before; the same rule where nothing changed.
    pub replaced: Option<Arc<Rule>>,
}

impl Placed {
    /// Whether the rule was there already, just as it is.
    pub fn is_unchanged(&self) -> bool {
        self.replaced
            .as_ref()
            .is_some_and(|old| Arc::ptr_eq(old, &self.rule))
    }
}

/// Rules by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    rules: BTreeMap<RuleName, Arc<Rule>>,
    revision: u64,
}

impl Rules {
    /// Rules as they were kept or told, at this revision.
    pub fn new(rules: impl IntoIterator<Item = Rule>, revision: u64) -> Self {
        let rules = rules.into_iter();
        Self {
            rules: rules
                .map(|rule| (rule.name.clone(), Arc::new(rule)))
                .collect(),
            revision,
        }
    }

    /// Reads rules that were checked once; one that cannot be read is left out, and logged: a
    /// newer registry may know more than we do, and the others still count.
    pub fn read(message: pb::TrafficRules) -> Self {
        let revision = message.revision;
        let read = message.rules.into_iter().filter_map(|message| {
            let name = format!("{}/{}", message.namespace, message.name);
            let read = Rule::read(message);
            read.inspect_err(|fault| {
                tracing::error!(rule = name, %fault, "a traffic rule cannot be read; it does not hold here");
            })
            .ok()
        });
        Self::new(read, revision)
    }

    /// As they are told to somebody who may see only some namespaces.
    pub fn message(&self, sees: impl Fn(&Label) -> bool) -> pb::TrafficRules {
        let visible = self.iter().filter(|rule| sees(&rule.name.namespace));
        pb::TrafficRules {
            rules: visible.map(|rule| rule.message.clone()).collect(),
            revision: self.revision,
        }
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.rules.values()
    }

    /// One of them.
    pub fn get(&self, name: &RuleName) -> Option<&Arc<Rule>> {
        self.rules.get(name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Number of the last change. Comparable only within one registry's life.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The set with a rule put in, as the next change.
    ///
    /// # Errors
    /// When the rule is not at `expected` (0: there is none), or there is no room.
    pub fn put(
        &self,
        mut rule: Rule,
        expected: Option<u64>,
        stamp: &Stamp,
    ) -> Result<(Self, Placed), Refused> {
        self.expect(&rule.name, expected)?;
        let replaced = self.rules.get(&rule.name).cloned();
        if let Some(same) = replaced.as_ref().filter(|old| old.says_the_same(&rule)) {
            let rule = Arc::clone(same);
            return Ok((self.clone(), Placed { rule, replaced }));
        }
        let mut next = self.clone();
        next.revision += 1;
        rule.message.revision = next.revision;
        rule.message.updated_at = Some(stamp.at.into());
        rule.message.updated_by = stamp.by.to_string();
        let rule = Arc::new(rule);
        next.rules.insert(rule.name.clone(), Arc::clone(&rule));
        let bytes: usize = next.iter().map(|rule| rule.encoded_len()).sum();
        if next.len() > RULES_MAX || bytes > RULES_BYTES_MAX {
            return Err(Refused::Full);
        }
        Ok((next, Placed { rule, replaced }))
    }

    /// The set without a rule, as the next change.
    ///
    /// # Errors
    /// When there is none, or it is not at `expected`.
    pub fn delete(
        &self,
        name: &RuleName,
        expected: Option<u64>,
    ) -> Result<(Self, Arc<Rule>), Refused> {
        let mut next = self.clone();
        let removed = next.rules.remove(name);
        let removed = removed.ok_or_else(|| Refused::Unknown(name.clone()))?;
        self.expect(name, expected)?;
        next.revision += 1;
        Ok((next, removed))
    }

    fn expect(&self, name: &RuleName, expected: Option<u64>) -> Result<(), Refused> {
        let revision = self.rules.get(name).map(|rule| rule.revision());
        match expected {
            Some(expected) if revision.unwrap_or(0) != expected => Err(Refused::Changed(At {
                name: name.clone(),
                revision,
            })),
            Some(_) | None => Ok(()),
        }
    }
}
