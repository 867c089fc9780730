//! The task engine in a deterministic simulation: the real home, executor and log of a mesh of
//! sidecars, with everything around them made up, and everything going wrong that may.
//!
//! - `node`: a sidecar over a simulated disk, life after life. `agent`: the process beside it;
//!   `attached`: one that has no port.
//! - `network`: who reaches whom. `wire`: what flows there: HTTP/2 by our own engine, over bytes that
//!   are made up. `catalog`: who is believed to live.
//! - `load`: who wants work done; `fleeting`: in memory only. `callbacks`: who is told of it. `faults`:
//!   what goes wrong.
//! - `history`: what happened. `checker`: whether it may have; `contents`: what the disks
//!   say.
//!
//! # Where the simulation ends: below HTTP/2
//! Home and executor meet at [`Connect`](super::doors::Connect). What is behind it is real down to the
//! bytes: gRPC's frames of the real messages, on streams of [`h2`](crate::h2), with its windows, PINGs,
//! resets and goodbyes, driven at the executor by what drives them in a sidecar
//! ([`drive`](crate::transport::drive)). Only what TCP would do is made up: each connection is a pipe of
//! bytes each way that are late, cut into pieces, frozen, held back by a partition, or lost with the
//! machine that had them; then the engine's own PING finds out, or nobody does. So one runtime of one
//! thread with a paused clock is enough. A home makes its calls by a bare connection of the engine's,
//! where a sidecar has hyper and a pool; TLS and the real sockets are for the end-to-end tests over the
//! fault proxy.
//!
//! The engine is held to its promises while the task engine uses it:
//!
//! | | |
//! |---|---|
//! | E1 | neither end of a connection finds that the other, which is the engine too, broke a rule |
//! | E2 | of what was sent on a stream, what comes is the beginning, in order; all, where it ends well |
//! | E3 | no stream stands still whose connection lives and whose other end reads |
//! | E4 | in the end as many calls are made as are passed on, and as are taken |
//! | E5 | a call that is given back as not looked at was not looked at |
//!
//! # Why a seed is enough
//! All of it runs on one thread; time is the runtime's paused clock, the wall clock is set
//! ([`clock::set`]), and what is drawn comes from the seed, here and in the engine
//! ([`chance::seeded`]). The log's writer, which is a thread elsewhere, is a task. A test compares
//! the histories of two runs of a seed.
//!
//! `tests/soak/simulation` runs many more seeds, larger ones; a seed that fails is printed as a
//! command.

mod agent;
mod attached;
mod callbacks;
mod catalog;
mod checker;
mod contents;
mod faults;
mod fleeting;
mod history;
mod load;
mod network;
mod node;
mod tests;
mod told;
mod trees;
mod watcher;
mod wire;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep};

use crate::domain::InstanceId;
use crate::runtime::{Nursery, chance, clock};

use catalog::Catalog;
use history::History;
use network::Network;
use node::{Ending, Node};

/// Longest time that the tasks of a run may take to end in calm: their deadlines, and what the wall
/// clock was set back.
const PATIENCE: Duration = Duration::from_secs(3600);
/// What lives on after a task's end is over by then.
const QUIET: Duration = Duration::from_secs(120);
/// When every run begins, by the wall clock.
const EPOCH: Duration = Duration::from_secs(1_700_000_000);

/// How much happens in a run.
#[derive(Clone, Copy, Debug)]
struct Size {
    nodes: usize,
    /// Submissions, their children not counted.
    tasks: usize,
    /// Within which they come, and everything goes wrong.
    window: Duration,
    /// Whether anything goes wrong.
    faults: bool,
    /// Most tasks below a root.
    descendants: u32,
    segment_bytes: u64,
}

/// How a run went.
#[derive(Debug)]
struct Ran {
    /// Of everything that happened.
    digest: u64,
    tasks: usize,
    /// Of each kind.
    faults: BTreeMap<&'static str, u64>,
    /// Which invariant was broken first, and how; and what happened before.
    broken: Option<(String, String)>,
}

/// A mesh, and all that happens to it.
struct World {
    size: Size,
    began: Instant,
    random: Mutex<StdRng>,
    history: Mutex<History>,
    network: Network,
    catalog: Catalog,
    nodes: Vec<Node>,
    /// What makes the world go on.
    crew: Nursery,
    /// Who wants something: none is left when all have it.
    clients: Nursery,
    calm: AtomicBool,
    this: Weak<Self>,
}

