//! The sidecar's process: settings to what the sidecar is told.

use std::net::SocketAddr;

use super::{
    error::StartError,
    registry::private_dir,
    settings::{
        SidecarSettings,
        lifetimes::{AGENT_LOST_AFTER, CONNECTION_AGE, DRAIN, RETENTION},
    },
};
use crate::{
    runtime::{DataThreads, Stop},
    sidecar::{self, AgentAt, Invitation, Listening, SidecarConfig},
    telemetry::Telemetry,
};

/// Environment variable that may hold a join string.
pub const JOIN_ENV: &str = "ATTACHE_JOIN";
/// What `local = "tcp"` stands for.
const LOCAL_TCP: &str = "127.0.0.1:7600";

/// Runs a sidecar until `stop`, then drains.
///
/// # Errors
/// When a setting is wrong, or it cannot start or go on.
pub async fn run(
    settings: &SidecarSettings,
    telemetry: Telemetry,
    stop: Stop,
    started: impl FnOnce(&Listening),
) -> Result<(), StartError> {
    let admin: SocketAddr = settings
        .admin
        .parse()
        .map_err(|error| StartError::value("admin", error))?;
    private_dir(&settings.state).map_err(StartError::system(format!(
        "cannot make the state directory {}",
        settings.state.display()
    )))?;
    let local = if settings.local == "tcp" {
        LOCAL_TCP
    } else {
        &settings.local
    };
    let threads = if settings.threads == 0 {
        DataThreads::per_core()
    } else {
        settings.threads
    };
    let config = SidecarConfig {
        state: settings.state.clone(),
        registry: settings.registry.clone(),
        enrollment: settings.enrollment.clone(),
        invitation: Invitation {
            text: std::env::var(JOIN_ENV).ok().filter(|text| !text.is_empty()),
            file: settings.join_file.clone(),
        },
        listen: settings.listen.clone(),
        local: local.to_owned(),
        admin,
        advertise: settings.advertise.clone(),
        zone: settings.zone.clone(),
        threads,
        connection_age: CONNECTION_AGE.within(settings.connection_age)?,
        drain: DRAIN.within(settings.drain)?,
        agent_lost_after: AGENT_LOST_AFTER.within(settings.agent_lost_after)?,
        retention: RETENTION.within(settings.retention)?,
        finished_in_memory: settings.finished_in_memory,
        agent: settings.agent.as_deref().map(AgentAt::read),
        agent_health: settings.agent_health,
        agent_health_service: settings.agent_health_service.clone(),
        journal: settings.journal,
        journal_segment: settings.journal_segment.0,
        disk_reserve: settings.disk_reserve.0,
        callbacks: settings
            .callbacks
            .config()
            .map_err(|(key, text)| StartError::Entry { key, text })?,
        card: settings.card.card(),
        telemetry,
    };
    Ok(Box::pin(sidecar::run(config, stop, started)).await?)
}
