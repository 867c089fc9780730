//! What an update of an attached agent costs of its attempt's credit: one rule for both ends.

use prost::Message as _;

use crate::pb;

/// The least that an update costs: what keeping it takes, however little it says.
pub const COST_LEAST: u64 = 1 << 10;

/// What an update takes of its attempt's credit, in bytes: its encoded size, and [`COST_LEAST`] at
/// least.
pub fn cost(update: &pb::HandleResponse) -> u64 {
    (update.encoded_len() as u64).max(COST_LEAST)
}
