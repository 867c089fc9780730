//! One end of a connection that speaks for itself: an engine's [`Connection`], its calls, and what
//! drives it.
//!
//! The home's side of a connection to another sidecar, and our own services behind the pipe of a
//! caller's. What the engine says of its peer, which is the engine as well, is judged: neither ever
//! breaks a rule.

use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::h2::connection::{Config, Connection, Event, Role, Room, Share};
use crate::h2::frame::{self, ErrorCode};
use crate::h2::hpack::Fields;
use crate::h2::slab::{Key, Slab};
use crate::h2::stream::Part;
use crate::task::simulation::World;

use super::door::is_blame;
use super::talk::{Reading, Talk, Writing};

/// Read at once.
const READ: usize = 4 << 10;

/// See the module.
pub(in crate::task::simulation) struct End {
    pub(super) role: Role,
    pub(super) state: Mutex<State>,
    driver: Mutex<Option<Waker>>,
    world: Weak<World>,
}

pub(super) struct State {
    pub(super) connection: Connection,
    pub(super) talks: Slab<Talk>,
    /// Calls that the peer has made and nobody has taken yet.
    came: VecDeque<Key>,
    /// The connection is gone, and all calls with it.
    gone: bool,
    /// Who waits for a call to come, or for room to make one.
    waiting: Vec<Waker>,
    /// What the peer was blamed for, or blames us for.
    wrong: Vec<String>,
    fields: Fields,
    /// The beginning of a frame that is not whole.
    left: Vec<u8>,
}

/// What a driver writes, and when it looks again.
struct Turn {
    out: Vec<u8>,
    written: usize,
    timer: Pin<Box<Sleep>>,
}

impl End {
    pub(in crate::task::simulation) fn new(config: Config, world: &World) -> Arc<Self> {
        Arc::new(Self {
            role: config.role,
            state: Mutex::new(State {
                connection: Connection::new(config, Instant::now()),
                talks: Slab::default(),
                came: VecDeque::new(),
                gone: false,
                waiting: Vec::new(),
                wrong: Vec::new(),
                fields: Fields::new(),
                left: Vec::new(),
            }),
            driver: Mutex::default(),
            world: world.this.clone(),
        })
    }

    /// Whether calls can be made here, now or soon.
    pub(in crate::task::simulation) fn usable(&self) -> bool {
        let state = self.state.lock();
        !state.gone && state.connection.room() != Room::Never
    }

    /// Makes a call as soon as there is room; `None`: there never is any more.
    pub(in crate::task::simulation) async fn open(
        self: &Arc<Self>,
        request: &Fields,
    ) -> Option<(Writing, Reading)> {
        let opened = poll_fn(|cx| {
            let state = &mut *self.state.lock();
            match state.connection.room() {
                _ if state.gone => Poll::Ready(None),
                Room::Never => Poll::Ready(None),
                Room::Later => {
                    state.waiting.push(cx.waker().clone());
                    Poll::Pending
                }
                Room::Yes => {
                    let now = Instant::now();
                    let call = state.talks.insert(Talk::default());
                    let stream = state
                        .connection
                        .open((call, Share::ONLY), request, false, now);
                    let talk = state.talks.get_mut(call);
                    talk.expect("it was just made").stream = Some(stream);
                    Poll::Ready(Some(call))
                }
            }
        });
        let call = opened.await?;
        self.wake();
        Some(self.halves(call))
    }

    /// The next call that the peer makes; `None`: there is none any more.
    pub(super) async fn next(self: &Arc<Self>) -> Option<(Writing, Reading)> {
        let came = poll_fn(|cx| {
            let state = &mut *self.state.lock();
            if let Some(call) = state.came.pop_front() {
                return Poll::Ready(Some(call));
            }
            if state.gone {
                return Poll::Ready(None);
            }
            state.waiting.push(cx.waker().clone());
            Poll::Pending
        });
        let call = came.await?;
        Some(self.halves(call))
    }

    fn halves(self: &Arc<Self>, call: Key) -> (Writing, Reading) {
        (
            Writing::new(Arc::clone(self), call),
            Reading::new(Arc::clone(self), call),
        )
    }

    /// There is something to send.
    pub(super) fn wake(&self) {
        if let Some(driver) = &*self.driver.lock() {
            driver.wake_by_ref();
        }
    }

    /// How much to put on top of a message.
    pub(super) fn ballast(&self, odds: f64, most: usize) -> usize {
        let world = self.world.upgrade().filter(|world| world.chance(odds));
        world.map_or(0, |world| world.roll(1..most))
    }

    /// How many calls there are here.
    pub(in crate::task::simulation) fn calls(&self) -> usize {
        self.state.lock().talks.len()
    }

    /// Something has happened that may not.
    pub(super) fn breach(&self, how: String) {
        if let Some(world) = self.world.upgrade() {
            world.history.lock().breach(how);
        }
    }

