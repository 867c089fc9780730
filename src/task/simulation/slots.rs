//! Streams on which homes say who waits and executors grant slots, over the same network.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::domain::InstanceId;
use crate::pb;
use crate::task::doors::{Claims, Grants};

use super::network::{Lane, WINDOW, Way, lost, unreachable};

type Grant = Result<pb::SlotsResponse, Status>;

impl Way {
    pub(super) async fn open_slots(
        &self,
        instance: &InstanceId,
        claims: Claims,
    ) -> Result<Grants, Status> {
        let over = || unreachable("the run is over");
        let world = self.world.upgrade().ok_or_else(over)?;
        let to = world.node_of(instance).ok_or_else(over)?;
        let peer = world.nodes[self.from].peer();
        if to == self.from {
            let here = world.nodes[to].life().ok_or_else(over)?;
            return Ok(here.executor.slots(&peer, claims)?);
        }
        let life = world.network.connect(&world, self.from, to).await?;
        let flow = world.network.flow(&world, (self.from, to), life);
        let lane = || Lane {
            world: Arc::clone(&world),
            flow: Arc::clone(&flow),
        };
        let arrived = lane().travel(0, self.from, to).await;
        let there = world.nodes[to].life().filter(|there| there.number == life);
        let Some(there) = there.filter(|_| arrived) else {
            world.network.stale(&flow);
            world.network.over(&flow);
            return Err(lost());
        };
        let (forth, heard) = mpsc::channel(WINDOW);
        let granted = there
            .executor
            .slots(&peer, Box::pin(ReceiverStream::new(heard)));
        let granted = granted.inspect_err(|_| world.network.over(&flow))?;
        let (back, grants) = mpsc::channel(WINDOW);
        world
            .crew
            .adopt("claims", claims_forth(lane(), claims, forth));
        world
            .crew
            .adopt("grants", grants_back(lane(), granted, back));
        Ok(Box::pin(ReceiverStream::new(grants)))
    }
}

/// What a home says about who waits, on its way.
async fn claims_forth(lane: Lane, mut claims: Claims, out: mpsc::Sender<pb::SlotsRequest>) {
    let flow = Arc::clone(&lane.flow);
    for message in 1.. {
        let said = tokio::select! {
            biased;
            () = flow.broken.cancelled() => return,
            said = claims.next() => said,
        };
        let arrives = lane.travel(message, flow.from, flow.to).await;
        let Some(said) = said.filter(|_| arrives) else {
            break;
        };
        if out.send(said).await.is_err() {
            break;
        }
    }
    // The home has ended it, or its connection broke.
    flow.broken.cancel();
}

/// What an executor grants, on its way.
async fn grants_back(lane: Lane, mut grants: Grants, out: mpsc::Sender<Grant>) {
    let flow = Arc::clone(&lane.flow);
    loop {
        let granted = tokio::select! {
            biased;
            () = flow.broken.cancelled() => break,
            granted = grants.next() => granted,
        };
        let is_cut = flow.cut.load(Ordering::Relaxed);
        let arrives = lane.travel(u32::MAX, flow.to, flow.from).await && !is_cut;
        let Some(granted) = granted.filter(|_| arrives) else {
            break;
        };
        if out.send(granted).await.is_err() {
            break;
        }
    }
    flow.broken.cancel();
    drop(out.send(Err(lost())).await);
    lane.world.network.over(&flow);
}
