//! An agent's process without a port: it takes its work over a stream to its sidecar's desk, says
//! there what its handlers say, and opens another one where that breaks.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::domain::Reason;
use crate::pb;
use crate::pb::attach_request::Say as Says;
use crate::pb::attach_response::Say;
use crate::runtime::{Nursery, Stop};
use crate::task::attach::Desk;
use crate::task::executor::{Executor, HandlerError, HandlerLink};
use crate::wire::status::reason_of;

use super::World;
use super::agent::Agent;

/// Messages on their way to the sidecar.
const SAYS: usize = 64;

type Out = mpsc::Sender<Result<pb::AttachRequest, Status>>;

/// Keeps an executor to what is attached, as a sidecar does.
pub(super) async fn attend(desk: Desk, executor: Executor) {
    let mut attendance = desk.attendance();
    loop {
        let now = *attendance.borrow_and_update();
        executor.set_places(now.places, now.held);
        executor.set_healthy(now.places > 0);
        if attendance.changed().await.is_err() {
            return;
        }
    }
}

/// Attaches again and again for one life of the sidecar.
pub(super) async fn attach(world: Weak<World>, node: usize, desk: Desk, nursery: Nursery) {
    loop {
        let Some(here) = world.upgrade() else { return };
        let (agent, pause) = (here.nodes[node].agent.clone(), here.within(1, 500));
        let places = here.roll(2..10);
        drop(here);
        sleep(pause).await;
        let Some(alive) = agent.lives() else { continue };
        let leaves = world.upgrade().map(|world| leaves_after(&world));
        let mut line = Line {
            node,
            agent,
            alive,
            nursery: nursery.clone(),
            works: BTreeMap::new(),
        };
        line.run(&world, &desk, (places, leaves.flatten())).await;
    }
}

/// After which time its process ends the stream in good order, where it does.
fn leaves_after(world: &World) -> Option<Duration> {
    let leaves = !world.is_calm() && world.chance(0.3);
    leaves.then(|| world.within(1000, 30_000))
}

/// One stream.
struct Line {
    node: usize,
    agent: Arc<Agent>,
    alive: Stop,
    nursery: Nursery,
    /// Task and attempt of what it was given, and how that is ended.
    works: BTreeMap<u64, (String, u32, Stop)>,
}

impl Drop for Line {
    fn drop(&mut self) {
        for (.., end) in self.works.values() {
            end.cancel();
        }
    }
}

impl Line {
    async fn run(
        &mut self,
        world: &Weak<World>,
        desk: &Desk,
        (places, leaves): (u32, Option<Duration>),
    ) {
        let (says, asked) = mpsc::channel(SAYS);
        let Ok(hears) = desk.serve(ReceiverStream::new(asked), Stop::new()) else {
            return;
        };
        let mut hears = Box::pin(hears);
        let hello = pb::AttachHello { places, card: None };
        say(&says, Says::Hello(hello)).await;
        let mut leave = Box::pin(sleep(leaves.unwrap_or(Duration::MAX)));
        let mut stays = true;
        loop {
            let heard = tokio::select! {
                biased;
                () = self.alive.cancelled() => return,
                () = leave.as_mut(), if stays => {
                    stays = false;
                    say(&says, Says::Places(0)).await;
                    continue;
                }
                heard = hears.next() => heard,
            };
            match heard {
                Some(Ok(heard)) => self.hear(heard, &says).await,
                Some(Err(status)) => return self.closed(world, &status),
                None => return,
            }
        }
    }

    async fn hear(&mut self, heard: pb::AttachResponse, says: &Out) {
        match heard.say {
            Some(Say::Work(work)) => {
                let request = work.request.unwrap_or_default();
                let task = request.task.as_ref();
                let task = task.map_or_else(String::new, |task| task.id.clone());
                let remaining = work.remaining.and_then(|left| left.try_into().ok());
                let (end, attempt) = (Stop::new(), request.attempt);
                let given = (work.work, request, remaining.unwrap_or_default());
                let working = carry(self.agent.clone(), given, end.clone(), says.clone());
                self.works.insert(work.work, (task, attempt, end));
                self.nursery.adopt("handler", working);
            }
            Some(Say::Cancel(cancel)) => {
                if let Some((task_id, attempt, _)) = self.works.get(&cancel.work) {
                    let request = pb::CancelRequest {
                        task_id: task_id.clone(),
                        attempt: *attempt,
                        ..Default::default()
                    };
                    // One that cannot be asked goes on until it is cut.
                    drop(self.agent.cancel(request).await);
                }
            }
            Some(Say::Cut(cut)) => {
                if let Some((.., end)) = self.works.remove(&cut.work) {
                    end.cancel();
                }
            }
            Some(Say::Attached(_) | Say::Credit(_)) | None => {}
        }
    }

    /// The sidecar has closed the stream: as it stops, and for nothing else.
    fn closed(&self, world: &Weak<World>, status: &Status) {
        let stops = reason_of(status).is_some_and(|reason| reason == Reason::Draining.label());
        if let Some(world) = world.upgrade()
            && !stops
        {
            let how = format!(
                "the stream of the agent of {} was closed: {status}",
                self.node
            );
            world.history.lock().breach(how);
        }
    }
}

/// A handler at work, until it ends or is cut.
async fn carry(
    agent: Arc<Agent>,
    (work, request, remaining): (u64, pb::HandleRequest, Duration),
    cut: Stop,
    says: Out,
) {
    let end = tokio::select! {
        biased;
        () = cut.cancelled() => Ok(()),
        end = handle(&agent, (work, request, remaining), &says) => end,
    };
    let mut said = pb::AttachEnd {
        work,
        ..Default::default()
    };
    match end {
        Ok(()) => {}
        // A process knows no loss: its stream would have broken.
        Err(HandlerError::Lost(why) | HandlerError::Unreachable(why)) => {
            (said.code, said.message) = (Code::Internal.into(), why);
        }
        Err(HandlerError::Status(status)) => {
            said.not_processed = status.metadata().get("attache-not-processed").is_some();
            (said.code, said.message) = (status.code().into(), status.message().to_owned());
        }
    }
    say(&says, Says::End(said)).await;
}

async fn handle(
    agent: &Agent,
    (work, request, remaining): (u64, pb::HandleRequest, Duration),
    says: &Out,
) -> Result<(), HandlerError> {
    let mut words = agent.handle(request, remaining, None).await?;
    while let Some(word) = words.next().await {
        let update = Some(word?);
        say(says, Says::Update(pb::AttachUpdate { work, update })).await;
    }
    Ok(())
}

async fn say(says: &Out, say: Says) {
    // Nobody reads a stream that has ended.
    drop(says.send(Ok(pb::AttachRequest { say: Some(say) })).await);
}
