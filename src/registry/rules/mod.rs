//! Traffic rules: what operators want of calls to a skill or an agent.
//!
//! Pure. A message is read once at the door (`door`), kept as a `Rule`, and asked as part of a set
//! (`Rules`), which settles what holds for one call. Nothing here carries a rule out.

pub(super) mod audit;
mod door;
mod effective;
mod overrides;
mod rule;
mod set;
mod settings;

#[cfg(test)]
mod tests;

pub use door::{CALLERS_MAX, FAULTS_MAX, RULE_MAX, WEIGHTS_MAX};
pub use effective::Effective;
pub use overrides::{Overrides, Percent};
pub use rule::{Caller, Rehearsal, Rule, RuleName, Target, Weight};
pub use set::{Placed, RULES_BYTES_MAX, RULES_MAX, Refused, Rules, Stamp};
