//! What goes wrong, and when: one fault after the other, each over by itself, until the calm.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::runtime::clock;
use crate::task::journal::faulty::Fault;

use super::World;
use super::node::{Ending, Node};

/// How long a process that is asked to stop lets its attempts finish, in milliseconds at most.
const DRAIN: u64 = 8000;

/// Makes faults until the window is over.
pub(super) async fn all(world: Arc<World>) {
    let until = world.began + world.size.window;
    loop {
        let pause = world.within(50, 1800);
        sleep(pause).await;
        if Instant::now() >= until {
            return;
        }
        one(&world);
    }
}

/// Everything that is still wrong ends.
pub(super) fn end(world: &World) {
    world.note(format_args!("calm"));
    let all = 0..world.nodes.len();
    for from in all.clone() {
        for to in all.clone() {
            world.network.open(from, to);
            world.network.stall(from, to, Instant::now());
        }
        world.nodes[from].disk.set_room(None);
        world.nodes[from].slow_until(Instant::now());
        world.nodes[from].agent.come_back();
    }
}

fn one(world: &Arc<World>) {
    let index = world.roll(0..world.nodes.len());
    let node = &world.nodes[index];
    match world.roll(0..20) {
        0 => kill(world, node, Ending::Killed),
        1 => kill(world, node, Ending::PowerLoss),
        2..5 => plan(world, node),
        5..9 => partition(world, index),
        9 | 10 => {
            let other = world.roll(0..world.nodes.len());
            world.fault("reset", format_args!("{index} {other}"));
            world.network.reset(index, other);
        }
        11 => {
            let other = world.roll(0..world.nodes.len());
            let long = world.within(5000, 70_000);
            world.fault("freeze", format_args!("{index} to {other} for {long:?}"));
            world.network.freeze(index, other, Instant::now() + long);
        }
        12 | 13 => {
            let long = world.within(1000, 10_000);
            world.fault("stall", format_args!("to {index} for {long:?}"));
            for from in 0..world.nodes.len() {
                world.network.stall(from, index, Instant::now() + long);
            }
        }
        14 => agent(world, index),
        15 => jump(world),
        16 | 17 => {
            let long = world.within(500, 30_000);
            world.fault("slow disk", format_args!("{index} for {long:?}"));
            node.slow_until(Instant::now() + long);
        }
        18 => full(world, index),
        _ => stop(world, index),
    }
}

fn kill(world: &World, node: &Node, how: Ending) {
    let kind = if how == Ending::Killed {
        "kill"
    } else {
        "power loss"
    };
    world.fault(kind, format_args!("{}", node.index));
    node.end(world, how, world.downtime());
}

/// A crash, or an error, at one of the next operations of the disk.
fn plan(world: &World, node: &Node) {
    let crash = world.chance(0.75);
    let (kind, fault) = if crash {
        ("crash at a write", Fault::Crash)
    } else {
        ("disk error", Fault::Error)
    };
    let operations = world.roll(0..60);
    world.fault(kind, format_args!("{} in {operations}", node.index));
    node.disk.plan(operations, fault);
}

/// One node from all others or from one, both ways or one way.
fn partition(world: &Arc<World>, index: usize) {
    let all = world.nodes.len();
    let one_other = world.chance(0.5).then(|| world.roll(0..all));
    let (out, back) = [(true, true), (true, false), (false, true)][world.roll(0..3)];
    let long = if world.chance(0.7) {
        world.within(500, 20_000)
    } else {
        world.within(20_000, 70_000)
    };
    let kind = if out && back {
        "partition"
    } else {
        "one-way partition"
    };
    world.fault(
        kind,
        format_args!("{index} from {one_other:?}, out {out}, back {back}, for {long:?}"),
    );
    let mut pairs = Vec::new();
    for other in (0..all).filter(|other| one_other.is_none_or(|one| one == *other)) {
        pairs.extend(out.then_some((index, other)));
        pairs.extend(back.then_some((other, index)));
    }
    for (from, to) in &pairs {
        world.network.block(*from, *to);
    }
    let later = Arc::clone(world);
    world.crew.adopt("partition", async move {
        sleep(long).await;
        later.note(format_args!("partition of {index} is over"));
        for (from, to) in pairs {
            later.network.open(from, to);
        }
    });
}

fn agent(world: &Arc<World>, index: usize) {
    let long = world.within(0, 8000);
    world.fault("agent crash", format_args!("{index} for {long:?}"));
    world.nodes[index].agent.die();
    let later = Arc::clone(world);
    world.crew.adopt("agent", async move {
        sleep(long).await;
        later.nodes[index].agent.come_back();
    });
}

/// The wall clock of all machines: only restarts look at it, each at its own home's.
fn jump(world: &World) {
    let by = world.within(0, 120_000);
    let back = world.chance(0.5);
    world.fault("clock jump", format_args!("{by:?}, back {back}"));
    let now = clock::wall();
    clock::set::to(Some(if back { now - by } else { now + by }));
}

fn full(world: &Arc<World>, index: usize) {
    let long = world.within(500, 8000);
    let disk = &world.nodes[index].disk;
    let left = world.roll(0..20_000_u64);
    world.fault(
        "full disk",
        format_args!("{index}, {left} bytes for {long:?}"),
    );
    disk.set_room(Some(disk.used() + left));
    let later = Arc::clone(world);
    world.crew.adopt("full disk", async move {
        sleep(long).await;
        later.nodes[index].disk.set_room(None);
    });
}

/// A process that is asked to stop, and does.
fn stop(world: &Arc<World>, index: usize) {
    let Some(life) = world.nodes[index].life() else {
        return;
    };
    let grace = world.within(100, DRAIN);
    world.fault("stop", format_args!("{index} within {grace:?}"));
    let later = Arc::clone(world);
    world.crew.adopt("stop", async move {
        let ended = async {
            tokio::join!(life.executor.drain(grace), life.home.settle());
            life.door.leave();
            life.home.drain().await;
            life.home.close(Duration::from_secs(1)).await;
        };
        tokio::select! {
            biased;
            () = life.dead.cancelled() => return,
            // As `main` does it: an end in good order takes no longer than this.
            ended = tokio::time::timeout(grace + Duration::from_secs(5), ended) => drop(ended),
        }
        let node = &later.nodes[index];
        if node.life().is_some_and(|now| now.number == life.number) {
            // Closed, the log is written to its end.
            sleep(Duration::from_secs(2)).await;
            node.end(&later, Ending::Stopped, later.within(10, 3000));
        }
    });
}
