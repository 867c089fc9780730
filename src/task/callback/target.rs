//! Whom a caller wants told, and of which states.

use crate::domain::{AgentName, Fault, Label, SkillName, TaskId};
use crate::pb;
use crate::pb::callback::Target as Asked;

use super::url::Url;

/// States there are; more of them cannot be asked for.
const STATES_MAX: usize = 8;

/// Who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An agent of the mesh gets a task.
    Agent {
        /// Whose skill it is.
        agent: AgentName,
        /// The skill.
        skill: SkillName,
    },
    /// A POST goes there.
    Url(Url),
    /// The task that this one tells of: it hears what came of that.
    Task(Tells),
}

/// The change of another task that a task tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tells {
    /// The task that changed; of the same home.
    pub task: TaskId,
    /// Number of its event.
    pub seq: u64,
    /// Which of the tasks that tell of it: one that fails for now is followed by another.
    pub round: u32,
}

impl Target {
    /// The target of a task that was taken in; `url`: the whole URL, which the task does not show.
    pub fn of(callback: &pb::Callback, url: &str) -> Option<Self> {
        match callback.target.as_ref()? {
            Asked::Agent(agent) => Some(Self::Agent {
                agent: agent.agent.parse().ok()?,
                skill: agent.skill.parse().ok()?,
            }),
            Asked::Url(_) => Url::parse(url).ok().map(Self::Url),
        }
    }

    /// What is asked for, of a caller in `namespace`.
    ///
    /// # Errors
    /// INVALID_FIELD with the path of what is wrong.
    pub fn read(callback: &pb::Callback, namespace: &Label) -> Result<Self, Fault> {
        match &callback.target {
            None => {
                let text = "name whom to tell: an agent with a skill, or an https URL";
                Err(Fault::field("spec.options.callback", text))
            }
            Some(Asked::Url(url)) => Url::parse(url)
                .map(Self::Url)
                .map_err(|wrong| Fault::field("spec.options.callback.url", wrong)),
            Some(Asked::Agent(asked)) => {
                let agent = AgentName::parse_in(&asked.agent, namespace).map_err(|wrong| {
                    Fault::field("spec.options.callback.agent.agent", wrong.to_string())
                })?;
                let skill = asked.skill.parse::<SkillName>().map_err(|wrong| {
                    Fault::field("spec.options.callback.agent.skill", wrong.to_string())
                })?;
                Ok(Self::Agent { agent, skill })
            }
        }
    }

    /// Which deliveries count as going to the same place: they are bounded together. Empty: this
    /// home itself.
    pub fn place(&self) -> String {
        match self {
            Self::Agent { agent, skill } => format!("{agent}/{skill}"),
            Self::Url(url) => url.authority(),
            Self::Task(_) => String::new(),
        }
    }
}

/// What a caller in `namespace` asked for, as the task shows it, and the whole URL where it is one.
///
/// # Errors
/// INVALID_FIELD for what nobody could be told by, and for tasks in memory only.
pub fn asked(
    callback: Option<pb::Callback>,
    namespace: &Label,
    in_memory: bool,
) -> Result<(Option<pb::Callback>, String), Fault> {
    let Some(callback) = callback else {
        return Ok((None, String::new()));
    };
    if in_memory {
        let text = "an EPHEMERAL task has no callback: nothing of it would be left to tell after a restart; make it DURABLE, or watch it";
        return Err(Fault::field("spec.options.callback", text));
    }
    let known = |state: &i32| {
        let state = pb::TaskState::try_from(*state);
        state.is_ok_and(|state| state != pb::TaskState::Unspecified)
    };
    if callback.states.len() > STATES_MAX || !callback.states.iter().all(known) {
        let text = format!("at most {STATES_MAX} of the states of a task");
        return Err(Fault::field("spec.options.callback.states", text));
    }
    let (target, url) = match Target::read(&callback, namespace)? {
        Target::Agent { agent, skill } => {
            let agent = pb::AgentSkill {
                agent: agent.to_string(),
                skill: skill.as_str().to_owned(),
            };
            (Asked::Agent(agent), String::new())
        }
        Target::Url(url) => {
            let whole = match callback.target {
                Some(Asked::Url(whole)) => whole,
                Some(Asked::Agent(_)) | None => String::new(),
            };
            (Asked::Url(url.shown()), whole)
        }
        // Nobody can ask for that.
        Target::Task(_) => return Ok((None, String::new())),
    };
    let shown = pb::Callback {
        target: Some(target),
        states: callback.states,
    };
    Ok((Some(shown), url))
}

