//! How far a sidecar has come, for its readiness and for what it reports to the registry.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use tonic_health::pb::health_server::HealthServer;

use super::{balancer::Balancer, counted::Counted, shown};
use crate::{
    admin::{
        Inspect,
        health::{Health, HealthService},
    },
    config::Span,
    domain::SpiffeId,
    identity::{Credentials, Peer},
    pb,
    registry::client::{Mirror, Report, Standing},
    runtime::{Stop, clock},
    task::{archive::Archive, journal::Journal},
    telemetry::{
        Telemetry,
        metrics::{Format, Metrics, peers::PeerCalls},
    },
};

/// Part of its life that a certificate has left when its renewal, due at half, has failed for long.
const OVERDUE: f64 = 0.4;
/// A certificate that is overdue and has less than this left is worth a word.
const SOON: Duration = Duration::from_mins(5);

/// Names of the services that have a health of their own.
const TASKS: &str = "attache.v1.Agent";
const EXECUTOR: &str = "attache.v1.Executor";
const CATALOG: &str = "attache.v1.Registry";
/// The own agent's; members cannot call it, and can ask how it is.
const HANDLER: &str = "attache.v1.Handler";

/// What a sidecar is made of, as far as it is there.
#[derive(Debug)]
pub(super) struct Progress {
    facts: Mutex<Facts>,
    telemetry: Telemetry,
    report: watch::Sender<Report>,
    metrics: Metrics,
    calls: PeerCalls,
}

#[derive(Debug, Default)]
struct Facts {
    id: String,
    instance: String,
    credentials: Option<Credentials>,
    agent: Option<Agent>,
    boards: Option<Boards>,
    standing: Option<watch::Receiver<Standing>>,
    was_here: bool,
    mirror: Option<Mirror>,
    balancer: Option<Arc<Balancer>>,
    journal: Option<Journal>,
    archive: Option<Archive>,
    draining: bool,
}

/// What is held of the own agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Agent {
    /// It gets new work.
    Healthy,
    /// It gets none; with the reason, a sentence without its end.
    Unhealthy(Cow<'static, str>),
}

/// `grpc.health.v1` of the two listeners.
#[derive(Clone, Debug)]
pub(super) struct Boards {
    mesh: Health,
    local: Health,
}

impl Boards {
    /// `has_agent`: there is an agent whose health can be asked for.
    pub(super) fn new(has_agent: bool) -> Self {
        let mesh: &[_] = if has_agent {
            &[TASKS, EXECUTOR, HANDLER]
        } else {
            &[TASKS, EXECUTOR]
        };
        Self {
            mesh: Health::new(mesh),
            local: Health::new(&[TASKS, CATALOG]),
        }
    }

    /// The services, whose watches end at `ends`: the members', and the own agent's.
    pub(super) fn services(&self, ends: &Stop) -> [HealthServer<HealthService>; 2] {
        [&self.mesh, &self.local].map(|health| health.service(ends.clone()))
    }

    /// `takes`: new tasks; `fit`: there is an agent, and it is healthy.
    fn show(&self, draining: bool, takes: bool, agent: Option<&Agent>) {
        let fit = !draining && agent == Some(&Agent::Healthy);
        self.mesh
            .set([("", takes), (TASKS, takes), (EXECUTOR, fit)]);
        self.mesh.set(agent.map(|_| (HANDLER, fit)));
        self.local
            .set([("", takes), (TASKS, takes), (CATALOG, !draining)]);
    }
}

impl Progress {
    /// Nothing is there yet; `has_agent` says whether an agent is waited for.
    pub(super) fn new(has_agent: bool, telemetry: Telemetry) -> Self {
        let health = if has_agent {
            pb::Health::NotServing
        } else {
            pb::Health::Serving
        };
        let facts = Facts {
            agent: has_agent.then_some(Agent::Unhealthy("the agent was not looked at yet".into())),
            ..Default::default()
        };
        let report = watch::Sender::new(Report { health, load: None });
        let (metrics, calls) = (Metrics::new("sidecar"), PeerCalls::default());
        metrics.add(calls.clone());
        metrics.add(telemetry.clone());
        Self {
            facts: Mutex::new(facts),
            telemetry,
            report,
            metrics,
            calls,
        }
    }

    /// What is counted; components join it as they come to be.
    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Counts the calls to other members.
    pub(super) fn calls(&self) -> PeerCalls {
        self.calls.clone()
    }

    /// What the registry is told.
    pub(super) fn reports(&self) -> watch::Receiver<Report> {
        self.report.subscribe()
    }

    pub(super) fn joined(&self, id: String, instance: String, credentials: Credentials) {
        let mut facts = self.facts.lock();
        (facts.id, facts.instance) = (id, instance);
        facts.credentials = Some(credentials);
    }

