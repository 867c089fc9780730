//! `attache.v1.Agent` over a [`Home`]: who asks, what they may, and where the task lives.
//!
//! One service for both listeners: the connection says who calls. The own agent, on the local
//! listener, may submit anything and reach its tasks at other homes; members may submit only for the
//! own agent's skills, and ask only for what this home owns.

use std::{fmt, sync::Arc};

use futures_util::StreamExt;
use tonic::{Request, Response, Status, Streaming};

use crate::domain::{AgentName, Fault, Label, Member, Reason, SpiffeId, TaskId};
use crate::identity::{Action, Caller, Connection, authorize};
use crate::pb;
use crate::pb::agent_client::AgentClient;
use crate::pb::agent_server::Agent;
use crate::pb::task_update::Update;
use crate::telemetry::{TraceContext, call::CallNotes};

use super::home::{self, Home, ListQuery, PAGE, Submission, Submitted};

mod callback;
mod fit;
mod forward;
mod page;
#[cfg(test)]
mod tests;

pub use forward::{HomeService, Surroundings};

use forward::{Streamed, away, followed, forwarded, passed_on};
use page::{content_asked, named_agent, page_mark, page_token, read_token};

/// The task API of one listener on one data thread.
#[derive(Clone)]
pub struct AgentService {
    home: Home,
    around: Arc<dyn Surroundings>,
    thread: usize,
}

/// Who calls, and by which listener.
struct Principal {
    id: Arc<SpiffeId>,
    local: bool,
}

impl AgentService {
    /// The service on data thread number `thread`, whose shard its new tasks get.
    pub fn new(home: Home, around: Arc<dyn Surroundings>, thread: usize) -> Self {
        Self {
            home,
            around,
            thread,
        }
    }

    fn principal<T>(&self, request: &Request<T>) -> Result<Principal, Fault> {
        let connection = Connection::of(request)?;
        Ok(match &connection.caller {
            Caller::Local => Principal {
                id: Arc::new(self.own().clone()),
                local: true,
            },
            Caller::Member(peer) => Principal {
                id: Arc::new(peer.id.clone()),
                local: false,
            },
            Caller::Anonymous => {
                let text = "the task API needs a member's certificate";
                return Err(Fault::new(Reason::Unauthenticated, text));
            }
        })
    }

    /// Who reads; which tasks exist for them is for the home to say.
    fn reader<T>(&self, request: &Request<T>) -> Result<Principal, Fault> {
        let principal = self.principal(request)?;
        authorize(
            &principal.id,
            Action::ReadTask,
            principal.id.member.namespace(),
        )?;
        Ok(principal)
    }

    fn own(&self) -> &SpiffeId {
        &self.home.config().own
    }

    fn submission(
        &self,
        who: &Principal,
        spec: Option<pb::TaskSpec>,
        trace: Option<TraceContext>,
    ) -> Result<Submission, Fault> {
        let Some(mut spec) = spec else {
            return Err(Fault::field(
                "spec",
                "say what to do: spec.selector.skill and spec.input",
            ));
        };
        let namespace = self.home.namespace_of(&who.id);
        let selector = spec.selector.get_or_insert_default();
        let named = (!selector.agent.is_empty())
            .then(|| AgentName::parse_in(&selector.agent, &namespace))
            .transpose();
        let named =
            named.map_err(|wrong| Fault::field("spec.selector.agent", wrong.to_string()))?;
        if let Some(named) = &named {
            selector.agent = named.to_string();
        }
        if !who.local {
            selector.agent = self
                .own_agent_for(named.as_ref(), &selector.skill)?
                .to_string();
        }
        let target: Option<&Label> = if who.local {
            named
                .as_ref()
                .map(|name| &name.namespace)
                .or(Some(&namespace))
        } else {
            self.own().member.namespace()
        };
        authorize(&who.id, Action::SubmitTask, target)?;
        let options = spec.options.as_ref();
        if let Some(callback) = options.and_then(|options| options.callback.as_ref()) {
            self.may_call_back(who, &namespace, callback)?;
        }
        Ok(Submission {
            spec,
            caller: who.id.as_ref().clone(),
            trace,
        })
    }

