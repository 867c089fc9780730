//! The words of the mesh as types: parsed once at the door, right from then on.
//!
//! No I/O, no async, no generated code in here; time is passed in.

pub mod fault;
pub mod ids;
pub mod spiffe;

pub use fault::{Fault, Reason};
pub use ids::{AgentName, InstanceId, Label, SkillName, TaskId};
pub use spiffe::{Member, SpiffeId, TrustDomain};
