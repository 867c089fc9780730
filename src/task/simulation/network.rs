//! The network between sidecars: one stream per attempt, in order each way, over connections that
//! are slow, stall, break and are cut off one way or both.
//!
//! What TCP and HTTP/2 promise holds, and nothing more: a stream is delivered in order or not at
//! all; what was sent into a partition arrives after it, unless the connection was given up before;
//! who hangs up is heard of behind what was sent before; streams do not wait for each other.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use crate::domain::{Fault, InstanceId, Reason};
use crate::pb;
use crate::runtime::{Stop, watch};
use crate::task::doors::{Call, Claims, Connect, Grants, Steps, Updates};
use crate::task::executor::HomePeer;
use crate::telemetry::TraceContext;

use super::World;

/// How long a connection without a word from the other side lasts: keepalive's interval and patience.
const KEEPALIVE: Duration = Duration::from_secs(50);
/// How long dialling may take.
const DIAL: Duration = Duration::from_secs(2);
/// Messages of a stream on their way.
pub(super) const WINDOW: usize = 16;

type Message = Result<pb::ExecuteResponse, Status>;

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
    /// New streams between these stall, until then.
    stalling: BTreeMap<(usize, usize), Instant>,
    /// Pairs with a connection: no need to dial. To which life of the other process it leads.
    connected: BTreeMap<(usize, usize), u32>,
    flows: BTreeMap<u64, Arc<Flow>>,
    next: u64,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Flow {
    number: u64,
    pub(super) from: usize,
    pub(super) to: usize,
    /// Which life of the process there: its connections end with it.
    life: u32,
    /// Given up: both ends hear of it.
    pub(super) broken: Stop,
    /// The home does not listen any more.
    hung_up: Stop,
    /// The hang-up has arrived.
    gone: Stop,
    /// The process that it leads to has ended: nothing more comes from there.
    pub(super) cut: AtomicBool,
    /// A machine is off: nothing passes, and nobody says so.
    void: AtomicBool,
    /// Which message of the home's stalls, and for how long.
    stall: Option<(u32, Duration)>,
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
        self.state.lock().blocked.remove(&(from, to));
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Half of the streams that begin between these until then stall.
    pub(super) fn stall(&self, from: usize, to: usize, until: Instant) {
        self.state.lock().stalling.insert((from, to), until);
    }

    /// Breaks all connections between two.
    pub(super) fn reset(&self, one: usize, other: usize) {
        let mut state = self.state.lock();
        let pairs = [(one, other), (other, one)];
        state.connected.retain(|pair, _| !pairs.contains(pair));
        for flow in state.flows.values() {
            if pairs.contains(&(flow.from, flow.to)) {
                flow.broken.cancel();
            }
        }
    }

    /// The process at `node` has ended; `silent`: its machine too, so that nobody says so.
    pub(super) fn cut(&self, node: usize, silent: bool) {
        let mut state = self.state.lock();
        state
            .connected
            .retain(|(from, to), _| *from != node && (*to != node || silent));
        for flow in state.flows.values() {
            if flow.to == node {
                flow.cut.store(true, Ordering::Relaxed);
            }
            if flow.to == node || flow.from == node {
                flow.void.fetch_or(silent, Ordering::Relaxed);
            }
        }
    }

    fn blocked(&self, from: usize, to: usize) -> bool {
        self.state.lock().blocked.contains(&(from, to))
    }

    /// Waits until something passes; whether it does before the connection is given up.
    async fn passes(&self, flow: &Flow, from: usize, to: usize) -> bool {
        let passes = async {
            let mut changed = self.changed.subscribe();
            while flow.void.load(Ordering::Relaxed) || self.blocked(from, to) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = flow.broken.cancelled() => false,
            passed = timeout(KEEPALIVE, passes) => passed.is_ok(),
        }
    }

    pub(super) fn flow(&self, world: &World, (from, to): (usize, usize), life: u32) -> Arc<Flow> {
        let mut state = self.state.lock();
        let stalls = state.stalling.get(&(from, to));
        let stalls = stalls.is_some_and(|until| Instant::now() < *until) && world.chance(0.5);
        let stall = stalls.then(|| (world.roll(0..3), world.within(10_000, 70_000)));
        let number = state.next;
        state.next += 1;
        let flow = Arc::new(Flow {
            number,
            from,
            to,
            life,
            broken: Stop::new(),
            hung_up: Stop::new(),
            gone: Stop::new(),
            cut: AtomicBool::new(false),
            void: AtomicBool::new(false),
            stall,
        });
        state.flows.insert(number, Arc::clone(&flow));
        flow
    }

    /// The connection was to a process that has ended.
    pub(super) fn stale(&self, flow: &Flow) {
        let mut state = self.state.lock();
        if state.connected.get(&(flow.from, flow.to)) == Some(&flow.life) {
            state.connected.remove(&(flow.from, flow.to));
        }
    }

    pub(super) fn over(&self, flow: &Flow) {
        self.state.lock().flows.remove(&flow.number);
    }

    /// Dials unless there is a connection.
    pub(super) async fn connect(
        &self,
        world: &World,
        from: usize,
        to: usize,
    ) -> Result<u32, Status> {
        if let Some(life) = self.state.lock().connected.get(&(from, to)) {
            return Ok(*life);
        }
        let dialled = async {
            let mut changed = self.changed.subscribe();
            sleep(world.latency()).await;
            while self.blocked(from, to) || self.blocked(to, from) {
                if changed.changed().await.is_err() {
                    return None;
                }
            }
            sleep(world.latency()).await;
            world.nodes[to].life().map(|life| life.number)
        };
        match timeout(DIAL, dialled).await {
            Ok(Some(life)) => {
                self.state.lock().connected.insert((from, to), life);
                Ok(life)
            }
            Ok(None) => Err(unreachable("connection refused")),
            Err(_) => Err(unreachable("no answer")),
        }
    }
}

