//! The fault proxy does what it says: each fault on a bare connection, and a mesh behind proxies.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    fault::{Counters, FaultProxy, Placed, protocol},
    mesh::Site,
    wait::{eventually, within},
};

mod bytes;
mod connections;
mod control;
mod mesh;

// The parts of the proxy that decide, for their own tests: cargo runs none in an example.
#[allow(dead_code, reason = "the proxy uses all of it")]
#[path = "../../fault_proxy/faults.rs"]
mod faults;
#[allow(dead_code, reason = "the proxy uses all of it")]
#[path = "../../fault_proxy/lane.rs"]
mod lane;

/// A proxy with one route, `wire`, to a listener of the test's.
struct Wire {
    // Fields are dropped in this order: the process ends before its directory goes.
    proxy: FaultProxy,
    target: TcpListener,
    /// Where the route listens.
    at: String,
    site: Site,
}

impl Wire {
    async fn new() -> Self {
        Self::seeded(rand::random()).await
    }

    async fn seeded(seed: u64) -> Self {
        let site = Site::new("");
        let proxy = FaultProxy::seeded(&site, seed).await;
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = proxy
            .route("wire", &target.local_addr().unwrap().to_string())
            .await;
        Self {
            proxy,
            target,
            at,
            site,
        }
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        within("a connect is answered", TcpStream::connect(&self.at)).await
    }

    /// Both ends of a connection through the proxy.
    async fn pair(&self) -> (TcpStream, TcpStream) {
        let client = self.connect().await.unwrap();
        let accepted = within("the target is reached", self.target.accept()).await;
        (client, accepted.unwrap().0)
    }

    /// Connects, and how the connection then ends; the RST may be there before the connect is done.
    async fn connect_to_end(&self) -> io::Result<usize> {
        rest(&mut self.connect().await?).await.1
    }

    async fn set(&self, fault: impl Into<Placed>) {
        self.proxy.set("wire", fault).await;
    }

    async fn clear(&self) {
        self.proxy.clear("wire").await;
    }

    async fn counters(&self) -> Counters {
        self.proxy.counters("wire").await
    }

    /// How often a kind of fault was done.
    async fn applied(&self, kind: &str) -> u64 {
        let counters = self.counters().await;
        counters.applied.get(kind).copied().unwrap_or(0)
    }

    async fn until(&self, what: &str, holds: impl Fn(&Counters) -> bool) -> Counters {
        eventually(what, || async {
            let counters = self.counters().await;
            if holds(&counters) {
                Ok(counters)
            } else {
                Err(format!("{counters:?}"))
            }
        })
        .await
    }
}

/// So many bytes that are not all the same.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

async fn send(to: &mut TcpStream, bytes: &[u8]) {
    within("bytes are taken", to.write_all(bytes))
        .await
        .unwrap();
}

async fn receive(from: &mut TcpStream, bytes: usize) -> Vec<u8> {
    let mut got = vec![0; bytes];
    within("bytes arrive", from.read_exact(&mut got))
        .await
        .unwrap();
    got
}

/// What comes until the end, and how that was.
async fn rest(from: &mut TcpStream) -> (Vec<u8>, io::Result<usize>) {
    let mut got = Vec::new();
    let ended = within("a connection ends", from.read_to_end(&mut got)).await;
    (got, ended)
}

/// A round trip: whatever the proxy did before, it has done by now.
async fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    send(client, b"to").await;
    assert_eq!(receive(server, 2).await, b"to");
    send(server, b"fro").await;
    assert_eq!(receive(client, 3).await, b"fro");
}

fn is_reset(ended: &io::Result<usize>) -> bool {
    let kind = ended.as_ref().map_err(io::Error::kind);
    kind == Err(io::ErrorKind::ConnectionReset)
}
