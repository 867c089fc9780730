//! What a caller is told when its call fails: decided here and nowhere else.

use crate::h2::{
    frame::ErrorCode,
    grpc::{self, Code},
    hpack::{Fields, Name},
};

/// Why a call failed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Its deadline passed.
    Deadline,
    /// Whoever was to answer could not be reached, or refused.
    Unavailable(&'static str),
    /// The connection broke in the middle of the call.
    Lost,
    /// The answering side reset the stream.
    Reset(ErrorCode),
    /// The answering side broke the protocol.
    Broken(ErrorCode),
    /// Too much: fields, or bytes that nobody read.
    Exhausted(&'static str),
}

impl Failure {
    /// The status that says it.
    pub fn code(self) -> Code {
        match self {
            Self::Deadline => Code::DEADLINE_EXCEEDED,
            Self::Unavailable(_) | Self::Lost => Code::UNAVAILABLE,
            Self::Reset(code) => Code::of_reset(code),
            Self::Broken(ErrorCode::EnhanceYourCalm) | Self::Exhausted(_) => {
                Code::RESOURCE_EXHAUSTED
            }
            Self::Broken(_) => Code::INTERNAL,
        }
    }

    /// What happened, and what to do about it.
    pub fn message(self) -> &'static str {
        match self {
            Self::Deadline => "the call's deadline passed; give it a longer one, or ask for less",
            Self::Unavailable(why) | Self::Exhausted(why) => why,
            Self::Lost => "the connection broke during the call; ask again if it may run twice",
            Self::Reset(_) => "the answering side gave up the call",
            Self::Broken(ErrorCode::EnhanceYourCalm) => {
                "the answer has more header fields than are taken; send less metadata"
            }
            Self::Broken(_) => "the answering side broke a rule of HTTP/2; see its log",
        }
    }

    /// Whether the caller's stream is reset with the very code, without an answer: what the two
    /// ends say to each other goes through as it is.
    pub fn reset(self) -> Option<ErrorCode> {
        match self {
            Self::Reset(code) if code != ErrorCode::RefusedStream => Some(code),
            Self::Reset(_)
            | Self::Deadline
            | Self::Unavailable(_)
            | Self::Lost
            | Self::Broken(_)
            | Self::Exhausted(_) => None,
        }
    }

    /// The code for a stream that can be told nothing but a code.
    pub fn error_code(self) -> ErrorCode {
        match self {
            Self::Deadline => ErrorCode::Cancel,
            Self::Reset(code) => code,
            Self::Exhausted(_) => ErrorCode::EnhanceYourCalm,
            Self::Unavailable(_) | Self::Lost | Self::Broken(_) => ErrorCode::Internal,
        }
    }
}

/// An answer that is only a status: trailers without anything before them for gRPC, the nearest
/// HTTP status for others.
pub fn write_answer(
    fields: &mut Fields,
    text: &mut Vec<u8>,
    grpc: bool,
    code: Code,
    message: &str,
) {
    fields.clear();
    if !grpc {
        fields.push_known(Name::Status, http_status(code).as_bytes());
        fields.push_known(Name::ContentLength, b"0");
        return;
    }
    fields.push_known(Name::Status, b"200");
    fields.push_known(Name::ContentType, b"application/grpc");
    write_status(fields, text, code, message);
}

/// A status, as trailers have it. `text` is scratch space.
pub fn write_status(fields: &mut Fields, text: &mut Vec<u8>, code: Code, message: &str) {
    fields.push_known(Name::GrpcStatus, code.text().as_bytes());
    if !message.is_empty() {
        text.clear();
        grpc::write_message(message, text);
        fields.push_known(Name::GrpcMessage, text);
    }
}

/// For callers that do not speak gRPC.
fn http_status(code: Code) -> &'static str {
    match code {
        Code::OK => "200",
        Code::PERMISSION_DENIED => "403",
        Code::UNIMPLEMENTED => "404",
        Code::RESOURCE_EXHAUSTED => "429",
        Code::UNAVAILABLE => "503",
        Code::DEADLINE_EXCEEDED => "504",
        _ => "502",
    }
}
