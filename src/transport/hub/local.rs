//! Our own services, behind a pipe of one caller's: HTTP/2 by hyper, gRPC by tonic.
//!
//! Guards nothing: the engine in front has judged every frame. The one at the other end of the pipe is
//! this process.

use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc, time::Duration};

use http::{HeaderMap, Request, Response};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::rt::TokioIo;
use tokio::{io::DuplexStream, time::timeout};
use tonic::{body::Body, service::Routes};
use tower::ServiceExt;

use super::{Arrival, foreign};
use crate::{
    domain::{Fault, Reason},
    h2::grpc,
    identity::Connection,
    telemetry::{
        TraceContext,
        call::{Answered, Call, Origin, Received},
    },
    transport::serve::{CONNECTION_WINDOW, HEADER_LIST, STREAM_WINDOW, origin},
    wire::status,
};

/// Streams at a time: more than any caller has, whose own connection is held to its number.
const STREAMS: u32 = 4096;
/// Streams that callers gave up before we looked at them, which the engine counts for each of them.
const RESETS: usize = 8192;

/// Answers the calls of one caller until its pipe ends.
pub(super) async fn answer(io: DuplexStream, arrival: Arrival) {
    let calls = Calls {
        routes: arrival.context.routes.clone(),
        origin: origin(&arrival.connection, &arrival.context),
        connection: Arc::clone(&arrival.connection),
    };
    let mut builder = http2::Builder::new(arrival.context.nursery.clone());
    builder
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS);
    let service = hyper::service::service_fn(move |request| calls.answer(request));
    if let Err(error) = builder.serve_connection(TokioIo::new(io), service).await {
        tracing::debug!(%error, "a pipe to our own services ended");
    }
}

/// Answers the calls of one connection.
#[derive(Clone)]
struct Calls {
    routes: Routes,
    origin: Origin,
    connection: Arc<Connection>,
}

type Reply = Response<Answered<Body>>;
type Answer = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

impl Calls {
    fn answer(&self, mut request: Request<Incoming>) -> Answer {
        let limit = deadline(request.headers());
        let call = Call::begin(&self.origin, request.uri().path(), limit);
        call.notes().traced(TraceContext::of(request.headers()));
        let extensions = request.extensions_mut();
        extensions.insert(Arc::clone(&self.connection));
        extensions.insert(call.notes());
        let request = request.map(|body| Body::new(Received::new(body, call.notes())));
        let routes = self.routes.clone();
        let answer = async move {
            match foreign::is_grpc(request.headers()) {
                true => routes.oneshot(request).await,
                false => Ok(foreign::answer(request.into_body()).await),
            }
        };
        Box::pin(async move {
            let answered = match limit {
                None => answer.await?,
                Some(limit) => match timeout(limit, answer).await {
                    Ok(answered) => answered?,
                    Err(_) => late(),
                },
            };
            Ok(call.answered(answered))
        })
    }
}

fn late() -> Response<Body> {
    let text = "the call's deadline passed before the answer began";
    status::to_status(Fault::new(Reason::DeadlineExceeded, text)).into_http()
}

/// What the caller's `grpc-timeout` leaves.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    grpc::timeout(headers.get("grpc-timeout")?.as_bytes())
}
