//! One guard for each gRPC call that is served: it counts the call and writes its access line when
//! it is dropped, however the call ended. So no path can forget it.
//!
//! What a caller wrote appears in a line only as a quoted or escaped value, and cut to a bound: one
//! call is one line.

pub mod details;
#[cfg(test)]
pub(crate) mod heard;
mod line;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Code;

pub use self::line::{Line, Passed, Weight};
use super::TraceContext;
use super::metrics::calls::{Listener, Method};
use crate::pb;

/// Most bytes of a value in a line that a caller chose.
const VALUE_MAX: usize = 256;

/// Where calls come from: one connection of a listener.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The listener's counts.
    pub listener: Arc<Listener>,
    /// Who calls: a SPIFFE id, `local`, or `anonymous`.
    pub caller: Arc<str>,
    /// The other end's address; `-` on a Unix socket.
    pub remote: Arc<str>,
}

/// What a handler knows of its call, for the access line. Clones are the same call.
#[derive(Clone, Debug, Default)]
pub struct CallNotes {
    inner: Arc<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    facts: Mutex<Facts>,
    received: AtomicU64,
}

#[derive(Debug, Default)]
struct Facts {
    skill: Option<String>,
    task: Option<String>,
    correlation: Option<String>,
    trace: Option<TraceContext>,
}

impl CallNotes {
    /// The notes of a request; of one that came by no listener, notes that nobody reads.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request.extensions().get().cloned().unwrap_or_default()
    }

    /// The skill that is asked for.
    pub fn skill(&self, skill: &str) {
        self.inner.facts.lock().skill = noted(skill);
    }

    /// The task that the call is about.
    pub fn task(&self, id: &str) {
        self.inner.facts.lock().task = noted(id);
    }

    /// The call is about this task.
    pub fn about(&self, task: &pb::Task) {
        let mut facts = self.inner.facts.lock();
        facts.task = noted(&task.id);
        facts.skill = noted(&task.skill);
        facts.correlation = noted(&task.correlation_id);
    }

    /// What the caller traces the call below, if it does.
    pub fn traced(&self, trace: Option<TraceContext>) {
        self.inner.facts.lock().trace = trace;
    }

    /// What ties the call's task to other work.
    pub fn correlation(&self, id: &str) {
        self.inner.facts.lock().correlation = noted(id);
    }
}

/// A call that is being served. Dropped, it is counted and told.
#[derive(Debug)]
pub struct Call {
    origin: Origin,
    method: Method,
    /// What was asked for where it is no method of ours.
    path: Option<String>,
    began: Instant,
    limit: Option<Duration>,
    notes: CallNotes,
    /// The status, once it is known.
    status: Option<Told>,
    sent: u64,
}

#[derive(Debug)]
struct Told {
    code: Code,
    /// The reason in the status' details, where it is one of ours.
    reason: Option<String>,
}

impl Call {
    /// A call of `path` has begun; the caller waits no longer than `limit`.
    pub fn begin(origin: &Origin, path: &str, limit: Option<Duration>) -> Self {
        let method = Method::of(path);
        origin.listener.began(method);
        Self {
            origin: origin.clone(),
            method,
            path: method.is_other().then(|| noted(path)).flatten(),
            began: Instant::now(),
            limit,
            notes: CallNotes::default(),
            status: None,
            sent: 0,
        }
    }

    /// For the request's extensions.
    pub fn notes(&self) -> CallNotes {
        self.notes.clone()
    }

    /// The answer has begun: the call goes on until its body is over.
    pub fn answered<B>(mut self, response: Response<B>) -> Response<Answered<B>> {
        // An answer that is nothing but a status has it among its headers.
        self.told(response.headers());
        response.map(|body| Answered { body, call: self })
    }

    fn told(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            let code = Code::from_bytes(code.as_bytes());
            let reason = (code != Code::Ok)
                .then(|| details::reason(headers))
                .flatten();
            self.status = Some(Told { code, reason });
        }
    }

    /// Without a status the call was given up: by its deadline, or by whoever called.
    fn outcome(&mut self, took: Duration) -> Told {
        self.status.take().unwrap_or_else(|| Told {
            code: match self.limit {
                Some(limit) if took >= limit => Code::DeadlineExceeded,
                Some(_) | None => Code::Cancelled,
            },
            reason: None,
        })
    }

    fn line(&self, code: Code, reason: Option<&str>, took: Duration, received: u64) {
        let weight = match self.method.is_background() {
            true => Weight::Background,
            false => Weight::Told,
        };
        let facts = self.notes.inner.facts.lock();
        let line = Line {
            listener: self.origin.listener.name(),
            caller: &self.origin.caller,
            remote: &self.origin.remote,
            service: self.method.service,
            method: self.method.name,
            path: self.path.as_deref(),
            code,
            reason,
            passed: None,
            skill: facts.skill.as_deref(),
            task: facts.task.as_deref(),
            correlation: facts.correlation.as_deref(),
            trace: facts.trace.as_ref(),
            took,
            received,
            sent: self.sent,
        };
        line.write(weight);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let received = self.notes.inner.received.load(Relaxed);
        let Told { code, reason } = self.outcome(took);
        // In this order: what is counted has been told.
        self.line(code, reason.as_deref(), took, received);
        let bytes = (received, self.sent);
        self.origin.listener.ended(self.method, code, took, bytes);
    }
}

/// An answer's body, which ends its call.
#[derive(Debug)]
pub struct Answered<B> {
    body: B,
    call: Call,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Answered<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.call.sent += data.remaining() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.call.told(trailers);
                }
            }
            // An end without a status is not one that gRPC knows.
            Some(Err(_)) | None => {
                self.call.status.get_or_insert(Told {
                    code: Code::Unknown,
                    reason: None,
                });
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request's body, whose bytes are counted.
#[derive(Debug)]
pub struct Received<B> {
    body: B,
    notes: CallNotes,
}

impl<B> Received<B> {
    /// The body of the call with these notes.
    pub fn new(body: B, notes: CallNotes) -> Self {
        Self { body, notes }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Received<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let bytes = data.remaining() as u64;
            self.notes.inner.received.fetch_add(bytes, Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A duration in milliseconds, to the microsecond.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// A value within its bound; nothing where there is none.
fn noted(value: &str) -> Option<String> {
    let end = value.floor_char_boundary(VALUE_MAX);
    (!value.is_empty()).then(|| value[..end].to_owned())
}

#[cfg(test)]
mod tests;
