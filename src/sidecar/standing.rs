//! How far a sidecar has come, for its readiness and for what it reports to the registry.

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    admin::Inspect,
    pb,
    registry::client::{Mirror, Report, Standing},
    task::journal::Journal,
};

/// What a sidecar is made of, as far as it is there.
#[derive(Debug)]
pub(super) struct Progress {
    facts: Mutex<Facts>,
    report: watch::Sender<Report>,
}

#[derive(Debug, Default)]
struct Facts {
    id: String,
    instance: String,
    agent: Option<bool>,
    standing: Option<watch::Receiver<Standing>>,
    was_here: bool,
    mirror: Option<Mirror>,
    journal: Option<Journal>,
    draining: bool,
}

impl Progress {
    /// Nothing is there yet; `has_agent` says whether an agent is waited for.
    pub(super) fn new(has_agent: bool) -> Self {
        let health = if has_agent {
            pb::Health::NotServing
        } else {
            pb::Health::Serving
        };
        let facts = Facts {
            agent: has_agent.then_some(false),
            ..Default::default()
        };
        let report = watch::Sender::new(Report { health, load: None });
        Self {
            facts: Mutex::new(facts),
            report,
        }
    }

    /// What the registry is told.
    pub(super) fn reports(&self) -> watch::Receiver<Report> {
        self.report.subscribe()
    }

    pub(super) fn joined(&self, id: String, instance: String) {
        let mut facts = self.facts.lock();
        (facts.id, facts.instance) = (id, instance);
    }

    pub(super) fn registering(&self, standing: watch::Receiver<Standing>) {
        self.facts.lock().standing = Some(standing);
    }

    pub(super) fn mirrors(&self, mirror: Mirror) {
        self.facts.lock().mirror = Some(mirror);
    }

    pub(super) fn journals(&self, journal: Journal) {
        self.facts.lock().journal = Some(journal);
    }

    pub(super) fn set_agent(&self, answers: bool) {
        let changed = self.facts.lock().agent.replace(answers) != Some(answers);
        if changed {
            tracing::info!(answers, "agent");
            self.tell();
        }
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

    fn tell(&self) {
        let facts = self.facts.lock();
        let health = match (facts.draining, facts.agent) {
            (true, _) => pb::Health::Draining,
            (false, Some(false)) => pb::Health::NotServing,
            (false, Some(true) | None) => pb::Health::Serving,
        };
        self.report.send_if_modified(|report| {
            let changed = report.health != health;
            report.health = health;
            changed
        });
    }
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
        if facts.agent == Some(false) {
            missing.push("the agent does not answer on its address".to_owned());
        }
        match facts
            .standing
            .as_ref()
            .map(|standing| standing.borrow().clone())
        {
            Some(Standing::Here(told)) => {
                facts.was_here = true;
                if facts.agent == Some(true) && told == pb::Health::NotServing {
                    missing.push("the registry has not heard yet that it serves".to_owned());
                }
            }
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
            "catalog": facts.mirror.as_ref().map_or(0, |mirror| mirror.catalog().len()),
        })
    }
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
    })
}
