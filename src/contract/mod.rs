//! What a skill promises about its input and its result: JSON Schemas, compiled and applied.
//!
//! Pure: nothing is fetched, nothing waits, and no check costs more than [`COST_MAX`] steps, whoever
//! wrote the schema and whoever wrote the value.
//!
//! ```text
//!   text of a card --[Schema::compile]--> Schema --[Schema::check]--> Violation (pointer, rule, expected)
//!   both of a skill: Contract, found by its hash among the Known
//! ```
//!
//! A schema is about the JSON among a task's parts: each `data` part, and each text part that says
//! that it is JSON. Refused are schemas that name anything outside themselves, that are too large or
//! too deep, or whose work on one value has no small bound; see [`graph`].

mod compiled;
mod cost;
mod graph;
mod hash;
mod json;
mod known;
mod schema;
#[cfg(test)]
mod tests;
mod violation;

pub use compiled::{Contract, Side};
pub use cost::COST_MAX;
pub use hash::{Canonical, hash_of, is_nothing};
pub use known::Known;
pub use schema::{SCHEMA_DEPTH_MAX, SCHEMA_MAX, Schema, SchemaError};
pub use violation::{RULE_COST, RULE_JSON, RULE_PART, RULE_SCHEMA, Violation};
