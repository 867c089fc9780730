//! The agent `research`: answers a question, skill `research.answer`.
//!
//! It delegates the search to whichever agent offers `search.passages`, picks the sentences that
//! speak of what was asked, and quotes them. It writes no sentence of its own: every quote stands,
//! word for word, at the lines that its citation names.

mod answer;
mod ask;
mod choose;
mod handler;
mod sentence;

pub use answer::{Answer, Citation};
pub use handler::Research;
