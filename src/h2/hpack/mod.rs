//! HPACK, the compression of header fields: RFC 7541.
//!
//! Own code: the crates there are (`hpack`, `fluke-hpack`, `httlib-hpack`) allocate each name and
//! value, scan their tables and bound no list, which makes them three to seven times slower, and that
//! of the `h2` crate is private.
//!
//! ```text
//!   block --Decoder--> Fields (one flat arena, reused) --Encoder--> block
//!             |                                            |
//!           Table <------------- one ring each ----------> Table
//! ```
//!
//! What is known of a field is found out once, when it comes as a literal, and stays with its entry
//! in the [`Table`](table::Table): which [`Name`] it is, whether it breaks the rules for field names
//! and values, whether it may be indexed, and its hash. A field that is indexed on both sides costs
//! one copy of its value and two look-ups. Nothing allocates once the buffers have grown.
//!
//! A peer is trusted with nothing: every length is bounded before it is believed, what a block costs
//! is bounded by [`Limits`], and no input makes the decoder panic or go back over what it has read.

mod chains;
mod decoder;
mod encoder;
mod error;
mod facts;
mod fields;
mod hash;
mod huffman;
mod integer;
mod name;
mod seen;
mod statics;
mod table;

#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Fit, Limits};
pub use encoder::Encoder;
pub use error::Error;
pub use fields::{Field, Fields};
pub use name::Name;

/// Octets that a table counts on top of each entry's name and value: RFC 7541, section 4.1. SETTINGS
/// counts a header list in the same way.
pub const ENTRY_OVERHEAD: usize = 32;
/// What both tables may hold before SETTINGS say otherwise: RFC 9113, section 6.5.2.
pub const DEFAULT_TABLE_SIZE: usize = 4096;
