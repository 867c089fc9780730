//! The way a task has come, and whom it may therefore go to: nobody who works on the same further
//! up, and only whom the tasks above may be delegated to.
//!
//! Pure. It is looked at where a task is accepted, where somebody is chosen for it, and once more
//! where it is to run.

use crate::domain::{AgentName, Fault, Label, Member, Reason, SkillName, SpiffeId};
use crate::pb;

/// Most hops above a task: delegation that goes deeper is a mistake.
pub const CHAIN_MAX: usize = 8;
/// Most entries of a scope: it goes into every link of the chain below.
pub const SCOPE_MAX: usize = 32;
/// Entries of a scope that a refusal names; the rest is counted.
const NAMED: usize = 8;

/// Whom a task for one skill may go to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// They work on that skill further up.
    barred: Vec<AgentName>,
    /// Nobody but these; `None`: whoever fits.
    within: Option<Vec<AgentName>>,
}

impl Bounds {
    /// Of a task that came by `chain`, for `skill`.
    pub fn of(chain: &[pb::ChainLink], skill: &str) -> Self {
        let same = chain.iter().filter(|link| link.skill == skill);
        let scope = chain.last().map_or(&[][..], |link| &link.scope);
        let allowed = scope.iter().filter(|one| one.skill == skill);
        Self {
            barred: same.filter_map(agent_of).collect(),
            within: (!scope.is_empty())
                .then(|| allowed.filter_map(|one| one.agent.parse().ok()).collect()),
        }
    }

    /// Whether everybody is allowed.
    pub fn is_free(&self) -> bool {
        self.barred.is_empty() && self.within.is_none()
    }

    /// Whether the agent may get the task.
    pub fn admits(&self, agent: &AgentName) -> bool {
        let within = |all: &Vec<AgentName>| all.contains(agent);
        !self.barred.contains(agent) && self.within.as_ref().is_none_or(within)
    }

    /// For people: who is left out where nobody else was found; empty: nobody is.
    pub fn told(&self) -> String {
        let names = |all: &[AgentName]| {
            let all: Vec<_> = all.iter().take(NAMED).map(ToString::to_string).collect();
            all.join(", ")
        };
        let mut told = String::new();
        if !self.barred.is_empty() {
            told += &format!(
                ", other than {}, at work on it further up the chain (DELEGATION_LOOP)",
                names(&self.barred)
            );
        }
        if let Some(within) = &self.within {
            told += &format!(
                ", among those that its scope allows: {} (OUT_OF_SCOPE)",
                names(within)
            );
        }
        told
    }
}

/// Whether a task that came by `chain` may go to `agent` for `skill`; without an agent: to anybody.
///
/// # Errors
/// DELEGATION_LOOP with the cycle, OUT_OF_SCOPE with what is allowed.
pub fn check(chain: &[pb::ChainLink], agent: Option<&AgentName>, skill: &str) -> Result<(), Fault> {
    let bounds = Bounds::of(chain, skill);
    if let Some(agent) = agent.filter(|agent| bounds.barred.contains(agent)) {
        return Err(looped(chain, agent, skill));
    }
    let allowed = bounds
        .within
        .as_ref()
        .is_none_or(|within| agent.map_or(!within.is_empty(), |agent| within.contains(agent)));
    if allowed {
        return Ok(());
    }
    let scope = chain.last().map_or(&[][..], |link| &link.scope);
    let target = match agent {
        Some(agent) => format!("{agent} for {skill}"),
        None => format!("{skill} by anybody"),
    };
    Err(out_of_scope(&target, scope))
}

/// What a submitter's scope leaves of that of the task above.
///
/// # Errors
/// INVALID_FIELD for names and bounds; OUT_OF_SCOPE where nothing is left.
pub fn narrowed(
    above: &[pb::AgentSkill],
    asked: Vec<pb::AgentSkill>,
    namespace: &Label,
) -> Result<Vec<pb::AgentSkill>, Fault> {
    if asked.len() > SCOPE_MAX {
        let text = format!("at most {SCOPE_MAX} agents with their skills");
        return Err(Fault::field("spec.scope", text));
    }
    if asked.is_empty() {
        return Ok(above.to_vec());
    }
    let mut scope: Vec<pb::AgentSkill> = Vec::with_capacity(asked.len());
    for (place, one) in asked.into_iter().enumerate() {
        let wrong =
            |field: &str, text: String| Fault::field(format!("spec.scope[{place}].{field}"), text);
        let agent = AgentName::parse_in(&one.agent, namespace)
            .map_err(|error| wrong("agent", error.to_string()))?;
        let skill: SkillName = one
            .skill
            .parse()
            .map_err(|error| wrong("skill", format!("{error}")))?;
        let one = pb::AgentSkill {
            agent: agent.to_string(),
            skill: skill.to_string(),
        };
        if (above.is_empty() || above.contains(&one)) && !scope.contains(&one) {
            scope.push(one);
        }
    }
    if scope.is_empty() {
        return Err(out_of_scope("all that spec.scope names", above));
    }
    Ok(scope)
}

