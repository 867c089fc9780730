//! Watches a byte stream until the server at its other end has said its first words of HTTP/2.
//!
//! TLS 1.3 clients learn only here that their certificate was refused.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    sync::oneshot,
};

use crate::transport::alive::Alive;

/// Bytes of a frame's header: the server's SETTINGS begin with one.
pub(super) const FRAME_HEAD: usize = 9;
const SETTINGS: u8 = 4;

/// Tells how the first words went; an error of the receiver means that the stream was dropped.
pub(super) type Opened = oneshot::Receiver<io::Result<()>>;

/// A byte stream that tells its first words. Costs one comparison per read from then on.
#[derive(Debug)]
pub(super) struct Opening<I> {
    io: I,
    wait: Option<Wait>,
    /// Read ahead, not yet handed on.
    ahead: Bytes,
    _alive: Option<Arc<Alive>>,
}

#[derive(Debug)]
struct Wait {
    seen: usize,
    tell: oneshot::Sender<io::Result<()>>,
}

impl<I> Opening<I> {
    /// Tells when a frame's head was read, or why it was not. Holds `alive` as long as it lives.
    pub(super) fn watch(io: I, alive: Option<Arc<Alive>>) -> (Self, Opened) {
        let (tell, told) = oneshot::channel();
        let wait = Wait { seen: 0, tell };
        let opening = Self {
            io,
            wait: Some(wait),
            ahead: Bytes::new(),
            _alive: alive,
        };
        (opening, told)
    }

    /// Reads the first words before anything is written.
    ///
    /// A server that refuses our certificate closes at once: had we written by then, its reset
    /// could overtake the alert that says why.
    pub(super) async fn listen_first(&mut self) -> io::Result<()>
    where
        I: AsyncRead + Unpin,
    {
        let mut first = [0; FRAME_HEAD];
        self.io.read_exact(&mut first).await?;
        self.ahead = Bytes::copy_from_slice(&first);
        Ok(())
    }

    fn note(&mut self, read: &io::Result<()>, new: &[u8]) {
        let Some(mut wait) = self.wait.take() else {
            return;
        };
        let verdict = match read {
            Err(error) => Err(twin(error)),
            Ok(()) if new.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(()) if no_settings(wait.seen, new) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer is not HTTP/2",
            )),
            Ok(()) => {
                wait.seen += new.len();
                if wait.seen < FRAME_HEAD {
                    self.wait = Some(wait);
                    return;
                }
                Ok(())
            }
        };
        // Nobody listens any more where the caller has given up.
        drop(wait.tell.send(verdict));
    }
}

/// The type stands in the fourth byte of a frame's header.
fn no_settings(before: usize, new: &[u8]) -> bool {
    3_usize
        .checked_sub(before)
        .and_then(|place| new.get(place))
        .is_some_and(|kind| *kind != SETTINGS)
}

/// An `io::Error` cannot be cloned; the TLS error in it can, and is what is asked for later.
fn twin(error: &io::Error) -> io::Error {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(tls) => io::Error::new(error.kind(), tls.clone()),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Opening<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = if self.ahead.is_empty() {
            Pin::new(&mut self.io).poll_read(cx, buf)
        } else {
            let fits = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(fits));
            Poll::Ready(Ok(()))
        };
        if self.wait.is_some()
            && let Poll::Ready(read) = &polled
        {
            self.note(read, &buf.filled()[before..]);
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Opening<I> {
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

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn heard(parts: &'static [&'static [u8]]) -> io::Result<()> {
        let source = parts.iter().fold(
            Box::new(tokio::io::empty()) as Box<dyn AsyncRead + Unpin + Send>,
            |before, part| Box::new(AsyncReadExt::chain(before, *part)),
        );
        let (mut opening, told) = Opening::watch(tokio::io::join(source, tokio::io::sink()), None);
        let mut all = Vec::new();
        opening.read_to_end(&mut all).await.unwrap();
        told.await.unwrap()
    }

    #[tokio::test]
    async fn the_first_words_are_settings_or_the_peer_speaks_something_else() {
        heard(&[&[0, 0], &[0, 4, 0, 0, 0], &[0, 0, 9]])
            .await
            .unwrap();
        let others: [&'static [&'static [u8]]; 2] =
            [&[b"HTTP/1.1 400 Bad Request"], &[b"HT", b"TP/1.1"]];
        for other in others {
            let error = heard(other).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let cut = heard(&[&[0, 0, 0, 4]]).await.unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }
}