    /// The own agent, if it is meant and has the skill: this sidecar lends its identity to nobody.
    fn own_agent_for(&self, named: Option<&AgentName>, skill: &str) -> Result<&AgentName, Fault> {
        let refuse = |text: String| Err(Fault::new(Reason::NotOwnAgent, text));
        let Member::Agent(own) = &self.own().member else {
            return refuse("this sidecar has no agent: ask the registry who does this".into());
        };
        if named.is_some_and(|named| named != own) {
            return refuse(format!(
                "this sidecar takes tasks only for {own}: submit to the agent's own sidecar, or through yours"
            ));
        }
        let card = self.around.card();
        if !card.is_some_and(|card| card.skills.iter().any(|offered| offered.name == skill)) {
            return refuse(format!(
                "{own} has no skill {skill:?}: ask the registry who does"
            ));
        }
        Ok(own)
    }

    /// A client of the task's home where that is another sidecar; `None`: it is this one.
    fn elsewhere(
        &self,
        id: &TaskId,
        local: bool,
    ) -> Result<Option<AgentClient<HomeService>>, Fault> {
        if id.home == self.home.config().instance {
            return Ok(None);
        }
        if !local {
            let text = format!("the task's home is {}: ask its sidecar", id.home);
            let fault = Fault::new(Reason::HomeElsewhere, text).with("home", id.home.to_string());
            return Err(match self.around.endpoint(&id.home) {
                Some(endpoint) => fault.with("endpoint", endpoint),
                None => fault,
            });
        }
        let reached = self.around.reach(&id.home).ok_or_else(|| away(&id.home))?;
        Ok(Some(AgentClient::new(reached)))
    }
}

#[tonic::async_trait]
impl Agent for AgentService {
    type RunTaskStream = Streamed<pb::RunTaskResponse>;
    type WatchTaskStream = Streamed<pb::WatchTaskResponse>;
    type ReadArtifactStream = Streamed<pb::ReadArtifactResponse>;
    type AttachStream = Streamed<pb::AttachResponse>;

    async fn submit_task(
        &self,
        request: Request<pb::SubmitTaskRequest>,
    ) -> Result<Response<pb::SubmitTaskResponse>, Status> {
        let notes = CallNotes::of(&request);
        let who = self.principal(&request)?;
        let trace = TraceContext::of_request(&request);
        let spec = noted(&notes, request.into_inner().spec);
        let asked = self.submission(&who, spec, trace)?;
        let asked = self.held(asked).await;
        let Submitted { task, replayed } = self.home.submit(asked, self.thread).await?;
        notes.about(&task);
        Ok(Response::new(pb::SubmitTaskResponse {
            task: Some(task),
            replayed,
        }))
    }

