//! A client in Rust: on a local listener as an agent has it, and over mutual TLS as a member.

use std::path::Path;

use attache::{
    identity::{Credentials, Svid},
    pb::{
        self, TaskEvent, TaskState, agent_client::AgentClient, part::Content,
        registry_client::RegistryClient, task_event::Kind, task_update::Update,
    },
    runtime::Nursery,
    transport::{Pool, Target},
};
use tonic::{Code, Status, Streaming, body::Body, transport::Endpoint};
use tower::{BoxError, ServiceExt, util::BoxCloneSyncService};

use super::wait::{eventually, within};

pub type Local = AgentClient<Way>;
/// Whatever carries an agent's calls.
pub type Way = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Broken>;

/// Why it did not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Broken(#[source] BoxError);
pub type Member = AgentClient<attache::transport::Channel>;

/// The task API of a local listener, `unix:/path`.
pub fn local(address: &str) -> Local {
    AgentClient::new(way(address))
}

/// A connection to a local listener, `unix:/path`, for calls of any service.
pub fn way(address: &str) -> Way {
    let endpoint = Endpoint::from_shared(address.to_owned()).unwrap();
    Way::new(endpoint.connect_lazy().map_err(broken))
}

/// The same by a client that sends a call only over a connection on which the sidecar has spoken, and
/// sends it again where a GOAWAY excludes it, as clients of gRPC that wait for their connection do.
/// `PEER_UNREACHABLE` is its own word for "not yet": nothing was sent.
pub fn patient(address: &str) -> Local {
    let channel = Pool::plaintext(Nursery::here()).channel(Target {
        endpoints: vec![address.to_owned()],
        expect: None,
    });
    let channel = channel.map_response(|answer| answer.map(Body::new));
    AgentClient::new(Way::new(channel.map_err(broken)))
}

fn broken(error: impl Into<BoxError>) -> Broken {
    Broken(error.into())
}

/// Calls as whoever the certificate in a directory names.
pub fn pool(identity: &Path) -> Pool {
    Pool::new(
        Credentials::new(Svid::load(identity).unwrap()),
        Nursery::here(),
    )
}

/// Puts a traffic rule as the operator whose certificate a directory has, and waits until the sidecars
/// with these local listeners have it.
pub async fn rule(operator: &Path, registry_at: &str, rule: pb::TrafficRule, locals: &[String]) {
    let name = rule.name.clone();
    let pool = pool(operator);
    let request = pb::PutRuleRequest {
        rule: Some(rule),
        expected_revision: None,
    };
    let mut registry = registry(&pool, registry_at);
    within("a rule is taken", registry.put_rule(request))
        .await
        .unwrap();
    for local in locals {
        let endpoint = Endpoint::from_shared(local.clone()).unwrap();
        let sidecar = RegistryClient::new(endpoint.connect_lazy());
        eventually("a sidecar has the rule", || async {
            let mut sidecar = sidecar.clone();
            let listed = sidecar.list_rules(pb::ListRulesRequest::default()).await;
            let listed = listed.map_err(|status| status.to_string())?;
            let rules = listed.into_inner().rules;
            let there = rules.iter().any(|rule| rule.name == name);
            there.then_some(()).ok_or_else(|| format!("{rules:?}"))
        })
        .await;
    }
}

/// The catalog of a registry at `host:port`.
pub fn registry(pool: &Pool, at: &str) -> RegistryClient<attache::transport::Channel> {
    RegistryClient::new(pool.channel(target(at, "registry/main")))
}

/// The task API of a sidecar at `host:port`; `who` is its member, such as `ns/default/agent/x`.
pub fn member(pool: &Pool, at: &str, who: &str) -> Member {
    AgentClient::new(pool.channel(target(at, who)))
}

/// Who has to be at `host:port`.
pub fn target(at: &str, who: &str) -> Target {
    use attache::identity::Expect;
    let id = format!("spiffe://{}/{who}", super::mesh::DOMAIN);
    let expect = Some(Expect::Member(id.parse().unwrap()));
    Target {
        endpoints: vec![at.to_owned()],
        expect,
    }
}

/// A task for a skill with a text as its input.
pub fn spec(skill: &str, text: &str) -> pb::TaskSpec {
    let part = pb::Part {
        content: Some(Content::Text(text.into())),
        ..Default::default()
    };
    pb::TaskSpec {
        selector: Some(pb::Selector {
            skill: skill.into(),
            ..Default::default()
        }),
        input: vec![part],
        ..Default::default()
    }
}

/// The same with a bound.
pub fn bounded(skill: &str, text: &str, seconds: i64) -> pb::TaskSpec {
    let timeout = Some(prost_types::Duration { seconds, nanos: 0 });
    let options = Some(pb::TaskOptions {
        timeout,
        ..Default::default()
    });
    pb::TaskSpec {
        options,
        ..spec(skill, text)
    }
}

