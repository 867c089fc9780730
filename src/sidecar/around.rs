//! What the task API asks of the sidecar around it: its own card, and the way to other homes.

use std::sync::Arc;

use tokio::sync::watch;
use tower::{ServiceExt, util::BoxCloneService};

use super::{carry::target, pools::Pools};
use crate::{
    domain::InstanceId,
    pb,
    registry::client::{Described, Mirror},
    task::service::{HomeService, Surroundings},
};

/// The sidecar around the task API.
#[derive(Debug)]
pub(super) struct Around {
    pub(super) described: watch::Receiver<Arc<Described>>,
    pub(super) has_agent: bool,
    pub(super) mirror: Mirror,
    pub(super) pools: Pools,
}

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

    fn reach(&self, home: &InstanceId) -> Option<HomeService> {
        let catalog = self.mirror.catalog();
        let channel = self.pools.channel(target(catalog.entry(home)?));
        let boxed = channel.map_response(|response| response.map(tonic::body::Body::new));
        Some(BoxCloneService::new(boxed))
    }
}
