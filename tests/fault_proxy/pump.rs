//! Carries the bytes of one connection, both ways at once, as its lanes say, until it ends.

use std::{
    future::pending,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use attache::runtime::Stop;
use bytes::{Bytes, BytesMut};
use rand::{SeedableRng, rngs::StdRng};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    counts::Counts,
    faults::{InForce, Kind, Stamp},
    lane::{End, Lane},
    protocol::Direction,
};

/// Most bytes of one read.
const READ_MAX: usize = 16 << 10;
/// How long the target may take to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a connection that was closed in good order waits for the other ends to close too. Closed
/// with unread bytes in it, it would end by RST.
const LINGER: Duration = Duration::from_secs(2);

/// One connection of a route.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) target: String,
    pub(crate) faults: watch::Receiver<Arc<InForce>>,
    pub(crate) counts: Arc<Counts>,
    /// What chance has in store for it.
    pub(crate) lot: u64,
    /// The reset that was in force when it came, and is not for it.
    pub(crate) born: Option<Stamp>,
    pub(crate) stop: Stop,
}

/// Counts a connection as open until it is dropped.
struct Open(Arc<Counts>);

impl Connection {
    /// Carries it to its end.
    pub(crate) async fn carry(self, mut client: TcpStream) {
        let _open = Open::enter(&self.counts);
        let Some(mut target) = self.reach().await else {
            self.counts.unreached.fetch_add(1, Relaxed);
            reset(&client);
            return;
        };
        // Pieces are what the lanes say, not what is left of them when the system has waited for more.
        drop(client.set_nodelay(true));
        drop(target.set_nodelay(true));
        let (mut from_client, mut to_client) = client.split();
        let (mut from_target, mut to_target) = target.split();
        let both = async {
            let up = self.lane(Direction::Up, &mut from_client, &mut to_target);
            let down = self.lane(Direction::Down, &mut from_target, &mut to_client);
            match tokio::try_join!(up, down) {
                Ok(_) => End::Finished,
                Err(end) => end,
            }
        };
        let end = tokio::select! {
            biased;
            () = self.stop.cancelled() => End::Reset,
            () = self.is_reset() => End::Reset,
            end = both => end,
        };
        match end {
            End::Finished => {}
            End::Closed => drop(timeout(LINGER, close(&mut client, &mut target)).await),
            End::Reset => {
                reset(&client);
                reset(&target);
            }
        }
    }

    async fn reach(&self) -> Option<TcpStream> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            stream = timeout(CONNECT, TcpStream::connect(&self.target)) => stream.ok()?.ok(),
        }
    }

    /// Ends when this connection is to be reset.
    async fn is_reset(&self) {
        let mut faults = self.faults.clone();
        loop {
            let now = faults.borrow_and_update().resets_existing(self.lot);
            if now.is_some() && now != self.born {
                self.counts.applied(Kind::Reset, 1);
                return;
            }
            if faults.changed().await.is_err() {
                return;
            }
        }
    }

    /// Carries one direction to its end; an error is the end of the whole connection.
    async fn lane(
        &self,
        direction: Direction,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), End> {
        let mut faults = self.faults.clone();
        let mut lane = Lane::default();
        let mut chance = StdRng::seed_from_u64(self.lot ^ direction as u64);
        let mut buffer = BytesMut::new();
        let broken = |_| End::Reset;
        loop {
            let shape = faults.borrow_and_update().shape(direction, self.lot);
            lane.reshape(shape, Instant::now());
            self.counts.tally(lane.tally());
            buffer.reserve(READ_MAX);
            tokio::select! {
                biased;
                changed = faults.changed() => changed.map_err(|_| End::Reset)?,
                end = ends(lane.end()) => {
                    if end != End::Finished {
                        return Err(end);
                    }
                    return to.shutdown().await.map_err(broken);
                }
                wrote = deliver(to, lane.next()) => {
                    let wrote = wrote.map_err(broken)?;
                    lane.written(wrote);
                    self.counts.bytes(direction, wrote as u64);
                }
                read = from.read_buf(&mut buffer), if lane.reads() => {
                    match read.map_err(broken)? {
                        0 => lane.finish(Instant::now(), &mut chance),
                        _ => lane.push(buffer.split(), Instant::now(), &mut chance),
                    }
                }
            }
        }
    }
}

impl Open {
    fn enter(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Relaxed);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// Makes a connection end by RST when it is dropped.
pub(crate) fn reset(stream: &TcpStream) {
    // An error means that it has ended already.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

/// Writes what is next as far as it goes, when it is due.
async fn deliver(
    to: &mut (impl AsyncWrite + Unpin),
    next: Option<(Instant, Bytes)>,
) -> io::Result<usize> {
    let Some((due, bytes)) = next else {
        return pending().await;
    };
    sleep_until(due).await;
    match to.write(&bytes).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        wrote => Ok(wrote),
    }
}

async fn ends(end: Option<(Instant, End)>) -> End {
    let Some((due, end)) = end else {
        return pending().await;
    };
    sleep_until(due).await;
    end
}

/// Says the end both ways and waits for those of the others.
async fn close(client: &mut TcpStream, target: &mut TcpStream) {
    drop(client.shutdown().await);
    drop(target.shutdown().await);
    let (mut nothing, mut nowhere) = (tokio::io::sink(), tokio::io::sink());
    let rest = (
        tokio::io::copy(client, &mut nothing),
        tokio::io::copy(target, &mut nowhere),
    );
    drop(tokio::join!(rest.0, rest.1));
}
