//! Where generated messages and our own types meet: the only place that knows both.

pub mod credit;
pub mod json;
pub mod status;
