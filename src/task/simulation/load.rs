//! Who wants work done: submits with and without a key, again where the outcome is not known,
//! watches to the end over streams that it drops, answers what it is asked, and cancels.

use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::time::sleep;

use crate::domain::{Reason, TaskId};
use crate::pb;
use crate::task::home::{Response, Submission, Submitted};

use super::World;
use super::agent::{SKILLS, WANTED, text};
use super::callbacks;
use super::fleeting::{self, is_fleeting};
use super::history::{History, Request};
use super::watcher;

/// How many tries a submission gets; its process may be down for long.
const TRIES: u32 = 40;
/// Tasks in memory only, of all.
const FLEETING: f64 = 0.15;

/// What somebody wants.
#[derive(Clone)]
struct Wish {
    /// Its place in the history.
    number: usize,
    node: usize,
    spec: pb::TaskSpec,
    /// Of a child: of the tree that it is for.
    root: String,
}

/// How a try to submit ended.
enum Outcome {
    Taken(Box<Submitted<pb::Task>>),
    /// It is not there, and will not be.
    Refused(Reason),
    /// It may be there.
    Unknown,
}

/// All submissions of a run, spread over its window.
pub(super) async fn all(world: Arc<World>) {
    let window = u64::try_from(world.size.window.as_millis()).unwrap();
    for _ in 0..world.size.tasks {
        let node = world.roll(0..world.nodes.len());
        let skill = SKILLS[[0, 0, 1, 1, 1, 2][world.roll(0..6)]];
        let after = world.within(0, window);
        if world.chance(FLEETING) {
            let fleeting = fleeting::carry(Arc::clone(&world), node, skill, after);
            world.clients.adopt("fleeting", fleeting);
            continue;
        }
        let keyed = world.chance(0.6);
        let wish = wish(&world, node, skill, keyed);
        world
            .clients
            .adopt("wish", carry(Arc::clone(&world), wish, after));
    }
}

/// A handler's child, submitted while it works.
pub(super) fn child(world: &Arc<World>, node: usize, request: &pb::HandleRequest) {
    let mut wish = wish(world, node, SKILLS[[0, 1, 2, 2][world.roll(0..4)]], false);
    wish.spec.parent_token.clone_from(&request.parent_token);
    let above = request.task.as_ref();
    wish.root = above.map_or_else(String::new, |above| above.root_task_id.clone());
    world
        .clients
        .adopt("child", carry(Arc::clone(world), wish, world.within(0, 50)));
}

fn wish(world: &World, node: usize, skill: &str, keyed: bool) -> Wish {
    let mut history = world.history.lock();
    let number = history.requests.len();
    let context = format!("wish-{number}");
    history.requests.push(Request {
        node,
        context: context.clone(),
        ..Default::default()
    });
    drop(history);
    let timeout = world.within(20_000, 240_000);
    let options = pb::TaskOptions {
        timeout: timeout.try_into().ok(),
        detached: world.chance(0.2),
        fail_fast: world.chance(0.05),
        priority: world.roll(0..11),
        on_agent_loss: [0, 0, 0, 0, 1, 2][world.roll(0..6)],
        callback: callbacks::wanted(world),
        ..Default::default()
    };
    let selector = pb::Selector {
        skill: skill.into(),
        ..Default::default()
    };
    let spec = pb::TaskSpec {
        input: vec![text(&format!("{WANTED} in {context}"))],
        selector: Some(selector),
        options: Some(options),
        idempotency_key: if keyed {
            context.clone()
        } else {
            String::new()
        },
        context_id: context,
        ..Default::default()
    };
    Wish {
        number,
        node,
        spec,
        root: String::new(),
    }
}

async fn carry(world: Arc<World>, wish: Wish, after: std::time::Duration) {
    sleep(after).await;
    let keyed = !wish.spec.idempotency_key.is_empty();
    if keyed && world.chance(0.2) {
        // Somebody impatient asks twice at once.
        let twin = twin(Arc::clone(&world), wish.clone());
        world.clients.adopt("twin", twin);
    }
    let Some(id) = submit(&world, &wish).await else {
        return;
    };
    if world.chance(0.15) {
        let cancel = cancel(Arc::clone(&world), wish.node, id.clone());
        world.clients.adopt("cancel", cancel);
    }
    if keyed && world.chance(0.3) {
        reuse(&world, &wish).await;
    }
    watcher::watch(&world, wish.node, &id).await;
}

async fn twin(world: Arc<World>, wish: Wish) {
    sleep(world.within(0, 200)).await;
    submit(&world, &wish).await;
}

/// Submits until the outcome is known, where that may be asked; gives the id.
async fn submit(world: &Arc<World>, wish: &Wish) -> Option<String> {
    for _ in 0..TRIES {
        let outcome = ask(world, wish).await;
        if let ControlFlow::Break(id) = learn(&mut world.history.lock(), wish, outcome) {
            return id;
        }
        sleep(world.within(1, 3000)).await;
    }
    None
}

