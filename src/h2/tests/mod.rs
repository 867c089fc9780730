//! What the tests of several rooms share: ends of connections played by hand, and a world of them
//! around an exchange.

mod end;
mod world;

pub(super) use self::{
    end::{End, Seen},
    world::{Recorder, World},
};
use super::hpack::Fields;

/// A list of fields from text.
pub(super) fn list(fields: &[(&str, &str)]) -> Fields {
    let mut list = Fields::new();
    for (name, value) in fields {
        list.push(name.as_bytes(), value.as_bytes());
    }
    list
}

/// A gRPC request.
pub(super) fn request(path: &str) -> Fields {
    list(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ])
}
