//! What the tests that drive real processes share.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(unreachable_pub, reason = "modules of one test binary")]
#![allow(missing_debug_implementations, reason = "nobody prints these")]

pub mod callers;
pub mod client;
pub mod collector;
pub mod differential;
pub mod fault;
pub mod floods;
pub mod hand;
pub mod hosts;
pub mod interop;
pub mod ledger;
pub mod load;
pub mod memory;
pub mod mesh;
pub mod netns;
pub mod passing;
pub mod peers;
pub mod process;
pub mod receiver;
pub mod relay;
pub mod scrape;
pub mod skip;
pub mod through;
pub mod tools;
pub mod traffic;
pub mod wait;
