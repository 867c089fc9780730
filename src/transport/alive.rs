//! A connection as long as its socket is open: how it ends, told once to whoever asks and counted.
//!
//! Also what the system is told about a socket.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use socket2::SockRef;

use crate::telemetry::metrics::pool::{Close, Dials};

/// How long the system sends again what a mesh peer does not acknowledge. Less than what a PING
/// takes to find out: where something was on its way, nobody has to ask.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// What the system says when it gives up on what it has sent: the last reason that it was told of.
pub(super) const UNHEARD: [io::ErrorKind; 3] = [
    io::ErrorKind::TimedOut,
    io::ErrorKind::HostUnreachable,
    io::ErrorKind::NetworkUnreachable,
];

/// How a connection ended: its first cause. Empty while it is open, and where the peer ended it.
pub(super) type Fate = Arc<OnceLock<Close>>;

/// Held by all that keeps a connection's socket open. Dropped, it is counted.
#[derive(Debug)]
pub(super) struct Alive {
    counts: Arc<Dials>,
    fate: Fate,
    opened: AtomicBool,
}

impl Alive {
    /// A socket whose connection is not made yet.
    pub(super) fn new(counts: Arc<Dials>) -> Self {
        Self {
            counts,
            fate: Fate::default(),
            opened: AtomicBool::new(false),
        }
    }

    /// The connection is made.
    pub(super) fn opened(&self) {
        self.opened.store(true, Relaxed);
        self.counts.opened();
    }

    /// It ends for this cause, if there was none before.
    pub(super) fn ends(&self, cause: Close) {
        mark(&self.fate, cause);
    }

    pub(super) fn fate(&self) -> Fate {
        Arc::clone(&self.fate)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if self.opened.load(Relaxed) {
            let cause = self.fate.get().copied().unwrap_or(Close::Peer);
            self.counts.closed(cause);
        }
    }
}

/// Gives a connection its cause to end, unless it has one.
pub(super) fn mark(fate: &Fate, cause: Close) {
    // What follows from the first cause is none.
    fate.get_or_init(|| cause);
}

/// Whether a connection ended without a word: the peer is gone or in trouble.
pub(super) fn is_bad(fate: &Fate) -> bool {
    matches!(fate.get(), Some(Close::Silent | Close::Broken))
}

/// Why a connection ended in this error.
pub(super) fn cause_of(error: &hyper::Error) -> Close {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut late = error.is_timeout();
    while let Some(inner) = source {
        let io = inner.downcast_ref::<io::Error>().or_else(|| {
            let h2 = inner.downcast_ref::<h2::Error>();
            h2.and_then(h2::Error::get_io)
        });
        late |= io.is_some_and(|io| UNHEARD.contains(&io.kind()));
        source = inner.source();
    }
    if late { Close::Silent } else { Close::Broken }
}

/// Sends small messages at once. Towards a mesh peer also bounds how long sent bytes may stay
/// unacknowledged; an agent may stop for longer, as in a debugger, and must not lose its connection.
///
/// # Errors
/// The system's word.
pub(super) fn tune(socket: &impl AsFd, mesh: bool) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_os = "linux")]
    if mesh && let Err(error) = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED)) {
        // Only earlier news: PINGs find a silent peer as well.
        tracing::debug!(%error, "no bound for unacknowledged bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn unacknowledged_bytes_are_bounded_towards_mesh_peers_only() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for (mesh, expected) in [(true, Some(UNACKNOWLEDGED)), (false, None)] {
            let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            tune(&stream, mesh).unwrap();
            assert!(stream.nodelay().unwrap());
            let bound = SockRef::from(&stream).tcp_user_timeout().unwrap();
            assert_eq!(bound.filter(|bound| !bound.is_zero()), expected);
        }
    }

    #[test]
    fn the_first_cause_counts_and_an_end_without_one_is_the_peers() {
        use crate::telemetry::metrics::{Format, Metrics};
        let counts = Dials::new("test");
        let metrics = Metrics::new("test");
        metrics.add(vec![Arc::clone(&counts)]);
        let end = |causes: &[Close], opened: bool| {
            let alive = Alive::new(Arc::clone(&counts));
            if opened {
                alive.opened();
            }
            causes.iter().for_each(|cause| alive.ends(*cause));
        };
        end(&[Close::Silent, Close::Broken], true);
        end(&[], true);
        end(&[Close::Broken], false);
        let page = metrics.page(Format::Text);
        for (reason, count) in [("silent", 1), ("peer", 1), ("broken", 0)] {
            let row = format!("closes_total{{pool=\"test\",reason=\"{reason}\"}} {count}");
            assert!(page.contains(&row), "{row}\n{page}");
        }
        assert!(page.contains("connections{pool=\"test\"} 0"), "{page}");
    }
}