    /// Moves bytes until the connection is over.
    pub(in crate::task::simulation) async fn drive<Io>(self: Arc<Self>, mut io: Io)
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let _gone = Gone(&self);
        let mut turn = Turn {
            out: Vec::new(),
            written: 0,
            timer: Box::pin(sleep_until(Instant::now())),
        };
        poll_fn(|cx| {
            *self.driver.lock() = Some(cx.waker().clone());
            self.turn(&mut io, &mut turn, cx)
        })
        .await;
    }

    fn turn<Io>(&self, io: &mut Io, turn: &mut Turn, cx: &mut Context<'_>) -> Poll<()>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let now = Instant::now();
            let next = self.state.lock().connection.next_deadline();
            if next.is_some_and(|at| at <= now) {
                let state = &mut *self.state.lock();
                if let Err(late) = state.connection.on_time(now) {
                    state.connection.fail(&late);
                }
            }
            let ended = self.read(io, now, cx);
            let Ok(written) = self.write(io, turn, now, cx) else {
                return Poll::Ready(());
            };
            let state = self.state.lock();
            let over = ended || state.connection.over();
            // Who takes nothing any more is not waited for with the last word.
            if over && (written || state.connection.failed().is_some()) {
                return Poll::Ready(());
            }
            let next = state.connection.next_deadline();
            drop(state);
            let Some(at) = next else { return Poll::Pending };
            if turn.timer.deadline() != at {
                turn.timer.as_mut().reset(at);
            }
            if turn.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Reads all there is; whether nothing more comes.
    fn read<Io>(&self, io: &mut Io, now: Instant, cx: &mut Context<'_>) -> bool
    where
        Io: AsyncRead + Unpin,
    {
        let mut space = [0; READ];
        while self.state.lock().connection.wants_input() {
            let mut buffer = ReadBuf::new(&mut space);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    let state = &mut *self.state.lock();
                    if let Err(rule) = state.take(buffer.filled(), now) {
                        state.wrong.push(rule.to_string());
                    }
                    for rule in state.wrong.drain(..) {
                        self.breach(format!("E1: the engine broke a rule: {rule}"));
                    }
                }
                Poll::Ready(_) => return true,
            }
        }
        false
    }

    /// Writes what there is; whether all of it went.
    fn write<Io>(
        &self,
        io: &mut Io,
        turn: &mut Turn,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> std::io::Result<bool>
    where
        Io: AsyncWrite + Unpin,
    {
        loop {
            while turn.written < turn.out.len() {
                let left = &turn.out[turn.written..];
                match Pin::new(&mut *io).poll_write(cx, left) {
                    Poll::Pending => return Ok(false),
                    Poll::Ready(count) => {
                        let count = count?;
                        turn.written += count;
                        let state = &mut *self.state.lock();
                        state.connection.written(count, now);
                        state.rouse_senders();
                    }
                }
            }
            turn.written = 0;
            turn.out.clear();
            let state = &mut *self.state.lock();
            if !state.connection.has_output() {
                return Ok(true);
            }
            state.connection.take_output(&mut turn.out, now);
        }
    }
}

/// When the driver ends, or is dropped.
struct Gone<'a>(&'a End);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let state = &mut *self.0.state.lock();
        state.gone = true;
        for talk in state.talks.values_mut() {
            talk.lose();
        }
        state.waiting.drain(..).for_each(Waker::wake);
    }
}

impl State {
    /// Takes all whole frames.
    fn take(&mut self, bytes: &[u8], now: Instant) -> Result<(), frame::Error> {
        self.left.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.left);
        let mut at = 0;
        loop {
            let taken = self.connection.receive(&input[at..], &mut self.fields, now);
            match taken {
                Ok((0, _)) => break,
                Ok((used, event)) => {
                    at += used;
                    self.handle(event);
                }
                Err(rule) => {
                    self.connection.fail(&rule);
                    return Err(rule);
                }
            }
        }
        self.left.extend_from_slice(&input[at..]);
        self.connection
            .note_remainder(!self.left.is_empty(), at > 0, now);
        Ok(())
    }

    fn handle(&mut self, event: Event<'_>) {
        match event {
            Event::Quiet => {}
            Event::Request { stream, end } => {
                let mut talk = Talk::default();
                talk.stream = Some(stream);
                talk.hear(&self.fields, false, end);
                let call = self.talks.insert(talk);
                self.connection.assign(stream, call);
                self.came.push_back(call);
                self.waiting.drain(..).for_each(Waker::wake);
            }
            Event::Oversized { stream } => self.connection.reset(stream, ErrorCode::Internal),
            Event::Fields { call, part, end } => {
                if let Some(talk) = self.talks.get_mut(call) {
                    talk.hear(&self.fields, part == Part::Trailers, end);
                }
            }
            Event::Data {
                call,
                data,
                flow,
                end,
            } => {
                self.connection.release_connection(flow);
                if let Some(talk) = self.talks.get_mut(call) {
                    let back = talk.take(data, flow, end);
                    let stream = talk.stream.filter(|_| back > 0);
                    stream.inspect(|stream| self.connection.release_stream(*stream, back));
                }
            }
            Event::Reset { call, code, ours } => {
                if ours || is_blame(code) {
                    self.wrong.push(format!("a stream was reset: {code}"));
                }
                if let Some(talk) = self.talks.get_mut(call) {
                    talk.reset(code, ours);
                }
            }
            Event::Widened { call } => {
                if let Some(talk) = self.talks.get_mut(call) {
                    talk.rouse_sender();
                }
            }
            Event::Eased => self.rouse_senders(),
            Event::Changed => {
                self.rouse_senders();
                self.waiting.drain(..).for_each(Waker::wake);
            }
            Event::GoAway { last, code } => {
                if is_blame(code) {
                    self.wrong.push(format!("told to go: {code}"));
                }
                for call in self.connection.take_unprocessed(last) {
                    if let Some(talk) = self.talks.get_mut(call) {
                        talk.reset(ErrorCode::RefusedStream, false);
                    }
                }
                self.waiting.drain(..).for_each(Waker::wake);
            }
        }
    }

    fn rouse_senders(&mut self) {
        self.talks.values_mut().for_each(Talk::rouse_sender);
    }
}
