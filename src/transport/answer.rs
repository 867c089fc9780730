//! A peer's answer, made harmless for what reads it.
//!
//! The generated clients panic on a `grpc-status-details-bin` that is not base64, and a peer may
//! send what it likes: such details are left out, in headers and in trailers.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::telemetry::call::details;

/// The body of an answer, whose trailers can be read without harm.
#[derive(Debug)]
pub struct Answer {
    body: Incoming,
}

/// The answer without details that cannot be read.
pub fn harmless(mut response: Response<Incoming>) -> Response<Answer> {
    drop_unreadable(response.headers_mut());
    response.map(|body| Answer { body })
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut polled = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            drop_unreadable(trailers);
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn drop_unreadable(headers: &mut HeaderMap) {
    if details::read(headers).is_some_and(|details| details.is_err()) {
        headers.remove(details::DETAILS);
        tracing::debug!("a peer's status details are not base64: left out");
    }
}