/// The chain of what comes below an attempt of `task`, which `runs` runs for `skill`.
///
/// # Errors
/// INVALID_FIELD under `path` where it gets too long.
pub fn extended(
    mut chain: Vec<pb::ChainLink>,
    link: pb::ChainLink,
    path: &str,
) -> Result<Vec<pb::ChainLink>, Fault> {
    let same = |last: &pb::ChainLink| last.task_id == link.task_id && last.attempt == link.attempt;
    if !chain.last().is_some_and(same) {
        chain.push(link);
    }
    if chain.len() > CHAIN_MAX {
        let text = format!("more than {CHAIN_MAX} hops deep: do agents delegate in a circle?");
        return Err(Fault::field(path, text));
    }
    Ok(chain)
}

/// Whether there is room in the chain for a task that tells an agent of this one.
///
/// # Errors
/// INVALID_FIELD where it would get too long.
pub fn may_call_back(task: &pb::Task) -> Result<(), Fault> {
    let options = task.options.as_ref();
    let target = options.and_then(|options| options.callback.as_ref()?.target.as_ref());
    if task.chain.len() < CHAIN_MAX || !matches!(target, Some(pb::callback::Target::Agent(_))) {
        return Ok(());
    }
    let text = format!(
        "the task is {CHAIN_MAX} hops deep, and an agent is told by a task one hop below it: name a URL, or watch the task"
    );
    Err(Fault::field("spec.options.callback", text))
}

/// The agent that a hop is.
fn agent_of(link: &pb::ChainLink) -> Option<AgentName> {
    let id: SpiffeId = link.spiffe_id.parse().ok()?;
    match id.member {
        Member::Agent(agent) => Some(agent),
        Member::Service(_) | Member::Operator(_) | Member::Registry(_) => None,
    }
}

fn looped(chain: &[pb::ChainLink], agent: &AgentName, skill: &str) -> Fault {
    let is = |link: &pb::ChainLink| link.skill == skill && agent_of(link).as_ref() == Some(agent);
    let first = chain.iter().position(is).unwrap_or_default();
    let hop = |link: &pb::ChainLink| {
        let by = agent_of(link).map_or_else(|| link.spiffe_id.clone(), |by| by.to_string());
        format!("{by} ({})", link.skill)
    };
    let mut cycle: Vec<_> = chain[first..].iter().map(hop).collect();
    cycle.push(format!("{agent} ({skill})"));
    let cycle = cycle.join(" -> ");
    let text = format!(
        "an agent may not get work for a skill that it works on further up: {cycle}; name another agent, or none"
    );
    Fault::new(Reason::DelegationLoop, text).with("cycle", cycle)
}

