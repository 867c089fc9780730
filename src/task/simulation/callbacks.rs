//! Whoever is called back: takes note of what it is told, and does not always say so.

use std::collections::BTreeMap;
use std::sync::Weak;

use tokio::time::sleep;

use crate::pb;
use crate::pb::callback::Target;
use crate::pb::part::Content;
use crate::task::callback::{self, Delivery, Outcome, Url, letter};
use crate::task::courier::Post;
use crate::wire;

use super::World;
use super::agent::SKILLS;
use super::history::History;
use super::told::{Final, Told};

/// The receiver of all callbacks.
pub(super) struct Receiver(pub(super) Weak<World>);

#[tonic::async_trait]
impl Post for Receiver {
    async fn post(&self, _: &Url, delivery: &Delivery) -> Outcome {
        let Some(world) = self.0.upgrade() else {
            return away();
        };
        sleep(world.latency()).await;
        let fails = !world.is_calm() && world.chance(0.4);
        if fails && world.chance(0.5) {
            return away();
        }
        told(&mut world.history.lock(), &delivery.event);
        // The answer gets lost on its way.
        if fails { away() } else { Outcome::Delivered }
    }
}

/// What some tasks ask for.
pub(super) fn wanted(world: &World) -> Option<pb::Callback> {
    if !world.chance(0.3) {
        return None;
    }
    let states = if world.chance(0.5) {
        vec![]
    } else {
        let all = [
            pb::TaskState::Submitted,
            pb::TaskState::Working,
            pb::TaskState::Completed,
            pb::TaskState::Failed,
        ];
        all.map(i32::from).to_vec()
    };
    let target = if world.chance(0.5) {
        Target::Url("https://told.example/x".into())
    } else {
        let node = world.roll(0..world.nodes.len());
        Target::Agent(pb::AgentSkill {
            agent: world.nodes[node].agent_name(),
            skill: SKILLS[3].into(),
        })
    };
    Some(pb::Callback {
        target: Some(target),
        states,
    })
}

/// What an agent hears that is told by a task.
pub(super) fn heard(world: &World, request: &pb::HandleRequest) {
    let parts = request.inputs.first().map(|input| &input.parts[..]);
    let Some(
        [
            pb::Part {
                content: Some(Content::Data(said)),
                ..
            },
        ],
    ) = parts
    else {
        let how = format!("{request:?} tells nothing");
        return world.history.lock().breach(how);
    };
    let said = wire::json::from_value(said);
    let (Some(id), Some(seq)) = (said["task_id"].as_str(), said["seq"].as_u64()) else {
        let how = format!("{said} tells of nothing");
        return world.history.lock().breach(how);
    };
    let (id, text) = (id.to_owned(), said.to_string());
    world.history.lock().note(format_args!("{id} tells {seq}"));
    let mut history = world.history.lock();
    let teller = request.task.as_ref().map(|task| task.id.clone());
    let change = (id.clone(), seq);
    history.tellers.insert(teller.unwrap_or_default(), change);
    hears(&mut history, &id, seq, &text);
}

/// Whether the task tells an agent of another one.
pub(super) fn tells(task: &pb::Task) -> bool {
    task.skill == SKILLS[3]
}

fn away() -> Outcome {
    Outcome::Later {
        why: "away".into(),
        wait: None,
    }
}

fn told(history: &mut History, event: &pb::TaskEvent) {
    history.show("receiver", event);
    hears(history, &event.task_id, event.seq, &letter(event).text);
}

fn hears(history: &mut History, id: &str, seq: u64, text: &str) {
    let before = history.told.entry(id.to_owned()).or_default();
    let last = before.last_key_value().map(|(seq, _)| *seq);
    let first = before.entry(seq).or_insert_with(|| text.to_owned());
    let same = first == text;
    if last.is_some_and(|last| seq < last) {
        history.breach(format!("{id} tells {seq} after {last:?}"));
    }
    if !same {
        history.breach(format!("{id} tells {seq} in other words"));
    }
}

/// What was to be told of a task was.
pub(super) fn check(history: &History, task: &pb::Task, events: &[pb::TaskEvent]) -> Vec<String> {
    let options = task.options.as_ref();
    let callback = options.and_then(|options| options.callback.as_ref());
    let none = Default::default();
    let told = history.told.get(&task.id).unwrap_or(&none);
    let mut before = pb::TaskState::Submitted;
    let mut owed = Vec::new();
    for event in events {
        let changed = event.state() != before;
        before = event.state();
        if changed && callback.is_some_and(|asked| callback::tells(asked, before)) {
            owed.push(event.seq);
        }
    }
    let progress = task.callback.as_deref().cloned().unwrap_or_default();
    let last = owed.last().copied().unwrap_or_default();
    if owed.iter().eq(told.keys()) && (progress.delivered_seq, progress.given_up_seq) == (last, 0) {
        return Vec::new();
    }
    let heard: Vec<_> = told.keys().collect();
    vec![format!(
        "{} was to tell {owed:?}, and told {heard:?}: {progress:?}",
        task.id
    )]
}

/// Each change that an agent was told of was told by one task that came to a good end.
pub(super) fn check_tellers(history: &History, all: &Told) -> Vec<String> {
    let mut ends: BTreeMap<&(String, u64), Vec<&str>> = BTreeMap::new();
    for (id, change) in &history.tellers {
        let completed = |one: &Final| one.task.state() == pb::TaskState::Completed;
        let ended = ends.entry(change).or_default();
        ended.extend(all.get(id).is_some_and(completed).then_some(id.as_str()));
    }
    let wrong = ends.iter().filter(|(_, completed)| completed.len() != 1);
    wrong
        .map(|((task, seq), by)| format!("{seq} of {task} was told to its end by {by:?}"))
        .collect()
}
