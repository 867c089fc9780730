//! Following a task to its end: over broken streams by its cursor, and never cancelling it.

use tonic::{Code, Status, Streaming};

use crate::{
    cli::{
        args::MeshArgs,
        exit::{self, Exit, Failed},
        output::Output,
        respond,
        show::{self, Shown},
    },
    pb::{self, agent_client::AgentClient, task_event::Kind, task_update::Update},
    runtime::Backoff,
    transport::Channel,
    wire::json,
};

/// Tries to come back to a task's home before the reader is told to do it.
const TRIES: u32 = 8;

/// Tries to hand a task over: a sidecar restarts within them.
const SUBMITS: u32 = 5;
/// Said where a key was used before.
pub(super) const REPLAYED: &str = "this key was used before: here is the task that it made";

/// What is known of the task while it is followed.
#[derive(Debug, Default)]
struct Seen {
    task: pb::Task,
    last_seq: u64,
    result: Option<pb::TaskResult>,
    /// How to find the mesh, for whoever is told what to do.
    mesh: MeshArgs,
}

/// Submits a task and follows it to its end.
///
/// # Errors
/// When it is not accepted, or its home stays away.
pub(super) async fn run(
    at: &mut AgentClient<Channel>,
    spec: pb::TaskSpec,
    mesh: &MeshArgs,
    output: &Output,
) -> Result<Exit, Failed> {
    let request = pb::RunTaskRequest { spec: Some(spec) };
    let begun = insist(output, async || {
        let mut stream = at.run_task(request.clone()).await?.into_inner();
        let first = stream.message().await?;
        Ok((stream, first))
    });
    let mut seen = Seen {
        mesh: mesh.clone(),
        ..Seen::default()
    };
    let (mut stream, mut next) = tokio::select! {
        begun = begun => begun?,
        _ = tokio::signal::ctrl_c() => {
            output.note("the task may have been taken: `task list` shows it");
            return Ok(Exit::Interrupted);
        }
    };
    let broken = loop {
        match next {
            Some(response) => {
                if response.replayed {
                    output.note(REPLAYED);
                }
                seen.take(response.update, output);
            }
            None => return Ok(seen.end(output)),
        }
        next = tokio::select! {
            next = stream.message() => match next {
                Ok(next) => next,
                Err(status) => break status,
            },
            _ = tokio::signal::ctrl_c() => return Ok(left_running(&seen, mesh, output)),
        };
    };
    if !may_come_back(&broken) {
        return Err(broken.into());
    }
    let home = at.clone();
    follow(home, seen, mesh, output).await
}

/// Submits again while nobody says whether the task was taken: its key makes them one.
///
/// # Errors
/// What is answered, or the last of [`SUBMITS`] failures.
pub(super) async fn insist<T>(
    output: &Output,
    mut submit: impl AsyncFnMut() -> Result<T, Status>,
) -> Result<T, Status> {
    let mut backoff = Backoff::RECONNECT;
    for _ in 1..SUBMITS {
        match submit().await {
            Err(lost) if lost.code() == Code::Unavailable => {
                let said = format!("not taken yet, trying again: {}", lost.message());
                output.progress(None, &said);
                // Half of each wait at least: together they outlast a restart.
                tokio::time::sleep(backoff.next(0.5 + rand::random::<f64>() / 2.0)).await;
            }
            answered => return answered,
        }
    }
    submit().await
}

/// Follows a task from an event on.
///
/// # Errors
/// What its home answers, or when it stays away.
pub(super) async fn watch(
    home: AgentClient<Channel>,
    id: &str,
    after: u64,
    mesh: &MeshArgs,
    output: &Output,
) -> Result<Exit, Failed> {
    let task = pb::Task {
        id: id.to_owned(),
        ..Default::default()
    };
    follow(
        home,
        Seen {
            task,
            last_seq: after,
            result: None,
            mesh: mesh.clone(),
        },
        mesh,
        output,
    )
    .await
}

/// How to go on with a task from the shell.
pub(super) fn commands(id: &str, mesh: &MeshArgs) -> String {
    let mesh = mesh.flags();
    let program = super::program();
    format!("  {program} task watch{mesh} {id}\n  {program} task cancel{mesh} {id}")
}

