//! Whoever is called back: takes note of what it is told, and does not always say so.

use std::sync::Weak;

use tokio::time::sleep;

use crate::pb;
use crate::task::callback::{Delivery, Outcome, Url, letter, tells};
use crate::task::courier::Post;

use super::World;
use super::history::History;

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
pub(super) fn callback(world: &World) -> Option<pb::Callback> {
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
    Some(pb::Callback {
        target: Some(pb::callback::Target::Url("https://told.example/x".into())),
        states,
    })
}

fn away() -> Outcome {
    Outcome::Later {
        why: "away".into(),
        wait: None,
    }
}

fn told(history: &mut History, event: &pb::TaskEvent) {
    history.show("receiver", event);
    let (id, text) = (&event.task_id, letter(event).text);
    let before = history.told.entry(id.clone()).or_default();
    let last = before.last_key_value().map(|(seq, _)| *seq);
    let first = before.entry(event.seq).or_insert_with(|| text.clone());
    let same = *first == text;
    if last.is_some_and(|last| event.seq < last) {
        history.breach(format!("{id} tells {} after {last:?}", event.seq));
    }
    if !same {
        history.breach(format!("{id} tells {} in other words", event.seq));
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
        if changed && callback.is_some_and(|callback| tells(callback, before)) {
            owed.push(event.seq);
        }
    }
    if owed.iter().eq(told.keys()) {
        return Vec::new();
    }
    let heard: Vec<_> = told.keys().collect();
    vec![format!(
        "{} was to tell {owed:?}, and told {heard:?}",
        task.id
    )]
}
