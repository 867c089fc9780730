//! The agent `search`: full-text search over a folder of documents, skill `search.passages`.
//!
//! It reads the folder once, at its start. What changes later is not seen, and no model ranks
//! anything: a passage is found by the words it shares with the query.

mod corpus;
mod handler;
mod index;
mod passage;

pub use corpus::{Document, read};
pub use handler::Search;
pub use index::{Index, IndexError};
