//! The same skills, carried by the library's own agent over a stream that it opens to its sidecar.

use attache::{
    agent::{self, Failure, Task, TaskResult},
    pb::{HandleResponse, handle_response::Update},
};
use tokio::sync::mpsc;
use tonic::Status;

use crate::{note, run, text_of};

/// Serves until it is told to end.
pub(crate) async fn serve() {
    agent::serve(None, handle).await.unwrap();
}

async fn handle(task: Task) -> Result<TaskResult, Failure> {
    note(&format!(
        "{} {} {}",
        task.skill(),
        task.id(),
        task.attempt()
    ));
    let (updates, mut said) = mpsc::channel::<Result<HandleResponse, Status>>(1);
    let (skill, text) = (task.skill().to_owned(), text_of(task.request()));
    let last = async {
        while let Some(Ok(update)) = said.recv().await {
            match update.update {
                Some(Update::Result(result)) => return Ok(result),
                Some(Update::Failure(failure)) => {
                    return Err(agent::failure(failure.message).reason(failure.reason));
                }
                Some(update) => task.say(update).await,
                None => {}
            }
        }
        Err(agent::failure("no last word"))
    };
    let runs = async {
        drop(run(&skill, &text, &updates).await);
        // Its last word ends it.
        std::future::pending().await
    };
    tokio::select! {
        end = last => end,
        end = runs => end,
    }
}
