//! One HTTP/2 connection that callers share, dialled again when it ends.

use std::{future::poll_fn, io, time::Duration};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use tokio::{sync::watch, time::sleep};

use super::target::{Stream, Target};

/// Window of one stream: 64 KiB would cost half as much CPU again for messages of 16 KiB.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
/// Window of a connection, for some hundred answers at once.
pub(super) const CONNECTION_WINDOW: u32 = 16 << 20;
/// Between two dials, when the last connection ended.
const REDIAL: Duration = Duration::from_millis(100);

type Sender = SendRequest<Bytes>;

/// The caller's end of a connection.
#[derive(Clone)]
pub(super) struct Line {
    watch: watch::Receiver<Option<Sender>>,
    held: Option<Sender>,
}

/// Keeps a line connected; ends only by being dropped.
pub(super) struct Keeper {
    target: Target,
    tell: watch::Sender<Option<Sender>>,
}

/// A line that is not yet connected, and who connects it.
pub(super) fn line(target: Target) -> (Line, Keeper) {
    let (tell, watch) = watch::channel(None);
    (Line { watch, held: None }, Keeper { target, tell })
}

/// Makes a connection and speaks HTTP/2 on it.
///
/// # Errors
/// What the system or the other side refused.
pub(super) async fn dial(
    target: &Target,
) -> io::Result<(Sender, Connection<Box<dyn Stream>, Bytes>)> {
    let io = target.connect().await?;
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder.handshake(io).await.map_err(io::Error::other)
}

impl Line {
    /// A connection that takes one more call now; waits for as long as there is none.
    pub(super) async fn ready(&mut self) -> &mut Sender {
        loop {
            if let Some(mut held) = self.held.take()
                && poll_fn(|cx| held.poll_ready(cx)).await.is_ok()
            {
                return self.held.insert(held);
            }
            // The one that is shown now may be the one that just failed: only a new one will do.
            if self.watch.changed().await.is_err() {
                return std::future::pending().await;
            }
            self.held = self.watch.borrow_and_update().clone();
        }
    }

    /// Forgets a connection that has failed.
    pub(super) fn lost(&mut self) {
        self.held = None;
    }
}

impl Keeper {
    /// Connects, and again whenever the connection ends.
    pub(super) async fn keep(self) {
        loop {
            match dial(&self.target).await {
                Ok((sender, connection)) => {
                    self.tell.send_replace(Some(sender));
                    let ended = connection.await;
                    tracing::info!(?ended, "connection ended");
                }
                Err(error) => tracing::info!(%error, "no connection"),
            }
            sleep(REDIAL).await;
        }
    }
}
