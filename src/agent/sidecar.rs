//! The agent's own sidecar as seen from the agent: tasks for others, and who there is.

use tokio_stream::StreamExt as _;
use tonic::{Code, Status, Streaming};

use super::{AgentError, Channel, TaskResult};
use crate::domain::Reason;
use crate::pb;
use crate::pb::{
    agent_client::AgentClient, registry_client::RegistryClient, task_event::Kind,
    task_update::Update,
};
use crate::runtime::{Backoff, Nursery};
use crate::telemetry::TraceContext;

/// Tries to follow a task again after its stream broke, with waits up to 30 s: a sidecar restarts
/// within that, and the task goes on meanwhile.
const FOLLOW_TRIES: u32 = 10;
/// Tries to hand a task over to a sidecar that is not there: it restarts within a few seconds.
const SUBMIT_TRIES: u32 = 5;
/// Largest answer of a sidecar.
const MESSAGE_MAX: usize = 4 << 20;

/// A client of the sidecar's local listener.
#[derive(Clone, Debug)]
pub struct Sidecar {
    channel: Channel,
}

/// Where a followed task stands.
#[derive(Default)]
struct Followed {
    task_id: String,
    last_seq: u64,
    failure: Option<pb::Failure>,
}

impl Sidecar {
    /// The sidecar at `unix:/path` or a loopback `host:port`.
    ///
    /// # Errors
    /// [`AgentError::Address`].
    pub fn new(address: &str, nursery: Nursery) -> Result<Self, AgentError> {
        let channel = Channel::new(address, nursery)?;
        Ok(Self { channel })
    }

    /// The same sidecar, for calls that belong to `trace`.
    pub(super) fn traced(&self, trace: Option<TraceContext>) -> Self {
        let channel = self.channel.traced(trace);
        Self { channel }
    }

    /// The task API.
    pub fn tasks(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// The catalog, read only.
    pub fn registry(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// Runs a task to its end, also across a restart of the sidecar: one without an idempotency key
    /// gets one, so that it can be submitted again when the answer is lost.
    ///
    /// # Errors
    /// The failure of the task with its gRPC code, or why it was not taken.
    pub async fn run(&self, mut spec: pb::TaskSpec) -> Result<TaskResult, Status> {
        let options = spec.options.as_ref();
        // One in memory goes with the call that is lost, and would come back cancelled.
        let fleeting = options.is_some_and(|o| o.durability() == pb::Durability::Ephemeral);
        if spec.idempotency_key.is_empty() && !fleeting {
            spec.idempotency_key = uuid::Uuid::now_v7().to_string();
        }
        let tries_max = if fleeting { 1 } else { SUBMIT_TRIES };
        let request = pb::RunTaskRequest { spec: Some(spec) };
        let mut followed = Followed::default();
        let mut backoff = Backoff::RECONNECT;
        let mut tries = 0;
        let broke = loop {
            let broke = match self.tasks().run_task(request.clone()).await {
                Ok(answer) => match followed.until_end(answer.into_inner(), |r| r.update).await {
                    Ok(end) => return end,
                    Err(broke) => broke,
                },
                Err(status) => status,
            };
            tries += 1;
            let taken = !followed.task_id.is_empty();
            if taken || broke.code() != Code::Unavailable || tries == tries_max {
                break broke;
            }
            tokio::time::sleep(backoff.next(rand::random())).await;
        };
        self.follow(followed, broke).await
    }

    /// Hands a task over and does not wait for it: watch it by its id, or have somebody told by
    /// `options.callback`. One without an idempotency key gets one, as in [`Sidecar::run`].
    ///
    /// # Errors
    /// Why it was not taken.
    pub async fn submit(&self, mut spec: pb::TaskSpec) -> Result<pb::Task, Status> {
        if spec.idempotency_key.is_empty() {
            spec.idempotency_key = uuid::Uuid::now_v7().to_string();
        }
        let request = pb::SubmitTaskRequest { spec: Some(spec) };
        let mut backoff = Backoff::RECONNECT;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.tasks().submit_task(request.clone()).await {
                Ok(answer) => return Ok(answer.into_inner().task.unwrap_or_default()),
                Err(status) if status.code() != Code::Unavailable || tries == SUBMIT_TRIES => {
                    return Err(status);
                }
                Err(_) => tokio::time::sleep(backoff.next(rand::random())).await,
            }
        }
    }

    async fn follow(
        &self,
        mut followed: Followed,
        mut broke: Status,
    ) -> Result<TaskResult, Status> {
        let mut backoff = Backoff::RECONNECT;
        for _ in 0..FOLLOW_TRIES {
            let may_pass = matches!(
                broke.code(),
                Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
            );
            if followed.task_id.is_empty() || !may_pass {
                break;
            }
            tokio::time::sleep(backoff.next(rand::random())).await;
            let request = pb::WatchTaskRequest {
                task_id: followed.task_id.clone(),
                after_seq: followed.last_seq,
                ..pb::WatchTaskRequest::default()
            };
            let updates = match self.tasks().watch_task(request).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => {
                    broke = status;
                    continue;
                }
            };
            let before = followed.last_seq;
            broke = match followed.until_end(updates, |r| r.update).await {
                Ok(end) => return end,
                Err(broke) => broke,
            };
            if followed.last_seq > before {
                backoff.reset();
            }
        }
        Err(broke)
    }
}

