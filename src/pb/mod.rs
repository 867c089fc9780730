//! Generated code of `proto/attache/v1/`, and the descriptors that reflection and JSON use.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    elided_lifetimes_in_paths,
    clippy::all,
    clippy::use_self,
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::large_futures,
    clippy::or_fun_call,
    clippy::cognitive_complexity,
    clippy::wildcard_enum_match_arm,
    clippy::semicolon_if_nothing_returned,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

pub mod codec;

tonic::include_proto!("attache.v1");

/// What a home keeps on disk; never on the wire.
pub mod journal {
    include!(concat!(env!("OUT_DIR"), "/journal/attache.journal.v1.rs"));
}

/// Encoded `FileDescriptorSet` of the public contract with all imports and comments.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attache.bin"));
