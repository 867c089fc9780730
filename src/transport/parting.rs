//! The last words of a served connection, heard by both sides.
//!
//! A server that goes sends a GOAWAY without a bound and a PING; the answer to the PING is to say that
//! no more calls are on their way, a last GOAWAY then names the last one that was taken, and the
//! connection closes once it is idle. Two things in this go wrong without the wrapper here:
//!
//! - Clients write the answer before the calls that they began just before they heard of it (gRPC's C
//!   core puts answers to PINGs first, h2 too). h2 takes such a call for excluded, and the
//!   WINDOW_UPDATE that C core sends behind it for a breach of the protocol, which ends all calls.
//!   So the answer is held back for a moment, and what was written with it is taken first.
//! - Closing a socket on which bytes were not read yet, or onto which the peer still writes, makes its
//!   next write fail before it has read the last GOAWAY, and nobody may send those calls again. So
//!   only the sending side is closed, and what comes is read until the peer closes too.
//!
//! Knows heads of frames and one PING; refuses nothing.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::transport::opening::{FRAME_HEAD, PREFACE};
use crate::transport::serve::CONNECTION_WINDOW;

/// How long the answer to the PING is held back. What was written with it is here by then, unless the
/// network lost it: then the last GOAWAY excludes it, and clients of gRPC send it again by themselves.
pub(super) const HELD: Duration = Duration::from_millis(100);
/// How long closing may take: for us to say our last word, and for the peer to close its side then.
/// It reads a GOAWAY and has nothing else to do; on a machine that is busy it waits for its turn.
pub(super) const LISTENED: Duration = Duration::from_secs(3);
/// Bytes that are read meanwhile: a peer that keeps to its windows has no more on the way.
const LISTENED_BYTES: u64 = 2 * CONNECTION_WINDOW as u64;
/// What is read at a time to be thrown away.
const PIECE: usize = 4 * 1024;

/// The answer to the PING with which h2 begins to go: head, and h2's payload for it.
const ANSWER: [u8; FRAME_HEAD + 8] = [
    0, 0, 8, 6, 1, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54,
];

/// A served byte stream. Costs a look at each frame's head until the answer was handed on.
#[derive(Debug)]
pub(super) struct Parting<I> {
    io: I,
    answer: Answer,
    /// Bytes up to the next frame's head.
    left: usize,
    /// A head, or more of what may be the answer, that has not come whole yet.
    begun: Vec<u8>,
    /// Read, to be handed on before anything else.
    ahead: Vec<u8>,
    listening: Option<Listening>,
}

#[derive(Debug)]
enum Answer {
    Awaited,
    Held(Pin<Box<Sleep>>),
    Due,
    HandedOn,
}

/// Our side closes, or is closed.
#[derive(Debug)]
struct Listening {
    /// For both: TLS closes only once its last word is written, and a peer that does not read keeps
    /// it from that.
    until: Pin<Box<Sleep>>,
    closed: bool,
    left: u64,
}

impl<I> Parting<I> {
    /// Over a connection of which nothing was read.
    pub(super) fn over(io: I) -> Self {
        Self {
            io,
            answer: Answer::Awaited,
            left: PREFACE,
            begun: Vec::new(),
            ahead: Vec::new(),
            listening: None,
        }
    }

    /// Looks at what was just read, and returns how much of it is to be handed on.
    fn sift(&mut self, new: &mut [u8]) -> usize {
        let (mut at, mut end) = (0, new.len());
        loop {
            let passed = self.left.min(end - at);
            at += passed;
            self.left -= passed;
            if at == end && self.left > 0 {
                return end;
            }
            if matches!(self.answer, Answer::Due) {
                self.hand_on(&new[at..end]);
                return at;
            }
            match Head::of(&new[at..end]) {
                Head::Begun => {
                    self.begun.extend_from_slice(&new[at..end]);
                    return at;
                }
                Head::Answer if matches!(self.answer, Answer::Awaited) => {
                    self.answer = Answer::Held(Box::pin(sleep(HELD)));
                    new.copy_within(at + ANSWER.len()..end, at);
                    end -= ANSWER.len();
                }
                Head::Answer => self.left = ANSWER.len(),
                Head::Other(size) => self.left = size,
            }
        }
    }

    /// At a frame's end: the answer goes before `rest`, and nothing is looked at any more.
    fn hand_on(&mut self, rest: &[u8]) {
        self.ahead.extend_from_slice(&ANSWER);
        self.ahead.append(&mut self.begun);
        self.ahead.extend_from_slice(rest);
        self.answer = Answer::HandedOn;
    }

    /// Ends the wait of an answer whose time has come.
    fn look_at_the_clock(&mut self, cx: &mut Context<'_>) {
        if let Answer::Held(until) = &mut self.answer
            && until.as_mut().poll(cx).is_ready()
        {
            self.answer = Answer::Due;
        }
        if matches!(self.answer, Answer::Due) && self.left == 0 {
            self.hand_on(&[]);
        }
    }
}

/// What a frame begins with.
enum Head {
    /// It has not come whole.
    Begun,
    Answer,
    /// Another one of this size, with its head.
    Other(usize),
}

impl Head {
    fn of(bytes: &[u8]) -> Self {
        let Some(head) = bytes.first_chunk::<FRAME_HEAD>() else {
            return Self::Begun;
        };
        if *head == ANSWER[..FRAME_HEAD] {
            match bytes.first_chunk::<{ ANSWER.len() }>() {
                None => return Self::Begun,
                Some(whole) if *whole == ANSWER => return Self::Answer,
                Some(_) => {}
            }
        }
        let size = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        Self::Other(FRAME_HEAD + size)
    }
}

impl<I: AsyncRead + Unpin> Parting<I> {
    /// Reads on in what has begun, and no further.
    fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let whole = if self.begun.len() < FRAME_HEAD {
            FRAME_HEAD
        } else {
            ANSWER.len()
        };
        let mut piece = [0; ANSWER.len()];
        let mut buf = ReadBuf::new(&mut piece[..whole - self.begun.len()]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(buf.filled());
        // The stream may end in the midst of a frame: whoever reads has to see that.
        if !buf.filled().is_empty() {
            let kept = self.sift(&mut all);
            all.truncate(kept);
        }
        self.ahead.append(&mut all);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Parting<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            self.look_at_the_clock(cx);
            if !self.ahead.is_empty() {
                let fits = self.ahead.len().min(buf.remaining());
                buf.put_slice(&self.ahead[..fits]);
                self.ahead.drain(..fits);
                return Poll::Ready(Ok(()));
            }
            if matches!(self.answer, Answer::HandedOn) {
                return Pin::new(&mut self.io).poll_read(cx, buf);
            }
            if !self.begun.is_empty() {
                ready!(self.poll_begun(cx))?;
                continue;
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
            let kept = self.sift(&mut buf.filled_mut()[before..]);
            buf.set_filled(before + kept);
            if kept > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Parting<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Closes our side, and is done when the peer has closed its own, or has had its time.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, listening, .. } = &mut *self;
        let listening = listening.get_or_insert_with(|| Listening {
            until: Box::pin(sleep(LISTENED)),
            closed: false,
            left: LISTENED_BYTES,
        });
        let mut piece = [0; PIECE];
        while listening.left > 0 && listening.until.as_mut().poll(cx).is_pending() {
            if !listening.closed {
                ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
                listening.closed = true;
            }
            let mut buf = ReadBuf::new(&mut piece);
            match ready!(Pin::new(&mut *io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {
                    listening.left = listening.left.saturating_sub(buf.filled().len() as u64);
                }
                // It has closed its side, or is gone: nobody is left to be heard.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
