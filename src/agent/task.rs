//! The task that a handler works on: what it was given, and what it says on the way.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::Status;

use super::{Answer, Failure, Question, TaskResult, sidecar::Sidecar};
use crate::pb;
use crate::pb::handle_response::Update;
use crate::runtime::Stop;
use crate::telemetry::TraceContext;

/// One attempt of a task. Dropped with the handler's future when the task is cancelled.
#[derive(Debug)]
pub struct Task {
    pub(super) request: pb::HandleRequest,
    pub(super) out: mpsc::Sender<Result<pb::HandleResponse, Status>>,
    pub(super) sidecar: Option<Sidecar>,
    pub(super) trace: Option<TraceContext>,
    pub(super) asking: Asking,
    /// To whom it is handed over, once it is.
    pub(super) handed: Arc<OnceLock<pb::Delegation>>,
}

/// Whether the attempt asks, and so is about to end.
#[derive(Debug, Default)]
pub(super) struct Asking {
    begun: AtomicBool,
    /// The question is on its way.
    pub(super) sent: Stop,
}

/// A result of one text.
pub fn text(text: impl Into<String>) -> TaskResult {
    TaskResult {
        parts: vec![text_part(text)],
        artifact_ids: Vec::new(),
    }
}

pub(super) fn text_part(text: impl Into<String>) -> pb::Part {
    pb::Part {
        content: Some(pb::part::Content::Text(text.into())),
        media_type: "text/plain".into(),
        ..pb::Part::default()
    }
}

impl Task {
    /// `<home>.<uuid>`; with [`Task::attempt`] the key to do outside work once.
    pub fn id(&self) -> &str {
        self.request.task.as_ref().map_or("", |task| &task.id)
    }

    /// What is to be done.
    pub fn skill(&self) -> &str {
        self.request.task.as_ref().map_or("", |task| &task.skill)
    }

    /// SPIFFE id of who asked.
    pub fn caller(&self) -> &str {
        self.request.task.as_ref().map_or("", |task| &task.caller)
    }

    /// Number of this try, from 1.
    pub fn attempt(&self) -> u32 {
        self.request.attempt
    }

    /// Everything that came: the input, then each question of earlier attempts and its answer.
    pub fn inputs(&self) -> &[pb::Message] {
        &self.request.inputs
    }

    /// The texts of the input, one per line; answers to questions are not among them.
    pub fn text(&self) -> String {
        let parts = self.request.inputs.first().into_iter();
        let parts = parts.flat_map(|input| &input.parts);
        let texts = parts.filter_map(|part| match &part.content {
            Some(pb::part::Content::Text(text)) => Some(text.as_str()),
            _ => None,
        });
        texts.collect::<Vec<_>>().join("\n")
    }

    /// What an earlier attempt left by [`Task::checkpoint`]; empty at first.
    pub fn last_checkpoint(&self) -> &[u8] {
        &self.request.checkpoint
    }

    /// The whole request, as in `handler.proto`.
    pub fn request(&self) -> &pb::HandleRequest {
        &self.request
    }

    /// How far it is, from 0 to 1, and what is being done.
    pub async fn progress(&self, fraction: f64, message: impl Into<String>) {
        self.say(Update::Progress(pb::Progress {
            fraction: Some(fraction),
            message: message.into(),
            stage: String::new(),
        }))
        .await;
    }

    /// A message to the caller; at most 256 KiB.
    pub async fn message(&self, text: impl Into<String>) {
        self.say(Update::Message(pb::Message {
            parts: vec![text_part(text)],
            role: pb::Role::Agent.into(),
            ..pb::Message::default()
        }))
        .await;
    }

    /// A whole artifact of at most 128 KiB; larger ones go in chunks, by [`Task::say`].
    pub async fn artifact(&self, id: impl Into<String>, media_type: &str, content: Bytes) {
        self.say(Update::Artifact(pb::ArtifactChunk {
            artifact_id: id.into(),
            part: Some(pb::Part {
                content: Some(pb::part::Content::Raw(content)),
                media_type: media_type.into(),
                ..pb::Part::default()
            }),
            last_chunk: true,
            ..pb::ArtifactChunk::default()
        }))
        .await;
    }

    /// What a later attempt starts from; at most 1 MiB.
    pub async fn checkpoint(&self, data: Vec<u8>) {
        self.say(Update::Checkpoint(pb::Checkpoint { data })).await;
    }

    /// Shown to whoever watches now, kept nowhere: tokens as a model makes them.
    pub async fn transient(&self, text: impl Into<String>) {
        self.say(Update::Transient(text_part(text))).await;
    }

