//! Who watches tasks, over streams that are dropped and taken up again.

use std::sync::Arc;

use tokio::time::{Instant, sleep};
use tokio_stream::StreamExt as _;

use crate::domain::{Fault, Reason, TaskId};
use crate::pb::task_event::Kind;
use crate::pb::task_update::Update as Shown;

use super::World;
use super::load::answer;
use super::told::ended;

/// Watches a task to its end, over as many streams as it takes.
pub(super) async fn watch(world: &Arc<World>, node: usize, id: &str) {
    let task: TaskId = id.parse().unwrap();
    let mut cursor = 0;
    loop {
        let life = world.nodes[node].up().await;
        let viewer = &world.nodes[node].own;
        let watched = tokio::select! {
            biased;
            () = life.dead.cancelled() => continue,
            watched = life.home.watch(&task, viewer, cursor, true) => watched,
        };
        let leaves = Instant::now() + world.within(0, 60_000);
        let over = match watched {
            Ok(updates) => {
                let reading = read(world, (node, id), &mut cursor, updates);
                tokio::select! {
                    biased;
                    () = life.dead.cancelled() => false,
                    () = tokio::time::sleep_until(leaves) => false,
                    over = reading => over,
                }
            }
            Err(fault) => {
                lost(world, id, &fault);
                false
            }
        };
        if over {
            return;
        }
        sleep(world.within(1, 1000)).await;
    }
}

/// Reads a stream; whether the task's end was seen.
pub(super) async fn read(
    world: &Arc<World>,
    (node, id): (usize, &str),
    cursor: &mut u64,
    mut updates: crate::task::home::TaskUpdates,
) -> bool {
    let mut at_end = false;
    while let Some(update) = updates.next().await {
        let update = match update {
            Ok(update) => update.update,
            Err(fault) => {
                lost(world, id, &fault);
                return false;
            }
        };
        let mut history = world.history.lock();
        match update {
            Some(Shown::Event(event)) => {
                if event.seq != *cursor + 1 {
                    let how = format!("I3: {id} shows {} after {cursor}", event.seq);
                    history.breach(how);
                }
                if at_end {
                    history.breach(format!("I2: {id} goes on after its end"));
                }
                *cursor = event.seq;
                at_end = ended(event.state());
                history.show("watcher", &event);
                drop(history);
                if let Some(Kind::Question(question)) = event.kind
                    && world.chance(0.85)
                {
                    let (world, id) = (Arc::clone(world), id.to_owned());
                    let clients = world.clients.clone();
                    let answer = answer(world, node, id, question.question_id);
                    clients.adopt("answer", answer);
                }
            }
            Some(Shown::Keepalive(alive)) if alive.last_seq != *cursor => {
                let how = format!("I3: {id} claims {} at {cursor}", alive.last_seq);
                history.breach(how);
            }
            _ => {}
        }
    }
    let task: TaskId = id.parse().unwrap();
    at_end || finished(world, &task, *cursor).await
}

/// A stream that begins behind the last event ends at once.
async fn finished(world: &World, task: &TaskId, cursor: u64) -> bool {
    let shown = world.history.lock();
    let events = shown.shown.get(&task.to_string());
    let last = events.and_then(|events| events.get(&cursor));
    let over = last.is_some_and(|event| ended(event.state()));
    drop(shown);
    if !over {
        let how = format!("I3: the stream of {task} ends at {cursor}, before its end");
        world.history.lock().breach(how);
    }
    true
}

fn lost(world: &World, id: &str, fault: &Fault) {
    let gone = [
        Reason::TaskNotFound,
        Reason::SequenceAhead,
        Reason::SequenceGone,
    ];
    if gone.contains(&fault.reason) {
        let how = format!("I1 I3: {id} cannot be watched: {fault}");
        world.history.lock().breach(how);
    }
}