    pub(super) fn registering(&self, standing: watch::Receiver<Standing>) {
        self.facts.lock().standing = Some(standing);
    }

    pub(super) fn balances(&self, balancer: Arc<Balancer>) {
        self.metrics.add(Counted(balancer.clone()));
        self.facts.lock().balancer = Some(balancer);
    }

    pub(super) fn mirrors(&self, mirror: Mirror) {
        self.metrics.add(mirror.clone());
        self.facts.lock().mirror = Some(mirror);
    }

    pub(super) fn journals(&self, journal: Journal) {
        self.metrics.add(journal.clone());
        if let Some(blobs) = journal.blobs() {
            self.metrics.add(blobs.clone());
        }
        self.facts.lock().journal = Some(journal);
    }

    pub(super) fn archives(&self, archive: Archive) {
        self.metrics.add(archive.clone());
        self.facts.lock().archive = Some(archive);
    }

    /// What is held of the agent now.
    pub(super) fn set_agent(&self, agent: Agent) {
        let before = self.facts.lock().agent.replace(agent.clone());
        if before.as_ref() == Some(&agent) {
            return;
        }
        match (&before, &agent) {
            (_, Agent::Healthy) => tracing::info!("the agent is healthy"),
            (Some(Agent::Unhealthy(_)), Agent::Unhealthy(why)) => {
                tracing::debug!("the agent is still unhealthy: {why}");
            }
            (_, Agent::Unhealthy(why)) => tracing::warn!("the agent is unhealthy: {why}"),
        }
        self.tell();
    }

    /// Shows health to whoever asks for it by gRPC.
    pub(super) fn shows(&self, boards: Boards) {
        self.facts.lock().boards = Some(boards);
        self.tell();
    }

    pub(super) fn set_load(&self, load: pb::Load) {
        self.report.send_if_modified(|report| {
            let changed = report.load != Some(load);
            report.load = Some(load);
            changed
        });
    }

    pub(super) fn drain(&self) {
        self.facts.lock().draining = true;
        self.tell();
    }

    /// Tells the registry and the boards how things are now. The disk says nothing by itself: call
    /// it now and then.
    pub(super) fn tell(&self) {
        let facts = self.facts.lock();
        let health = match (facts.draining, &facts.agent) {
            (true, _) => pb::Health::Draining,
            (false, Some(Agent::Unhealthy(_))) => pb::Health::NotServing,
            (false, Some(Agent::Healthy) | None) => pb::Health::Serving,
        };
        if let Some(boards) = &facts.boards {
            let disk = facts.journal.as_ref().and_then(without_disk);
            let takes = !facts.draining && disk.is_none();
            boards.show(facts.draining, takes, facts.agent.as_ref());
        }
        self.report.send_if_modified(|report| {
            let changed = report.health != health;
            report.health = health;
            changed
        });
    }
}

/// What is wrong with a certificate that is not valid now.
fn out_of_life(own: &Peer, now: SystemTime) -> Option<String> {
    if let Ok(since) = now.duration_since(own.not_after) {
        let since = Span(Duration::from_secs(since.as_secs()));
        return Some(format!(
            "its certificate ended {since} ago and there is no new one: peers refuse it until the \
             registry can be reached; its log says why it cannot"
        ));
    }
    let early = own.not_before.duration_since(now).ok()?;
    let early = Span(Duration::from_secs(early.as_secs()));
    Some(format!(
        "its certificate is not valid for {early} yet by this machine's clock, and there is no new \
         one: is the clock right, and the registry in reach?"
    ))
}

impl Inspect for Progress {
    fn ready(&self) -> Result<(), Vec<String>> {
        let mut facts = self.facts.lock();
        let mut missing = Vec::new();
        if facts.draining {
            missing.push("draining".to_owned());
        }
        if facts.id.is_empty() {
            missing.push("has not joined the mesh yet".to_owned());
        }
        let certificate = facts.credentials.as_ref().map(Credentials::current);
        missing.extend(certificate.and_then(|own| {
            let (own, now) = (own.peer(), clock::wall());
            out_of_life(own, now).or_else(|| ends_soon(own, now))
        }));
        missing.extend(facts.journal.as_ref().and_then(without_disk));
        if let Some(Agent::Unhealthy(why)) = &facts.agent {
            missing.push(why.clone().into_owned());
        }
        match facts
            .standing
            .as_ref()
            .map(|standing| standing.borrow().clone())
        {
            Some(Standing::Here(told)) => {
                facts.was_here = true;
                if facts.agent == Some(Agent::Healthy) && told == pb::Health::NotServing {
                    missing.push("the registry has not heard yet that it serves".to_owned());
                }
            }
            Some(Standing::Refused(why)) => missing.push(format!("is not registered: {why}")),
            // Once in the catalog, a registry that is away changes nothing for a while.
            Some(Standing::Away(_)) | None if facts.was_here => {}
            Some(Standing::Away(why)) => {
                let known = facts
                    .mirror
                    .as_ref()
                    .is_some_and(|m| !m.catalog().is_empty());
                if let Some(why) = why
                    && !known
                {
                    missing.push(format!("is not registered: {why}"));
                } else if !known {
                    missing.push("is not registered yet".to_owned());
                }
            }
            None => missing.push("is not registered yet".to_owned()),
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(missing)
        }
    }

