//! The end that answers: its address, its connections and their threads.
//!
//! Answers anybody who reaches it, as much as they ask for: it is for measuring, not for the open.

use std::{future::poll_fn, io, sync::Arc, task::Poll, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::json;
use tokio::{
    io::BufReader,
    net::{TcpListener, UnixListener},
    time::sleep,
};
use tokio_rustls::TlsAcceptor;

use super::{
    args::BenchArgs,
    echo::{Answers, call},
    line::{CONNECTION_WINDOW, STREAM_WINDOW},
    target::{Place, READ_BUFFER, Stream, server_config},
};
use crate::app::shutdown;
use crate::cli::{
    exit::{Exit, Failed},
    output::Output,
};
use crate::runtime::{DataThreads, Nursery, Stop};

/// Calls at once on a connection.
const STREAMS: u32 = 4096;
/// Before accepting again when that has failed.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers at an address until this process is told to stop.
///
/// # Errors
/// When the address is none or is taken, or a file of its TLS cannot be used.
pub(super) async fn serve(
    args: &BenchArgs,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    let address = args.serve.as_deref().unwrap_or_default();
    let listener = Listener::bind(&Place::parse(address)?).await;
    let listener =
        listener.map_err(|error| Failed::fault(format!("cannot listen at {address}: {error}")))?;
    let tls = server_config(&args.tls)?.map(TlsAcceptor::from);
    let count = usize::try_from(args.threads).unwrap_or(1);
    let threads = DataThreads::start(count).map_err(Failed::fault)?;
    let stop = nursery.stop_token().child_token();
    shutdown::listen(nursery, stop.clone(), false).map_err(Failed::fault)?;
    let place = listener.address();
    match output.is_json() {
        true => output.json(&json!({"serving": place})),
        false => output.line(&format!("answering at {place}; Ctrl-C ends it")),
    }
    answer(&listener, tls, &threads, &stop).await;
    Ok(Exit::Done)
}

/// Answers whoever connects, each connection on one of the threads, until the stop.
pub(super) async fn answer(
    listener: &Listener,
    tls: Option<TlsAcceptor>,
    threads: &DataThreads,
    stop: &Stop,
) {
    let nurseries = threads.nurseries();
    let mut next = nurseries.iter().cycle();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (Ok(socket), Some(thread)) = (accepted, next.next()) else {
            // Out of files, most likely: connections that end give some back.
            sleep(PAUSE).await;
            continue;
        };
        let tls = tls.clone();
        thread.adopt("connection", async move {
            if let Err(error) = Box::pin(connection(socket, tls)).await {
                tracing::info!(%error, "connection ended");
            }
        });
    }
    for nursery in &nurseries {
        nursery.abort().await;
    }
}

/// Where connections come from.
pub(super) enum Listener {
    /// A port.
    Tcp(TcpListener),
    /// A socket and its path, which goes when this is dropped.
    Unix(UnixListener, String),
}

/// A connection on its way to the thread that serves it.
enum Socket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Listener {
    /// Takes the address.
    pub(super) async fn bind(place: &Place) -> io::Result<Self> {
        match place {
            Place::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await?)),
            Place::Unix(path) => Ok(Self::Unix(UnixListener::bind(path)?, path.clone())),
        }
    }

    /// The address that was taken.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.to_string(),
                Err(error) => error.to_string(),
            },
            Self::Unix(_, path) => format!("unix:{path}"),
        }
    }

    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (socket, _) = listener.accept().await?;
                socket.set_nodelay(true)?;
                Ok(Socket::Tcp(socket.into_std()?))
            }
            Self::Unix(listener, _) => Ok(Socket::Unix(listener.accept().await?.0.into_std()?)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self
            && let Err(error) = std::fs::remove_file(path.as_str())
        {
            tracing::info!(%error, "the socket stays behind");
        }
    }
}

async fn connection(socket: Socket, tls: Option<TlsAcceptor>) -> io::Result<()> {
    // Sockets belong to the thread that wakes them, so it is made one here.
    let plain: Box<dyn Stream> = match socket {
        Socket::Tcp(socket) => Box::new(tokio::net::TcpStream::from_std(socket)?),
        Socket::Unix(socket) => Box::new(tokio::net::UnixStream::from_std(socket)?),
    };
    let io: Box<dyn Stream> = match tls {
        Some(tls) => {
            let plain = BufReader::with_capacity(READ_BUFFER, plain);
            Box::new(tls.accept(plain).await?)
        }
        None => plain,
    };
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS);
    let mut connection = builder.handshake(io).await.map_err(io::Error::other)?;
    // All calls in this one task: what many of them answer goes in one batch.
    let mut calls = FuturesUnordered::new();
    let answers = Arc::new(Answers::default());
    poll_fn(|cx| {
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    calls.push(call(request, respond, Arc::clone(&answers)));
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(io::Error::other(error))),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
            match calls.poll_next_unpin(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}
