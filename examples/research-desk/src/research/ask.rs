//! Asks the mesh for passages: one `RunTask` on the own sidecar, followed to its end.

use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::attempt::Outbox;
use crate::found::{Found, Query};
use crate::part;
use crate::pb::agent_client::AgentClient;
use crate::pb::task_event::Kind;
use crate::pb::task_update::Update;
use crate::pb::{
    Failure, GetTaskRequest, Part, RunTaskRequest, RunTaskResponse, Selector, Task, TaskSpec,
    TaskState, TaskView,
};

/// What is asked for; who answers is the mesh's choice.
const SKILL: &str = "search.passages";

/// Why no passages came back.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("the sidecar did not take the search: {}", .0.message())]
    Call(#[from] Status),
    #[error("the search ended {}: {}", .0.as_str_name(), .1.message)]
    Ended(TaskState, Failure),
    #[error("the stream of the search broke off before its end")]
    BrokenOff,
    #[error("the search answered something else than passages: {0}")]
    Unreadable(String),
}

impl AskError {
    /// What the own task fails with: the reason of whoever is to blame, and our sentence.
    pub(super) fn into_failure(self) -> Failure {
        let message = self.to_string();
        let (reason, code, retryable) = match self {
            Self::Call(status) => (
                "SEARCH_UNAVAILABLE".to_owned(),
                status.code(),
                status.code() == Code::Unavailable,
            ),
            Self::Ended(_, cause) => (cause.reason, Code::from(cause.code), cause.retryable),
            Self::BrokenOff => ("SEARCH_LOST".to_owned(), Code::Unavailable, true),
            Self::Unreadable(_) => ("SEARCH_UNREADABLE".to_owned(), Code::Internal, false),
        };
        Failure {
            reason,
            message,
            code: i32::from(code),
            retryable,
            details: None,
        }
    }
}

/// Runs the search as a child of the task that `parent_token` names, and returns what it found.
///
/// When the caller is dropped, the call is reset; the mesh cancels children with their parent.
pub(super) async fn passages(
    sidecar: Channel,
    query: &Query,
    parent_token: String,
    outbox: &Outbox,
) -> Result<Found, AskError> {
    let mut agent = AgentClient::new(sidecar);
    let query = serde_json::to_value(query).expect("a query is JSON");
    let spec = TaskSpec {
        selector: Some(Selector {
            skill: SKILL.to_owned(),
            ..Selector::default()
        }),
        input: vec![part::data(&query)],
        parent_token,
        ..TaskSpec::default()
    };
    let updates = agent
        .run_task(RunTaskRequest { spec: Some(spec) })
        .await?
        .into_inner();
    let parts = match follow(updates, outbox).await? {
        End::Result(parts) => parts,
        End::Elsewhere(task_id) => result_of(&mut agent, task_id).await?,
    };
    let json = part::first_data(&parts);
    let json = json.ok_or_else(|| AskError::Unreadable("there is no JSON in it".to_owned()))?;
    serde_json::from_value(json).map_err(|error| AskError::Unreadable(error.to_string()))
}

/// How a followed task came to a good end.
enum End {
    /// With its result.
    Result(Vec<Part>),
    /// We were told that it is completed, but not with what; ask for the task of this id.
    Elsewhere(String),
}

async fn follow(mut updates: Streaming<RunTaskResponse>, outbox: &Outbox) -> Result<End, AskError> {
    while let Some(response) = updates.message().await? {
        match response.update.and_then(|update| update.update) {
            Some(Update::Event(event)) => {
                let state = event.state();
                match event.kind {
                    Some(Kind::Result(result)) => return Ok(End::Result(result.parts)),
                    Some(Kind::Failure(failure)) => return Err(AskError::Ended(state, failure)),
                    Some(Kind::Progress(progress)) => {
                        outbox
                            .progress(SEARCHED, "searching", progress.message)
                            .await;
                    }
                    _ => refuse_if_over(state, None)?,
                }
            }
            // The task as it stands: at the start, and after a gap in the events.
            Some(Update::Task(task)) if task.state() == TaskState::Completed => {
                return Ok(End::Elsewhere(task.id));
            }
            Some(Update::Task(task)) => refuse_if_over(task.state(), task.failure)?,
            Some(Update::Transient(_) | Update::Keepalive(_)) | None => {}
        }
    }
    Err(AskError::BrokenOff)
}

/// How far the own task is while the search runs.
pub(super) const SEARCHED: f64 = 0.1;

/// An error for each state in which nothing more will come by itself.
fn refuse_if_over(state: TaskState, failure: Option<Failure>) -> Result<(), AskError> {
    let sentence = match state {
        TaskState::Unspecified
        | TaskState::Submitted
        | TaskState::Working
        | TaskState::Completed => return Ok(()),
        TaskState::Failed | TaskState::Rejected => "it gave no reason",
        TaskState::Canceled => "somebody canceled it",
        TaskState::InputRequired | TaskState::AuthRequired => "it asks what nobody can answer",
    };
    let failure = failure.unwrap_or_else(|| Failure {
        reason: "SEARCH_ENDED".to_owned(),
        message: sentence.to_owned(),
        code: i32::from(Code::Aborted),
        ..Failure::default()
    });
    Err(AskError::Ended(state, failure))
}

async fn result_of(agent: &mut AgentClient<Channel>, id: String) -> Result<Vec<Part>, AskError> {
    let request = GetTaskRequest {
        task_id: id,
        view: i32::from(TaskView::Full),
    };
    let task = agent.get_task(request).await?.into_inner().task;
    let result = task.and_then(|task: Task| task.result);
    result.map(|result| result.parts).ok_or(AskError::BrokenOff)
}
