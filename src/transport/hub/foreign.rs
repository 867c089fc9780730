//! Requests that are not gRPC, where our own services are called: told so in words.
//!
//! Refuses to guess what was meant: whatever the path, the answer is the same.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, Limited};
use tonic::body::Body;

/// Bytes of a request that are waited for before it is answered: clients that are not done with
/// sending take an early answer for a broken connection. More than anybody sends by mistake.
const READ: usize = 64 << 10;

const TEXT: &str = "this is a gRPC server: call it by a client of gRPC, with content-type \
                    application/grpc; `grpcurl -plaintext ADDRESS list` shows what it has\n";

/// Whether a request with these headers says that it is gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// The answer to one that does not, as gRPC over HTTP/2 has it.
pub(super) async fn answer(body: Body) -> Response<Body> {
    // Whatever it says, and however it ends.
    drop(Limited::new(body, READ).collect().await);
    let mut answer = Response::new(Body::new(Full::from(TEXT)));
    *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_says_so() {
        for (kind, expected) in [
            (Some("application/grpc"), true),
            (Some("application/grpc+proto"), true),
            (Some("application/json"), false),
            (None, false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(kind) = kind {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            }
            assert_eq!(is_grpc(&headers), expected, "{kind:?}");
        }
    }

    #[tokio::test]
    async fn a_request_that_is_not_grpc_is_told_what_is_here() {
        let long = vec![0; READ + 1];
        for body in [Vec::new(), long] {
            let answer = answer(Body::new(Full::from(body))).await;
            assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
            let told = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(&told[..], TEXT.as_bytes());
        }
    }
}
