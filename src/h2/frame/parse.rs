//! Payloads of frames: RFC 9113, section 6.

use super::{Error, ErrorCode, Head, Kind, MAX_STREAM, Settings, flag};

/// A frame, borrowed from the bytes that were read. Padding is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Octets of a body.
    Data {
        /// Never 0.
        stream: u32,
        /// Without padding.
        data: &'a [u8],
        /// Octets taken from both windows: padding and its length octet count (section 6.1).
        flow: u32,
        /// Nothing more comes on this half of the stream.
        end_stream: bool,
    },
    /// A field block, or its beginning.
    Headers {
        /// Never 0.
        stream: u32,
        /// A fragment, of HPACK.
        block: &'a [u8],
        /// To be checked with [`Priority::check`] only after the block was decoded: a breach ends
        /// the stream, but the connection's compression state has to stay true.
        priority: Option<Priority>,
        /// Nothing more comes on this half of the stream.
        end_stream: bool,
        /// The block is whole.
        end_headers: bool,
    },
    /// Obsolete advice.
    Priority {
        /// Never 0.
        stream: u32,
        /// The advice.
        priority: Priority,
    },
    /// RST_STREAM.
    Reset {
        /// Never 0.
        stream: u32,
        /// Why.
        code: ErrorCode,
    },
    /// SETTINGS of the peer.
    Settings(Settings<'a>),
    /// SETTINGS with ACK: ours are in force.
    SettingsAck,
    /// A promised response: its field block, or the beginning of it.
    PushPromise {
        /// The stream it belongs to, never 0.
        stream: u32,
        /// The stream that is reserved: even, never 0.
        promised: u32,
        /// A fragment, of HPACK.
        block: &'a [u8],
        /// The block is whole.
        end_headers: bool,
    },
    /// To be answered with the same octets, unless it is the answer.
    Ping {
        /// Whether this is the answer.
        ack: bool,
        /// What comes back.
        opaque: [u8; 8],
    },
    /// No new streams; what is above `last_stream` was not looked at.
    GoAway {
        /// The last stream of ours that the peer may have worked on.
        last_stream: u32,
        /// Why.
        code: ErrorCode,
        /// For people.
        debug: &'a [u8],
    },
    /// More may be sent.
    WindowUpdate {
        /// 0 is the connection's window.
        stream: u32,
        /// 1 to 2^31 - 1.
        increment: u32,
    },
    /// The rest of a field block, or more of it.
    Continuation {
        /// Never 0.
        stream: u32,
        /// A fragment, of HPACK.
        block: &'a [u8],
        /// The block is whole.
        end_headers: bool,
    },
    /// An extension, to be ignored, though not within a field block.
    Unknown {
        /// The type octet.
        kind: u8,
        /// Whatever stream it names.
        stream: u32,
    },
}

impl<'a> Frame<'a> {
    /// The frame of a head that [`Head::check`] has passed and the whole of its payload.
    ///
    /// # Errors
    /// The breach. Where its scope is a stream the connection goes on after this frame.
    pub fn parse(head: Head, payload: &'a [u8]) -> Result<Self, Error> {
        let stream = head.stream;
        Ok(match head.kind {
            Kind::Data => Self::Data {
                stream,
                data: without_padding(head, payload)?,
                flow: head.length,
                end_stream: head.has(flag::END_STREAM),
            },
            Kind::Headers => Self::headers(head, payload)?,
            Kind::Priority => {
                let (priority, _) = Priority::take(payload).ok_or(SHORT)?;
                priority.check(stream)?;
                Self::Priority { stream, priority }
            }
            Kind::Reset => Self::Reset {
                stream,
                code: ErrorCode::from_number(number(payload)?.0),
            },
            Kind::Settings if head.has(flag::ACK) => Self::SettingsAck,
            Kind::Settings => Self::Settings(Settings::parse(payload)?),
            Kind::PushPromise => Self::push_promise(head, payload)?,
            Kind::Ping => Self::Ping {
                ack: head.has(flag::ACK),
                opaque: *payload.first_chunk().ok_or(SHORT)?,
            },
            Kind::GoAway => {
                let (last_stream, rest) = number(payload)?;
                let (code, debug) = number(rest)?;
                Self::GoAway {
                    last_stream: last_stream & MAX_STREAM,
                    code: ErrorCode::from_number(code),
                    debug,
                }
            }
            Kind::WindowUpdate => Self::WindowUpdate {
                stream,
                increment: increment(stream, payload)?,
            },
            Kind::Continuation => Self::Continuation {
                stream,
                block: payload,
                end_headers: head.has(flag::END_HEADERS),
            },
            Kind::Unknown(kind) => Self::Unknown { kind, stream },
        })
    }

