//! A service that is none of the mesh's, for calls that pass: it works for the milliseconds that its
//! input begins with, says its input, and is ill as tasks are.

use std::{convert::Infallible, time::Duration};

use attache::pb::{self, codec::Protobuf, part::Content};
use axum::{
    body::Body,
    routing::{MethodRouter, post},
};
use tokio::time::sleep;
use tonic::{Request, Response, Status, server::Grpc};
use tower::service_fn;

use super::{Ill, argument, note};

/// Its only method.
pub(crate) const PATH: &str = "/test.v1.Plain/Work";

/// What answers it.
pub(crate) fn route() -> MethodRouter<(), Infallible> {
    post(async |request: http::Request<Body>| {
        let mut grpc = Grpc::new(Protobuf::<pb::Part, pb::Part>::default());
        let answer = grpc.unary(service_fn(work), request).await;
        answer.map(Body::new)
    })
}

async fn work(request: Request<pb::Part>) -> Result<Response<pb::Part>, Status> {
    let part = request.into_inner();
    let Some(Content::Text(text)) = &part.content else {
        return Err(Status::invalid_argument("text"));
    };
    let (millis, number) = text.split_once(' ').unwrap();
    let ill = Ill::now(argument("ill").as_deref());
    let failed = if ill.fails.is_some() { " failed" } else { "" };
    note(&format!("{PATH} {number} 1{failed}"));
    if let Some(status) = ill.fails {
        return Err(status);
    }
    let late = ill.late.unwrap_or_default();
    sleep(late + Duration::from_millis(millis.parse().unwrap())).await;
    Ok(Response::new(part))
}