/// Whether a change to `state` is told.
pub fn tells(callback: &pb::Callback, state: pb::TaskState) -> bool {
    if callback.states.is_empty() {
        return matches!(
            state,
            pb::TaskState::Completed
                | pb::TaskState::Failed
                | pb::TaskState::Canceled
                | pb::TaskState::Rejected
        );
    }
    callback.states.contains(&state.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace() -> Label {
        "default".parse().unwrap()
    }

    fn agent(agent: &str, skill: &str) -> pb::Callback {
        pb::Callback {
            target: Some(Asked::Agent(pb::AgentSkill {
                agent: agent.into(),
                skill: skill.into(),
            })),
            states: Vec::new(),
        }
    }

    fn url(url: &str) -> pb::Callback {
        pb::Callback {
            target: Some(Asked::Url(url.into())),
            states: Vec::new(),
        }
    }

    #[test]
    fn an_agent_is_named_in_full_and_a_url_is_shown_without_its_secrets() {
        let (shown, whole) = asked(Some(agent("desk", "desk.told")), &namespace(), false).unwrap();
        assert_eq!(
            (shown, whole.as_str()),
            (Some(agent("default/desk", "desk.told")), "")
        );
        let secret = "https://hooks.example/T0/s3cret?x=1";
        let (shown, whole) = asked(Some(url(secret)), &namespace(), false).unwrap();
        let shown = shown.unwrap();
        assert_eq!(shown, url("https://hooks.example/..."));
        let target = Target::of(&shown, &whole).unwrap();
        assert_eq!(target, Target::Url(Url::parse(secret).unwrap()));
        assert_eq!(target.place(), "hooks.example");
        assert_eq!(asked(None, &namespace(), true), Ok((None, String::new())));
    }

    #[test]
    fn what_nobody_could_be_told_by_is_refused() {
        let states = |states: Vec<i32>| pb::Callback {
            states,
            ..agent("desk", "desk.told")
        };
        for (callback, in_memory, field) in [
            (agent("desk", "desk.told"), true, "spec.options.callback"),
            (pb::Callback::default(), false, "spec.options.callback"),
            (
                agent("", "desk.told"),
                false,
                "spec.options.callback.agent.agent",
            ),
            (
                agent("desk", ""),
                false,
                "spec.options.callback.agent.skill",
            ),
            (url("http://a.example"), false, "spec.options.callback.url"),
            (states(vec![0]), false, "spec.options.callback.states"),
            (states(vec![99]), false, "spec.options.callback.states"),
            (states(vec![3; 9]), false, "spec.options.callback.states"),
        ] {
            let fault = asked(Some(callback), &namespace(), in_memory).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some(field), "{fault}");
        }
    }

    #[test]
    fn the_terminal_states_are_told_where_none_is_named() {
        let named = pb::Callback {
            states: vec![pb::TaskState::Working.into()],
            ..agent("desk", "desk.told")
        };
        for (state, by_default, by_name) in [
            (pb::TaskState::Submitted, false, false),
            (pb::TaskState::Working, false, true),
            (pb::TaskState::InputRequired, false, false),
            (pb::TaskState::Completed, true, false),
            (pb::TaskState::Failed, true, false),
            (pb::TaskState::Canceled, true, false),
            (pb::TaskState::Rejected, true, false),
        ] {
            assert_eq!(tells(&agent("a", "b"), state), by_default, "{state:?}");
            assert_eq!(tells(&named, state), by_name, "{state:?}");
        }
    }
}