/// The way from one node to all.
pub(super) struct Way {
    pub(super) world: Weak<World>,
    pub(super) from: usize,
}

#[tonic::async_trait]
impl Connect for Way {
    async fn execute(
        &self,
        instance: &InstanceId,
        steps: Steps,
        _: Option<Box<Call>>,
        _: Option<&TraceContext>,
    ) -> Result<Updates, Status> {
        let Some(world) = self.world.upgrade() else {
            return Err(unreachable("the run is over"));
        };
        let Some(to) = world.node_of(instance) else {
            return Err(unreachable("no such instance"));
        };
        let peer = world.nodes[self.from].peer();
        if to == self.from {
            let here = world.nodes[to].life();
            let here = here.ok_or_else(|| unreachable("this sidecar ends"))?;
            return Ok(here.executor.execute(peer, steps, None));
        }
        let life = world.network.connect(&world, self.from, to).await?;
        let flow = world.network.flow(&world, (self.from, to), life);
        let (back, updates) = mpsc::channel(WINDOW);
        let (open, mut opened) = watch::channel(false);
        let hang_up = HangUp {
            updates: ReceiverStream::new(updates),
            flow: Arc::clone(&flow),
        };
        let lane = Lane {
            world: Arc::clone(&world),
            flow: Arc::clone(&flow),
        };
        world
            .crew
            .adopt("forth", lane.forth(peer, steps, (back, open)));
        tokio::select! {
            biased;
            () = flow.broken.cancelled() => Err(lost()),
            answered = opened.wait_for(|open| *open) => match answered {
                Ok(_) => Ok(Box::pin(hang_up)),
                Err(_) => Err(lost()),
            },
        }
    }

    async fn slots(&self, instance: &InstanceId, claims: Claims) -> Result<Grants, Status> {
        self.open_slots(instance, claims).await
    }
}

/// What one stream's messages go through.
pub(super) struct Lane {
    pub(super) world: Arc<World>,
    pub(super) flow: Arc<Flow>,
}

type Back = (mpsc::Sender<Message>, watch::Sender<bool>);

