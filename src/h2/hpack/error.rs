//! Why a field block cannot be decoded: always the end of its connection, as the tables of the two
//! sides are no longer the same.

use thiserror::Error;

use crate::h2::frame::ErrorCode;

/// A block that breaks RFC 7541, or costs too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Error {
    /// The block ends within a field.
    #[error("field block ends within a field")]
    Truncated,
    /// An integer takes more octets than any honest one.
    #[error("integer in a field block is too long")]
    Integer,
    /// Index 0, or one beyond both tables.
    #[error("index of a field is in no table")]
    Index,
    /// A Huffman code that stands for the end of a string, within one.
    #[error("Huffman-coded string holds EOS")]
    EndOfString,
    /// Padding of a Huffman-coded string that is no prefix of EOS, or is eight bits or longer.
    #[error("Huffman-coded string is not padded with fewer than 8 one bits")]
    Padding,
    /// A change of the table's size after a field, or the third one in a block.
    #[error("table size update is not at the start of its block")]
    MisplacedUpdate,
    /// A table larger than announced.
    #[error("table size update is above SETTINGS_HEADER_TABLE_SIZE")]
    Update,
    /// The block unfolds to far more than the limit of a list.
    #[error("field block unfolds to far more than allowed")]
    Bomb,
}

impl Error {
    /// What the peer is told in GOAWAY.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Bomb => ErrorCode::EnhanceYourCalm,
            Self::Truncated
            | Self::Integer
            | Self::Index
            | Self::EndOfString
            | Self::Padding
            | Self::MisplacedUpdate
            | Self::Update => ErrorCode::Compression,
        }
    }
}
