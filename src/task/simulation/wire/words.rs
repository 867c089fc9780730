//! gRPC's words on a stream: requests, answers, and how calls end.

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::Status;

use crate::domain::{Fault, Reason};
use crate::h2::frame::ErrorCode;
use crate::h2::hpack::{Fields, Name};

use super::talk::Over;

pub(super) const EXECUTE: &[u8] = b"/attache.v1.Executor/Execute";
pub(super) const SLOTS: &[u8] = b"/attache.v1.Executor/Slots";
/// Which stream of the run it is.
const NUMBER: &[u8] = b"x-number";

/// A call's header section.
pub(super) fn request(path: &[u8], number: u64) -> Fields {
    let mut fields = Fields::new();
    let number = number.to_string();
    for (name, value) in [
        (&b":method"[..], &b"POST"[..]),
        (b":scheme", b"https"),
        (b":path", path),
        (b":authority", b"sidecar"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"tonic"),
        (NUMBER, number.as_bytes()),
    ] {
        fields.push(name, value);
    }
    fields
}

/// What a request is for, and its number.
pub(super) fn asked(head: &Fields) -> (Vec<u8>, Option<u64>) {
    let mut fields = head.iter();
    let number = fields.find(|field| field.name == NUMBER);
    let number = number.and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
    (head.get(Name::Path).unwrap_or_default().to_vec(), number)
}

/// The head of an answer that is not refused.
pub(super) fn answer() -> Fields {
    let mut fields = Fields::new();
    fields.push(b":status", b"200");
    fields.push(b"content-type", b"application/grpc");
    fields
}

/// How a call went.
pub(super) fn status(into: &mut Fields, status: &Status) {
    let mut headers = HeaderMap::new();
    let added = status.add_header(&mut headers);
    added.expect("our statuses fit into fields");
    for (name, value) in &headers {
        into.push(name.as_str().as_bytes(), value.as_bytes());
    }
}

/// The status in trailers; `None`: there is none.
pub(super) fn status_of(fields: &Fields) -> Option<Status> {
    let mut headers = HeaderMap::new();
    for field in fields.iter().filter(|field| !field.name.starts_with(b":")) {
        let name = HeaderName::from_bytes(field.name).ok()?;
        headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    Status::from_header_map(&headers)
}

/// What a call that ended before its time is to its home.
pub(super) fn over(how: Over) -> Status {
    match how {
        Over::Reset(ErrorCode::RefusedStream, _) => unreachable("the peer takes no call"),
        Over::Reset(..) | Over::Lost => lost(),
    }
}

/// Nothing was sent.
pub(in crate::task::simulation) fn unreachable(why: &str) -> Status {
    Fault::new(Reason::PeerUnreachable, why).into()
}

/// It may have been done.
pub(super) fn lost() -> Status {
    Fault::new(Reason::ConnectionLost, "the connection broke").into()
}
