//! Who gets a task: what a home asks its route, with all that is known of the task. Pure.

use crate::domain::InstanceId;
use crate::pb;
use crate::task::doors::{Pick, Want};

use super::entry::Entry;
use super::machine::World;

/// Asks who gets the task.
pub(super) fn pick(entry: &Entry, allows: &dyn Fn(&InstanceId) -> bool, world: World<'_>) -> Pick {
    let kept = &entry.kept;
    let Ok(namespace) = kept.task.namespace.parse() else {
        return Pick::Nobody;
    };
    let (selector, bounds) = (kept.selector(), kept.bounds());
    let mut exclude = kept.tried.clone();
    exclude.extend(entry.again.as_ref().map(|again| again.instance.clone()));
    let mut want = Want {
        namespace: &namespace,
        selector: &selector,
        caller: &kept.parties.caller,
        context: &kept.task.context_id,
        prefer: kept.asked_at.as_ref(),
        exclude: &exclude,
        contract: kept.contract.as_ref(),
        again: entry.again.as_ref().is_some_and(|again| again.charged),
        admits: &|agent| bounds.admits(agent),
        allows,
    };
    if let Some(agent) = kept.granted_to() {
        let selector = pb::Selector {
            agent: agent.to_owned(),
            ..want.selector.clone()
        };
        let only = Want {
            selector: &selector,
            ..want
        };
        let picked = world.route.pick(&only, world.at.now);
        // Where it is gone, whoever else can do it asks again.
        if !matches!(picked, Pick::Nobody) {
            return picked;
        }
    }
    let picked = world.route.pick(&want, world.at.now);
    let free = want.contract.is_some() && kept.started == 0;
    if free && matches!(picked, Pick::Nobody | Pick::Busy(_) | Pick::Ejected(_)) {
        // It was never started: where nobody who promises what the first one did can take it now, any
        // other will do.
        want.contract = None;
        return world.route.pick(&want, world.at.now);
    }
    picked
}