impl Followed {
    /// Reads a stream until it tells the task's end, or breaks.
    async fn until_end<U>(
        &mut self,
        mut updates: Streaming<U>,
        update: impl Fn(U) -> Option<pb::TaskUpdate>,
    ) -> Result<Result<TaskResult, Status>, Status> {
        while let Some(response) = updates.next().await {
            if let Some(end) = self.take(update(response?)) {
                return Ok(end);
            }
        }
        Err(ended_early())
    }

    /// The task's end, once it is told.
    fn take(&mut self, update: Option<pb::TaskUpdate>) -> Option<Result<TaskResult, Status>> {
        match update?.update? {
            Update::Task(task) => {
                // The result is the last event; a summary leaves it out, so it is read again.
                let summary = task.state() == pb::TaskState::Completed && task.result.is_none();
                self.last_seq = task.last_seq.saturating_sub(summary.into());
                self.failure = task.failure.clone().or_else(|| self.failure.take());
                self.task_id.clone_from(&task.id);
                self.end(task.state(), task.result)
            }
            Update::Event(event) => {
                self.last_seq = event.seq;
                let state = event.state();
                match event.kind {
                    Some(Kind::Result(result)) => return self.end(state, Some(result)),
                    Some(Kind::Failure(failure)) => self.failure = Some(failure),
                    _ => {}
                }
                self.end(state, None)
            }
            Update::Transient(_) | Update::Keepalive(_) => None,
        }
    }

    fn end(
        &mut self,
        state: pb::TaskState,
        result: Option<TaskResult>,
    ) -> Option<Result<TaskResult, Status>> {
        match state {
            // A task without its result is a summary; the result follows as an event.
            pb::TaskState::Completed => result.map(Ok),
            pb::TaskState::Failed | pb::TaskState::Rejected => {
                let failure = self.failure.take().unwrap_or_default();
                let told = Code::from(failure.code);
                let code = if told == Code::Ok {
                    Code::Unknown
                } else {
                    told
                };
                let text = match failure.reason.as_str() {
                    "" => failure.message,
                    reason => format!("{reason}: {}", failure.message),
                };
                Some(Err(Status::new(code, text)))
            }
            pb::TaskState::Canceled => Some(Err(Status::cancelled("the task was cancelled"))),
            pb::TaskState::Unspecified
            | pb::TaskState::Submitted
            | pb::TaskState::Working
            | pb::TaskState::InputRequired
            | pb::TaskState::AuthRequired => None,
        }
    }
}

fn ended_early() -> Status {
    let label = Reason::HomeUnavailable.label();
    Status::unavailable(format!("{label}: the task's stream ended before the task"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, state: pb::TaskState, kind: Kind) -> Option<pb::TaskUpdate> {
        let event = pb::TaskEvent {
            seq,
            state: state.into(),
            kind: Some(kind),
            ..pb::TaskEvent::default()
        };
        Some(pb::TaskUpdate {
            update: Some(Update::Event(event)),
        })
    }

    fn snapshot(state: pb::TaskState, last_seq: u64) -> Option<pb::TaskUpdate> {
        let task = pb::Task {
            id: "i1.x".into(),
            state: state.into(),
            last_seq,
            ..pb::Task::default()
        };
        Some(pb::TaskUpdate {
            update: Some(Update::Task(Box::new(task))),
        })
    }

    #[test]
    fn a_followed_task_ends_with_its_result_or_its_failure() {
        let mut followed = Followed::default();
        assert!(
            followed
                .take(snapshot(pb::TaskState::Submitted, 1))
                .is_none()
        );
        let result = Kind::Result(pb::TaskResult::default());
        let end = followed.take(event(2, pb::TaskState::Completed, result));
        assert!(end.unwrap().is_ok());

        let failure = Kind::Failure(pb::Failure {
            reason: "NO_ROUTE".into(),
            message: "nobody".into(),
            code: Code::Unavailable.into(),
            ..pb::Failure::default()
        });
        let end = followed.take(event(2, pb::TaskState::Failed, failure));
        let status = end.unwrap().unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unavailable, "NO_ROUTE: nobody")
        );
    }

    #[test]
    fn the_result_behind_a_summary_is_read_again() {
        let mut followed = Followed::default();
        assert!(
            followed
                .take(snapshot(pb::TaskState::Completed, 7))
                .is_none()
        );
        assert_eq!((followed.task_id.as_str(), followed.last_seq), ("i1.x", 6));
    }
}
