//! Connections to targets: made, retired before they break, cut when their peer's certificate ends.

use std::{fmt, io, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::Lookup;
use crate::{
    h2::{
        exchange::{self, Policy},
        slab::Key,
    },
    identity::{Credentials, Peer},
    runtime::{Nursery, Stop},
    telemetry::metrics::pool::{Close, Dial},
    transport::{
        alive::{Alive, UNHEARD},
        dial::{Dialed, Owner, Wrap, dial, listen},
        drive::{Core, Driver},
        entry::{lasting, outcome_of},
        error::fault_of,
        lifetime::{Cut, Sightings},
        pool::{MOVE_AT, Ways},
    },
};

/// How often it is looked whether a line stands by: far less than half of the shortest life of a
/// certificate, which is 10 s.
const STAND_BY: Duration = Duration::from_secs(1);

/// How a thread's engine reaches its targets.
#[derive(Clone)]
pub(super) struct Upstream {
    ways: Ways,
    lookup: Lookup,
    nursery: Nursery,
    sightings: Sightings,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}

/// A line that nothing leads to yet. Dropped, the exchange hears that nothing will.
struct Pending<'a, P: Policy> {
    core: &'a Arc<Core<P>>,
    line: Option<Key>,
}

impl<P: Policy> Pending<'_, P> {
    fn connected<IO>(mut self, io: IO) -> Option<Driver<IO, P>> {
        let line = self.line.take()?;
        Some(self.core.dialed(io, line))
    }
}

impl<P: Policy> Drop for Pending<'_, P> {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            self.core.gone(line);
        }
    }
}

impl Upstream {
    pub(super) fn new(ways: Ways, lookup: Lookup, nursery: Nursery) -> Self {
        let sightings = Sightings::of(ways.credentials.as_ref());
        Self {
            ways,
            lookup,
            nursery,
            sightings,
        }
    }

    /// Makes the connection of a line, and drives it to its end.
    pub(super) async fn lead<P: Policy>(
        &self,
        core: &Arc<Core<P>>,
        (line, target): (Key, exchange::Target),
        stop: Stop,
    ) {
        let pending = Pending {
            core,
            line: Some(line),
        };
        let alive = Arc::new(Alive::new(Arc::clone(&self.ways.counts)));
        let renewed = self.ways.credentials.as_ref().map(Credentials::changes);
        let dialed = tokio::select! {
            () = stop.cancelled() => return,
            dialed = self.dial(target, &alive) => dialed,
        };
        let Some(Dialed { link, peer, .. }) = dialed else {
            return;
        };
        alive.opened();
        let Some(mut driver) = pending.connected(link) else {
            return;
        };
        let mut ending = std::pin::pin!(self.ending(peer.as_ref(), renewed));
        let mut cut = std::pin::pin!(self.cut(peer.as_ref()));
        let mut leaving = false;
        let mut heir = std::pin::pin!(stand_by(core, target));
        let ended = loop {
            tokio::select! {
                ended = driver.run() => break ended,
                () = heir.as_mut(), if leaving && !stop.is_cancelled() => {}
                cut = cut.as_mut() => {
                    alive.ends(cut.into());
                    return;
                }
                () = ending.as_mut(), if !leaving => {
                    alive.ends(Close::Replaced);
                    leaving = true;
                    driver.drain();
                }
                () = stop.cancelled(), if !leaving => {
                    alive.ends(Close::Stopped);
                    leaving = true;
                    driver.drain();
                }
            }
        };
        if let Some(rule) = driver.failed() {
            tracing::info!(%rule, "a connection to a target ended: its peer broke a rule");
        }
        if let Err(error) = ended {
            alive.ends(cause_of(&error));
            tracing::debug!(%error, "a connection to a target ended");
        }
    }

    async fn dial(
        &self,
        target: exchange::Target,
        alive: &Arc<Alive>,
    ) -> Option<Dialed<impl super::Io + use<>>> {
        let place = (self.lookup)(target)?;
        let wrap = Wrap::of(&place, self.ways.credentials.as_ref())?;
        let owner = Owner {
            nursery: self.nursery.clone(),
            sightings: self.sightings.clone(),
            alive: Arc::clone(alive),
        };
        match Box::pin(dial(&place.endpoints, &wrap, &owner, listen)).await {
            Ok(dialed) => {
                self.ways.counts.dialed(Dial::Done);
                Some(dialed)
            }
            Err(tried) => {
                self.ways.counts.dialed(outcome_of(&tried));
                tracing::info!(fault = %fault_of(&tried), "dial failed");
                None
            }
        }
    }

    /// Until the connection is too old, or either side's certificate calls for another one.
    async fn ending(&self, peer: Option<&Peer>, renewed: Option<watch::Receiver<u64>>) {
        let Some(peer) = peer else {
            // The own agent: nothing of it grows old.
            return std::future::pending().await;
        };
        let age = self.ways.connection_age.mul_f64(MOVE_AT);
        let replaced = async {
            match renewed {
                None => std::future::pending().await,
                // The sender is gone when the process ends.
                Some(mut renewed) => drop(renewed.changed().await),
            }
        };
        tokio::select! {
            () = sleep(lasting(age, Some(peer))) => {}
            () = replaced => {}
        }
    }

    async fn cut(&self, peer: Option<&Peer>) -> Cut {
        match peer {
            Some(peer) => self.sightings.end_of(peer).await,
            None => std::future::pending().await,
        }
    }
}

/// Has a line to a target at any time: calls that stay on the one that is retired may take days, and
/// it is cut when a certificate ends, unless both sides have shown a newer one meanwhile.
async fn stand_by<P: Policy>(core: &Arc<Core<P>>, target: exchange::Target) {
    loop {
        core.with(|exchange| exchange.stand_by(target, Instant::now()));
        sleep(STAND_BY).await;
    }
}

fn cause_of(error: &io::Error) -> Close {
    if UNHEARD.contains(&error.kind()) {
        Close::Silent
    } else {
        Close::Broken
    }
}