impl Lane {
    /// From the home to the executor.
    async fn forth(self, peer: HomePeer, mut steps: Steps, back: Back) {
        let flow = Arc::clone(&self.flow);
        let (to_executor, heard) = mpsc::channel(WINDOW);
        let mut opening = Some((peer, heard, back));
        let mut to_executor = Some(to_executor);
        for message in 0.. {
            // The stream itself comes first, then what is said on it.
            let step = if message == 0 {
                None
            } else {
                tokio::select! {
                    biased;
                    () = flow.broken.cancelled() => break,
                    step = next(&mut steps, to_executor.is_some()) => match step {
                        Some(step) => Some(step),
                        None => { to_executor = None; continue; }
                    },
                    () = flow.hung_up.cancelled() => {
                        self.travel(message, flow.from, flow.to).await;
                        flow.gone.cancel();
                        break;
                    }
                }
            };
            if !self.travel(message, flow.from, flow.to).await {
                flow.broken.cancel();
                break;
            }
            if let Some((peer, heard, back)) = opening.take() {
                let there = self.world.nodes[flow.to].life();
                let Some(there) = there.filter(|there| there.number == flow.life) else {
                    self.world.network.stale(&flow);
                    flow.broken.cancel();
                    break;
                };
                let updates =
                    there
                        .executor
                        .execute(peer, Box::pin(ReceiverStream::new(heard)), None);
                let lane = Self {
                    world: Arc::clone(&self.world),
                    flow: Arc::clone(&flow),
                };
                self.world.crew.adopt("back", lane.back(updates, back));
            }
            if let (Some(step), Some(out)) = (step, &to_executor) {
                // The executor may have ended the stream.
                drop(out.send(step).await);
            }
        }
        if opening.is_some() {
            flow.broken.cancel();
            self.world.network.over(&flow);
        }
    }

    /// From the executor to the home, the headers first.
    async fn back(self, mut updates: Updates, (to_home, open): Back) {
        let flow = Arc::clone(&self.flow);
        let mut last = None;
        if self.travel(u32::MAX, flow.to, flow.from).await {
            open.send_replace(true);
            loop {
                let said = tokio::select! {
                    biased;
                    () = flow.gone.cancelled() => break,
                    () = flow.broken.cancelled() => { last = Some(lost()); break; }
                    said = updates.next() => said,
                };
                let is_cut = flow.cut.load(Ordering::Relaxed);
                if !self.travel(u32::MAX, flow.to, flow.from).await || is_cut {
                    last = Some(lost());
                    break;
                }
                match said {
                    None => break,
                    // Where nobody listens any more, it is read on until the hang-up arrives.
                    Some(said) => drop(to_home.send(said).await),
                }
            }
        }
        flow.broken.cancel();
        if let Some(last) = last {
            drop(to_home.send(Err(last)).await);
        }
        self.world.network.over(&flow);
    }

    /// Takes a message across; whether it arrives.
    pub(super) async fn travel(&self, message: u32, from: usize, to: usize) -> bool {
        let mut arrives = Instant::now() + self.world.latency();
        if let Some((which, long)) = self.flow.stall
            && which == message
        {
            self.world.note(format_args!(
                "message {message} of stream {} from {from} to {to} stalls for {long:?}",
                self.flow.number
            ));
            arrives += long;
        }
        tokio::select! {
            biased;
            () = self.flow.broken.cancelled() => return false,
            () = sleep_until(arrives) => {}
        }
        self.world.network.passes(&self.flow, from, to).await
    }
}

async fn next(steps: &mut Steps, open: bool) -> Option<pb::ExecuteRequest> {
    if open {
        steps.next().await
    } else {
        std::future::pending().await
    }
}

/// What the home reads; dropped, the other side hears of it.
struct HangUp {
    updates: ReceiverStream<Message>,
    flow: Arc<Flow>,
}

impl Stream for HangUp {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        Pin::new(&mut self.updates).poll_next(cx)
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        self.flow.hung_up.cancel();
    }
}

pub(super) fn unreachable(why: &str) -> Status {
    Fault::new(Reason::PeerUnreachable, why).into()
}

pub(super) fn lost() -> Status {
    Fault::new(Reason::ConnectionLost, "the connection broke").into()
}