    fn metrics(&self, format: Format) -> String {
        self.metrics.page(format)
    }

    fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    fn traffic(&self, query: &str) -> Option<Value> {
        let facts = self.facts.lock();
        let (balancer, id) = (facts.balancer.clone()?, facts.id.clone());
        drop(facts);
        let now = Instant::now();
        let rules = balancer.mirror().rules();
        let asked = shown::asked(query);
        let Some(selector) = asked.selector else {
            return Some(shown::page(&balancer.sights(asked.limit, now), &rules));
        };
        let id: Option<SpiffeId> = id.parse().ok();
        let namespace = id.as_ref().and_then(|id| id.member.namespace());
        let sights = namespace.and_then(|own| balancer.explained(own, &selector, asked.limit, now));
        Some(shown::page(&sights.unwrap_or_default(), &rules))
    }

    fn info(&self) -> Value {
        let facts = self.facts.lock();
        let report = *self.report.borrow();
        let load = report.load.unwrap_or_default();
        json!({
            "role": "sidecar",
            "version": env!("CARGO_PKG_VERSION"),
            "id": facts.id,
            "instance": facts.instance,
            "health": format!("{:?}", report.health),
            "running": load.running,
            "slots": load.slots,
            "journal": facts.journal.as_ref().map(counted),
            "archive": facts.archive.as_ref().map(archived),
            "catalog": facts.mirror.as_ref().map_or(0, |mirror| mirror.catalog().len()),
        })
    }
}

/// What is wrong with a certificate that should have been replaced: less than a tenth of its life is
/// left, or little time at all and the moment of its renewal is past.
fn ends_soon(own: &Peer, now: SystemTime) -> Option<String> {
    let left = own.not_after.duration_since(now).ok()?;
    let life = own.not_after.duration_since(own.not_before).ok()?;
    let overdue = left < life.mul_f64(OVERDUE) && left < SOON;
    (left < life / 10 || overdue).then(|| {
        format!(
            "its certificate ends in {} s and there is no new one: is the registry in reach?",
            left.as_secs()
        )
    })
}

/// Why no task can be taken in.
fn without_disk(journal: &Journal) -> Option<String> {
    if journal.failed() {
        return Some("the journal failed: this sidecar stops; is its disk broken or full?".into());
    }
    let low = journal.stats().low_space;
    low.then(|| "the disk is nearly full: no new task is taken until there is room".into())
}

fn archived(archive: &Archive) -> Value {
    let stats = archive.stats();
    json!({
        "tasks": stats.tasks,
        "bytes": stats.bytes,
        "moved": stats.moved,
        "retired": stats.retired,
        "failures": stats.failures,
        "last_error": stats.last_error.map(|error| error.to_string()),
    })
}

fn counted(journal: &Journal) -> Value {
    let stats = journal.stats();
    json!({
        "records": stats.records,
        "bytes": stats.bytes,
        "syncs": stats.syncs,
        "mean_sync_us": stats.mean_sync.as_micros(),
        "mean_batch": stats.mean_batch,
        "segments": stats.segments,
        "low_space": stats.low_space,
        "free_bytes": stats.free_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_should_have_been_replaced_is_a_reason() {
        let start = clock::wall();
        let hour = Duration::from_hours(1);
        for (life, left, said) in [
            (hour, hour, false),
            // A tenth of an hour is six minutes.
            (hour, Duration::from_mins(7), false),
            (hour, Duration::from_mins(5), true),
            (24 * hour, 2 * hour, true),
            // Short lives: renewed at half, overdue after that, with minutes to go.
            (Duration::from_mins(10), Duration::from_mins(5), false),
            (Duration::from_mins(10), Duration::from_secs(230), true),
            (Duration::from_secs(10), Duration::from_secs(5), false),
            (Duration::from_secs(10), Duration::from_secs(3), true),
        ] {
            let own = Peer {
                id: "spiffe://a/ns/default/agent/x".parse().unwrap(),
                instance: None,
                not_before: start,
                not_after: start + life,
                serial: String::new(),
                key: [0; 32],
            };
            let now = start + (life - left);
            assert_eq!(ends_soon(&own, now).is_some(), said, "{left:?} of {life:?}");
        }
    }
}
