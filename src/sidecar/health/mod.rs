//! Whether the own agent is fit for work: it is looked at all the time, in the best way that it
//! serves, and asked for its card once per start of its process.
//!
//! `verdict` decides, `choice` says how to ask, `probe` asks; here the one is carried to the other,
//! and the outcome to the executor, the registry and `/readyz`.

mod attended;
mod choice;
mod counts;
mod describe;
mod line;
mod look;
mod probe;
#[cfg(test)]
mod probe_tests;
#[cfg(test)]
mod tests;
mod verdict;

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::standing::{Agent, Progress};
use crate::runtime::Stop;
use look::Found;
use probe::Heard;
use verdict::{DOUBT, Look, Verdict};

pub(super) use attended::Attended;
pub(super) use counts::Counts;
pub(super) use describe::Describer;
pub(super) use probe::Probe;

/// Watches one agent.
pub(super) struct Prober {
    pub(super) probe: Probe,
    pub(super) describer: Describer,
    pub(super) progress: Arc<Progress>,
    pub(super) counts: Counts,
}

impl Prober {
    /// Looks until `stop`. A look that panics takes the agent out, since nobody knows how it is, and
    /// looking begins anew.
    pub(super) async fn run(mut self, stop: Stop) {
        let watching = Box::pin(async {
            loop {
                let broken = AssertUnwindSafe(self.watch_over()).catch_unwind().await;
                let Err(_) = broken;
                tracing::error!("looking at the agent broke off: it begins anew");
                self.describer.executor.set_healthy(false);
                let why = "looking at the agent broke off, and begins anew";
                self.progress.set_agent(Agent::Unhealthy(why.into()));
                self.probe.forget();
                sleep(DOUBT).await;
            }
        });
        tokio::select! {
            never = watching => match never {},
            () = stop.cancelled() => {}
        }
    }

    async fn watch_over(&mut self) -> Infallible {
        let mut suspicions = self.describer.executor.suspicions();
        let mut verdict = Verdict::new(Instant::now());
        let mut described = false;
        loop {
            described &= !verdict.is_fresh();
            let mut found = self.probe.look().await;
            if found.look == Look::Serving && !described {
                // Reachable and not able to say what it is: it takes no work until it is.
                match self.describer.describe().await {
                    Ok(()) => described = true,
                    Err(why) => found = Found::new(Look::Missed, why),
                }
            }
            verdict.looked(found.look, Instant::now());
            self.tell(&verdict, &found);
            self.wait(&mut verdict, &mut suspicions).await;
        }
    }

    /// Waits until the next look is due.
    async fn wait(&mut self, verdict: &mut Verdict, suspicions: &mut watch::Receiver<u64>) {
        loop {
            tokio::select! {
                () = sleep_until(verdict.next()) => {
                    if self.probe.holds() {
                        verdict.held();
                    }
                    return;
                }
                heard = self.probe.hears() => match heard {
                    Heard::Said(found) => {
                        verdict.told(found.look, Instant::now());
                        self.tell(verdict, &found);
                    }
                    Heard::Ended => verdict.ended(Instant::now()),
                },
                Ok(()) = suspicions.changed() => verdict.suspect(Instant::now()),
            }
        }
    }

    /// Carries what was found, and what follows from it, to those who act on it.
    fn tell(&self, verdict: &Verdict, found: &Found) {
        let healthy = verdict.is_healthy();
        self.counts.count(self.probe.kind(), found.look, healthy);
        self.describer.executor.set_healthy(healthy);
        self.progress.set_agent(if healthy {
            Agent::Healthy
        } else if found.why.is_empty() {
            Agent::Unhealthy("the agent was unhealthy and answers once so far".into())
        } else {
            Agent::Unhealthy(found.why.clone())
        });
    }
}
