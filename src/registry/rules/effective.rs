//! What holds for a call: all rules that are about it, the narrowest first, setting by setting.

use std::sync::Arc;

use super::overrides::Overrides;
use super::rule::Rule;
use super::set::Rules;
use crate::domain::Label;
use crate::domain::SkillName;

/// What rules want of a call, and which rule said so.
#[derive(Clone, Debug, Default)]
pub struct Effective {
    /// What is set by any rule; the rest is at its default.
    pub overrides: Overrides,
    sources: Vec<(&'static str, Arc<Rule>)>,
}

impl Effective {
    /// The rule that a setting comes from, by its path ([`Overrides::PATHS`]); `None`: no rule has
    /// it.
    pub fn source(&self, path: &str) -> Option<&Arc<Rule>> {
        let mut sources = self.sources.iter();
        sources
            .find(|(known, _)| *known == path)
            .map(|(_, rule)| rule)
    }

    /// All that is set, in words: path, value, and the rule that it comes from.
    pub fn shown(&self) -> Vec<(&'static str, String, &Arc<Rule>)> {
        let shown = self.overrides.shown().into_iter();
        shown
            .filter_map(|(path, value)| Some((path, value, self.source(path)?)))
            .collect()
    }
}

impl Rules {
    /// What holds for calls of `skill` to `agent` in a namespace; what is `None` is not known yet,
    /// and only rules that do not ask for it count. Looks through all rules of the namespace: keep
    /// the answer until the rules change.
    pub fn effective(
        &self,
        namespace: &Label,
        skill: Option<&SkillName>,
        agent: Option<&Label>,
    ) -> Effective {
        let own = self.iter().filter(|rule| rule.name.namespace == *namespace);
        let mut about: Vec<(u8, &Arc<Rule>)> = own
            .filter_map(|rule| Some((rule.target.rank(skill, agent)?, rule)))
            .collect();
        // Stable: rules for the same thing stay in the order of their names.
        about.sort_by_key(|(rank, _)| *rank);
        let mut effective = Effective::default();
        for (_, rule) in about {
            for path in effective.overrides.inherit(&rule.overrides) {
                effective.sources.push((path, Arc::clone(rule)));
            }
        }
        effective
    }
}
