//! Tasks of other homes: where those are, and their answers as ours.

use std::{fmt, pin::Pin, sync::Arc};

use futures_util::{StreamExt, stream};
use tokio_stream::Stream;
use tonic::{Response, Status};
use tower::util::BoxCloneService;

use crate::contract::Contract;
use crate::domain::{Fault, InstanceId, Label, Reason};
use crate::pb;
use crate::pb::task_update::Update;
use crate::runtime::Stop;
use crate::task::attach::Desk;
use crate::task::callback::Allowed;
use crate::task::doors::Promise;
use crate::task::home::sent_away;
use crate::wire::status::reason_of;

/// A way to another sidecar's mutual TLS listener.
pub type HomeService =
    BoxCloneService<http::Request<tonic::body::Body>, http::Response<tonic::body::Body>, Status>;

/// What the service asks of the sidecar around it.
#[tonic::async_trait]
pub trait Surroundings: Send + Sync + 'static {
    /// The own agent's card; none: this sidecar has no agent.
    fn card(&self) -> Option<Arc<pb::AgentCard>>;

    /// This instance as the catalog shows it.
    fn instance(&self) -> pb::Instance;

    /// Where that home's mutual TLS listener is, if it is known.
    fn endpoint(&self, home: &InstanceId) -> Option<String>;

    /// What those promise who could run this now; empty where one of them promises nothing.
    fn promises(&self, namespace: &Label, selector: &pb::Selector) -> Vec<Promise>;

    /// The schemas of a promise, if they are to be had soon.
    async fn contract(&self, promise: &Promise) -> Option<Arc<Contract>>;

    /// Which URLs this sidecar may call back; none unless it says so.
    fn callbacks(&self) -> Arc<Allowed> {
        Arc::default()
    }

    /// Where the own agent attaches; none: it listens, or there is none.
    fn desk(&self) -> Option<&Desk> {
        None
    }

    /// A connection to that home, pinned to its instance, if it is known.
    fn reach(&self, home: &InstanceId) -> Option<HomeService>;
}

pub(super) type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl fmt::Debug for dyn Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Surroundings")
    }
}

pub(super) fn away(home: &InstanceId) -> Fault {
    let text = format!("the task's home {home} is away: its tasks wait for it, ask again later");
    let wait = std::time::Duration::from_secs(5);
    Fault::new(Reason::HomeUnavailable, text)
        .with("home", home.to_string())
        .retry_after(wait)
}

/// Another home's answer as ours; a home that cannot be reached is away, whatever the way there says.
pub(super) fn passed_on(status: Status, home: &InstanceId) -> Status {
    let unreached = [Reason::PeerUnreachable, Reason::PeerMismatch];
    match reason_of(&status) {
        Some(reason) if unreached.iter().any(|known| known.label() == reason) => away(home).into(),
        // Its details travel with it; the other's headers do not.
        _ => Status::with_details(
            status.code(),
            status.message().to_owned(),
            bytes::Bytes::copy_from_slice(status.details()),
        ),
    }
}

pub(super) fn forwarded<T: Send + 'static>(
    answered: Result<Response<tonic::Streaming<T>>, Status>,
    home: InstanceId,
) -> Result<Response<Streamed<T>>, Status> {
    let stream = answered
        .map_err(|status| passed_on(status, &home))?
        .into_inner();
    let stream = stream.map(move |item| item.map_err(|status| passed_on(status, &home)));
    Ok(Response::new(Box::pin(stream)))
}

/// A watch at another home as ours, from this cursor on. It ends like our own when this sidecar
/// drains: with a keepalive and the word to come back, both with the cursor.
pub(super) fn followed(
    answered: Result<Response<tonic::Streaming<pb::WatchTaskResponse>>, Status>,
    home: InstanceId,
    after_seq: u64,
    drain: Stop,
) -> Result<Response<Streamed<pb::WatchTaskResponse>>, Status> {
    let passing = forwarded(answered, home)?.into_inner();
    let from = Following {
        passing: Some(passing),
        cursor: after_seq,
        leaves: false,
    };
    let stream = stream::unfold((from, drain), |(mut at, drain)| async move {
        let next = at.next(&drain).await?;
        Some((next, (at, drain)))
    });
    Ok(Response::new(Box::pin(stream)))
}

struct Following {
    /// `None` once it has ended.
    passing: Option<Streamed<pb::WatchTaskResponse>>,
    /// Last event that was passed on.
    cursor: u64,
    leaves: bool,
}

impl Following {
    async fn next(&mut self, drain: &Stop) -> Option<Result<pb::WatchTaskResponse, Status>> {
        let passing = self.passing.as_mut()?;
        if self.leaves {
            self.passing = None;
            return Some(Err(sent_away(self.cursor).into()));
        }
        tokio::select! {
            biased;
            () = drain.cancelled() => {
                self.leaves = true;
                let last_seq = self.cursor;
                let update = Some(Update::Keepalive(pb::Keepalive { last_seq }));
                let update = Some(pb::TaskUpdate { update });
                Some(Ok(pb::WatchTaskResponse { update }))
            }
            item = passing.next() => {
                let update = item.as_ref().and_then(|item| item.as_ref().ok()?.update.as_ref());
                if let Some(Update::Event(event)) = update.and_then(|said| said.update.as_ref()) {
                    self.cursor = event.seq;
                }
                item
            }
        }
    }
}
