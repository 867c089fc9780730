//! What a sidecar is told, and what it tells once it serves.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use super::join::Invitation;
use crate::{
    domain::{InstanceId, SpiffeId},
    pb,
    task::callback::Allowed,
    telemetry::Telemetry,
};

/// What a sidecar is told.
#[derive(Clone, Debug)]
pub struct SidecarConfig {
    /// Directory of certificate, journal and catalog copy.
    pub state: PathBuf,
    /// Registries' mutual TLS listeners.
    pub registry: Vec<String>,
    /// Registries' enrolment listeners.
    pub enrollment: Vec<String>,
    /// Join string for the first start.
    pub invitation: Invitation,
    /// Mutual TLS listener.
    pub listen: String,
    /// Plaintext listener for the own agent.
    pub local: String,
    /// HTTP admin listener.
    pub admin: SocketAddr,
    /// Where peers reach `listen`; empty: found out from the way to the registry.
    pub advertise: Vec<String>,
    /// Zone label.
    pub zone: String,
    /// Data threads, at least 1.
    pub threads: usize,
    /// Age of members' connections; ours to them are replaced before it.
    pub connection_age: Duration,
    /// How long the whole drain may take.
    pub drain: Duration,
    /// How long an attempt elsewhere may be out of reach before it is lost.
    pub agent_lost_after: Duration,
    /// How long a finished task can be asked for.
    pub retention: Duration,
    /// Most finished tasks that stay in memory.
    pub finished_in_memory: usize,
    /// How the agent is reached; `None`: this member only calls.
    pub agent: Option<AgentAt>,
    /// How the agent's health is asked for.
    pub agent_health: Probing,
    /// The service whose health it is asked for; empty: that of its whole server.
    pub agent_health_service: String,
    /// Where its tasks are kept.
    pub journal: Journaling,
    /// Bytes that a segment of the journal reserves; two are on disk at least.
    pub journal_segment: u64,
    /// Bytes that must be free on the journal's disk for a task to be taken; 0: any.
    pub disk_reserve: u64,
    /// Whom it may call back outside of the mesh.
    pub callbacks: CallbackConfig,
    /// The card as configured.
    pub card: pb::AgentCard,
    /// How it is seen.
    pub telemetry: Telemetry,
}

/// Whom a sidecar may call back outside of the mesh.
#[derive(Clone, Debug, Default)]
pub struct CallbackConfig {
    /// URLs that it may call.
    pub allowed: Arc<Allowed>,
    /// PEM file of authorities beside the system's.
    pub ca_file: Option<PathBuf>,
}

/// How a sidecar comes to its agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentAt {
    /// It serves `Handler` at this address.
    Listens(String),
    /// It opens streams to the local listener, by `Agent.Attach`.
    Attaches,
}

impl AgentAt {
    /// What stands in a configuration, and in an agent's `ATTACHE_LISTEN`, for [`Self::Attaches`].
    pub const ATTACH: &str = "attach";

    /// As a configuration has it: an address, or [`Self::ATTACH`].
    pub fn read(text: &str) -> Self {
        match text {
            Self::ATTACH => Self::Attaches,
            address => Self::Listens(address.to_owned()),
        }
    }
}

/// How an agent is asked whether it is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Probing {
    /// The best of the others that it serves.
    #[default]
    Auto,
    /// By `grpc.health.v1.Health.Watch`.
    Watch,
    /// By `grpc.health.v1.Health.Check`, every 5 s.
    Check,
    /// By a connection, every 5 s: nothing is asked.
    Connect,
}

/// Where a home's tasks are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Journaling {
    /// In the state directory, synced before anything is acknowledged.
    #[default]
    Disk,
    /// Nowhere: a restart loses all tasks. It shows what the disk costs.
    Memory,
}

impl Journaling {
    /// Whether tasks survive a restart.
    pub fn is_disk(&self) -> bool {
        *self == Self::Disk
    }
}

/// Where a running sidecar listens.
#[derive(Clone, Debug)]
pub struct Listening {
    /// Who it is.
    pub id: SpiffeId,
    /// Which copy of it.
    pub instance: InstanceId,
    /// Mutual TLS.
    pub mtls: String,
    /// For the own agent, in gRPC naming syntax.
    pub local: String,
    /// HTTP admin.
    pub admin: SocketAddr,
}