impl World {
    fn new(seed: u64, size: Size, trace: bool) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            size,
            began: Instant::now(),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            history: Mutex::new(History::new(trace)),
            network: Network::new(),
            catalog: Catalog::new(size.nodes),
            nodes: (0..size.nodes)
                .map(|index| Node::new(index, this.clone(), seed))
                .collect(),
            crew: Nursery::here(),
            clients: Nursery::here(),
            calm: AtomicBool::new(!size.faults),
            this: this.clone(),
        })
    }

    fn arc(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    fn roll<T: SampleUniform + PartialOrd>(&self, range: Range<T>) -> T
    where
        Range<T>: SampleRange<T>,
    {
        self.random.lock().random_range(range)
    }

    fn chance(&self, odds: f64) -> bool {
        self.random.lock().random_bool(odds)
    }

    /// A time between these, in milliseconds.
    fn within(&self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.roll(least..most + 1))
    }

    /// How long a message takes.
    fn latency(&self) -> Duration {
        match self.roll(0..100) {
            0 if self.size.faults => self.within(100, 3000),
            1..10 => self.within(5, 50),
            _ => self.within(0, 3),
        }
    }

    /// How long a process is away.
    fn downtime(&self) -> Duration {
        match self.roll(0..10) {
            0 => self.within(45_000, 90_000),
            1..4 => self.within(3000, 20_000),
            _ => self.within(10, 3000),
        }
    }

    fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    fn node_of(&self, instance: &InstanceId) -> Option<usize> {
        self.nodes
            .iter()
            .position(|node| node.instance == *instance)
    }

    fn note(&self, fact: fmt::Arguments<'_>) {
        self.history.lock().note(fact);
    }

    fn fault(&self, kind: &'static str, how: fmt::Arguments<'_>) {
        self.history.lock().fault(kind, how);
    }

    /// Whether everybody has an answer, and every task its end.
    fn is_done(&self) -> bool {
        let lives: Vec<_> = self.nodes.iter().map(Node::life).collect();
        let ended = lives.iter().all(|life| {
            let life = life.as_ref();
            life.is_some_and(|life| {
                life.home
                    .counts()
                    .iter()
                    .all(|count| count.live == 0 && count.telling == 0)
            })
        });
        ended && self.clients.is_empty()
    }

    /// Waits until all tasks have ended; `false`: they never do, or something is broken already.
    async fn comes_to_an_end(self: &Arc<Self>) -> bool {
        let began = Instant::now();
        // What the last faults put off may still come: a process is away, a disk fails.
        sleep(QUIET).await;
        while !self.is_done() {
            if began.elapsed() > PATIENCE {
                let left = told::left(self).await;
                let clients = self.clients.len();
                let how = format!("I1: tasks never end: {left:#?}, {clients} wait");
                self.history.lock().breach(how);
                return false;
            }
            if !self.history.lock().broken.is_empty() {
                return false;
            }
            sleep(Duration::from_secs(5)).await;
        }
        true
    }

    /// From the first submission to the last check.
    async fn run(self: &Arc<Self>) {
        for index in 0..self.nodes.len() {
            self.crew.adopt("node", Node::live(self.clone(), index));
        }
        self.clients.adopt("load", load::all(self.clone()));
        if self.size.faults {
            faults::all(self.clone()).await;
        } else {
            sleep(self.size.window).await;
        }
        self.calm.store(true, Ordering::Relaxed);
        faults::end(self);
        if !self.comes_to_an_end().await {
            return;
        }
        sleep(QUIET).await;
        for node in &self.nodes {
            let load = node.up().await.executor.load();
            if load.running > 0 {
                let how = format!("I11: {} has {} slots taken", node.index, load.running);
                self.history.lock().breach(how);
            }
        }
        wire::count(self).await;
        for node in &self.nodes {
            // What was planned for a write must not come to whoever reads now; and a process whose
            // disk a read has found dead, and that had nothing to write since, ends now.
            node.disk.relent();
            if node.disk.is_dead() {
                node.end(self, Ending::Killed, Duration::ZERO);
            }
        }
        sleep(QUIET).await;
        let told = told::ask(self).await;
        for node in &self.nodes {
            // A fault that was planned and never came would hit the last start.
            node.end(self, Ending::PowerLoss, Duration::from_secs(1));
        }
        sleep(Duration::from_secs(5)).await;
        let after = told::ask(self).await;
        checker::compare(&mut self.history.lock(), &told, &after);
        checker::check(self, &after);
        self.note(format_args!("{} tasks", after.len()));
    }

    /// Ends everything that still goes on, so that nothing is left of it.
    async fn finish(&self) {
        self.clients.abort().await;
        self.crew.abort().await;
        for node in &self.nodes {
            node.end(self, Ending::Killed, Duration::ZERO);
        }
        self.crew.abort().await;
    }
}

thread_local! {
    /// The first panic of this thread's run: the runtime catches those of its tasks.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has panics noted besides what was done about them before.
fn watch_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            PANIC.with_borrow_mut(|first| {
                first.get_or_insert_with(|| panic.to_string());
            });
            before(panic);
        }));
    });
    PANIC.take();
}

/// One run: the same seed and size, the same history.
fn run(seed: u64, size: Size, trace: bool) -> Ran {
    watch_for_panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let ran = runtime.block_on(async {
        chance::seeded::seed(Some(seed));
        clock::set::to(Some(SystemTime::UNIX_EPOCH + EPOCH));
        let world = World::new(seed, size, trace);
        world.run().await;
        world.finish().await;
        let mut history = world.history.lock();
        if let Some(panic) = PANIC.take() {
            history.breach(format!("a task panicked: {panic}"));
        }
        let requests = history.requests.iter();
        Ran {
            digest: history.digest(),
            tasks: requests.filter(|request| !request.ids.is_empty()).count()
                + history.fleeting.len(),
            faults: history.faults.clone(),
            broken: history
                .broken
                .first()
                .map(|how| (how.clone(), history.tail())),
        }
    });
    chance::seeded::seed(None);
    clock::set::to(None);
    ran
}