async fn follow(
    mut home: AgentClient<Channel>,
    mut seen: Seen,
    mesh: &MeshArgs,
    output: &Output,
) -> Result<Exit, Failed> {
    let mut backoff = Backoff::RECONNECT;
    let mut tries = 0;
    loop {
        let request = pb::WatchTaskRequest {
            task_id: seen.task.id.clone(),
            after_seq: seen.last_seq,
            transients: false,
        };
        let broken = match home.watch_task(request).await {
            Ok(stream) => match drain(stream.into_inner(), &mut seen, mesh, output).await {
                Ok(exit) => return Ok(exit),
                Err((status, moved)) => {
                    if moved {
                        (tries, backoff) = (0, Backoff::RECONNECT);
                    }
                    status
                }
            },
            Err(status) => status,
        };
        tries += 1;
        if !may_come_back(&broken) || tries > TRIES {
            return Err(broken.into());
        }
        output.progress(
            None,
            &format!("lost the task's home, trying again: {}", broken.message()),
        );
        tokio::select! {
            () = tokio::time::sleep(backoff.next(rand::random())) => {}
            _ = tokio::signal::ctrl_c() => return Ok(left_running(&seen, mesh, output)),
        }
    }
}

/// Reads a watch to its end; on a break, says whether anything came.
async fn drain(
    mut stream: Streaming<pb::WatchTaskResponse>,
    seen: &mut Seen,
    mesh: &MeshArgs,
    output: &Output,
) -> Result<Exit, (Status, bool)> {
    let mut moved = false;
    loop {
        let next = tokio::select! {
            next = stream.message() => next,
            _ = tokio::signal::ctrl_c() => return Ok(left_running(seen, mesh, output)),
        };
        match next {
            Ok(Some(response)) => {
                moved = true;
                seen.take(response.update, output);
            }
            Ok(None) => return Ok(seen.end(output)),
            Err(status) => return Err((status, moved)),
        }
    }
}

fn may_come_back(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
    )
}

fn left_running(seen: &Seen, mesh: &MeshArgs, output: &Output) -> Exit {
    if seen.task.id.is_empty() {
        return Exit::Interrupted;
    }
    output.note("\nthe task goes on; to follow or cancel it:");
    output.note(&commands(&seen.task.id, mesh));
    Exit::Interrupted
}

impl Seen {
    fn take(&mut self, update: Option<pb::TaskUpdate>, output: &Output) {
        let Some(update) = update else { return };
        if output.is_json() {
            output.json(&json::message("TaskUpdate", &update));
        }
        match update.update {
            Some(Update::Task(task)) => {
                if self.task.skill.is_empty() {
                    output.note(&format!("task {}", task.id));
                }
                self.task = *task;
            }
            Some(Update::Event(event)) => self.event(&event, output),
            Some(Update::Transient(_) | Update::Keepalive(_)) | None => {}
        }
    }

    fn event(&mut self, event: &pb::TaskEvent, output: &Output) {
        self.last_seq = event.seq;
        self.task.state = event.state;
        match &event.kind {
            Some(Kind::Failure(failure)) => {
                // Said once, at the end.
                self.task.failure = Some(failure.clone());
                return;
            }
            Some(Kind::Result(result)) => self.result = Some(result.clone()),
            _ => {}
        }
        match show::event(event) {
            Shown::Progress(share, text) => output.progress(share, &text),
            Shown::Line(text) => output.note(&format!("  {text}")),
            Shown::Nothing => {}
        }
        if let Some(Kind::Question(question)) = &event.kind
            && !output.is_json()
        {
            output.note(&respond::how(&self.task.id, question, &self.mesh));
        }
    }

    /// The stream ended after the last event: print what came out.
    fn end(&mut self, output: &Output) -> Exit {
        output.wipe();
        if let Some(result) = self.result.as_ref().or(self.task.result.as_ref())
            && !output.is_json()
        {
            output.line(&show::result(result));
        }
        let exit = exit::of_task(&self.task);
        if exit != Exit::Done && !output.is_json() {
            let why = self
                .task
                .failure
                .as_ref()
                .map_or(String::new(), show::failure);
            output.error(&format!(
                "the task is {}: {why}",
                show::state(self.task.state())
            ));
        }
        exit
    }
}