/// Notes how a try ended, and says whether there is to be another one.
fn learn(history: &mut History, wish: &Wish, outcome: Outcome) -> ControlFlow<Option<String>> {
    let keyed = !wish.spec.idempotency_key.is_empty();
    let is_child = !wish.spec.parent_token.is_empty();
    let request = &mut history.requests[wish.number];
    let again = match outcome {
        Outcome::Taken(taken) => {
            let Submitted { task, replayed } = *taken;
            request.fresh += u32::from(!replayed);
            request.ids.insert(task.id.clone());
            history.note(format_args!(
                "wish {} is {}, replayed {replayed}",
                wish.number, task.id
            ));
            return ControlFlow::Break(Some(task.id));
        }
        Outcome::Refused(reason) => {
            history.note(format_args!("wish {} refused: {reason:?}", wish.number));
            history.refuse(is_child.then(|| wish.root.clone()), reason);
            !is_child && comes_back(reason)
        }
        Outcome::Unknown => {
            request.unknown += 1;
            history.note(format_args!("wish {}: nobody knows", wish.number));
            keyed
        }
    };
    if again {
        ControlFlow::Continue(())
    } else {
        ControlFlow::Break(None)
    }
}

async fn ask(world: &World, wish: &Wish) -> Outcome {
    let node = &world.nodes[wish.node];
    let life = node.up().await;
    let asked = Submission {
        spec: wish.spec.clone(),
        caller: node.own.as_ref().clone(),
        trace: None,
    };
    let thread = world.roll(0..2);
    let answer = tokio::select! {
        biased;
        () = life.dead.cancelled() => return Outcome::Unknown,
        answer = life.home.submit(asked, thread) => answer,
    };
    match answer {
        // The answer gets lost on its way.
        Ok(_) if world.chance(0.1) => Outcome::Unknown,
        Ok(taken) => Outcome::Taken(Box::new(taken)),
        Err(fault) if fault.reason == Reason::StorageFailed => Outcome::Unknown,
        Err(fault) => Outcome::Refused(fault.reason),
    }
}

/// Whether a refused submission is made again.
fn comes_back(reason: Reason) -> bool {
    [Reason::DiskFull, Reason::QueueFull, Reason::Draining].contains(&reason)
}

/// Its key for something else.
async fn reuse(world: &Arc<World>, wish: &Wish) {
    let mut other = wish.clone();
    other.spec.correlation_id = "something else".into();
    let refused = [
        Reason::IdempotencyKeyReused,
        Reason::StorageFailed,
        Reason::Draining,
        Reason::DiskFull,
        Reason::QueueFull,
    ];
    let how = match ask(world, &other).await {
        Outcome::Taken(taken) => format!("I4: {} was taken with a used key", taken.task.id),
        Outcome::Refused(reason) if !refused.contains(&reason) => {
            format!("I4: a used key was refused as {reason:?}")
        }
        Outcome::Refused(_) | Outcome::Unknown => return,
    };
    world.history.lock().breach(how);
}

async fn cancel(world: Arc<World>, node: usize, id: String) {
    let node = &world.nodes[node];
    sleep(world.within(0, 30_000)).await;
    let task: TaskId = id.parse().unwrap();
    for _ in 0..TRIES {
        let life = node.up().await;
        let answer = tokio::select! {
            biased;
            () = life.dead.cancelled() => continue,
            answer = life.home.cancel(&task, &node.own, "enough".into()) => answer,
        };
        let known = match answer {
            Ok(_) => {
                let mut history = world.history.lock();
                history.note(format_args!("{id} is cancelled"));
                history.canceled.insert(id.clone());
                true
            }
            Err(fault) if fault.reason == Reason::TaskNotFound => {
                let how = format!("I1: {id} is not there to be cancelled");
                world.history.lock().breach(how);
                true
            }
            Err(fault) => fault.reason == Reason::TaskNotCancelable,
        };
        if known {
            return;
        }
        sleep(world.within(1, 2000)).await;
    }
}

/// Answers a question, and makes sure of it.
pub(super) async fn answer(world: Arc<World>, node: usize, id: String, question: String) {
    sleep(world.within(0, 15_000)).await;
    let task: TaskId = id.parse().unwrap();
    let node = &world.nodes[node];
    let mut taken = false;
    for _ in 0..TRIES {
        let life = node.up().await;
        let response = Response {
            question_id: question.clone(),
            parts: vec![text("so be it")],
        };
        let answer = tokio::select! {
            biased;
            () = life.dead.cancelled() => continue,
            answer = life.home.respond(&task, &node.own, response) => answer,
        };
        match answer {
            Ok((_, replayed)) => {
                let mut history = world.history.lock();
                history.note(format_args!("{question} of {id} is answered, {replayed}"));
                if taken && !replayed {
                    history.breach(format!("I4: {question} of {id} was answered twice"));
                }
                drop(history);
                // Somebody answers twice, or has not heard that it was taken.
                if world.chance(0.7) {
                    let key = (id.clone(), question.clone());
                    world.history.lock().answered.insert(key);
                    return;
                }
                taken = true;
            }
            Err(fault) if fault.reason == Reason::TaskEnded => return,
            // It is gone with its home's process.
            Err(fault) if fault.reason == Reason::TaskNotFound && is_fleeting(&id) => return,
            Err(fault) if fault.reason == Reason::StorageFailed => {}
            Err(fault) => {
                let how = format!("I4: {question} of {id} cannot be answered: {fault}");
                world.history.lock().breach(how);
                return;
            }
        }
        sleep(world.within(1, 2000)).await;
    }
}
