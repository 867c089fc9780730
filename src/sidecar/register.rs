//! Shows the instance to the registry, once it is known where peers reach it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};

use super::standing::Progress;
use crate::{
    registry::client::{Described, Registration, Source},
    runtime::{Nursery, Stop},
};

/// How long one registry may take to answer a connection.
const ANSWER: Duration = Duration::from_secs(2);
/// Wait before all registries are tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Where an instance is.
pub(super) struct Place {
    pub(super) nursery: Nursery,
    pub(super) progress: Arc<Progress>,
    /// What the configuration says; empty: found out.
    pub(super) advertise: Vec<String>,
    pub(super) registry: Vec<String>,
    /// Port of the mutual TLS listener.
    pub(super) port: u16,
}

impl Place {
    /// Registers, and stays until `stop`.
    pub(super) async fn register(
        self,
        source: Arc<dyn Source>,
        described: watch::Sender<Arc<Described>>,
        stop: Stop,
    ) {
        let endpoints = if self.advertise.is_empty() {
            let found = tokio::select! {
                found = reachable_from(&self.registry, self.port) => found,
                () = stop.cancelled() => return,
            };
            vec![found.to_string()]
        } else {
            self.advertise
        };
        described.send_modify(|present| {
            let mut instance = present.instance.clone();
            instance.endpoints.clone_from(&endpoints);
            *present = Arc::new(Described {
                card: present.card.clone(),
                instance,
            });
        });
        let reports = self.progress.reports();
        let registration =
            Registration::start(&self.nursery, source, described.subscribe(), reports);
        self.progress.registering(registration.standing());
        self.progress.metrics().add(registration);
        stop.cancelled().await;
    }
}

/// The address of this machine that the way to the registry has, with the port of our listener.
async fn reachable_from(registry: &[String], port: u16) -> SocketAddr {
    loop {
        for address in registry {
            let connected = timeout(ANSWER, TcpStream::connect(address)).await;
            if let Ok(Ok(stream)) = connected
                && let Ok(local) = stream.local_addr()
            {
                let ip = match local.ip() {
                    IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
                    ip @ IpAddr::V4(_) => ip,
                };
                return SocketAddr::new(ip, port);
            }
        }
        if registry.is_empty() {
            return SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        }
        sleep(AGAIN).await;
    }
}
