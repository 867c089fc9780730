//! Each trouble by itself, in small.

use std::time::Duration;

use super::{Spell, more};
use crate::support::{
    callers::Call,
    traffic::{Scene, Trouble, WORKERS},
};

/// Calls in a second: little, for a machine that is busy with other tests.
const PACE: u32 = 25;
const WORK: Duration = Duration::from_millis(150);
/// Calls of a spell.
const CALLS: usize = 150;
/// An instance's fair share of those that are counted.
const FAIR: usize = CALLS * 3 / 4 / WORKERS;
/// Longer than it takes to see that an instance does not answer.
const LOST_AFTER: &str = "6s";
/// Longer than a connection may stay away that was cut again and again as it was made: between two
/// tries are up to 5 s then.
const LOST_LATE: &str = "30s";
/// Calls that may be under way to an instance at the moment at which it breaks, or be given to it
/// before that is seen.
const HANDFUL: usize = 10;

fn shown(failed: &[&Call]) -> String {
    format!("{} calls: {failed:#?}", failed.len())
}

#[tokio::test]
async fn an_agent_that_is_slow_or_errs_is_left_alone() {
    let scene = Scene::start(WORK, LOST_AFTER, 16).await;
    let callers = scene.callers(PACE);
    more(&callers, 40).await;
    let unprocessed = Spell::of(&scene, &callers, 1, Trouble::Unprocessed, CALLS).await;
    let slow = Spell::of(&scene, &callers, 2, Trouble::Slow, CALLS).await;
    let errors = Spell::of(&scene, &callers, 3, Trouble::Errors, CALLS).await;
    let calls = callers.stop().await;

    // Nobody notices work that was not begun.
    let failed = unprocessed.failed(&calls);
    assert!(failed.is_empty(), "{}", shown(&failed));
    // Nothing fails by being slow. What it is given by a machine that is not busy is in the table.
    let failed = slow.failed(&calls);
    assert!(failed.is_empty(), "{}", shown(&failed));
    assert!(slow.runs <= FAIR / 2, "{}", slow.runs);
    // Half of what it is given fails for good, and that is little of what would be its share.
    let failed = errors.failed(&calls);
    assert!(failed.len() <= HANDFUL, "{}", shown(&failed));
    assert!(errors.runs <= FAIR / 2, "{}", errors.runs);
}

#[tokio::test]
async fn an_instance_that_is_out_of_reach_is_left_alone() {
    let scene = Scene::start(WORK, LOST_AFTER, 16).await;
    let callers = scene.callers(PACE);
    more(&callers, 40).await;
    let refuses = Spell::of(&scene, &callers, 1, Trouble::Refuses, CALLS).await;
    let hangs = Spell::of(&scene, &callers, 2, Trouble::Hangs, 2 * CALLS).await;
    let calls = callers.stop().await;

    let failed = refuses.failed(&calls);
    assert!(failed.is_empty(), "{}", shown(&failed));
    // It hangs for longer than it takes to give up what it caught.
    let caught = hangs.caught(&calls);
    assert!(caught.len() <= HANDFUL, "{}", shown(&caught));
}

#[tokio::test]
async fn connections_that_break_cost_next_to_nothing() {
    let scene = Scene::start(WORK, LOST_LATE, 16).await;
    let callers = scene.callers(PACE);
    more(&callers, 40).await;
    let resets = Spell::of(&scene, &callers, 3, Trouble::Resets, CALLS).await;
    let flaps = Spell::of(&scene, &callers, 4, Trouble::Flaps, 2 * CALLS).await;
    let calls = callers.stop().await;

    // Work goes on over the next connection, whether it may run twice or not.
    let failed = resets.failed(&calls);
    assert!(failed.is_empty(), "{}", shown(&failed));
    // What is under way as it goes is under way there for as long as it is away.
    let failed = flaps.failed(&calls);
    assert!(failed.len() <= HANDFUL, "{}", shown(&failed));
}
