//! Whom to tell when a task's state changes, for `spec.options.callback`.

use crate::pb;
use crate::pb::callback::Target;

/// An agent gets a task for its skill, with what happened as a data part; `agent` as
/// `namespace/name`, or a name in one's own namespace. The ends of the task are told, unless `states`
/// are set.
pub fn tell_agent(agent: impl Into<String>, skill: impl Into<String>) -> pb::Callback {
    let skill = pb::AgentSkill {
        agent: agent.into(),
        skill: skill.into(),
    };
    pb::Callback {
        target: Some(Target::Agent(skill)),
        states: Vec::new(),
    }
}

/// An https URL gets a POST; the sidecar's configuration has to name its host. The ends of the task
/// are told, unless `states` are set.
pub fn tell_url(url: impl Into<String>) -> pb::Callback {
    pb::Callback {
        target: Some(Target::Url(url.into())),
        states: Vec::new(),
    }
}
