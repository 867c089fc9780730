//! How many events reach a thousand watchers in a second, and how soon work goes on whose executor
//! was killed.

use std::{fs, path::Path, time::Duration};

use attache::{
    agent::Channel,
    pb::{self, agent_client::AgentClient, task_event::Kind, task_update::Update},
    runtime::Nursery,
};
use futures_util::future::try_join_all;
use tokio::time::Instant;
use tonic::Streaming;

use crate::{Outcome, load, mesh::Mesh};

/// A sidecar takes 100 calls at once on one connection.
const PER_CONNECTION: usize = 64;
/// Events of the watched task.
const EVENTS: usize = 200;

/// Events per second that so many watchers see, all together.
pub(crate) async fn measure(mesh: &Mesh, scratch: &Path, watchers: usize) -> Outcome<f64> {
    let nursery = Nursery::here();
    let gate = scratch.join("gate");
    let mut first = AgentClient::new(Channel::new(mesh.local(), nursery.clone())?);
    let id = submit(&mut first, &format!("count {EVENTS} {}", gate.display())).await?;
    let mut streams = Vec::new();
    for _ in 0..watchers.div_ceil(PER_CONNECTION) {
        let mut client = AgentClient::new(Channel::new(mesh.local(), nursery.clone())?);
        for _ in 0..PER_CONNECTION.min(watchers - streams.len()) {
            streams.push(watch(&mut client, &id).await?);
        }
    }
    fs::write(&gate, "")?;
    let began = Instant::now();
    let seen = try_join_all(streams.into_iter().map(events)).await?;
    let took = began.elapsed();
    fs::remove_file(&gate)?;
    let seen: usize = seen.into_iter().sum();
    if seen < watchers * EVENTS {
        return Err(format!("{seen} events reached {watchers} watchers of {EVENTS}").into());
    }
    drop(first);
    nursery.abort().await;
    Ok(seen as f64 / took.as_secs_f64())
}

/// The time from the SIGKILL of an executor to the start of the next attempt elsewhere.
pub(crate) async fn lost(mesh: &Mesh, scratch: &Path) -> Outcome<Duration> {
    let nursery = Nursery::here();
    let gate = scratch.join("held");
    let mut client = AgentClient::new(Channel::new(mesh.local(), nursery.clone())?);
    let id = submit(&mut client, &format!("count 1 {}", gate.display())).await?;
    let mut stream = watch(&mut client, &id).await?;
    let mut began = None;
    loop {
        let update = stream.message().await?.ok_or("the watch ended")?.update;
        let Some(Update::Event(event)) = update.and_then(|update| update.update) else {
            continue;
        };
        let Some(Kind::StateChanged(change)) = &event.kind else {
            continue;
        };
        if event.state() != pb::TaskState::Working {
            continue;
        }
        match began {
            None => {
                mesh.kill_sidecar(&change.executor_instance)?;
                began = Some(Instant::now());
            }
            Some(began) => {
                let took = began.elapsed();
                fs::write(&gate, "")?;
                events(stream).await?;
                fs::remove_file(&gate)?;
                drop(client);
                nursery.abort().await;
                return Ok(took);
            }
        }
    }
}

async fn submit(client: &mut AgentClient<Channel>, text: &str) -> Outcome<String> {
    let spec = load::spec(load::text(text), pb::Durability::Durable);
    let request = pb::SubmitTaskRequest { spec: Some(spec) };
    let answer = client.submit_task(request).await?.into_inner();
    Ok(answer.task.unwrap_or_default().id)
}

async fn watch(
    client: &mut AgentClient<Channel>,
    id: &str,
) -> Outcome<Streaming<pb::WatchTaskResponse>> {
    let request = pb::WatchTaskRequest {
        task_id: id.to_owned(),
        ..Default::default()
    };
    Ok(client.watch_task(request).await?.into_inner())
}

/// Events of a stream until its end.
async fn events(mut stream: Streaming<pb::WatchTaskResponse>) -> Outcome<usize> {
    let mut seen = 0;
    while let Some(response) = stream.message().await? {
        let update = response.update.and_then(|update| update.update);
        seen += usize::from(matches!(update, Some(Update::Event(_))));
    }
    Ok(seen)
}
