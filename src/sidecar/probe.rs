//! Whether the own agent answers: a connection to its address, and once per start of its process
//! the card that it gives of itself.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{
    net::{TcpStream, UnixStream},
    sync::watch,
    time::{sleep, timeout},
};

use super::standing::Progress;
use crate::{
    pb,
    registry::client::Described,
    runtime::Stop,
    task::executor::{Executor, HandlerLink},
};

/// Looks while the agent is not there yet: somebody waits for it.
const SOON: Duration = Duration::from_millis(100);
/// Looks at an agent that is there and cannot say what it is: each one is a warning in the log.
const PUZZLED: Duration = Duration::from_secs(1);
/// Looks at an agent that answers.
const CALM: Duration = Duration::from_secs(5);
/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long an agent may take to describe itself.
const DESCRIBE: Duration = Duration::from_secs(5);
/// Misses in a row that make an agent unhealthy; the first look counts at once.
const MISSES: u32 = 3;

/// Watches one agent.
pub(super) struct Prober {
    pub(super) address: String,
    pub(super) link: Arc<dyn HandlerLink>,
    pub(super) configured: pb::AgentCard,
    pub(super) described: watch::Sender<Arc<Described>>,
    pub(super) executor: Executor,
    pub(super) progress: Arc<Progress>,
}

impl Prober {
    /// Looks until `stop`.
    pub(super) async fn run(self, stop: Stop) {
        let mut misses = MISSES;
        loop {
            let mut pause = SOON;
            if reachable(&self.address).await {
                if misses >= MISSES && !self.describe().await {
                    // Reachable and not able to say what it is: it takes no work until it is.
                    misses = MISSES;
                    pause = PUZZLED;
                } else {
                    misses = 0;
                    pause = CALM;
                    self.progress.set_agent(true);
                }
            } else {
                misses = misses.saturating_add(1);
                if misses >= MISSES {
                    self.progress.set_agent(false);
                }
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Asks the agent for its card, and puts the configuration's word over it.
    async fn describe(&self) -> bool {
        let asked = timeout(DESCRIBE, self.link.describe()).await;
        let given = match asked {
            Ok(Ok(given)) => given,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the agent does not describe itself");
                return false;
            }
            Err(_) => {
                tracing::warn!("the agent does not describe itself within {DESCRIBE:?}");
                return false;
            }
        };
        let card = merged(given.unwrap_or_default(), &self.configured);
        self.executor
            .set_skills(card.skills.iter().map(|skill| skill.name.clone()));
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
        true
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

async fn reachable(address: &str) -> bool {
    let connected = async {
        match address.strip_prefix("unix:") {
            Some(path) => UnixStream::connect(Path::new(path)).await.is_ok(),
            None => TcpStream::connect(address).await.is_ok(),
        }
    };
    timeout(PATIENCE, connected).await.unwrap_or(false)
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
