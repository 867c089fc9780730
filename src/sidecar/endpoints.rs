//! What this sidecar knows of every instance of the catalog, one endpoint each, shared by all threads.
//!
//! Kept in line with the catalog: as many as it has. One that left is forgotten here, and lives on
//! within the calls that it still has.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::told;
use crate::{
    domain::InstanceId,
    registry::client::{Catalog, Entry},
    resilience::{Endpoint, Epoch},
};

/// The endpoints of all instances. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoints {
    epoch: Epoch,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    by: HashMap<InstanceId, Process>,
    /// Whoever comes from now on is new to everybody, not only to this sidecar.
    settled: bool,
}

#[derive(Debug)]
struct Process {
    boot_id: String,
    endpoint: Arc<Endpoint>,
}

impl Process {
    fn new(entry: &Entry, endpoint: Endpoint) -> Self {
        Self {
            boot_id: entry.instance.boot_id.clone(),
            endpoint: Arc::new(endpoint),
        }
    }
}

impl Endpoints {
    /// Moves on with every breaker.
    pub(super) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Rings with every breaker.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.epoch.changes()
    }

    /// Brings them in line with the catalog; `complete`: it is the whole of the registry's.
    pub(super) fn follow(&self, catalog: &Catalog, complete: bool, now: Instant) {
        let mut known = self.known.lock();
        let new_since = known.settled.then_some(now);
        let mut closed = Vec::new();
        for entry in catalog.entries_after(None) {
            let Some(process) = known.by.get_mut(&entry.instance_id) else {
                let endpoint = Endpoint::new(self.epoch.clone(), new_since, now);
                let process = Process::new(entry, endpoint);
                known.by.insert(entry.instance_id.clone(), process);
                continue;
            };
            if process.boot_id != entry.instance.boot_id {
                if process.endpoint.restarted() {
                    closed.push((&entry.instance_id, Some(&entry.agent)));
                }
                process.boot_id.clone_from(&entry.instance.boot_id);
            }
        }
        if known.by.len() > catalog.len() {
            let here = |instance: &InstanceId| catalog.entry(instance).is_some();
            known.by.retain(|instance, _| here(instance));
        }
        known.settled |= complete;
        drop(known);
        told::closed(&closed, "another process is there");
    }

    /// Shows them one by one; it must be done soon.
    pub(super) fn each(&self, mut see: impl FnMut(&Endpoint)) {
        let known = self.known.lock();
        known.by.values().for_each(|process| see(&process.endpoint));
    }

    /// Those whose breakers closed by time since this was last asked.
    pub(super) fn take_risen(&self) -> Vec<InstanceId> {
        if !self.epoch.take_risen() {
            return Vec::new();
        }
        let known = self.known.lock();
        let risen = known.by.iter();
        let risen = risen.filter(|(_, process)| process.endpoint.take_risen());
        risen.map(|(instance, _)| instance.clone()).collect()
    }

    /// What is known of an instance of the catalog.
    pub(super) fn of(&self, entry: &Entry, now: Instant) -> Arc<Endpoint> {
        let mut known = self.known.lock();
        let new_since = known.settled.then_some(now);
        if let Some(process) = known.by.get(&entry.instance_id) {
            return process.endpoint.clone();
        }
        let process = Process::new(entry, Endpoint::new(self.epoch.clone(), new_since, now));
        let endpoint = process.endpoint.clone();
        known.by.insert(entry.instance_id.clone(), process);
        endpoint
    }
}
