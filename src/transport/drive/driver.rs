//! One connection's driver: its reads and its writes.

use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Instant, timeout},
};

use super::Core;
use crate::h2::{exchange::Policy, frame, slab::Key};

/// A buffer for writing is kept up to this size.
const WRITE_KEEP: usize = 1 << 20;
/// How long closing may take: for us to say our last word, and for the peer to close its side then.
/// It reads a GOAWAY and has nothing else to do; on a machine that is busy it waits for its turn.
pub(super) const LISTENED: Duration = Duration::from_secs(3);
/// How long a connection may have its thread for itself. Hundreds of KiB of DATA pass in it; of frames
/// that are small and ask for much, a piece.
const TURN: Duration = Duration::from_millis(1);
/// What is handed over between two looks at the clock: two frames of the largest size and more.
const PIECE: usize = 48 << 10;
/// Bytes that are read meanwhile: a peer that keeps to its windows has no more on the way.
const LISTENED_BYTES: u64 = 8 << 20;

/// Drives one connection. Dropping it ends the connection's calls.
pub(crate) struct Driver<IO, P: Policy> {
    core: Arc<Core<P>>,
    line: Key,
    io: IO,
    /// The beginning of a frame that is not whole; frames that are, where it is behind.
    left: Vec<u8>,
    /// Frames were left for its next turn.
    behind: bool,
    out: Vec<u8>,
    written: usize,
    ended: bool,
}

impl<IO, P: Policy> Driver<IO, P> {
    pub(super) fn new(core: Arc<Core<P>>, line: Key, io: IO) -> Self {
        Self {
            core,
            line,
            io,
            left: Vec::new(),
            behind: false,
            out: Vec::new(),
            written: 0,
            ended: false,
        }
    }
}

impl<IO, P: Policy> fmt::Debug for Driver<IO, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("line", &self.line)
            .finish_non_exhaustive()
    }
}

impl<IO, P: Policy> Drop for Driver<IO, P> {
    fn drop(&mut self) {
        if let Some(driver) = self.core.drivers.lock().get_mut(self.line.index()) {
            *driver = None;
        }
        let line = self.line;
        self.core
            .with(|exchange| exchange.closed(line, Instant::now()));
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, P: Policy> Driver<IO, P> {
    /// Drives the connection until it is over and its last word is written. May be dropped and called
    /// again.
    ///
    /// # Errors
    /// The stream's own, where it broke.
    pub(crate) async fn run(&mut self) -> io::Result<()> {
        poll_fn(|cx| {
            self.core.register(self.line, cx.waker());
            match self.turn(cx) {
                Ok(false) => Poll::Pending,
                Ok(true) => Poll::Ready(Ok(())),
                Err(error) => Poll::Ready(Err(error)),
            }
        })
        .await
    }

    /// Closes a connection that has ended: only our side of it, and then reads what still comes until
    /// the peer closes too. Closing with bytes unread would reset the connection, and the peer's next
    /// write would fail before it has read our last GOAWAY: nobody may send those calls again.
    pub(crate) async fn part(&mut self) {
        let parting = async {
            self.io.shutdown().await?;
            let rest = (&mut self.io).take(LISTENED_BYTES);
            tokio::io::copy(&mut { rest }, &mut tokio::io::sink()).await
        };
        if let Ok(Err(error)) = timeout(LISTENED, parting).await {
            tracing::trace!(%error, "the peer went away first");
        }
    }

    /// The rule that the peer has broken, for which the connection was ended.
    pub(crate) fn failed(&self) -> Option<frame::Error> {
        self.core.exchange.lock().failed(self.line)
    }

    /// Takes no new calls, or gives it none; it is over with the last one.
    pub(crate) fn drain(&self) {
        let line = self.line;
        self.core
            .with(|exchange| exchange.drain(line, Instant::now()));
    }

    /// Reads all there is. Answers whether there may be more at once.
    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if (self.ended && !self.behind) || !self.wanted() {
            return Ok(false);
        }
        let mut scratch = self.core.scratch.lock();
        let kept = self.left.len();
        scratch[..kept].copy_from_slice(&self.left);
        let mut buffer = ReadBuf::new(&mut scratch);
        buffer.set_filled(kept);
        let mut more = true;
        while more && !self.behind && buffer.remaining() > 0 {
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
        if bytes.len() > kept || self.behind {
            let (used, behind) = self.hand_over(bytes);
            self.behind = behind;
            self.left.clear();
            self.left.extend_from_slice(&bytes[used..]);
        }
        Ok(more || self.behind)
    }

    /// Hands frames to the exchange for as long as a turn may take. Answers how many bytes they were,
    /// and whether more of them wait.
    fn hand_over(&self, bytes: &[u8]) -> (usize, bool) {
        let began = Instant::now();
        let (mut now, mut at) = (began, 0);
        let mut exchange = self.core.exchange.lock();
        loop {
            let end = bytes.len().min(at + PIECE);
            at += exchange.receive(self.line, &bytes[at..end], now);
            if end == bytes.len() {
                return (at, false);
            }
            if exchange.over(self.line) {
                return (bytes.len(), false);
            }
            now = Instant::now();
            if now > began + TURN {
                return (at, true);
            }
        }
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
                        let mut exchange = self.core.exchange.lock();
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
            let mut exchange = self.core.exchange.lock();
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
        self.core.exchange.lock().wants_input(self.line)
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        loop {
            let wanted = self.wanted();
            let more = self.read(cx)?;
            let done = self.write(cx)?;
            self.core.spread();
            let over = (self.ended && !self.behind) || self.core.exchange.lock().over(self.line);
            if done && over {
                return Ok(true);
            }
            if more {
                // Who sends without end does not have the thread for itself.
                cx.waker().wake_by_ref();
                return Ok(false);
            }
            // What was not read because too much was to be written is read now.
            if wanted || !self.wanted() {
                return Ok(false);
            }
        }
    }
}
