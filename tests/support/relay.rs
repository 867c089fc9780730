//! A byte relay on loopback: TCP in front of a Unix socket or another port, for programs that can
//! only do TCP; and, where it is told to, a cutter that takes each HEADERS frame that passes apart
//! into CONTINUATION frames, which libraries only send for headers of more than 16 KiB.

use std::{io, net::SocketAddr};

use attache::runtime::Nursery;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const PADDED_OR_PRIORITY: u8 = 0x28;
const PREFACE: usize = 24;
const HEAD: usize = 9;
/// Frames of one block at most: who guards against floods of CONTINUATION takes no more than some.
const PIECES: usize = 4;

/// A relay; ends when dropped.
pub struct Relay {
    pub address: SocketAddr,
    nursery: Nursery,
}

impl Relay {
    /// Starts one to `to`, a `host:port` or `unix:/path`. With `cut`, headers pass in frames of about
    /// that many bytes, both ways; in [`PIECES`] if that would be more.
    pub async fn start(to: &str, cut: Option<usize>) -> Self {
        let nursery = Nursery::here();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, connections) = (to.to_owned(), nursery.clone());
        nursery.adopt("relay", async move {
            while let Ok((near, _)) = listener.accept().await {
                let to = to.clone();
                connections.adopt("relayed", async move {
                    // Whoever leaves, leaves: the other side sees the end of its connection.
                    drop(relay(near, &to, cut).await);
                });
            }
        });
        Self { address, nursery }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Cut at their next await; nobody waits for them.
        let nursery = self.nursery.clone();
        self.nursery.adopt("end", async move {
            nursery.stop_token().cancel();
        });
    }
}

async fn relay(near: TcpStream, to: &str, cut: Option<usize>) -> io::Result<()> {
    near.set_nodelay(true)?;
    let (near_read, near_write) = near.into_split();
    if let Some(path) = to.strip_prefix("unix:") {
        let (read, write) = UnixStream::connect(path).await?.into_split();
        return both((near_read, near_write), (read, write), cut).await;
    }
    let far = TcpStream::connect(to).await?;
    far.set_nodelay(true)?;
    both((near_read, near_write), far.into_split(), cut).await
}

async fn both(
    near: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    far: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    cut: Option<usize>,
) -> io::Result<()> {
    tokio::select! {
        sent = pass(near.0, far.1, cut, PREFACE) => sent,
        sent = pass(far.0, near.1, cut, 0) => sent,
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    cut: Option<usize>,
    preface: usize,
) -> io::Result<()> {
    let Some(cut) = cut else {
        tokio::io::copy(&mut from, &mut to).await?;
        return to.shutdown().await;
    };
    let (mut here, mut raw) = (Vec::new(), preface);
    loop {
        if from.read_buf(&mut here).await? == 0 {
            return to.shutdown().await;
        }
        let mut out = Vec::new();
        let first = raw.min(here.len());
        out.extend(here.drain(..first));
        raw -= first;
        while raw == 0 && here.len() >= HEAD {
            let length =
                usize::from(here[0]) << 16 | usize::from(here[1]) << 8 | usize::from(here[2]);
            if here.len() < HEAD + length {
                break;
            }
            let frame: Vec<u8> = here.drain(..HEAD + length).collect();
            cut_frame(&frame, cut, &mut out);
        }
        to.write_all(&out).await?;
    }
}

/// The frame as it is, or as HEADERS and CONTINUATION frames.
fn cut_frame(frame: &[u8], cut: usize, out: &mut Vec<u8>) {
    let (kind, flags) = (frame[3], frame[4]);
    let block = &frame[HEAD..];
    let whole = kind == HEADERS && flags & END_HEADERS != 0 && flags & PADDED_OR_PRIORITY == 0;
    if !whole || block.len() <= cut {
        out.extend_from_slice(frame);
        return;
    }
    let cut = cut.max(block.len().div_ceil(PIECES));
    let count = block.chunks(cut).len();
    for (place, piece) in block.chunks(cut).enumerate() {
        let last = if place + 1 == count { END_HEADERS } else { 0 };
        let (kind, flags) = match place {
            0 => (HEADERS, flags & !END_HEADERS),
            _ => (CONTINUATION, 0),
        };
        let length = u32::try_from(piece.len()).unwrap().to_be_bytes();
        out.extend_from_slice(&length[1..]);
        out.extend_from_slice(&[kind, flags | last]);
        out.extend_from_slice(&frame[5..HEAD]);
        out.extend_from_slice(piece);
    }
}
