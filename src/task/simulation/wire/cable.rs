//! A connection between two machines: an ordered pipe of bytes each way, as TCP makes it.
//!
//! What is written arrives in order, cut into pieces, each after a while, or not at all. Bytes into
//! a partition wait for its end; whoever closes is heard of behind what he wrote; of a machine that
//! is switched off nothing is heard.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::task::simulation::World;

/// Bytes on their way, each way: little, so that writers have to wait now and then.
const CAPACITY: usize = 8 << 10;

/// One connection. Side 0 has dialled.
#[derive(Debug)]
pub(in crate::task::simulation) struct Cable {
    pub(in crate::task::simulation) ends: [usize; 2],
    world: Weak<World>,
    /// What the sides have written.
    lanes: [Mutex<Lane>; 2],
}

/// What one side has written.
#[derive(Debug)]
struct Lane {
    /// In order, and when they arrive.
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// Nothing more arrives before.
    last: Instant,
    /// Behind all pieces: when, and whether it is a reset.
    end: Option<(Instant, bool)>,
    /// Reset for both sides at once: what was on its way is lost.
    broken: bool,
    /// Who writes is gone, or who reads: what is written goes nowhere.
    deaf: bool,
    /// A machine is off: nothing arrives, and nobody says so.
    void: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    fn new() -> Self {
        Self {
            pieces: VecDeque::new(),
            bytes: 0,
            last: Instant::now(),
            end: None,
            broken: false,
            deaf: false,
            void: false,
            reader: None,
            writer: None,
        }
    }

    /// Nothing that was not there before arrives before.
    fn hold(&mut self, until: Instant) {
        self.last = self.last.max(until);
    }

    fn close(&mut self, arrives: Instant, reset: bool) {
        self.hold(arrives);
        self.end.get_or_insert((self.last, reset));
        self.wake();
    }

    fn wake(&mut self) {
        self.reader.take().into_iter().for_each(Waker::wake);
        self.writer.take().into_iter().for_each(Waker::wake);
    }
}

impl Cable {
    /// The two ends of a new connection.
    pub(in crate::task::simulation) fn new(
        world: &World,
        from: usize,
        to: usize,
    ) -> (Arc<Self>, Socket, Socket) {
        let cable = Arc::new(Self {
            ends: [from, to],
            world: world.this.clone(),
            lanes: [Mutex::new(Lane::new()), Mutex::new(Lane::new())],
        });
        let socket = |side| Socket {
            cable: Arc::clone(&cable),
            side,
            timer: None,
        };
        let (near, far) = (socket(0), socket(1));
        (cable, near, far)
    }

    /// Whether it joins these, whoever dialled.
    pub(in crate::task::simulation) fn joins(&self, one: usize, other: usize) -> bool {
        self.ends == [one, other] || self.ends == [other, one]
    }

    /// Breaks it: both ends hear of it at once.
    pub(in crate::task::simulation) fn reset(&self) {
        for lane in &self.lanes {
            let mut lane = lane.lock();
            lane.broken = true;
            lane.wake();
        }
    }

    /// The process at `node` has ended; `silent`: its machine too, so that nobody says so.
    pub(in crate::task::simulation) fn cut(&self, world: &World, node: usize, silent: bool) {
        let reset = world.chance(0.5);
        let arrives = Instant::now() + world.latency();
        for (from, lane) in self.ends.iter().zip(&self.lanes) {
            let mut lane = lane.lock();
            lane.void |= silent;
            if *from == node && !silent {
                lane.close(arrives, reset);
            }
            lane.deaf = true;
        }
    }

    /// What is written from `node` from now on arrives after that.
    pub(in crate::task::simulation) fn freeze(&self, node: usize, until: Instant) {
        for (from, lane) in self.ends.iter().zip(&self.lanes) {
            if *from == node {
                lane.lock().hold(until);
            }
        }
    }

    /// Whoever waits looks again.
    pub(in crate::task::simulation) fn stir(&self) {
        for lane in &self.lanes {
            lane.lock().wake();
        }
    }

    /// Whether bytes that `side` wrote pass now.
    fn passes(&self, side: usize) -> bool {
        let (from, to) = (self.ends[side], self.ends[1 - side]);
        let world = self.world.upgrade();
        world.is_none_or(|world| !world.network.blocked(from, to))
    }
}

/// One end of a connection. Dropped, it is closed.
#[derive(Debug)]
pub(in crate::task::simulation) struct Socket {
    cable: Arc<Cable>,
    side: usize,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    /// Waits until then.
    fn later(&mut self, at: Instant, cx: &mut Context<'_>) {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let cable = Arc::clone(&self.cable);
        let side = 1 - self.side;
        let passes = cable.passes(side);
        let mut lane = cable.lanes[side].lock();
        if lane.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        lane.reader = Some(cx.waker().clone());
        if lane.void || !passes {
            return Poll::Pending;
        }
        let now = Instant::now();
        let Some((arrives, piece)) = lane.pieces.front_mut() else {
            return match lane.end {
                Some((at, true)) if at <= now => {
                    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
                }
                Some((at, false)) if at <= now => Poll::Ready(Ok(())),
                Some((at, _)) => {
                    self.later(at, cx);
                    Poll::Pending
                }
                None => Poll::Pending,
            };
        };
        if *arrives > now {
            let at = *arrives;
            self.later(at, cx);
            return Poll::Pending;
        }
        let fits = piece.len().min(into.remaining());
        into.put_slice(&piece[..fits]);
        piece.drain(..fits);
        if piece.is_empty() {
            lane.pieces.pop_front();
        }
        lane.bytes -= fits;
        lane.writer.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(world) = self.cable.world.upgrade() else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let mut lane = self.cable.lanes[self.side].lock();
        if lane.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if lane.deaf && !lane.void {
            return Poll::Ready(Ok(bytes.len()));
        }
        let fits = bytes.len().min(CAPACITY - lane.bytes);
        if fits == 0 {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut rest = &bytes[..fits];
        while !rest.is_empty() {
            let cut = if world.chance(0.1) {
                world.roll(1..rest.len() + 1)
            } else {
                rest.len()
            };
            let arrives = Instant::now() + world.latency();
            lane.hold(arrives);
            let arrives = lane.last;
            lane.pieces.push_back((arrives, rest[..cut].to_vec()));
            rest = &rest[cut..];
        }
        lane.bytes += fits;
        lane.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(fits))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let world = self.cable.world.upgrade();
        let latency = world.map(|world| world.latency()).unwrap_or_default();
        let mut lane = self.cable.lanes[self.side].lock();
        lane.close(Instant::now() + latency, false);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some(world) = self.cable.world.upgrade() else {
            return;
        };
        let arrives = Instant::now() + world.latency();
        self.cable.lanes[self.side].lock().close(arrives, false);
        let mut incoming = self.cable.lanes[1 - self.side].lock();
        incoming.deaf = true;
        incoming.wake();
        drop(incoming);
        world.network.closed(&self.cable);
    }
}