/// How a task went.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub id: String,
    pub events: Vec<TaskEvent>,
}

impl Seen {
    pub fn last_seq(&self) -> u64 {
        self.events.last().map_or(0, |event| event.seq)
    }

    pub fn state(&self) -> TaskState {
        self.events
            .last()
            .map_or(TaskState::Unspecified, TaskEvent::state)
    }

    /// Text of the result, if it has one.
    pub fn result(&self) -> Option<String> {
        match self.events.last().and_then(|event| event.kind.as_ref()) {
            Some(Kind::Result(result)) => Some(text_of(&result.parts)),
            _ => None,
        }
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> pb::Failure {
        match self.events.last().and_then(|event| event.kind.as_ref()) {
            Some(Kind::Failure(failure)) => failure.clone(),
            _ => pb::Failure::default(),
        }
    }

    /// Takes an update in.
    ///
    /// # Panics
    /// When an event is not the next one, or follows the end.
    pub fn take(&mut self, update: pb::TaskUpdate) {
        match update.update {
            Some(Update::Task(task)) => self.id = task.id,
            Some(Update::Event(event)) => {
                assert_eq!(event.seq, self.last_seq() + 1, "a gap or a repetition");
                assert!(!is_end(self.state()), "{event:?} after the end");
                self.events.push(event);
            }
            Some(Update::Transient(_) | Update::Keepalive(_)) | None => {}
        }
    }

    /// Checks that it was seen whole: from 1 to its one end.
    pub fn whole(self) -> Self {
        assert_eq!(self.events.first().map(|event| event.seq), Some(1));
        assert!(is_end(self.state()), "{:?}", self.events.last());
        self
    }
}

pub fn is_end(state: TaskState) -> bool {
    use TaskState::{Canceled, Completed, Failed, Rejected};
    matches!(state, Completed | Failed | Canceled | Rejected)
}

pub fn text_of(parts: &[pb::Part]) -> String {
    let texts = parts.iter().filter_map(|part| match &part.content {
        Some(Content::Text(text)) => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

/// Both kinds of client, whatever carries them.
macro_rules! task_calls {
    ($client:ty, $run:ident, $submit:ident, $watch:ident) => {
        /// Runs a task and sees all of it.
        pub async fn $run(client: &mut $client, spec: pb::TaskSpec) -> Result<Seen, Status> {
            within("a task that is run ends", async {
                let request = pb::RunTaskRequest { spec: Some(spec) };
                let mut stream = client.run_task(request).await?.into_inner();
                let mut seen = Seen::default();
                while let Some(response) = stream.message().await? {
                    seen.take(response.update.unwrap());
                }
                Ok(seen.whole())
            })
            .await
        }

        /// Hands a task over.
        pub async fn $submit(client: &mut $client, spec: pb::TaskSpec) -> Result<pb::Task, Status> {
            let request = pb::SubmitTaskRequest { spec: Some(spec) };
            let answer = within("a task is accepted", client.submit_task(request)).await?;
            Ok(answer.into_inner().task.unwrap())
        }

        /// Opens a watch.
        pub async fn $watch(
            client: &mut $client,
            id: &str,
            after_seq: u64,
        ) -> Result<Streaming<pb::WatchTaskResponse>, Status> {
            let request = pb::WatchTaskRequest {
                task_id: id.into(),
                after_seq,
                transients: false,
            };
            Ok(within("a watch opens", client.watch_task(request))
                .await?
                .into_inner())
        }
    };
}

task_calls!(Local, run, submit, watch);
task_calls!(Member, run_as_member, submit_as_member, watch_as_member);

/// Watches a task from its first event to its end.
pub async fn watch_whole(client: &mut Local, id: &str) -> Seen {
    within("a watched task ends", async {
        let mut stream = watch(client, id, 0).await.unwrap();
        let mut seen = Seen::default();
        while let Some(response) = stream.message().await.unwrap() {
            seen.take(response.update.unwrap());
        }
        seen.whole()
    })
    .await
}

/// A task as it stands, with all of it.
pub async fn full(client: &mut Local, id: &str) -> Result<pb::Task, Status> {
    let request = pb::GetTaskRequest {
        task_id: id.into(),
        view: pb::TaskView::Full.into(),
    };
    let answer = within("a task is read", client.get_task(request)).await?;
    Ok(answer.into_inner().task.unwrap())
}

/// Whether this is how a call ends whose server went away.
pub fn is_away(status: &Status) -> bool {
    let away = [
        Code::Unavailable,
        Code::Unknown,
        Code::Cancelled,
        Code::Internal,
    ];
    away.contains(&status.code())
}
