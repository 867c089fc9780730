//! What the task API asks of the sidecar around it: its own card, and the way to other homes.

use std::sync::Arc;

use tokio::sync::watch;
use tower::{ServiceExt, util::BoxCloneService};

use super::{carry::target, pools::Pools, promises::Promises};
use crate::{
    contract::Contract,
    domain::{InstanceId, Label},
    pb,
    registry::client::{Described, Mirror},
    task::{
        Promise,
        attach::Desk,
        callback::Allowed,
        service::{HomeService, Surroundings},
    },
};

/// The sidecar around the task API.
#[derive(Debug)]
pub(super) struct Around {
    pub(super) described: watch::Receiver<Arc<Described>>,
    pub(super) has_agent: bool,
    pub(super) mirror: Mirror,
    pub(super) pools: Pools,
    pub(super) promises: Arc<Promises>,
    pub(super) callbacks: Arc<Allowed>,
    /// Where the own agent attaches, if it does.
    pub(super) desk: Option<Desk>,
}

#[tonic::async_trait]
impl Surroundings for Around {
    fn card(&self) -> Option<Arc<pb::AgentCard>> {
        self.has_agent
            .then(|| Arc::new(self.described.borrow().card.clone()))
    }

    fn instance(&self) -> pb::Instance {
        let own = self.described.borrow().instance.clone();
        let listed = own.id.parse().ok().and_then(|id: InstanceId| {
            self.mirror
                .catalog()
                .entry(&id)
                .map(|entry| entry.published())
        });
        listed.unwrap_or(own)
    }

    fn endpoint(&self, home: &InstanceId) -> Option<String> {
        self.mirror
            .catalog()
            .entry(home)?
            .instance
            .endpoints
            .first()
            .cloned()
    }

    fn promises(&self, namespace: &Label, selector: &pb::Selector) -> Vec<Promise> {
        self.promises.of(namespace, selector)
    }

    async fn contract(&self, promise: &Promise) -> Option<Arc<Contract>> {
        self.promises.contract(promise).await
    }

    fn callbacks(&self) -> Arc<Allowed> {
        self.callbacks.clone()
    }

    fn desk(&self) -> Option<&Desk> {
        self.desk.as_ref()
    }

    fn reach(&self, home: &InstanceId) -> Option<HomeService> {
        let catalog = self.mirror.catalog();
        let channel = self.pools.channel(target(catalog.entry(home)?));
        let boxed = channel.map_response(|response| response.map(tonic::body::Body::new));
        Some(BoxCloneService::new(boxed))
    }
}
