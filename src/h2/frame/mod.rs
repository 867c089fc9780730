//! HTTP/2 frames as bytes: RFC 9113, sections 4, 6 and 7.
//!
//! Owns every rule that can be decided from one frame alone: lengths, padding, which stream a kind
//! may be on, which values a setting may have, and with what error code and how widely each breach
//! is answered. Refuses to know what came before: order of frames, states of streams, parity of
//! their ids, windows and the assembly of field blocks are the connection's business.
//!
//! ```text
//!   bytes --Head::read--> Head --Head::check--> (payload may be awaited) --Frame::parse--> Frame<'_>
//!   write::* --> bytes
//! ```
//!
//! Nothing here allocates: a [`Frame`] borrows from the bytes read, [`write`] appends to a buffer
//! that its caller keeps.

mod code;
mod error;
mod head;
mod parse;
mod settings;
pub mod write;

#[cfg(test)]
mod tests;

pub use code::ErrorCode;
pub use error::{Error, Scope};
pub use head::{Head, Kind, Split, flag, split};
pub use parse::{Frame, Priority};
pub use settings::{Setting, Settings};

/// What a client sends before its first frame: RFC 9113, section 3.4.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Octets of payload that every peer takes in one frame, and the most that is sent before its
/// SETTINGS say more: RFC 9113, section 4.2.
pub const MIN_MAX_FRAME_SIZE: u32 = 1 << 14;
/// The largest value of SETTINGS_MAX_FRAME_SIZE.
pub const MAX_MAX_FRAME_SIZE: u32 = (1 << 24) - 1;
/// The largest flow-control window: RFC 9113, section 6.9.1.
pub const MAX_WINDOW: u32 = (1 << 31) - 1;
/// Every window before the first SETTINGS: RFC 9113, section 6.9.2.
pub const DEFAULT_WINDOW: u32 = 65_535;
/// Stream ids have 31 bits; the one above them is reserved and ignored.
pub const MAX_STREAM: u32 = (1 << 31) - 1;
