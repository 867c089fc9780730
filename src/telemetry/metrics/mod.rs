//! What is counted, and its page for Prometheus. No global state.
//!
//! A component keeps counters of its own: atomics that it moves, or gauges that it can be asked
//! for. The process hands its components to [`Metrics`] as [`Source`]s, which are read when
//! somebody scrapes. So a component needs no registry, and the registry no bookkeeping.
//!
//! - `family`: the names, labels and help of everything there is, in one table.
//! - `sheet`: rows of one scrape. `page`: its text, in the two forms that Prometheus reads.
//! - `histogram`: how long, how many; lock-free.
//! - `skills`: bounds what a label may hold. `callbacks`, `calls`, `passing`, `peers`, `pool`, `tasks`, `outcomes`: counters of
//!   components.
//! - `process`: what the system says of this process.

pub mod callbacks;
pub mod calls;
pub mod family;
mod histogram;
mod outcomes;
mod page;
pub mod passing;
pub mod peers;
pub mod pool;
mod process;
mod sheet;
mod skills;
pub mod tasks;

use std::{fmt, sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;

pub use histogram::Histogram;
pub use outcomes::Outcomes;
pub use page::Format;
pub use sheet::{Sheet, Source};
pub use skills::Skills;

/// Everything that one process counts. Clones are the same.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// What every process has: its version and `role`, and what the system says of it.
    pub fn new(role: &'static str) -> Self {
        let metrics = Self {
            registry: Arc::new(Mutex::new(Registry::default())),
        };
        metrics.add(move |sheet: &mut Sheet<'_>| {
            let version = env!("CARGO_PKG_VERSION");
            sheet.gauge(&family::BUILD_INFO, [([version, role], 1.0)]);
        });
        metrics.add(process::source());
        metrics
    }

    /// Has a component read at every scrape. Each family is written by one source only.
    pub fn add(&self, source: impl Source) {
        let collector = Box::new(sheet::Collected(source));
        self.registry.lock().register_collector(collector);
    }

    /// The page of this moment.
    pub fn page(&self, format: Format) -> String {
        page::page(&self.registry.lock(), format)
    }
}

/// Left of something that ends at `end`, in seconds; negative after it.
pub fn remaining(end: SystemTime, now: SystemTime) -> f64 {
    match end.duration_since(now) {
        Ok(left) => left.as_secs_f64(),
        Err(past) => -past.duration().as_secs_f64(),
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}
