//! Whether a tree has as many tasks as it may, and whoever was refused one was refused it rightly.

use std::collections::BTreeMap;

use crate::domain::Reason;

use super::World;
use super::callbacks;
use super::history::History;
use super::told::{Final, Told};

/// A child that somebody was refused.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) root: String,
    pub(super) reason: Reason,
}

/// Checks all trees.
pub(super) fn check(world: &World, history: &History, told: &Told) -> Vec<String> {
    let most = world.size.descendants as usize;
    let mut trees: BTreeMap<&str, Vec<&Final>> = BTreeMap::new();
    for (id, one) in told {
        // Nobody has asked for those that tell of others, and they take nothing from anybody.
        if one.task.root_task_id != *id && !callbacks::tells(&one.task) {
            let tree = trees.entry(&one.task.root_task_id).or_default();
            tree.push(one);
        }
    }
    let mut broken = Vec::new();
    for (root, tree) in &trees {
        if tree.len() > most {
            broken.push(format!("I14: {} tasks below {root}", tree.len()));
        }
    }
    if world.size.faults {
        // What a lost process had in hand stays used up.
        return broken;
    }
    let mut refused: BTreeMap<&str, (bool, usize)> = BTreeMap::new();
    for one in &history.refused {
        let entry = refused.entry(&one.root).or_default();
        if one.reason == Reason::DescendantsExhausted {
            entry.0 = true;
        } else {
            // What it had taken may have come back too late.
            entry.1 += 1;
        }
    }
    for (root, (exhausted, others)) in refused {
        let tree = trees.get(root).map_or(&[][..], Vec::as_slice);
        let detached = |one: &&Final| one.task.options.as_ref().is_some_and(|it| it.detached);
        // What is kept for those that outlive who made them nobody else gets.
        let kept = tree.iter().copied().any(|one| detached(&one));
        if exhausted && !kept && tree.len() + others < most {
            broken.push(format!(
                "I14: {root} was refused more than its {} tasks, of {most}",
                tree.len()
            ));
        }
    }
    broken
}
