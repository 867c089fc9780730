//! What goes over the wire between the two agents, as JSON: the contract of `search.passages`.
//!
//! The schemas of both stand in `mesh.toml`, where the mesh publishes them with the skill.

use serde::{Deserialize, Serialize};

/// Most passages in one answer: 20 passages of 4 KiB stay far below the 1 MiB of a result.
pub const MAX_PASSAGES: usize = 20;

/// Passages in one answer where the caller does not say.
pub const DEFAULT_PASSAGES: usize = 5;

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// Words, or a question in plain English.
    pub query: String,
    /// Most passages wanted, 1 to [`MAX_PASSAGES`]; unset: [`DEFAULT_PASSAGES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// What was found, best first; empty: nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The passages.
    pub passages: Vec<Passage>,
}

/// Lines of one file, word for word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Passage {
    /// Path below the folder that was searched, with `/` between its parts.
    pub file: String,
    /// First line, from 1.
    pub line: u32,
    /// Last line, included.
    pub end_line: u32,
    /// How well it fits; higher is better, and comparable within one answer only.
    pub score: f64,
    /// The lines, joined by `\n`.
    pub text: String,
}
