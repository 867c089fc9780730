//! Connections driven: IO, wake-ups and one clock around an [`Exchange`], on one thread.
//!
//! Owns when bytes are read and written: a connection's driver reads all there is, lets the exchange
//! take all whole frames, writes all there is to write in one go, and wakes each other driver that
//! got something to send at most once. Refuses to accept, to dial, to spawn and to decide: whoever
//! runs a [`Core`] gives it byte streams, makes the connections that [`Core::next_dial`] asks for,
//! and lets [`Core::keep_time`] run beside them.

#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::Instant,
};

use crate::h2::{
    connection::Config,
    exchange::{Dial, Exchange, Policy},
    slab::Key,
};

/// What is read at once: TLS hands out 16 KiB records, and a batch of them is one wake-up.
const READ: usize = 256 << 10;
/// A buffer for writing is kept up to this size.
const WRITE_KEEP: usize = 1 << 20;

/// An exchange and the drivers of its lines. Not [`Send`]: there is one per core of the machine.
pub struct Core<P: Policy> {
    exchange: RefCell<Exchange<P>>,
    /// The driver of each line, by the line's place.
    drivers: RefCell<Vec<Option<Waker>>>,
    dirty: RefCell<Vec<Key>>,
    scratch: RefCell<Vec<u8>>,
    dials: RefCell<Vec<Dial>>,
    dialing: Notify,
    /// When the clock will look again.
    alarm: Cell<Option<Instant>>,
    sooner: Notify,
}

impl<P: Policy> fmt::Debug for Core<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}

impl<P: Policy> Core<P> {
    /// Without connections.
    pub fn new(policy: P) -> Rc<Self> {
        Rc::new(Self {
            exchange: RefCell::new(Exchange::new(policy, Instant::now())),
            drivers: RefCell::default(),
            dirty: RefCell::default(),
            scratch: RefCell::new(vec![0; READ]),
            dials: RefCell::default(),
            dialing: Notify::new(),
            alarm: Cell::new(None),
            sooner: Notify::new(),
        })
    }

    /// Looks at the exchange, or tells it something; drivers that got something to do are woken.
    pub fn with<T>(&self, look: impl FnOnce(&mut Exchange<P>) -> T) -> T {
        let answer = look(&mut self.exchange.borrow_mut());
        self.spread();
        answer
    }

