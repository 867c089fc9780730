//! `attache.v1.Executor` on the mutual TLS listener: who is there, then [`Executor::execute`].

use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

use super::door::HomePeer;
use super::engine::Executor;
use crate::domain::{Fault, Reason};
use crate::identity::peer::Connection;
use crate::pb;
use crate::pb::execute_request::Step;
use crate::task::doors::{Grants, Updates};
use crate::telemetry::{TraceContext, call::CallNotes};

/// Serves homes elsewhere; the own home calls [`Executor::execute`] in process.
#[derive(Clone, Debug)]
pub struct ExecutorService {
    executor: Executor,
}

impl ExecutorService {
    /// A service over `executor`.
    pub fn new(executor: Executor) -> Self {
        Self { executor }
    }
}

#[tonic::async_trait]
impl pb::executor_server::Executor for ExecutorService {
    type ExecuteStream = Updates;
    type SlotsStream = Grants;

    async fn execute(
        &self,
        request: Request<Streaming<pb::ExecuteRequest>>,
    ) -> Result<Response<Updates>, Status> {
        let home = home_of(&request)?;
        let notes = CallNotes::of(&request);
        let trace = TraceContext::of_request(&request);
        let steps = request.into_inner().map_while(move |step| match step {
            Ok(step) => {
                note(&notes, step.step.as_ref());
                Some(step)
            }
            Err(status) => {
                tracing::debug!(%status, "a home's stream broke");
                None
            }
        });
        Ok(Response::new(self.executor.execute(
            home,
            Box::pin(steps),
            trace,
        )))
    }

    async fn slots(
        &self,
        request: Request<Streaming<pb::SlotsRequest>>,
    ) -> Result<Response<Grants>, Status> {
        let home = home_of(&request)?;
        let claims = request.into_inner().map_while(Result::ok);
        Ok(Response::new(self.executor.slots(&home, Box::pin(claims))?))
    }
}

/// The first step says which task it is about.
fn note(notes: &CallNotes, step: Option<&Step>) {
    match step {
        Some(Step::Start(start)) => {
            let task = start
                .handle
                .as_ref()
                .and_then(|handle| handle.task.as_ref());
            task.inspect(|task| notes.about(task));
        }
        Some(Step::Resume(resume)) => notes.task(&resume.task_id),
        Some(Step::Ack(_) | Step::Abort(_) | Step::DescendantsGranted(_)) | None => {}
    }
}

fn home_of<T>(request: &Request<T>) -> Result<HomePeer, Fault> {
    let connection = Connection::of(request)?;
    let peer = connection.member()?;
    let instance = peer.instance.clone().ok_or_else(|| {
        let text = format!("{} has no instance, so it is no task's home", peer.id);
        Fault::new(Reason::PermissionDenied, text)
    })?;
    Ok(HomePeer {
        id: peer.id.clone(),
        instance,
    })
}
