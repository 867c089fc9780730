//! The research desk: two agents of an attache mesh, and what they share.
//!
//! `search` finds passages in a folder of documents; `research` answers a question by asking for
//! `search.passages` and quoting what comes back. They are separate processes that know nothing of
//! each other but the name of a skill, and nothing of attache but its contract in `proto/`.
//!
//! Read in this order: [`search::Search`] (an agent that works alone), [`research::Research`] (an
//! agent that delegates), [`attempt`] and [`serve`] (the few lines every agent in Rust needs).

pub mod attempt;
pub mod found;
pub mod part;
pub mod pb;
pub mod research;
pub mod search;
pub mod serve;
pub mod terms;
