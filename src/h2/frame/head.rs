//! The nine octets before every payload: RFC 9113, section 4.1.

use super::{Error, ErrorCode, MAX_STREAM};

/// Length, kind, flags and stream of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Octets of payload, at most 2^24 - 1.
    pub length: u32,
    /// What the frame is.
    pub kind: Kind,
    /// Bits of [`flag`]. Those that a kind does not define mean nothing and are ignored.
    pub flags: u8,
    /// 0 is the connection.
    pub stream: u32,
}

/// What a frame is: RFC 9113, section 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Octets of a body.
    Data,
    /// Opens a stream, or ends it with trailers.
    Headers,
    /// Obsolete, but still sent.
    Priority,
    /// RST_STREAM: ends a stream at once.
    Reset,
    /// How the sender wishes to be spoken to.
    Settings,
    /// Announces a pushed response.
    PushPromise,
    /// Measures or proves liveness.
    Ping,
    /// The connection ends.
    GoAway,
    /// Allows more DATA.
    WindowUpdate,
    /// The rest of a field block.
    Continuation,
    /// An extension that is not known here, to be ignored (section 5.5).
    Unknown(u8),
}

/// Flags of a frame. Two kinds of frame share the lowest bit for different things.
pub mod flag {
    /// On DATA and HEADERS: the sender's half of the stream ends.
    pub const END_STREAM: u8 = 0x1;
    /// On SETTINGS and PING: the answer to one.
    pub const ACK: u8 = 0x1;
    /// On HEADERS, PUSH_PROMISE and CONTINUATION: the field block is whole.
    pub const END_HEADERS: u8 = 0x4;
    /// On DATA, HEADERS and PUSH_PROMISE: the first octet counts octets of padding at the end.
    pub const PADDED: u8 = 0x8;
    /// On HEADERS: five octets of priority come first.
    pub const PRIORITY: u8 = 0x20;
}

impl Kind {
    /// The type octet.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Data => 0x0,
            Self::Headers => 0x1,
            Self::Priority => 0x2,
            Self::Reset => 0x3,
            Self::Settings => 0x4,
            Self::PushPromise => 0x5,
            Self::Ping => 0x6,
            Self::GoAway => 0x7,
            Self::WindowUpdate => 0x8,
            Self::Continuation => 0x9,
            Self::Unknown(number) => number,
        }
    }

    /// The kind that a type octet names.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            0x0 => Self::Data,
            0x1 => Self::Headers,
            0x2 => Self::Priority,
            0x3 => Self::Reset,
            0x4 => Self::Settings,
            0x5 => Self::PushPromise,
            0x6 => Self::Ping,
            0x7 => Self::GoAway,
            0x8 => Self::WindowUpdate,
            0x9 => Self::Continuation,
            other => Self::Unknown(other),
        }
    }
}

impl Head {
    /// Octets that a head takes.
    pub const SIZE: usize = 9;

    /// The head at the front of `bytes`; `None` until all nine octets are there.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let &[l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes.first_chunk::<9>()?;
        Some(Self {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind: Kind::from_number(kind),
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & MAX_STREAM,
        })
    }

    /// The head as it is sent. A length above 2^24 - 1 is a caller's mistake: its top octet is lost.
    #[must_use]
    pub const fn octets(self) -> [u8; Self::SIZE] {
        let [_, l0, l1, l2] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        let kind = self.kind.number();
        [l0, l1, l2, kind, self.flags, s0, s1, s2, s3]
    }

    /// Whether a flag is set.
    #[must_use]
    pub const fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Every rule that needs no payload: so that nobody buffers what will be refused.
    ///
    /// `max_frame_size` is what our SETTINGS announced.
    ///
    /// # Errors
    /// The breach. Where its scope is a stream the connection goes on, and the payload of `length`
    /// octets still has to be passed over.
    pub fn check(self, max_frame_size: u32) -> Result<(), Error> {
        if self.length > max_frame_size {
            // Also for DATA, where ending the stream would do: its payload would have to be taken
            // in all the same, and nobody who minds our SETTINGS sends it.
            return Err(frame_size("frame is longer than SETTINGS_MAX_FRAME_SIZE"));
        }
        self.check_stream()?;
        self.check_length()
    }

    /// Which kinds live on stream 0 and which on others.
    fn check_stream(self) -> Result<(), Error> {
        let what = match (self.kind, self.stream) {
            (Kind::Data, 0) => "DATA on stream 0",
            (Kind::Headers, 0) => "HEADERS on stream 0",
            (Kind::Priority, 0) => "PRIORITY on stream 0",
            (Kind::Reset, 0) => "RST_STREAM on stream 0",
            (Kind::PushPromise, 0) => "PUSH_PROMISE on stream 0",
            (Kind::Continuation, 0) => "CONTINUATION on stream 0",
            (Kind::Settings, 1..) => "SETTINGS on a stream",
            (Kind::Ping, 1..) => "PING on a stream",
            (Kind::GoAway, 1..) => "GOAWAY on a stream",
            (_, _) => return Ok(()),
        };
        Err(Error::connection(ErrorCode::Protocol, what))
    }

    /// The lengths of those kinds that have a fixed form.
    fn check_length(self) -> Result<(), Error> {
        let what = match (self.kind, self.length) {
            (Kind::Priority, length) if length != 5 => {
                let what = "PRIORITY is not of 5 octets";
                return Err(Error::stream(self.stream, ErrorCode::FrameSize, what));
            }
            (Kind::Reset, length) if length != 4 => "RST_STREAM is not of 4 octets",
            (Kind::Settings, 1..) if self.has(flag::ACK) => "SETTINGS with ACK has a payload",
            (Kind::Settings, length) if length % 6 != 0 => "SETTINGS is not of 6 octets each",
            (Kind::Ping, length) if length != 8 => "PING is not of 8 octets",
            (Kind::GoAway, length) if length < 8 => "GOAWAY is shorter than 8 octets",
            (Kind::WindowUpdate, length) if length != 4 => "WINDOW_UPDATE is not of 4 octets",
            (_, _) => return Ok(()),
        };
        Err(frame_size(what))
    }
}

/// The first frame of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split<'a> {
    /// Its head, checked.
    pub head: Head,
    /// Its payload, whole.
    pub payload: &'a [u8],
    /// What comes after it.
    pub rest: &'a [u8],
}

/// Takes the first frame off `bytes`; `None` until it is there as a whole.
///
/// # Errors
/// As [`Head::check`], as soon as the head is there.
pub fn split(bytes: &[u8], max_frame_size: u32) -> Result<Option<Split<'_>>, Error> {
    let Some(head) = Head::read(bytes) else {
        return Ok(None);
    };
    head.check(max_frame_size)?;
    let length = usize::try_from(head.length).expect("24 bits fit");
    let whole = bytes[Head::SIZE..].split_at_checked(length);
    Ok(whole.map(|(payload, rest)| Split {
        head,
        payload,
        rest,
    }))
}

const fn frame_size(what: &'static str) -> Error {
    Error::connection(ErrorCode::FrameSize, what)
}
