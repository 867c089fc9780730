//! Error codes of RST_STREAM and GOAWAY: RFC 9113, section 7.

use std::fmt;

/// Why a stream or a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// Nothing went wrong: a graceful end.
    NoError,
    /// The peer broke a rule that has no code of its own.
    Protocol,
    /// This endpoint failed.
    Internal,
    /// More was sent than the window allowed, or a window outgrew its bound.
    FlowControl,
    /// SETTINGS were not acknowledged in time.
    SettingsTimeout,
    /// A frame came for a stream whose sender had ended it.
    StreamClosed,
    /// A frame is longer than allowed or shorter than its fields.
    FrameSize,
    /// Nothing was done with this stream: it may be sent again.
    RefusedStream,
    /// Nobody wants the stream any longer.
    Cancel,
    /// The field compression context cannot be kept: the connection is lost.
    Compression,
    /// The connection behind a CONNECT broke.
    Connect,
    /// The peer makes too much work.
    EnhanceYourCalm,
    /// TLS below it is too weak.
    InadequateSecurity,
    /// HTTP/1.1 is asked for instead.
    Http11Required,
    /// A code that no RFC has assigned. No meaning may be read into it (section 7), but it is kept,
    /// so that it is passed on and shown as it came.
    Other(u32),
}

impl ErrorCode {
    /// The code as it stands in a frame.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::NoError => 0x0,
            Self::Protocol => 0x1,
            Self::Internal => 0x2,
            Self::FlowControl => 0x3,
            Self::SettingsTimeout => 0x4,
            Self::StreamClosed => 0x5,
            Self::FrameSize => 0x6,
            Self::RefusedStream => 0x7,
            Self::Cancel => 0x8,
            Self::Compression => 0x9,
            Self::Connect => 0xa,
            Self::EnhanceYourCalm => 0xb,
            Self::InadequateSecurity => 0xc,
            Self::Http11Required => 0xd,
            Self::Other(number) => number,
        }
    }

    /// The code that a frame carries.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0x0 => Self::NoError,
            0x1 => Self::Protocol,
            0x2 => Self::Internal,
            0x3 => Self::FlowControl,
            0x4 => Self::SettingsTimeout,
            0x5 => Self::StreamClosed,
            0x6 => Self::FrameSize,
            0x7 => Self::RefusedStream,
            0x8 => Self::Cancel,
            0x9 => Self::Compression,
            0xa => Self::Connect,
            0xb => Self::EnhanceYourCalm,
            0xc => Self::InadequateSecurity,
            0xd => Self::Http11Required,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for ErrorCode {
    /// The name in the RFC's letters, as logs of other implementations have it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoError => "NO_ERROR",
            Self::Protocol => "PROTOCOL_ERROR",
            Self::Internal => "INTERNAL_ERROR",
            Self::FlowControl => "FLOW_CONTROL_ERROR",
            Self::SettingsTimeout => "SETTINGS_TIMEOUT",
            Self::StreamClosed => "STREAM_CLOSED",
            Self::FrameSize => "FRAME_SIZE_ERROR",
            Self::RefusedStream => "REFUSED_STREAM",
            Self::Cancel => "CANCEL",
            Self::Compression => "COMPRESSION_ERROR",
            Self::Connect => "CONNECT_ERROR",
            Self::EnhanceYourCalm => "ENHANCE_YOUR_CALM",
            Self::InadequateSecurity => "INADEQUATE_SECURITY",
            Self::Http11Required => "HTTP_1_1_REQUIRED",
            Self::Other(number) => return write!(f, "{number:#x}"),
        })
    }
}