    fn headers(head: Head, payload: &'a [u8]) -> Result<Self, Error> {
        let content = without_padding(head, payload)?;
        let (priority, block) = leading_priority(head, content)?;
        Ok(Self::Headers {
            stream: head.stream,
            block,
            priority,
            end_stream: head.has(flag::END_STREAM),
            end_headers: head.has(flag::END_HEADERS),
        })
    }

    fn push_promise(head: Head, payload: &'a [u8]) -> Result<Self, Error> {
        let (promised, block) = promise(without_padding(head, payload)?)?;
        Ok(Self::PushPromise {
            stream: head.stream,
            promised,
            block,
            end_headers: head.has(flag::END_HEADERS),
        })
    }
}

/// What HTTP/2 once said about the order of streams. Nothing is done with it (RFC 9113, section
/// 5.3), but a stream that depends on itself has always been refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Priority {
    /// The stream that this one comes after.
    pub depends_on: u32,
    /// Instead of all others.
    pub exclusive: bool,
    /// The weight less one.
    pub weight: u8,
}

impl Priority {
    /// Octets it takes.
    pub const SIZE: usize = 5;

    /// # Errors
    /// The stream depends on itself: that ends it (RFC 7540, section 5.3.1).
    pub const fn check(self, stream: u32) -> Result<(), Error> {
        if self.depends_on != stream {
            return Ok(());
        }
        let what = "a stream depends on itself";
        Err(Error::stream(stream, ErrorCode::Protocol, what))
    }

    fn take(payload: &[u8]) -> Option<(Self, &[u8])> {
        let (&[d0, d1, d2, d3, weight], rest) = payload.split_first_chunk::<{ Self::SIZE }>()?;
        let word = u32::from_be_bytes([d0, d1, d2, d3]);
        let priority = Self {
            depends_on: word & MAX_STREAM,
            exclusive: word > MAX_STREAM,
            weight,
        };
        Some((priority, rest))
    }
}

/// For a payload that ends before its fields do.
const SHORT: Error = Error::connection(
    ErrorCode::FrameSize,
    "payload is shorter than the fields it must have",
);

/// What stands between the octet that counts the padding and the padding. That padding is zero
/// nobody has to check (section 6.1), and so nobody does.
fn without_padding(head: Head, payload: &[u8]) -> Result<&[u8], Error> {
    if !head.has(flag::PADDED) {
        return Ok(payload);
    }
    let (&padding, content) = payload.split_first().ok_or(SHORT)?;
    match content.len().checked_sub(usize::from(padding)) {
        Some(kept) => Ok(&content[..kept]),
        None => {
            let what = "padding is longer than what it pads";
            Err(Error::connection(ErrorCode::Protocol, what))
        }
    }
}

fn leading_priority(head: Head, content: &[u8]) -> Result<(Option<Priority>, &[u8]), Error> {
    if !head.has(flag::PRIORITY) {
        return Ok((None, content));
    }
    let (priority, block) = Priority::take(content).ok_or(SHORT)?;
    Ok((Some(priority), block))
}

/// Only servers push, and a server's streams are even.
fn promise(content: &[u8]) -> Result<(u32, &[u8]), Error> {
    let (word, block) = number(content)?;
    let promised = word & MAX_STREAM;
    if promised == 0 || promised % 2 == 1 {
        let what = "PUSH_PROMISE promises a stream that no server can open";
        return Err(Error::connection(ErrorCode::Protocol, what));
    }
    Ok((promised, block))
}

fn increment(stream: u32, payload: &[u8]) -> Result<u32, Error> {
    match number(payload)?.0 & MAX_STREAM {
        0 => {
            let what = "WINDOW_UPDATE by 0";
            Err(Error::stream(stream, ErrorCode::Protocol, what))
        }
        increment => Ok(increment),
    }
}

fn number(payload: &[u8]) -> Result<(u32, &[u8]), Error> {
    let (octets, rest) = payload.split_first_chunk().ok_or(SHORT)?;
    Ok((u32::from_be_bytes(*octets), rest))
}
