//! The network between sidecars: who reaches whom, over connections that are slow, stall, freeze,
//! break and are cut off one way or both.
//!
//! What flows is bytes; see [`wire`](super::wire).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use crate::runtime::watch;

use super::World;
use super::wire::{Cable, Said, Socket, unreachable};

/// How long dialling may take.
const DIAL: Duration = Duration::from_secs(2);

/// Who cannot be heard by whom, and what flows.
#[derive(Debug)]
pub(super) struct Network {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// From, to: nothing passes.
    blocked: BTreeSet<(usize, usize)>,
    /// Of new streams between these, some are read late, until then.
    stalling: BTreeMap<(usize, usize), Instant>,
    /// Connections that neither end has closed.
    cables: Vec<Arc<Cable>>,
    /// What is said on each stream.
    said: BTreeMap<u64, Weak<Said>>,
    streams: u64,
}

impl Network {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }

    /// Nothing passes from one to the other until [`Network::open`].
    pub(super) fn block(&self, from: usize, to: usize) {
        self.state.lock().blocked.insert((from, to));
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Lets everything pass again.
    pub(super) fn open(&self, from: usize, to: usize) {
        let mut state = self.state.lock();
        state.blocked.remove(&(from, to));
        let cables = state.cables.iter();
        cables
            .filter(|cable| cable.joins(from, to))
            .for_each(|cable| cable.stir());
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Half of the streams that begin between these until then have a reader who stalls.
    pub(super) fn stall(&self, from: usize, to: usize, until: Instant) {
        self.state.lock().stalling.insert((from, to), until);
    }

    /// What is sent from one to the other now, on connections that there are, arrives after that.
    pub(super) fn freeze(&self, from: usize, to: usize, until: Instant) {
        for cable in &self.state.lock().cables {
            if cable.joins(from, to) {
                cable.freeze(from, until);
            }
        }
    }

    /// Breaks all connections between two.
    pub(super) fn reset(&self, one: usize, other: usize) {
        for cable in &self.state.lock().cables {
            if cable.joins(one, other) {
                cable.reset();
            }
        }
    }

    /// The process at `node` has ended; `silent`: its machine too, so that nobody says so.
    pub(super) fn cut(&self, world: &World, node: usize, silent: bool) {
        let mut state = self.state.lock();
        for cable in &state.cables {
            if cable.ends.contains(&node) {
                cable.cut(world, node, silent);
            }
        }
        state.cables.retain(|cable| !cable.ends.contains(&node));
    }

    pub(super) fn blocked(&self, from: usize, to: usize) -> bool {
        self.state.lock().blocked.contains(&(from, to))
    }

    /// Whether a message of a new stream is read late: which, and how late.
    pub(super) fn stalls(&self, world: &World, pair: (usize, usize)) -> Option<(u32, Duration)> {
        let state = self.state.lock();
        let stalls = state.stalling.get(&pair);
        let stalls = stalls.is_some_and(|until| Instant::now() < *until) && world.chance(0.5);
        stalls.then(|| (world.roll(0..3), world.within(10_000, 70_000)))
    }

    /// A new stream: its number, and what is said on it.
    pub(super) fn stream(&self) -> (u64, Arc<Said>) {
        let mut state = self.state.lock();
        let (number, said) = (state.streams, Arc::new(Said::default()));
        state.streams += 1;
        state.said.retain(|_, said| said.strong_count() > 0);
        state.said.insert(number, Arc::downgrade(&said));
        (number, said)
    }

    /// What is said on a stream, while either end has it.
    pub(super) fn said(&self, number: u64) -> Option<Arc<Said>> {
        self.state.lock().said.get(&number)?.upgrade()
    }

    /// A connection was closed at one end.
    pub(super) fn closed(&self, closed: &Arc<Cable>) {
        let mut state = self.state.lock();
        state.cables.retain(|cable| !Arc::ptr_eq(cable, closed));
    }

    /// Makes a connection from a life of one to whoever lives there.
    pub(super) async fn dial(
        &self,
        world: &World,
        (from, to): (usize, usize),
        life: u32,
    ) -> Result<Socket, Status> {
        let reached = async {
            let mut changed = self.changed.subscribe();
            sleep(world.latency()).await;
            while self.blocked(from, to) || self.blocked(to, from) {
                if changed.changed().await.is_err() {
                    return None;
                }
            }
            sleep(world.latency()).await;
            world.nodes[to].life()
        };
        let there = match timeout(DIAL, reached).await {
            Ok(there) => there.ok_or_else(|| unreachable("connection refused"))?,
            Err(_) => return Err(unreachable("no answer")),
        };
        let here = world.nodes[from].life();
        if here.is_none_or(|here| here.number != life) {
            return Err(unreachable("this sidecar ends"));
        }
        let (cable, near, far) = Cable::new(world, from, to);
        self.state.lock().cables.push(cable);
        if there.door.accept(from, far) {
            Ok(near)
        } else {
            Err(unreachable("connection refused"))
        }
    }
}
