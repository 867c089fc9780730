//! What a sidecar does all the time beside its calls: its certificate, its agent, its load.

use std::{sync::Arc, time::Duration};

use rustls::RootCertStore;
use tokio::{sync::watch, time::interval};

use super::{
    bundle::Bundle,
    carry::Reached,
    error::SidecarError,
    health::{Attended, Counts, Describer, Probe, Prober},
    join::{Joiner, Renewals},
    metrics,
    run::Parts,
};
use crate::{
    identity::{Counted, keep_renewed},
    registry::client::Described,
    task::{
        courier::{
            Courier,
            web::{System, Trust, Web},
        },
        executor::Executor,
        home::Home,
    },
    transport::Pool,
};

/// How often the executor's load is put into the report; the heartbeat carries it on.
const LOAD_EVERY: Duration = Duration::from_secs(1);

impl Parts {
    pub(super) fn keep_renewed(&self, joiner: Joiner, pool: Pool) {
        let (credentials, dir) = (self.credentials.clone(), self.config.state.clone());
        let renewals = Counted::new(Renewals { joiner, pool });
        metrics::certificate(self.progress.metrics(), &credentials, renewals.outcomes());
        self.nursery.start("renewals", |stop| async move {
            keep_renewed(credentials, Some(&dir), &renewals, stop).await;
        });
    }

    pub(super) fn follow_bundle(&self, control: Pool) {
        let places = (self.config.registry.clone(), self.config.state.clone());
        let bundle = Bundle::new(self.credentials.clone(), control, places);
        self.nursery.start("bundle", |stop| bundle.follow(stop));
    }

    pub(super) fn watch_agent(
        &self,
        reached: Reached,
        described: watch::Sender<Arc<Described>>,
        executor: &Executor,
    ) {
        if self.config.agent.is_none() {
            return;
        }
        let counts = Counts::default();
        self.progress.metrics().add(counts.clone());
        let describer = Describer {
            link: reached.link(),
            configured: self.config.card.clone(),
            described,
            executor: executor.clone(),
        };
        let progress = self.progress.clone();
        let asked = (
            self.config.agent_health,
            self.config.agent_health_service.clone(),
        );
        match reached {
            Reached::Nobody => {}
            Reached::Dialed(_, address) => {
                let prober = Prober {
                    probe: Probe::new(address, asked, self.nursery.clone()),
                    describer,
                    progress,
                    counts,
                };
                self.nursery.start("prober", |stop| prober.run(stop));
            }
            Reached::Attached(desk) => {
                let attended = Attended {
                    desk,
                    describer,
                    progress,
                    counts,
                };
                self.nursery.start("attended", |stop| attended.run(stop));
            }
        }
    }

    /// Carries what the home has to tell to whoever is to be called back.
    pub(super) fn call_back(&self, home: &Home) -> Result<(), SidecarError> {
        let callbacks = &self.config.callbacks;
        let trust = if callbacks.allowed.is_empty() {
            Trust::with(RootCertStore::empty())?
        } else {
            Trust::of_system(callbacks.ca_file.as_deref())?
        };
        let web = Web::new(
            callbacks.allowed.clone(),
            trust,
            Arc::new(System::default()),
        );
        let courier = Courier::new(home.clone(), Arc::new(web));
        let nursery = self.nursery.clone();
        self.nursery
            .start("courier", |stop| courier.run(nursery, stop));
        Ok(())
    }

    pub(super) fn report_load(&self, executor: Executor) {
        let progress = self.progress.clone();
        self.nursery.start("load", |stop| async move {
            let mut every = interval(LOAD_EVERY);
            loop {
                tokio::select! {
                    _ = every.tick() => {
                        progress.set_load(executor.load());
                        progress.tell();
                    }
                    () = stop.cancelled() => return,
                }
            }
        });
    }
}
