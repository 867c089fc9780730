//! A byte relay on this machine: TCP in front of a Unix socket or another port, for programs that can
//! only do TCP; a Unix socket in front of a port, for agents that are such programs; and, where it is told to, a cutter that takes each HEADERS frame that passes apart
//! into CONTINUATION frames, which libraries only send for headers of more than 16 KiB.

use std::{fs, io, net::SocketAddr, sync::Arc};

use attache::runtime::Nursery;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tokio_rustls::TlsConnector;

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
    _running: Running,
}

/// A relay from a Unix socket; ends when dropped.
pub struct Behind {
    _running: Running,
}

/// What relays; cut at its next await when dropped, and nobody waits for it.
struct Running(Nursery);

impl Relay {
    /// Starts one to `to`, a `host:port` or `unix:/path`. With `cut`, headers pass in frames of about
    /// that many bytes, both ways; in [`PIECES`] if that would be more.
    pub async fn start(to: &str, cut: Option<usize>) -> Self {
        let to = to.to_owned();
        Self::listening(move |connections, near| {
            // One that has left already is relayed to its end.
            drop(near.set_nodelay(true));
            relayed(connections, near.into_split(), &to, cut);
        })
        .await
    }

    /// Starts one to `to`, `host:port`, by TLS as `tls` has it: for programs without certificates.
    pub async fn by_tls(to: &str, tls: Arc<ClientConfig>) -> Self {
        let to = to.to_owned();
        Self::listening(move |connections, near| {
            let (to, tls) = (to.clone(), TlsConnector::from(Arc::clone(&tls)));
            connections.adopt("relayed", async move {
                let far = TcpStream::connect(to).await.unwrap();
                // Whoever is there is verified by its SPIFFE id.
                let name = ServerName::try_from("localhost").unwrap();
                let far = tls.connect(name, far).await.unwrap();
                drop(both(near.into_split(), tokio::io::split(far), None).await);
            });
        })
        .await
    }

    async fn listening(relay: impl Fn(&Nursery, TcpStream) + Send + 'static) -> Self {
        let running = Running(Nursery::here());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = running.0.clone();
        running.0.adopt("relay", async move {
            while let Ok((near, _)) = listener.accept().await {
                relay(&connections, near);
            }
        });
        Self {
            address,
            _running: running,
        }
    }
}

impl Behind {
    /// Starts one from `unix:/path` to `to`, cutting as [`Relay::start`] says.
    pub fn start(socket: &str, to: &str, cut: Option<usize>) -> Self {
        let running = Running(Nursery::here());
        let path = socket.strip_prefix("unix:").expect("a Unix socket");
        // Left behind by whoever listened before.
        drop(fs::remove_file(path));
        let listener = UnixListener::bind(path).unwrap();
        let (to, connections) = (to.to_owned(), running.0.clone());
        running.0.adopt("relay", async move {
            while let Ok((near, _)) = listener.accept().await {
                relayed(&connections, near.into_split(), &to, cut);
            }
        });
        Self { _running: running }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let nursery = self.0.clone();
        self.0.adopt("end", async move {
            nursery.stop_token().cancel();
        });
    }
}

fn relayed(
    nursery: &Nursery,
    near: (
        impl AsyncRead + Unpin + Send + 'static,
        impl AsyncWrite + Unpin + Send + 'static,
    ),
    to: &str,
    cut: Option<usize>,
) {
    let to = to.to_owned();
    nursery.adopt("relayed", async move {
        // Whoever leaves, leaves: the other side sees the end of its connection.
        drop(relay(near, &to, cut).await);
    });
}

async fn relay(
    near: (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    to: &str,
    cut: Option<usize>,
) -> io::Result<()> {
    if let Some(path) = to.strip_prefix("unix:") {
        let far = UnixStream::connect(path).await?.into_split();
        return both(near, far, cut).await;
    }
    let far = TcpStream::connect(to).await?;
    far.set_nodelay(true)?;
    both(near, far.into_split(), cut).await
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
