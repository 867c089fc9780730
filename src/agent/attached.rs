//! An agent without a port: opens a stream to its own sidecar, and takes work over it.
//!
//! It counts the credit of each attempt, so that a handler waits while its task's home is slow; and
//! opens the stream again when it breaks, for nothing under way outlives it.

use std::{collections::HashMap, fmt, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::server::{GRACE, Service};
use super::{AgentError, Handler, Sidecar};
use crate::pb;
use crate::pb::attach_request::Say;
use crate::pb::attach_response::Say as Heard;
use crate::runtime::{Backoff, Nursery, Stop};
use crate::telemetry::TraceContext;
use crate::wire::credit::cost;

/// Attempts that it takes at once: as many as a stream may, since the card bounds them.
const PLACES: u32 = 1024;
/// Messages on their way to the sidecar; behind them the handlers wait.
const OUT_QUEUE: usize = 16;
/// Ends of attempts that the stream has not heard of.
const ENDS: usize = 64;
/// How it comes back to a sidecar that is away: soon, since one that restarts has work to go on with.
const AGAIN: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// An agent that attaches; [`serve_attached`](super::serve_attached) is the short way.
pub struct Attached {
    sidecar: Sidecar,
    service: Service,
    nursery: Nursery,
    /// Connections to the sidecar, which running attempts need to their end.
    outward: Nursery,
}

impl Attached {
    /// An agent of the sidecar at `unix:/path` or a loopback `host:port`.
    ///
    /// # Errors
    /// [`AgentError::Address`].
    pub fn new(
        sidecar: &str,
        card: Option<pb::AgentCard>,
        handler: impl Handler,
    ) -> Result<Self, AgentError> {
        let (nursery, outward) = (Nursery::here(), Nursery::here());
        let sidecar = Sidecar::new(sidecar, outward.clone())?;
        Ok(Self {
            service: Service::new(handler, card, Some(sidecar.clone()), nursery.clone()),
            sidecar,
            nursery,
            outward,
        })
    }

    /// Serves until `stop`, then lets what runs end, for 30 s at most.
    ///
    /// # Errors
    /// [`AgentError::Refused`], where asking again does not help.
    pub async fn run(self, stop: Stop) -> Result<(), AgentError> {
        let mut backoff = AGAIN;
        let ended = loop {
            let broken = match Box::pin(self.attach(&stop, &mut backoff)).await {
                Ok(()) => break Ok(()),
                Err(broken) => broken,
            };
            if is_final(broken.code()) {
                break Err(AgentError::Refused(broken.message().to_owned()));
            }
            tracing::debug!(%broken, "not attached");
            tokio::select! {
                () = sleep(backoff.next(rand::random())) => {}
                () = stop.cancelled() => break Ok(()),
            }
        };
        self.nursery.close(GRACE).await;
        self.outward.abort().await;
        ended
    }

    /// One stream; ends well only where it was told to stop.
    async fn attach(&self, stop: &Stop, backoff: &mut Backoff) -> Result<(), Status> {
        let (say, saying) = mpsc::channel(OUT_QUEUE);
        let (tell, mut ends) = mpsc::channel(ENDS);
        let hello = pb::AttachHello {
            places: PLACES,
            card: self.service.card(),
        };
        say_first(&say, Say::Hello(hello))?;
        let mut sidecar = self.sidecar.tasks();
        let mut heard = tokio::select! {
            answer = sidecar.attach(ReceiverStream::new(saying)) => answer?.into_inner(),
            () = stop.cancelled() => return Ok(()),
        };
        let mut works = Works::default();
        let mut leaving = None;
        loop {
            tokio::select! {
                message = heard.message() => match message?.map(|message| message.say) {
                    // As it was asked to, once the sidecar has all that was said.
                    None if leaving.is_some() => return Ok(()),
                    None => return Err(Status::unavailable("the sidecar ended the stream")),
                    Some(None) => {}
                    Some(Some(said)) => match said {
                    Heard::Attached(_) => backoff.reset(),
                    // It crossed the word that no more is taken.
                    Heard::Work(work) if leaving.is_some() => decline(work.work, &say).await,
                    Heard::Work(work) => self.begin(*work, &mut works, &say, &tell),
                    Heard::Cancel(cancel) => if let Some(work) = works.0.get(&cancel.work) {
                        self.service.stop(&work.task, work.attempt);
                    }
                    Heard::Cut(cut) => if let Some(work) = works.0.get(&cut.work) {
                        work.cut.cancel();
                    }
                    Heard::Credit(more) => if let Some(work) = works.0.get(&more.work) {
                        work.credit.send_modify(|credit| *credit += more.bytes.cast_signed());
                    }
                    },
                },
                Some(number) = ends.recv() => drop(works.0.remove(&number)),
                () = stop.cancelled(), if leaving.is_none() => {
                    leaving = Some(Instant::now() + GRACE);
                    drop(say.send(request(Say::Places(0))).await);
                }
                () = until(leaving) => return Ok(()),
            }
        }
    }

    fn begin(
        &self,
        work: pb::AttachWork,
        works: &mut Works,
        say: &mpsc::Sender<pb::AttachRequest>,
        tell: &mpsc::Sender<u64>,
    ) {
        let request = work.request.unwrap_or_default();
        let task = request.task.as_ref().map(|task| task.id.clone());
        let under_way = Work {
            task: task.unwrap_or_default(),
            attempt: request.attempt,
            credit: watch::Sender::new(work.credit.cast_signed()),
            cut: Stop::new(),
        };
        let trace = TraceContext::parse(&work.traceparent, &work.tracestate);
        let carrier = Carrier {
            number: work.work,
            updates: self.service.begin(request, trace),
            credit: under_way.credit.clone(),
            cut: under_way.cut.clone(),
            say: say.clone(),
        };
        works.0.insert(work.work, under_way);
        let (number, tell) = (work.work, tell.clone());
        self.nursery.adopt("attached attempt", async move {
            carrier.carry().await;
            if tell.send(number).await.is_err() {
                tracing::trace!(number, "the stream of an attempt is gone");
            }
        });
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached")
            .field("sidecar", &self.sidecar)
            .finish_non_exhaustive()
    }
}

/// Attempts under way on one stream; dropped, they are cut.
#[derive(Default)]
struct Works(HashMap<u64, Work>);

struct Work {
    task: String,
    attempt: u32,
    credit: watch::Sender<i64>,
    cut: Stop,
}

impl Drop for Work {
    fn drop(&mut self) {
        self.cut.cancel();
    }
}

/// Takes the words of one attempt to the stream.
struct Carrier {
    number: u64,
    updates: mpsc::Receiver<Result<pb::HandleResponse, Status>>,
    credit: watch::Sender<i64>,
    cut: Stop,
    say: mpsc::Sender<pb::AttachRequest>,
}

impl Carrier {
    async fn carry(mut self) {
        let status = tokio::select! {
            ended = Self::words(&mut self.updates, &self.credit, self.number, &self.say) => ended,
            () = self.cut.cancelled() => Some(Status::cancelled("cut, as the sidecar said")),
        };
        // Dropped before the end is said: its handler is, too.
        drop(self.updates);
        let status = status.unwrap_or_else(|| Status::new(Code::Ok, ""));
        let end = pb::AttachEnd {
            work: self.number,
            code: status.code().into(),
            message: status.message().to_owned(),
            ..pb::AttachEnd::default()
        };
        drop(self.say.send(request(Say::End(end))).await);
    }

    /// Until the attempt ends; with its status where that is not OK.
    async fn words(
        updates: &mut mpsc::Receiver<Result<pb::HandleResponse, Status>>,
        credit: &watch::Sender<i64>,
        number: u64,
        say: &mpsc::Sender<pb::AttachRequest>,
    ) -> Option<Status> {
        let mut left = credit.subscribe();
        while let Some(update) = updates.recv().await {
            let update = match update {
                Ok(update) => update,
                Err(status) => return Some(status),
            };
            if left.wait_for(|left| *left > 0).await.is_err() {
                break;
            }
            credit.send_modify(|left| *left -= cost(&update).cast_signed());
            let update = pb::AttachUpdate {
                work: number,
                update: Some(update),
            };
            if say.send(request(Say::Update(update))).await.is_err() {
                break;
            }
        }
        None
    }
}

/// Gives an attempt back: it was not begun.
async fn decline(work: u64, say: &mpsc::Sender<pb::AttachRequest>) {
    let end = pb::AttachEnd {
        work,
        code: Code::Unavailable.into(),
        message: "the agent is about to leave".into(),
        not_processed: true,
        ..pb::AttachEnd::default()
    };
    if say.send(request(Say::End(end))).await.is_err() {
        tracing::trace!(work, "the stream is gone");
    }
}

fn request(say: Say) -> pb::AttachRequest {
    pb::AttachRequest { say: Some(say) }
}

fn say_first(say: &mpsc::Sender<pb::AttachRequest>, first: Say) -> Result<(), Status> {
    let said = say.try_send(request(first));
    said.map_err(|_| Status::internal("a queue that is new has no room"))
}

/// Whether asking again gets the same answer, until somebody changes what is configured.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::FailedPrecondition | Code::PermissionDenied | Code::Unimplemented
    )
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}
