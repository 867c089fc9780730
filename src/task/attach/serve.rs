//! Carries one attached stream: reads what the agent says, writes what is to be said.
//!
//! Reading never waits for writing: an agent that sends before it reads must not block itself.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use super::desk::{Desk, News, STREAMS_MAX, Seat};
use super::session::Violation;
use crate::domain::{Fault, Reason};
use crate::pb;
use crate::runtime::Stop;

/// How long an agent has to say hello.
const HELLO: Duration = Duration::from_secs(10);
/// How long the reason of an end may wait for an agent that does not read.
const LAST_WORD: Duration = Duration::from_secs(1);

type Answer = Result<pb::AttachResponse, Status>;

impl Desk {
    /// Serves one stream of the agent, until it ends, breaks a rule, or this sidecar `leaves`.
    ///
    /// # Errors
    /// When there are [`STREAMS_MAX`].
    pub fn serve<S>(
        &self,
        asked: S,
        leaves: Stop,
    ) -> Result<impl Stream<Item = Answer> + Send + use<S>, Fault>
    where
        S: Stream<Item = Result<pb::AttachRequest, Status>> + Send + Unpin + 'static,
    {
        let seat = self.sit().ok_or_else(|| {
            let text = format!("{STREAMS_MAX} streams are attached: close one first");
            Fault::new(Reason::SlotsFull, text)
        })?;
        // One message beside what the connection holds: what is in it counts as written.
        let (out, answers) = mpsc::channel(1);
        let (desk, nursery) = (self.clone(), self.nursery());
        nursery.start("attached agent", |stop| async move {
            let _seated = Seated {
                desk: desk.clone(),
                seat: Arc::clone(&seat),
            };
            let stops = [stop, leaves];
            if let Some(fault) = carry(&desk, &seat, asked, &out, &stops).await {
                tracing::warn!(reason = %fault.reason, "the agent's stream is closed: {}", fault.text);
                desk.leave(&seat, &fault.text);
                drop(timeout(LAST_WORD, out.send(Err(fault.into()))).await);
            }
        });
        Ok(ReceiverStream::new(answers))
    }
}

/// Gives the seat up, however the stream ends.
struct Seated {
    desk: Desk,
    seat: Arc<Seat>,
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.desk
            .leave(&self.seat, "its stream to the sidecar ended");
    }
}

/// Until the stream ends; with the reason where it is our doing.
async fn carry<S>(
    desk: &Desk,
    seat: &Seat,
    mut asked: S,
    out: &mpsc::Sender<Answer>,
    [one, other]: &[Stop; 2],
) -> Option<Fault>
where
    S: Stream<Item = Result<pb::AttachRequest, Status>> + Send + Unpin,
{
    let first = tokio::select! {
        biased;
        () = one.cancelled() => return Some(draining()),
        () = other.cancelled() => return Some(draining()),
        () = out.closed() => return None,
        first = timeout(HELLO, asked.next()) => first,
    };
    let Ok(mut next) = first else {
        let text = format!("no hello within {HELLO:?}");
        return Some(Fault::new(Reason::ProtocolViolation, text));
    };
    loop {
        match next.take() {
            Some(Ok(message)) => match seat.hear(message) {
                Ok(News::Arrived(card)) => desk.arrived(seat, card),
                Ok(News::Room) => desk.changed(),
                Ok(News::Passed) => {}
                Err(broken) => return Some(violated(&broken)),
            },
            Some(Err(status)) => {
                tracing::debug!(%status, "the agent's stream broke");
                return None;
            }
            None => return None,
        }
        if seat.is_done() {
            return None;
        }
        loop {
            tokio::select! {
                biased;
                () = one.cancelled() => return Some(draining()),
                () = other.cancelled() => return Some(draining()),
                () = out.closed() => return None,
                // First, since there is an end to what is to be said, and none to what an agent says.
                room = out.reserve(), if seat.has_next() => {
                    if let (Ok(room), Some(say)) = (room, seat.next(Instant::now())) {
                        room.send(Ok(say));
                    }
                }
                heard = asked.next() => {
                    next = heard;
                    break;
                }
                () = seat.wake.notified() => {}
            }
        }
    }
}

fn violated(broken: &Violation) -> Fault {
    Fault::new(Reason::ProtocolViolation, broken.to_string())
}

fn draining() -> Fault {
    Fault::new(Reason::Draining, "this sidecar stops: attach again")
}
