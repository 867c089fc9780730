//! Who wants work done that is in memory only: without a key, over one call, which it may leave.
//!
//! While its home's process lives, it is held to what every task is. It is gone with that process, and
//! cancelled where its caller goes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_stream::StreamExt as _;

use crate::domain::{Reason, TaskId};
use crate::pb;
use crate::pb::task_update::Update as Shown;
use crate::task::home::{Submission, TaskUpdates};

use super::World;
use super::node::Life;
use super::told::ended;
use super::watcher;

/// Within which a task ends whose caller has gone: a handler has 10 s to confirm.
const GONE: Duration = Duration::from_secs(15);

/// Whether the id is one of a task in memory only.
pub(super) fn is_fleeting(id: &str) -> bool {
    let id: Result<TaskId, _> = id.parse();
    id.is_ok_and(|id| id.uuid.get_version_num() == 8)
}

/// How a call ended for its caller.
enum Ended {
    /// It was read to the task's end.
    Read,
    /// The caller went away.
    Left,
    /// The home's process ended.
    Dead,
}

/// Has a task run, reads of it what there is, and looks what became of it.
pub(super) async fn carry(world: Arc<World>, node: usize, skill: &'static str, after: Duration) {
    sleep(after).await;
    let life = world.nodes[node].up().await;
    let asked = Submission {
        spec: spec(&world, skill),
        caller: world.nodes[node].own.as_ref().clone(),
        trace: None,
    };
    let thread = world.roll(0..2);
    let running = tokio::select! {
        biased;
        () = life.dead.cancelled() => return,
        running = life.home.run(asked, thread) => running,
    };
    let mut updates = match running {
        Ok(running) => running.task,
        Err(fault) => return world.note(format_args!("nothing in memory: {fault}")),
    };
    let first = tokio::select! {
        biased;
        () = life.dead.cancelled() => return,
        first = updates.next() => first,
    };
    let Some(Ok(pb::TaskUpdate {
        update: Some(Shown::Task(task)),
    })) = first
    else {
        let how = format!("a call for work in memory begins with {first:?}");
        return world.history.lock().breach(how);
    };
    let id = task.id;
    world.note(format_args!("{id} is in memory of {node}"));
    world.history.lock().fleeting.insert(id.clone(), None);
    let how = follow(&world, &life, (node, &id), updates).await;
    look_back(&world, &life, (node, &id), how).await;
}

fn spec(world: &World, skill: &str) -> pb::TaskSpec {
    let options = pb::TaskOptions {
        timeout: world.within(5000, 60_000).try_into().ok(),
        durability: pb::Durability::Ephemeral.into(),
        fail_fast: world.chance(0.05),
        priority: world.roll(0..11),
        on_agent_loss: [0, 0, 1, 2][world.roll(0..4)],
        ..Default::default()
    };
    pb::TaskSpec {
        selector: Some(pb::Selector {
            skill: skill.into(),
            ..Default::default()
        }),
        options: Some(options),
        ..Default::default()
    }
}

/// Reads to the end, or for a while.
async fn follow(
    world: &Arc<World>,
    life: &Life,
    (node, id): (usize, &str),
    updates: TaskUpdates,
) -> Ended {
    let stays = if world.chance(0.3) {
        world.within(0, 10_000)
    } else {
        Duration::from_secs(3600)
    };
    let mut cursor = 0;
    tokio::select! {
        biased;
        () = life.dead.cancelled() => Ended::Dead,
        () = sleep(stays) => Ended::Left,
        read = watcher::read(world, (node, id), &mut cursor, updates) => {
            if read { Ended::Read } else { Ended::Left }
        }
    }
}

/// What has become of it.
async fn look_back(world: &Arc<World>, life: &Life, (node, id): (usize, &str), how: Ended) {
    let pause = match how {
        Ended::Left => GONE,
        Ended::Read | Ended::Dead => Duration::ZERO,
    };
    sleep(pause).await;
    let (own, task): (_, TaskId) = (world.nodes[node].own.clone(), id.parse().unwrap());
    let (here, got) = loop {
        let here = world.nodes[node].up().await;
        let got = tokio::select! {
            biased;
            () = here.dead.cancelled() => return,
            got = here.home.get(&task, &own, false) => got,
        };
        let Err(Reason::StorageFailed) = got.as_ref().map_err(|fault| fault.reason) else {
            break (here.number, got);
        };
        // It stops, or its log has failed: the next life knows.
        here.dead.cancelled().await;
    };
    let same = here == life.number;
    let wrong = match (got, how) {
        (Ok((task, _)), _) if !same => format!("{id} lives on: {task:?}"),
        (Ok((task, _)), Ended::Read) if ended(task.state()) => {
            world
                .history
                .lock()
                .fleeting
                .insert(id.to_owned(), Some(task));
            return;
        }
        (Ok((task, _)), Ended::Left) if ended(task.state()) => return,
        (Ok((task, _)), _) => format!("{id} goes on though its caller has gone: {task:?}"),
        (Err(fault), _) if !same && fault.reason == Reason::TaskNotFound => return,
        // A clock that was set ahead has let it be forgotten.
        (Err(fault), Ended::Left) if fault.reason == Reason::TaskNotFound => return,
        (Err(fault), _) => format!("{id} is gone before its time: {fault}"),
    };
    world.history.lock().breach(wrong);
}