fn out_of_scope(target: &str, scope: &[pb::AgentSkill]) -> Fault {
    let named = scope.iter().take(NAMED);
    let mut allowed: Vec<_> = named
        .map(|one| format!("{}/{}", one.agent, one.skill))
        .collect();
    if scope.len() > NAMED {
        allowed.push(format!("and {} more", scope.len() - NAMED));
    }
    let allowed = allowed.join(", ");
    let text = format!(
        "{target} is out of the scope of the task above; it may be delegated to: {allowed}"
    );
    Fault::new(Reason::OutOfScope, text).with("allowed", allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(agent: &str, skill: &str, scope: &[(&str, &str)]) -> pb::ChainLink {
        pb::ChainLink {
            spiffe_id: format!("spiffe://mesh.test/ns/default/agent/{agent}"),
            skill: skill.into(),
            task_id: format!("home.{agent}-{skill}"),
            attempt: 1,
            scope: pairs(scope),
            ..pb::ChainLink::default()
        }
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<pb::AgentSkill> {
        let pair = |(agent, skill): &(&str, &str)| pb::AgentSkill {
            agent: (*agent).into(),
            skill: (*skill).into(),
        };
        all.iter().map(pair).collect()
    }

    fn checked(chain: &[pb::ChainLink], agent: &str, skill: &str) -> Result<(), (Reason, String)> {
        let agent = (!agent.is_empty()).then(|| agent.parse().unwrap());
        check(chain, agent.as_ref(), skill).map_err(|fault| (fault.reason, fault.text))
    }

    #[test]
    fn an_agent_comes_once_for_a_skill_and_the_refusal_names_the_cycle() {
        let chain = [
            link("z", "q", &[]),
            link("a", "s", &[]),
            link("b", "t", &[]),
        ];
        let (reason, text) = checked(&chain, "a", "s").unwrap_err();
        assert_eq!(reason, Reason::DelegationLoop);
        let cycle = "default/a (s) -> default/b (t) -> default/a (s)";
        assert!(
            text.contains(cycle) && !text.contains("default/z"),
            "{text}"
        );
        for (agent, skill) in [("a", "t"), ("c", "s"), ("other/a", "s"), ("", "s")] {
            assert_eq!(checked(&chain, agent, skill), Ok(()), "{agent} {skill}");
        }
        let bounds = Bounds::of(&chain, "s");
        assert!(!bounds.admits(&"a".parse().unwrap()));
        assert!(bounds.admits(&"b".parse().unwrap()));
        assert!(bounds.told().contains("default/a"), "{}", bounds.told());
        assert!(Bounds::of(&chain, "other").is_free());
    }

    #[test]
    fn only_whom_the_last_link_allows_gets_it() {
        let above = link("a", "s", &[("default/x", "q")]);
        let chain = [
            above,
            link("b", "t", &[("default/c", "u"), ("default/d", "v")]),
        ];
        assert_eq!(checked(&chain, "c", "u"), Ok(()));
        assert_eq!(checked(&chain, "", "v"), Ok(()));
        for (agent, skill) in [("c", "v"), ("x", "q"), ("", "q")] {
            let (reason, text) = checked(&chain, agent, skill).unwrap_err();
            assert_eq!(reason, Reason::OutOfScope);
            assert!(text.contains("default/c/u, default/d/v"), "{text}");
        }
        let bounds = Bounds::of(&chain, "u");
        assert!(bounds.admits(&"c".parse().unwrap()) && !bounds.admits(&"d".parse().unwrap()));
    }

    #[test]
    fn a_scope_only_ever_gets_narrower() {
        let space: Label = "default".parse().unwrap();
        let narrow = |above: &[(&str, &str)], asked: &[(&str, &str)]| {
            narrowed(&pairs(above), pairs(asked), &space).map_err(|fault| fault.reason)
        };
        let (b, c) = (("default/b", "s"), ("default/c", "s"));
        assert_eq!(narrow(&[], &[]), Ok(vec![]));
        assert_eq!(narrow(&[b], &[]), Ok(pairs(&[b])));
        assert_eq!(
            narrow(&[], &[("b", "s"), b]),
            Ok(pairs(&[b])),
            "bare names, once"
        );
        assert_eq!(narrow(&[b, c], &[c, ("d", "s")]), Ok(pairs(&[c])));
        assert_eq!(narrow(&[b], &[c]), Err(Reason::OutOfScope));
        for asked in [("", "s"), ("b", ""), ("b", "S"), ("a/b/c", "s")] {
            assert_eq!(
                narrow(&[], &[asked]),
                Err(Reason::InvalidField),
                "{asked:?}"
            );
        }
        let many: Vec<_> = (0..=SCOPE_MAX).map(|_| b).collect();
        assert_eq!(narrow(&[], &many), Err(Reason::InvalidField));
    }

    #[test]
    fn a_chain_has_each_attempt_once_and_an_end() {
        let one = link("a", "s", &[]);
        let chain = extended(vec![], one.clone(), "p").unwrap();
        let chain = extended(chain, one, "p").unwrap();
        assert_eq!(chain.len(), 1);
        let full: Vec<_> = (0..CHAIN_MAX)
            .map(|n| link(&format!("a{n}"), "s", &[]))
            .collect();
        let wrong = extended(full, link("b", "s", &[]), "p").unwrap_err();
        assert_eq!(
            (wrong.reason, wrong.field),
            (Reason::InvalidField, Some("p".into()))
        );
    }
}
