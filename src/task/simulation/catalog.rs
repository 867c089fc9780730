//! What homes believe about who lives: the registry's catalog and each home's choice, in short. It
//! lags behind: a process that has ended is offered work for a while, and one that began anew is
//! known by its old run.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::domain::AgentName;
use crate::task::doors::{Call, Candidate, Contract, Pick, Route, Want};

use super::World;
use super::agent::is_idempotent;
use super::node::Node;

/// What is believed of all nodes.
#[derive(Debug)]
pub(super) struct Catalog {
    /// By node: the run of its process, where it is believed to live.
    lives: Mutex<Vec<Option<u32>>>,
    /// One for each shard of a home, told in turn: many at one would be woken in any order.
    changes: Mutex<Vec<watch::Sender<u64>>>,
}

impl Catalog {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            lives: Mutex::new(vec![None; nodes]),
            changes: Mutex::default(),
        }
    }

    /// A process has begun: known soon.
    pub(super) fn came(&self, world: &Arc<World>, node: usize, life: u32) {
        let (later, after) = (Arc::clone(world), world.within(0, 2000));
        world.crew.adopt("lease", async move {
            sleep(after).await;
            // Word of an older one may come later.
            later.catalog.set(node, |known| known.max(Some(life)));
        });
    }

    /// A process has ended: known when its lease is over, unless another one came.
    pub(super) fn went(&self, world: &World, node: usize, life: u32) {
        let Some(later) = world.arc() else { return };
        let after = world.within(100, 20_000);
        world.crew.adopt("lease", async move {
            sleep(after).await;
            later
                .catalog
                .set(node, |known| known.filter(|known| *known != life));
        });
    }

    fn set(&self, node: usize, change: impl FnOnce(Option<u32>) -> Option<u32>) {
        let mut lives = self.lives.lock();
        lives[node] = change(lives[node].take());
        drop(lives);
        let mut changes = self.changes.lock();
        changes.retain(|changes| !changes.is_closed());
        for changes in changes.iter() {
            changes.send_modify(|changes| *changes += 1);
        }
    }
}

/// The choice of every home.
pub(super) struct Sight(pub(super) Weak<World>);

impl Route for Sight {
    fn pick(&self, want: &Want<'_>, now: Instant) -> Pick {
        let Some(world) = self.0.upgrade() else {
            return Pick::Nobody;
        };
        if want.again && world.chance(0.05) {
            return Pick::OverBudget(now + world.within(10, 500));
        }
        let lives = world.catalog.lives.lock().clone();
        let nodes = world.nodes.iter().zip(lives);
        let live: Vec<_> = nodes
            .filter_map(|(node, life)| Some((node, life?)))
            .filter(|(node, _)| {
                let agent = agent_of(node.index);
                let asked = &want.selector.agent;
                (want.admits)(&agent) && (asked.is_empty() || *asked == agent.to_string())
            })
            .collect();
        if live.is_empty() {
            return Pick::Nobody;
        }
        let open = live
            .iter()
            .filter(|(node, _)| (want.allows)(&node.instance));
        let (mut best, mut tried) = (Vec::new(), Vec::new());
        for one in open {
            let was_there = want.exclude.contains(&one.0.instance);
            if was_there { &mut tried } else { &mut best }.push(one);
        }
        let from = if best.is_empty() { tried } else { best };
        // Mostly: what does not end where it began is worth a look, too.
        let same = |one: &&&(&Node, u32)| Some(&one.0.instance) == want.prefer;
        let from = match from.iter().find(same) {
            Some(same) if world.chance(0.7) => vec![*same],
            Some(_) | None => from,
        };
        if from.is_empty() {
            return Pick::Busy(None);
        }
        let (node, life) = from[world.roll(0..from.len())];
        let candidate = Candidate {
            wants_descendants: true,
            instance: node.instance.clone(),
            agent: agent_of(node.index),
            idempotent: is_idempotent(&want.selector.skill),
            boot_id: format!("{}-{life}", node.index),
            contract: Contract::default(),
        };
        Pick::Go(Arc::new(candidate), Box::<Call>::default())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        let (changes, changed) = watch::channel(0);
        if let Some(world) = self.0.upgrade() {
            world.catalog.changes.lock().push(changes);
        }
        changed
    }
}

fn agent_of(node: usize) -> AgentName {
    format!("default/n{node}").parse().expect("a name")
}
