//! Generated code of the contract: the mesh as an agent sees it.

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

tonic::include_proto!("attache.v1");