    /// What this question was answered with, if an earlier attempt asked it.
    pub fn answer(&self, id: &str) -> Option<Answer<'_>> {
        let talk = self.request.inputs.iter().skip(1);
        let mut answers = talk.filter(|said| said.role() == pb::Role::User);
        answers.find(|said| said.message_id == id).map(Answer)
    }

    /// Gives the answer to a question, if there is one. Else it asks, and never returns: the attempt
    /// ends here, its slot is free, and the task waits for the answer, for as long as its deadline
    /// lets it. With the answer the handler begins anew, and comes by here once more. What is before
    /// it is done again, so leave a [`checkpoint`](Task::checkpoint) of what should not be.
    ///
    /// ```no_run
    /// # use attache::agent::{self, Failure, Question, Task, TaskResult};
    /// async fn order(task: Task) -> Result<TaskResult, Failure> {
    ///     let size = task.ask(Question::new("size", "Which size?")).await.text();
    ///     Ok(agent::text(format!("ordered in {size}")))
    /// }
    /// ```
    pub async fn ask(&self, question: impl Into<Question>) -> Answer<'_> {
        let Question(question) = question.into();
        if let Some(answer) = self.answer(&question.question_id) {
            return answer;
        }
        self.send(Update::Question(question)).await;
        std::future::pending().await
    }

    /// Any update that is not a last one. Waits while the home is behind.
    pub async fn say(&self, update: Update) {
        self.send(update).await;
    }

    /// Says it once there is room. Nothing follows a question, and one that is dropped before it was
    /// sent was not asked.
    async fn send(&self, update: Update) {
        // Without a listener the attempt is over, and this future is dropped at its next wait.
        let Ok(room) = self.out.reserve().await else {
            return std::future::pending().await;
        };
        let asks = matches!(update, Update::Question(_));
        // No wait from here on.
        let asked = if asks {
            self.asking.begun.swap(true, Ordering::Relaxed)
        } else {
            self.asking.begun.load(Ordering::Relaxed)
        };
        if asked {
            return std::future::pending().await;
        }
        room.send(Ok(pb::HandleResponse {
            update: Some(update),
        }));
        if asks {
            self.asking.sent.cancel();
        }
    }

    /// Hands the task over for good: what is returned here is what the handler has to return at once.
    /// The task stays the same for its caller, and what `skill` of `agent` makes of it is its end;
    /// without an agent ("") whoever offers the skill gets it. `input`: in place of the task's own;
    /// empty: that. The task fails where the agent may not get it: see `Delegation` in `task.proto`.
    ///
    /// # Errors
    /// None; it has the type of a handler's answer.
    pub fn hand_over(
        &self,
        agent: &str,
        skill: &str,
        input: Vec<pb::Part>,
    ) -> Result<TaskResult, Failure> {
        let to = Some(pb::AgentSkill {
            agent: agent.into(),
            skill: skill.into(),
        });
        // Whoever says it twice meant the first one.
        self.handed.get_or_init(|| pb::Delegation { to, input });
        Ok(TaskResult::default())
    }

    /// Whom the task may be delegated to, as a child or by [`Task::hand_over`]; empty: it is not
    /// narrowed.
    pub fn scope(&self) -> &[pb::AgentSkill] {
        self.request.task.as_ref().map_or(&[], |task| &task.scope)
    }

    /// The trace that the attempt belongs to, if it does: where spans of your own go below. Calls by
    /// [`Task::sidecar`] and [`Task::run_child`] carry it by themselves.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// The way into the mesh; `None` without `ATTACHE_SIDECAR`.
    pub fn sidecar(&self) -> Option<&Sidecar> {
        self.sidecar.as_ref()
    }

    /// Has another agent do a part of the work, and waits for it. It is cancelled with this task
    /// and shares its deadline.
    ///
    /// # Errors
    /// FAILED_PRECONDITION without a sidecar; otherwise as [`Sidecar::run`].
    pub async fn run_child(
        &self,
        skill: &str,
        input: impl Into<String>,
    ) -> Result<TaskResult, Status> {
        let spec = pb::TaskSpec {
            selector: Some(pb::Selector {
                skill: skill.into(),
                ..pb::Selector::default()
            }),
            input: vec![text_part(input)],
            ..pb::TaskSpec::default()
        };
        self.run_child_spec(spec).await
    }

    /// [`Task::run_child`] with everything that a task may ask for.
    ///
    /// # Errors
    /// As [`Task::run_child`].
    pub async fn run_child_spec(&self, mut spec: pb::TaskSpec) -> Result<TaskResult, Status> {
        let sidecar = self.sidecar.as_ref().ok_or_else(|| {
            Status::failed_precondition("ATTACHE_SIDECAR is not set, so there is nobody to ask")
        })?;
        spec.parent_token.clone_from(&self.request.parent_token);
        sidecar.run(spec).await
    }
}