    async fn run_task(
        &self,
        request: Request<pb::RunTaskRequest>,
    ) -> Result<Response<Self::RunTaskStream>, Status> {
        let notes = CallNotes::of(&request);
        let who = self.principal(&request)?;
        let trace = TraceContext::of_request(&request);
        let spec = noted(&notes, request.into_inner().spec);
        let asked = self.submission(&who, spec, trace)?;
        let asked = self.held(asked).await;
        let Submitted { task, mut replayed } = self.home.run(asked, self.thread).await?;
        let answers = task.map(move |update| {
            let update = update?;
            if let Some(Update::Task(task)) = &update.update {
                notes.about(task);
            }
            Ok(pb::RunTaskResponse {
                update: Some(update),
                // It is in the first message only.
                replayed: std::mem::take(&mut replayed),
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_task(
        &self,
        request: Request<pb::GetTaskRequest>,
    ) -> Result<Response<pb::GetTaskResponse>, Status> {
        let notes = CallNotes::of(&request);
        let who = self.reader(&request)?;
        let trace = TraceContext::of_request(&request);
        let asked = request.into_inner();
        let id = task_id(&notes, &asked.task_id)?;
        if let Some(mut client) = self.elsewhere(&id, who.local)? {
            let answered = Box::pin(client.get_task(TraceContext::on(trace.as_ref(), asked))).await;
            return answered.map_err(|status| passed_on(status, &id.home));
        }
        let full = asked.view() == pb::TaskView::Full;
        let (task, truncated) = self.home.get(&id, &who.id, full).await?;
        notes.about(&task);
        Ok(Response::new(pb::GetTaskResponse {
            task: Some(task),
            truncated,
        }))
    }

    async fn list_tasks(
        &self,
        request: Request<pb::ListTasksRequest>,
    ) -> Result<Response<pb::ListTasksResponse>, Status> {
        let who = self.reader(&request)?;
        let mut filter = request.into_inner();
        let limit = match usize::try_from(filter.page_size) {
            Ok(0) => PAGE.0,
            Ok(size) => size.min(PAGE.1),
            Err(_) => return Err(Fault::field("page_size", "must not be negative").into()),
        };
        let mark = page_mark(&who.id, &filter);
        let before = match filter.page_token.as_str() {
            "" => None,
            token => Some(read_token(token, mark)?),
        };
        if !filter.agent.is_empty() {
            filter.agent = named_agent(&filter.agent, &self.home.namespace_of(&who.id))?;
        }
        let query = ListQuery {
            viewer: who.id,
            filter,
            before,
            limit,
        };
        let page = self.home.list(query).await?;
        let next = page.next;
        let next_page_token = next.map_or_else(String::new, |last| page_token(last, mark));
        Ok(Response::new(pb::ListTasksResponse {
            tasks: page.tasks,
            next_page_token,
        }))
    }

    async fn watch_task(
        &self,
        request: Request<pb::WatchTaskRequest>,
    ) -> Result<Response<Self::WatchTaskStream>, Status> {
        let notes = CallNotes::of(&request);
        let who = self.reader(&request)?;
        let trace = TraceContext::of_request(&request);
        let asked = request.into_inner();
        let id = task_id(&notes, &asked.task_id)?;
        if let Some(mut client) = self.elsewhere(&id, who.local)? {
            let after_seq = asked.after_seq;
            let answered =
                Box::pin(client.watch_task(TraceContext::on(trace.as_ref(), asked))).await;
            return followed(answered, id.home, after_seq, self.home.drains());
        }
        let watched = self
            .home
            .watch(&id, &who.id, asked.after_seq, asked.transients);
        let answers = watched.await?.map(|update| {
            Ok(pb::WatchTaskResponse {
                update: Some(update?),
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn read_artifact(
        &self,
        request: Request<pb::ReadArtifactRequest>,
    ) -> Result<Response<Self::ReadArtifactStream>, Status> {
        let notes = CallNotes::of(&request);
        let who = self.reader(&request)?;
        let trace = TraceContext::of_request(&request);
        let asked = request.into_inner();
        let id = task_id(&notes, &asked.task_id)?;
        if let Some(mut client) = self.elsewhere(&id, who.local)? {
            let answered =
                Box::pin(client.read_artifact(TraceContext::on(trace.as_ref(), asked))).await;
            return forwarded(answered, id.home);
        }
        let response = |piece: Result<pb::Part, Fault>| {
            let part = Some(piece?);
            Ok(pb::ReadArtifactResponse { part })
        };
        if asked.sha256.is_empty() {
            let (artifact, offset) = (&asked.artifact_id, asked.offset);
            let pieces = self.home.read_artifact(&id, &who.id, artifact, offset);
            return Ok(Response::new(Box::pin(pieces.await?.map(response))));
        }
        let hash = content_asked(&asked)?;
        let pieces = self.home.read_content(&id, &who.id, hash, asked.offset);
        Ok(Response::new(Box::pin(pieces.await?.map(response))))
    }

    async fn cancel_task(
        &self,
        request: Request<pb::CancelTaskRequest>,
    ) -> Result<Response<pb::CancelTaskResponse>, Status> {
        let notes = CallNotes::of(&request);
        let who = self.reader(&request)?;
        let trace = TraceContext::of_request(&request);
        let asked = request.into_inner();
        let id = task_id(&notes, &asked.task_id)?;
        if asked.reason.len() > REASON_MAX {
            let text = format!("at most {REASON_MAX} bytes");
            return Err(Fault::field("reason", text).into());
        }
        if let Some(mut client) = self.elsewhere(&id, who.local)? {
            let answered =
                Box::pin(client.cancel_task(TraceContext::on(trace.as_ref(), asked))).await;
            return answered.map_err(|status| passed_on(status, &id.home));
        }
        let task = self.home.cancel(&id, &who.id, asked.reason).await?;
        notes.about(&task);
        Ok(Response::new(pb::CancelTaskResponse { task: Some(task) }))
    }

    async fn respond_task(
        &self,
        request: Request<pb::RespondTaskRequest>,
    ) -> Result<Response<pb::RespondTaskResponse>, Status> {
        let notes = CallNotes::of(&request);
        let who = self.reader(&request)?;
        let trace = TraceContext::of_request(&request);
        let asked = request.into_inner();
        let id = task_id(&notes, &asked.task_id)?;
        if let Some(mut client) = self.elsewhere(&id, who.local)? {
            let answered =
                Box::pin(client.respond_task(TraceContext::on(trace.as_ref(), asked))).await;
            return answered.map_err(|status| passed_on(status, &id.home));
        }
        let response = home::Response {
            question_id: asked.question_id,
            parts: asked.parts,
        };
        let (task, replayed) = self.home.respond(&id, &who.id, response).await?;
        notes.about(&task);
        Ok(Response::new(pb::RespondTaskResponse {
            task: Some(task),
            replayed,
        }))
    }

    async fn get_card(
        &self,
        request: Request<pb::GetCardRequest>,
    ) -> Result<Response<pb::GetCardResponse>, Status> {
        let who = self.principal(&request)?;
        authorize(&who.id, Action::Discover, self.own().member.namespace())?;
        let card = self.around.card().map(|card| card.as_ref().clone());
        let instance = Some(self.around.instance());
        Ok(Response::new(pb::GetCardResponse { card, instance }))
    }

    async fn attach(
        &self,
        request: Request<Streaming<pb::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        if !self.principal(&request)?.local {
            let text = "an agent attaches to its own sidecar's local listener only";
            return Err(Fault::new(Reason::PermissionDenied, text).into());
        }
        let desk = self.around.desk().ok_or_else(|| {
            let text = "this sidecar has no agent, or one that listens: set `agent` to \"attach\" \
                        in its configuration";
            Fault::new(Reason::NotAttachable, text)
        })?;
        let answers = desk.serve(request.into_inner(), self.home.drains())?;
        Ok(Response::new(Box::pin(answers)))
    }
}

impl fmt::Debug for AgentService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentService")
            .field("home", &self.home)
            .finish_non_exhaustive()
    }
}

/// Most bytes of a cancellation's reason: it becomes part of an event.
const REASON_MAX: usize = 1024;

/// The spec, told to the call's line.
fn noted(notes: &CallNotes, spec: Option<pb::TaskSpec>) -> Option<pb::TaskSpec> {
    if let Some(spec) = &spec {
        let skill = spec.selector.as_ref().map(|selector| &selector.skill);
        skill.inspect(|skill| notes.skill(skill));
        notes.correlation(&spec.correlation_id);
    }
    spec
}

fn task_id(notes: &CallNotes, text: &str) -> Result<TaskId, Fault> {
    notes.task(text);
    text.parse()
        .map_err(|wrong: crate::domain::ids::NameError| Fault::field("task_id", wrong.to_string()))
}
