//! One pool of connections per data thread, so that a call never crosses threads.

use std::{sync::Arc, time::Duration};

use tokio::runtime::{Handle, Id};

use crate::{
    identity::Credentials,
    runtime::{DataThreads, Nursery},
    telemetry::metrics::pool::Dials,
    transport::{Channel, Limits, Pool, Target, Ways},
};

/// Pools by the runtime that they belong to.
#[derive(Clone, Debug)]
pub(super) struct Pools {
    pools: Vec<(Id, Pool)>,
}

impl Pools {
    /// Pools of mutual TLS connections to peers that end them at this age.
    pub(super) fn members(
        credentials: &Credentials,
        threads: &DataThreads,
        connection_age: Duration,
        counts: &Arc<Dials>,
    ) -> Self {
        let ways = Ways {
            credentials: Some(credentials.clone()),
            connection_age,
            counts: Arc::clone(counts),
        };
        Self::of(threads, |nursery| Pool::of(ways.clone(), nursery))
    }

    /// Pools of connections to the own agent.
    pub(super) fn plaintext(threads: &DataThreads, counts: &Arc<Dials>) -> Self {
        let ways = Ways {
            credentials: None,
            connection_age: Limits::default().connection_age,
            counts: Arc::clone(counts),
        };
        Self::of(threads, |nursery| Pool::of(ways.clone(), nursery))
    }

    fn of(threads: &DataThreads, pool: impl Fn(Nursery) -> Pool) -> Self {
        let pools = threads
            .handles()
            .map(|handle| (handle.id(), pool(Nursery::on(handle.clone()))))
            .collect();
        Self { pools }
    }

    /// A channel of the calling thread's pool; of the first one where the caller has none.
    pub(super) fn channel(&self, target: Target) -> Channel {
        let here = Handle::try_current().map(|handle| handle.id()).ok();
        let own = self.pools.iter().find(|(id, _)| Some(*id) == here);
        let (_, pool) = own.unwrap_or(&self.pools[0]);
        pool.channel(target)
    }
}
