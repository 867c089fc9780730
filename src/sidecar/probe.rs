//! Whether the own agent answers: a connection to its address, held to see when its process ends,
//! and once per start of it the card that it gives of itself.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
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
/// Connections in a row that the agent may close before it is looked at in peace.
const CLOSES: u32 = 3;
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
        let (mut misses, mut closes) = (MISSES, 0);
        loop {
            let held = connected(&self.address).await;
            let pause = if held.is_none() {
                misses = misses.saturating_add(1);
                if misses >= MISSES {
                    self.progress.set_agent(false);
                }
                SOON
            } else if misses >= MISSES && !self.describe().await {
                // Reachable and not able to say what it is: it takes no work until it is.
                self.progress.set_agent(false);
                PUZZLED
            } else {
                misses = 0;
                self.progress.set_agent(true);
                CALM
            };
            let closed = tokio::select! {
                () = sleep(pause) => false,
                () = closed(held), if pause == CALM => true,
                () = stop.cancelled() => return,
            };
            if !closed {
                closes = 0;
                continue;
            }
            // Its process may have ended, and another one may be there already: it is asked anew.
            // Servers that close a silent connection at once are not asked for ever.
            misses = MISSES;
            closes += 1;
            let pause = if closes > CLOSES { CALM } else { SOON };
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

/// A connection to an agent, held to see its end.
type Held = Box<dyn AsyncRead + Send + Unpin>;

async fn connected(address: &str) -> Option<Held> {
    let connecting = async {
        let held: Held = match address.strip_prefix("unix:") {
            Some(path) => Box::new(UnixStream::connect(Path::new(path)).await.ok()?),
            None => Box::new(TcpStream::connect(address).await.ok()?),
        };
        Some(held)
    };
    timeout(PATIENCE, connecting).await.ok().flatten()
}

/// Waits until the other side closes; what it says is nothing to us.
async fn closed(held: Option<Held>) {
    let Some(mut held) = held else { return };
    let mut ignored = [0; 256];
    while held.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{
        runtime::Nursery,
        task::executor::{ExecutorConfig, HandleStream, HandlerError},
        telemetry::{Telemetry, TraceContext},
    };

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

    /// A link that counts how often it was asked for the card.
    struct Counting(watch::Sender<u32>);

    #[tonic::async_trait]
    impl HandlerLink for Counting {
        async fn handle(
            &self,
            _: pb::HandleRequest,
            _: Duration,
            _: Option<&TraceContext>,
        ) -> Result<HandleStream, HandlerError> {
            Err(HandlerError::Unreachable("not asked for".into()))
        }

        async fn cancel(&self, _: pb::CancelRequest) -> Result<(), tonic::Status> {
            Ok(())
        }

        async fn describe(&self) -> Result<Option<pb::AgentCard>, tonic::Status> {
            self.0.send_modify(|asked| *asked += 1);
            Ok(None)
        }
    }

    #[tokio::test]
    async fn an_agent_that_starts_again_at_once_is_asked_for_its_card_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let agent = tokio::net::UnixListener::bind(&path).unwrap();
        let (asked, nursery) = (watch::Sender::new(0), Nursery::here());
        let link: Arc<dyn HandlerLink> = Arc::new(Counting(asked.clone()));
        let config = ExecutorConfig {
            own: "spiffe://a/ns/default/agent/x".parse().unwrap(),
            slots: 1,
            boot_id: String::new(),
            skills: Vec::new(),
        };
        let prober = Prober {
            address: format!("unix:{}", path.display()),
            link: link.clone(),
            configured: pb::AgentCard::default(),
            described: watch::Sender::default(),
            executor: Executor::new(config, link, vec![nursery.clone()]),
            progress: Arc::new(Progress::new(true, Telemetry::default())),
        };
        nursery.start("prober", |stop| prober.run(stop));
        let mut asked = asked.subscribe();
        let began = Instant::now();
        for times in 1..=CLOSES {
            let (process, _) = agent.accept().await.unwrap();
            asked.wait_for(|asked| *asked == times).await.unwrap();
            drop(process);
        }
        assert!(began.elapsed() < CALM, "{:?}", began.elapsed());
        nursery.close(PATIENCE).await;
    }
}
