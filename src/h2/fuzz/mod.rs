//! What fuzzers call with whatever bytes they think of: `fuzz/` is their workspace, and the tests
//! here run the same over the corpus and many mutations of it, so that no fuzzer is needed to notice.
//!
//! Each target panics where something does not hold that must hold for all bytes.

mod exchange;
mod frames;
mod hpack;

#[cfg(test)]
mod tests;

pub use exchange::exchange;
pub use frames::frames;
pub use hpack::hpack;
