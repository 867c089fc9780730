//! What the agent is, by its own word and by the configuration's, which wins.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

use crate::{
    pb,
    registry::client::Described,
    task::executor::{Executor, HandlerLink, Offers},
};

/// How long an agent may take to describe itself.
const DESCRIBE: Duration = Duration::from_secs(5);

/// Keeps what the mesh is told of the agent.
pub(in crate::sidecar) struct Describer {
    pub(in crate::sidecar) link: Arc<dyn HandlerLink>,
    pub(in crate::sidecar) configured: pb::AgentCard,
    pub(in crate::sidecar) described: watch::Sender<Arc<Described>>,
    pub(in crate::sidecar) executor: Executor,
}

impl Describer {
    /// Asks the agent for its card, and puts the configuration's word over it.
    ///
    /// # Errors
    /// Says why the agent does not describe itself: it takes no work until it does.
    pub(super) async fn describe(&self) -> Result<(), String> {
        let asked = timeout(DESCRIBE, self.link.describe()).await;
        let given = match asked {
            Ok(Ok(given)) => given,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the agent does not describe itself");
                return Err(format!(
                    "the agent does not describe itself: {}",
                    error.message()
                ));
            }
            Err(_) => {
                let text = format!("the agent does not describe itself within {DESCRIBE:?}");
                tracing::warn!("{text}");
                return Err(text);
            }
        };
        let card = merged(given.unwrap_or_default(), &self.configured);
        if self.described.borrow().card == card {
            return Ok(());
        }
        let offers = Offers::of(&card).map_err(|fault| {
            let path = fault.field.unwrap_or_default();
            let text = format!(
                "the agent describes a skill that cannot be: {path}: {}",
                fault.text
            );
            tracing::warn!("{text}");
            text
        })?;
        self.executor.set_skills(offers);
        self.described.send_if_modified(|present| {
            if present.card == card {
                return false;
            }
            let instance = present.instance.clone();
            *present = Arc::new(Described {
                card: card.clone(),
                instance,
            });
            true
        });
        Ok(())
    }
}

/// The agent's own card, with everything that the configuration says in its place.
fn merged(mut given: pb::AgentCard, configured: &pb::AgentCard) -> pb::AgentCard {
    let over = configured.clone();
    if !over.description.is_empty() {
        given.description = over.description;
    }
    if given.version.is_empty() || !over.skills.is_empty() {
        given.version = over.version;
    }
    if !over.skills.is_empty() {
        given.skills = over.skills;
    }
    if over.max_concurrent_tasks != 0 {
        given.max_concurrent_tasks = over.max_concurrent_tasks;
    }
    given.labels.extend(over.labels);
    given.namespace.clear();
    given.name.clear();
    given.digest.clear();
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_wins_and_the_agent_fills_in() {
        let skill = |name: &str| pb::Skill {
            name: name.into(),
            ..Default::default()
        };
        let given = pb::AgentCard {
            name: "somebody-else".into(),
            version: "2.0.0".into(),
            description: "of itself".into(),
            skills: vec![skill("a")],
            ..Default::default()
        };
        let bare = pb::AgentCard {
            version: "0.1.0".into(),
            ..Default::default()
        };
        let card = merged(given.clone(), &bare);
        assert_eq!((card.name.as_str(), card.version.as_str()), ("", "2.0.0"));
        assert_eq!(card.skills[0].name, "a");
        let said = pb::AgentCard {
            skills: vec![skill("b")],
            ..bare
        };
        assert_eq!(merged(given, &said).skills[0].name, "b");
    }
}
