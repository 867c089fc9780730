//! Configuration of a sidecar: file, environment, flags, in rising order.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::callbacks::CallbackSettings;
use super::card::CardSettings;
use super::lifetimes::{AGENT_LOST_AFTER, CONNECTION_AGE, DRAIN, RETENTION};
use super::telemetry::TelemetrySettings;
use crate::config::{Size, Span};
use crate::sidecar::{Journaling, Probing};
use crate::task::home::IN_MEMORY;

/// Port of the sidecar's mutual TLS listener.
pub const SIDECAR_PORT: u16 = 7643;
/// Port of the sidecar's admin listener, on loopback.
pub const SIDECAR_ADMIN_PORT: u16 = 7680;

/// What a sidecar needs to run.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SidecarSettings {
    /// Directory of its certificate, journal and catalog copy. Losing it loses the home's tasks.
    pub state: PathBuf,
    /// `host:port` of the registries' mutual TLS listeners.
    pub registry: Vec<String>,
    /// `host:port` of the registries' enrolment listeners.
    pub enrollment: Vec<String>,
    /// File that holds the join string; read on the first start only. `ATTACHE_JOIN` holds the
    /// string itself. Never a flag: command lines are seen by everybody on the machine.
    pub join_file: Option<PathBuf>,
    /// Mutual TLS listener: members of the mesh.
    pub listen: String,
    /// Plaintext listener for its own agent: `unix:/path`, a loopback `host:port`, or `tcp` for
    /// 127.0.0.1:7600.
    pub local: String,
    /// HTTP admin listener; loopback only.
    pub admin: String,
    /// `host:port` where peers reach `listen`; empty: the local address of its connection to the
    /// registry, with the port of `listen`.
    pub advertise: Vec<String>,
    /// Zone label.
    pub zone: String,
    /// Data threads; 0: one per core.
    pub threads: usize,
    /// Age at which a member's connection is told to go, give or take a tenth; see
    /// [`CONNECTION_AGE`].
    pub connection_age: Span,
    /// How long it may take to end; see [`DRAIN`].
    pub drain: Span,
    /// How long an attempt elsewhere may be out of reach; see [`AGENT_LOST_AFTER`].
    pub agent_lost_after: Span,
    /// How long a finished task can be asked for; see [`RETENTION`].
    pub retention: Span,
    /// Most finished tasks that stay in memory; the others are in the archive.
    pub finished_in_memory: usize,
    /// Address of the agent's `Handler`, as in its `ATTACHE_LISTEN`, or `attach`: it opens streams
    /// to `local` instead. Unset: no agent, only calls.
    pub agent: Option<String>,
    /// How the agent is asked whether it is well.
    pub agent_health: Probing,
    /// The service that it is asked for by `grpc.health.v1`; empty: its whole server.
    pub agent_health_service: String,
    /// Where tasks are kept; anything but `disk` is for measuring.
    #[serde(skip_serializing_if = "Journaling::is_disk")]
    pub journal: Journaling,
    /// Length of the journal's files, two of which are there from the start: `4KiB` to `256MiB`.
    pub journal_segment: Size,
    /// What must be free on the disk of `state` for a new task to be taken; `0`: anything.
    pub disk_reserve: Size,
    /// Whom it may call back outside of the mesh.
    pub callbacks: CallbackSettings,
    /// Where its traces go.
    pub telemetry: TelemetrySettings,
    /// What the agent publishes about itself.
    pub card: CardSettings,
}

impl Default for SidecarSettings {
    fn default() -> Self {
        Self {
            state: "attache/sidecar".into(),
            registry: vec!["127.0.0.1:7443".into()],
            enrollment: vec!["127.0.0.1:7444".into()],
            join_file: None,
            listen: format!("[::]:{SIDECAR_PORT}"),
            local: "tcp".into(),
            admin: format!("127.0.0.1:{SIDECAR_ADMIN_PORT}"),
            advertise: Vec::new(),
            zone: String::new(),
            threads: 0,
            connection_age: CONNECTION_AGE.default,
            drain: DRAIN.default,
            agent_lost_after: AGENT_LOST_AFTER.default,
            retention: RETENTION.default,
            finished_in_memory: IN_MEMORY,
            agent: None,
            agent_health: Probing::Auto,
            agent_health_service: String::new(),
            journal: Journaling::Disk,
            journal_segment: Size(16 << 20),
            disk_reserve: Size(256 << 20),
            callbacks: CallbackSettings::default(),
            telemetry: TelemetrySettings::default(),
            card: CardSettings::default(),
        }
    }
}
