//! The ends of an agent process: serves `Handler` where the sidecar calls it, and reaches the
//! sidecar's own services, both as the environment says.

use std::env;
use std::fs;
use std::future::Future;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use crate::pb::handler_server::{Handler, HandlerServer};

/// Where to serve `attache.v1.Handler`: `unix:/path`, or `127.0.0.1:port`.
const LISTEN: &str = "ATTACHE_LISTEN";

/// Where the sidecar serves `attache.v1.Agent` and `Registry`, written the same way.
const SIDECAR: &str = "ATTACHE_SIDECAR";

/// How long what runs may go on after a stop was asked for.
const GRACE: Duration = Duration::from_secs(30);

/// Serves `handler` until SIGTERM or SIGINT, then finishes what runs.
///
/// # Errors
/// The address is missing or cannot be listened on; or the listener broke.
pub async fn serve(handler: impl Handler) -> anyhow::Result<()> {
    let address = from_env(LISTEN)?;
    let router = Server::builder().add_service(HandlerServer::new(handler));
    let stop = terminated()?.shared();
    let cannot = || format!("cannot listen on {address}");
    let serving = if let Some(path) = unix_path(&address) {
        // A socket file outlives its process, and would be "in use" for ever.
        drop(fs::remove_file(path));
        let incoming = UnixListenerStream::new(UnixListener::bind(path).with_context(cannot)?);
        router
            .serve_with_incoming_shutdown(incoming, stop.clone())
            .left_future()
    } else {
        let listener = TcpListener::bind(&address).await.with_context(cannot)?;
        let incoming = TcpListenerStream::new(listener);
        router
            .serve_with_incoming_shutdown(incoming, stop.clone())
            .right_future()
    };
    tracing::info!(address, "listening");
    tokio::select! {
        served = serving => served?,
        () = stop.then(|()| sleep(GRACE)) => tracing::warn!("stopped with work unfinished"),
    }
    Ok(())
}

/// A connection to the sidecar, made at the first call and again whenever it broke.
///
/// # Errors
/// The address is missing, or is none.
pub fn sidecar() -> anyhow::Result<Channel> {
    let address = from_env(SIDECAR)?;
    let uri = match unix_path(&address) {
        Some(path) => format!("unix:{path}"),
        None => format!("http://{address}"),
    };
    let endpoint = Endpoint::from_shared(uri);
    Ok(endpoint
        .with_context(|| format!("{SIDECAR}={address} is no address"))?
        .connect_lazy())
}

/// Writes events to standard error, as much as `RUST_LOG` asks for (`info`, `research_desk=debug`).
pub fn log() {
    let wanted = env::var("RUST_LOG")
        .ok()
        .and_then(|levels| levels.parse().ok());
    let wanted = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    tracing_subscriber::registry()
        .with(lines)
        .with(wanted)
        .init();
}

fn from_env(name: &str) -> anyhow::Result<String> {
    env::var(name).with_context(|| {
        format!("{name} is not set: start this agent by `attache up examples/research-desk`")
    })
}

/// The path in `unix:/path` or `unix:///path`; none for an address of TCP.
fn unix_path(address: &str) -> Option<&str> {
    let path = address.strip_prefix("unix:")?;
    Some(path.strip_prefix("//").unwrap_or(path))
}

/// Resolves once the process is asked to stop.
fn terminated() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_write_a_socket_are_read() {
        assert_eq!(unix_path("unix:/run/a.sock"), Some("/run/a.sock"));
        assert_eq!(unix_path("unix:///run/a.sock"), Some("/run/a.sock"));
        assert_eq!(unix_path("127.0.0.1:7000"), None);
    }
}
