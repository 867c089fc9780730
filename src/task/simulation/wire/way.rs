//! The home's side: connections to all other sidecars, made when they are needed, and calls on them.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use futures_util::stream;
use parking_lot::Mutex;
use prost::Message;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Status};

use crate::domain::InstanceId;
use crate::h2::connection::Config;
use crate::h2::hpack::Fields;
use crate::runtime::Nursery;
use crate::task::doors::{Call, Claims, Connect, Grants, Steps, Updates};
use crate::task::executor::{Executor, HomePeer};
use crate::task::simulation::World;
use crate::telemetry::TraceContext;

use super::end::End;
use super::talk::{Read, Reading, Writing};
use super::words;

/// Connections that go away under one call, at most, until it is given up.
const SENDINGS: usize = 4;

/// The way from one life of a sidecar to all others.
pub(in crate::task::simulation) struct Way {
    world: Weak<World>,
    from: usize,
    life: u32,
    nursery: Nursery,
    links: Mutex<BTreeMap<usize, Arc<End>>>,
}

/// Where an instance is.
enum Place {
    /// On this sidecar: its executor, and who asks it.
    Here(Executor, HomePeer),
    /// On another.
    There(usize),
}

type Said<M> = Pin<Box<dyn Stream<Item = M> + Send>>;

impl Way {
    pub(in crate::task::simulation) fn new(
        world: &World,
        from: usize,
        life: u32,
        nursery: Nursery,
    ) -> Self {
        Self {
            world: world.this.clone(),
            from,
            life,
            nursery,
            links: Mutex::default(),
        }
    }

    /// Calls to others.
    pub(in crate::task::simulation) fn calls(&self) -> usize {
        self.links.lock().values().map(|end| end.calls()).sum()
    }

    fn world(&self) -> Result<Arc<World>, Status> {
        let world = self.world.upgrade();
        world.ok_or_else(|| words::unreachable("the run is over"))
    }

    /// Where an instance is.
    fn place(&self, instance: &InstanceId) -> Result<Place, Status> {
        let world = self.world()?;
        let to = world.node_of(instance);
        let to = to.ok_or_else(|| words::unreachable("no such instance"))?;
        if to != self.from {
            return Ok(Place::There(to));
        }
        let here = world.nodes[to].life();
        let here = here.ok_or_else(|| words::unreachable("this sidecar ends"))?;
        Ok(Place::Here(here.executor.clone(), world.nodes[to].peer()))
    }

    fn link(&self, to: usize) -> Option<Arc<End>> {
        let links = self.links.lock();
        links.get(&to).filter(|end| end.usable()).cloned()
    }

    /// A connection that takes calls; dialled unless there is one.
    async fn connected(&self, world: &World, to: usize) -> Result<Arc<End>, Status> {
        if let Some(end) = self.link(to) {
            return Ok(end);
        }
        let socket = world
            .network
            .dial(world, (self.from, to), self.life)
            .await?;
        if let Some(end) = self.link(to) {
            return Ok(end);
        }
        let end = End::new(super::peer(world, Config::upstream()), world);
        self.nursery.adopt("link", Arc::clone(&end).drive(socket));
        self.links.lock().insert(to, Arc::clone(&end));
        Ok(end)
    }

    /// Opens a call, on which `messages` are sent.
    async fn call<Asked, Answer>(
        &self,
        (path, to): (&[u8], usize),
        messages: Said<Asked>,
    ) -> Result<Said<Result<Answer, Status>>, Status>
    where
        Asked: Message + 'static,
        Answer: Message + Default + 'static,
    {
        let world = self.world()?;
        let mut opened = None;
        for _ in 0..SENDINGS {
            let end = self.connected(&world, to).await?;
            let (number, said) = world.network.stream();
            if let Some(halves) = end.open(&words::request(path, number)).await {
                opened = Some((halves, said));
                break;
            }
        }
        let ((mut writing, mut reading), said) =
            opened.ok_or_else(|| words::unreachable("connections go away"))?;
        drop(world);
        writing.noted(Some(Arc::clone(&said)));
        reading.noted(Some(said));
        self.nursery.adopt("request", request(writing, messages));
        let head = reading.head().await.map_err(words::over)?;
        if reading.ended() {
            return Err(words::status_of(&head).unwrap_or_else(words::lost));
        }
        Ok(answers(reading))
    }
}

/// Sends what there is to say until the call ends.
async fn request<M: Message>(mut writing: Writing, mut messages: Said<M>) {
    loop {
        let said = tokio::select! {
            biased;
            () = writing.unwanted() => return,
            said = messages.next() => said,
        };
        let Some(said) = said else {
            return writing.end().await;
        };
        if !writing.message(&said).await {
            return;
        }
    }
}

/// What comes back, and how it ended.
fn answers<M>(reading: Reading) -> Said<Result<M, Status>>
where
    M: Message + Default + 'static,
{
    Box::pin(stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        match reading.next().await {
            Read::Message(message) => Some((Ok(message), Some(reading))),
            Read::Over(over) => Some((Err(words::over(over)), None)),
            Read::Whole(trailers) => failed(trailers.as_ref()).map(|status| (Err(status), None)),
        }
    }))
}

fn failed(trailers: Option<&Fields>) -> Option<Status> {
    let status = trailers.and_then(words::status_of);
    let status = status.unwrap_or_else(words::lost);
    (status.code() != Code::Ok).then_some(status)
}

#[tonic::async_trait]
impl Connect for Way {
    async fn execute(
        &self,
        instance: &InstanceId,
        steps: Steps,
        _: Option<Box<Call>>,
        _: Option<&TraceContext>,
    ) -> Result<Updates, Status> {
        match self.place(instance)? {
            Place::Here(executor, peer) => Ok(executor.execute(peer, steps, None)),
            Place::There(to) => self.call((words::EXECUTE, to), steps).await,
        }
    }

    async fn slots(&self, instance: &InstanceId, claims: Claims) -> Result<Grants, Status> {
        match self.place(instance)? {
            Place::Here(executor, peer) => Ok(executor.slots(&peer, claims)?),
            Place::There(to) => self.call((words::SLOTS, to), claims).await,
        }
    }
}