    /// Serves a connection that somebody has made, until it ends.
    ///
    /// # Errors
    /// The stream's own, where it broke.
    pub async fn serve<IO>(self: Rc<Self>, io: IO, peer: P::Peer, config: Config) -> io::Result<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let line = self.with(|exchange| exchange.accept(peer, config, Instant::now()));
        Driver::new(self, line, io).await
    }

    /// Serves a connection that was dialed, until it ends. Where none could be made, say
    /// [`Exchange::closed`] for its line instead.
    ///
    /// # Errors
    /// The stream's own, where it broke.
    pub async fn dialed<IO>(self: Rc<Self>, io: IO, line: Key) -> io::Result<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.with(|exchange| exchange.connected(line, Instant::now()));
        Driver::new(self, line, io).await
    }

    /// The next connection to be made.
    pub async fn next_dial(&self) -> Dial {
        loop {
            let dial = self.dials.borrow_mut().pop();
            if let Some(dial) = dial {
                return dial;
            }
            self.dialing.notified().await;
        }
    }

    /// Keeps the deadlines of all calls and connections. Never ends.
    pub async fn keep_time(&self) {
        loop {
            let next = self.exchange.borrow().next_deadline();
            self.alarm.set(next);
            match next {
                None => self.sooner.notified().await,
                Some(at) => {
                    tokio::select! {
                        () = self.sooner.notified() => continue,
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
            self.with(|exchange| exchange.on_time(Instant::now()));
        }
    }

    /// After the exchange was told something: whoever has something to do is told, once.
    fn spread(&self) {
        let mut exchange = self.exchange.borrow_mut();
        let mut dirty = self.dirty.borrow_mut();
        exchange.take_dirty(&mut dirty);
        let drivers = self.drivers.borrow();
        for line in dirty.drain(..) {
            if let Some(Some(driver)) = drivers.get(line.index()) {
                driver.wake_by_ref();
            }
        }
        while let Some(dial) = exchange.next_dial() {
            self.dials.borrow_mut().push(dial);
            self.dialing.notify_one();
        }
        let next = exchange.next_deadline();
        let earlier = match (next, self.alarm.get()) {
            (Some(next), Some(alarm)) => next < alarm,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if earlier {
            self.alarm.set(next);
            self.sooner.notify_one();
        }
    }

    fn register(&self, line: Key, waker: &Waker) {
        let mut drivers = self.drivers.borrow_mut();
        if drivers.len() <= line.index() {
            drivers.resize(line.index() + 1, None);
        }
        match &mut drivers[line.index()] {
            Some(known) if known.will_wake(waker) => {}
            known => *known = Some(waker.clone()),
        }
    }
}

/// Drives one connection. Dropping it ends the connection's calls.
struct Driver<IO, P: Policy> {
    core: Rc<Core<P>>,
    line: Key,
    io: IO,
    /// The beginning of a frame that is not whole.
    left: Vec<u8>,
    out: Vec<u8>,
    written: usize,
    ended: bool,
}

impl<IO, P: Policy> Driver<IO, P> {
    fn new(core: Rc<Core<P>>, line: Key, io: IO) -> Self {
        Self {
            core,
            line,
            io,
            left: Vec::new(),
            out: Vec::new(),
            written: 0,
            ended: false,
        }
    }
}

impl<IO, P: Policy> Drop for Driver<IO, P> {
    fn drop(&mut self) {
        if let Some(driver) = self.core.drivers.borrow_mut().get_mut(self.line.index()) {
            *driver = None;
        }
        let line = self.line;
        self.core
            .with(|exchange| exchange.closed(line, Instant::now()));
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, P: Policy> Driver<IO, P> {
    /// Reads all there is. Answers whether there may be more at once.
    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.ended || !self.wanted() {
            return Ok(false);
        }
        let mut scratch = self.core.scratch.borrow_mut();
        let kept = self.left.len();
        scratch[..kept].copy_from_slice(&self.left);
        let mut buffer = ReadBuf::new(&mut scratch);
        buffer.set_filled(kept);
        let mut more = true;
        while more && buffer.remaining() > 0 {
            let before = buffer.filled().len();
            match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
                Poll::Pending => more = false,
                Poll::Ready(result) => {
                    result?;
                    self.ended = buffer.filled().len() == before;
                    more = !self.ended;
                }
            }
        }
        let bytes = buffer.filled();
        if bytes.len() > kept {
            let mut exchange = self.core.exchange.borrow_mut();
            let used = exchange.receive(self.line, bytes, Instant::now());
            self.left.clear();
            self.left.extend_from_slice(&bytes[used..]);
        }
        Ok(more)
    }

    /// Writes all there is. Answers whether all of it is on its way.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        loop {
            while self.written < self.out.len() {
                let left = &self.out[self.written..];
                match Pin::new(&mut self.io).poll_write(cx, left) {
                    Poll::Pending => return Ok(false),
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(count)) => {
                        self.written += count;
                        let mut exchange = self.core.exchange.borrow_mut();
                        exchange.written(self.line, count, Instant::now());
                    }
                    Poll::Ready(Err(error)) => return Err(error),
                }
            }
            self.written = 0;
            self.out.clear();
            if self.out.capacity() > WRITE_KEEP {
                self.out = Vec::new();
            }
            let mut exchange = self.core.exchange.borrow_mut();
            if !exchange.take_output(self.line, &mut self.out, Instant::now()) {
                break;
            }
        }
        match Pin::new(&mut self.io).poll_flush(cx) {
            Poll::Ready(result) => result.map(|()| true),
            Poll::Pending => Ok(false),
        }
    }

    /// Whether the exchange takes more from this line: not while its peer reads nothing.
    fn wanted(&self) -> bool {
        self.core.exchange.borrow().wants_input(self.line)
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        loop {
            let wanted = self.wanted();
            let more = self.read(cx)?;
            let done = self.write(cx)?;
            self.core.spread();
            let over = self.ended || self.core.exchange.borrow().over(self.line);
            if done && over {
                return Ok(true);
            }
            // What was not read because too much was to be written is read now.
            if !more && (wanted || !self.wanted()) {
                return Ok(false);
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, P: Policy> Future for Driver<IO, P> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.core.register(self.line, cx.waker());
        match self.turn(cx) {
            Ok(false) => Poll::Pending,
            Ok(true) => Pin::new(&mut self.io).poll_shutdown(cx),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}
