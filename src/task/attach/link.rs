//! The desk as the executor calls it: an attempt is given to a stream, and its words come back.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use tokio_stream::Stream;
use tonic::{Code, Status};

use super::desk::{Desk, Outlet, STREAMS_MAX, Seat, Word, ended};
use super::session::{CREDIT, Given};
use crate::pb;
use crate::task::executor::{HandleStream, HandlerError, HandlerLink};
use crate::telemetry::TraceContext;
use crate::wire::credit::{COST_LEAST, cost};

/// Room for the updates of an attempt, all of the least cost, and its end.
const UPDATES: usize = (CREDIT / COST_LEAST) as usize + 2;

/// Nobody has room: told as an agent tells it that has not begun.
fn full() -> HandlerError {
    let end = pb::AttachEnd {
        code: Code::ResourceExhausted.into(),
        message: "the attached agent has no free place".into(),
        not_processed: true,
        ..pb::AttachEnd::default()
    };
    ended(&end).expect("it is not OK")
}

#[tonic::async_trait]
impl HandlerLink for Desk {
    async fn handle(
        &self,
        request: pb::HandleRequest,
        remaining: Duration,
        trace: Option<&TraceContext>,
    ) -> Result<HandleStream, HandlerError> {
        let task = request.task.as_ref().map(|task| task.id.clone());
        let (task, attempt) = (task.unwrap_or_default(), request.attempt);
        let mut given = Given {
            request: Box::new(request),
            deadline: Instant::now() + remaining,
            trace: trace.map_or_else(Default::default, |trace| {
                (trace.traceparent(), trace.tracestate().to_owned())
            }),
        };
        // A stream may break, or fill up, between the choice and the gift: then there is another one.
        for _ in 0..STREAMS_MAX {
            let seat = self.next_seat().ok_or_else(|| {
                if self.attendance().borrow().places == 0 {
                    HandlerError::Unreachable("no agent is attached".into())
                } else {
                    full()
                }
            })?;
            let (words, said) = mpsc::channel(UPDATES);
            let task = task.clone();
            let outlet = Outlet {
                task,
                attempt,
                words,
            };
            let number = match seat.give(given, outlet) {
                Ok(number) => number,
                Err(back) => {
                    given = back;
                    continue;
                }
            };
            return Ok(Box::pin(Attempt {
                desk: self.clone(),
                seat,
                number,
                said,
            }));
        }
        Err(full())
    }

    async fn cancel(&self, request: pb::CancelRequest) -> Result<(), Status> {
        if let Some((seat, number)) = self.find(&request.task_id, request.attempt) {
            seat.act(|state| state.session.cancel(number, request.reason));
        }
        Ok(())
    }

    async fn describe(&self) -> Result<Option<pb::AgentCard>, Status> {
        Ok(self.card())
    }
}

/// The words of one attempt; dropped, it is cut.
struct Attempt {
    desk: Desk,
    seat: Arc<Seat>,
    number: u64,
    said: mpsc::Receiver<Word>,
}

impl Stream for Attempt {
    type Item = Word;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Word>> {
        let word = self.said.poll_recv(context);
        if let Poll::Ready(Some(Ok(update))) = &word {
            let (number, cost) = (self.number, cost(update));
            self.seat.act(|state| state.session.taken(number, cost));
        }
        word
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let number = self.number;
        self.seat.act(|state| {
            state.outlets.remove(&number);
            state.session.cut(number);
        });
        self.desk.changed();
    }
}
