//! SETTINGS and the values that they may have: RFC 9113, section 6.5.

use super::{Error, ErrorCode, MAX_MAX_FRAME_SIZE, MAX_WINDOW, MIN_MAX_FRAME_SIZE};

/// One parameter. Those that are not known here are ignored and never seen as a `Setting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Octets that the sender's HPACK decoder keeps: the bound for our encoder.
    HeaderTableSize(u32),
    /// Whether the sender takes PUSH_PROMISE. A server must not say so: see the connection.
    EnablePush(bool),
    /// Streams that the receiver may have open at once.
    MaxConcurrentStreams(u32),
    /// The window of every stream, at most 2^31 - 1.
    InitialWindowSize(u32),
    /// Octets of payload that the sender takes in one frame, 2^14 to 2^24 - 1.
    MaxFrameSize(u32),
    /// Octets of a header list that the sender takes, each field counted with 32 more: advice.
    MaxHeaderListSize(u32),
    /// Extended CONNECT: RFC 8441.
    EnableConnectProtocol(bool),
    /// The sender does not use the obsolete priorities: RFC 9218.
    NoRfc7540Priorities(bool),
}

impl Setting {
    /// Octets of one parameter.
    pub const SIZE: usize = 6;

    /// Identifier and value, as they are sent.
    #[must_use]
    pub const fn octets(self) -> [u8; Self::SIZE] {
        let (id, value): (u16, u32) = match self {
            Self::HeaderTableSize(value) => (0x1, value),
            Self::EnablePush(on) => (0x2, on as u32),
            Self::MaxConcurrentStreams(value) => (0x3, value),
            Self::InitialWindowSize(value) => (0x4, value),
            Self::MaxFrameSize(value) => (0x5, value),
            Self::MaxHeaderListSize(value) => (0x6, value),
            Self::EnableConnectProtocol(on) => (0x8, on as u32),
            Self::NoRfc7540Priorities(on) => (0x9, on as u32),
        };
        let ([i0, i1], [v0, v1, v2, v3]) = (id.to_be_bytes(), value.to_be_bytes());
        [i0, i1, v0, v1, v2, v3]
    }

    /// `None` for one that is not known.
    fn parse([i0, i1, v0, v1, v2, v3]: [u8; Self::SIZE]) -> Result<Option<Self>, Error> {
        let value = u32::from_be_bytes([v0, v1, v2, v3]);
        Ok(Some(match u16::from_be_bytes([i0, i1]) {
            0x1 => Self::HeaderTableSize(value),
            0x2 => Self::EnablePush(switch(value)?),
            0x3 => Self::MaxConcurrentStreams(value),
            0x4 if value > MAX_WINDOW => {
                let what = "SETTINGS_INITIAL_WINDOW_SIZE above 2^31 - 1";
                return Err(Error::connection(ErrorCode::FlowControl, what));
            }
            0x4 => Self::InitialWindowSize(value),
            0x5 if !(MIN_MAX_FRAME_SIZE..=MAX_MAX_FRAME_SIZE).contains(&value) => {
                let what = "SETTINGS_MAX_FRAME_SIZE is not within 2^14 and 2^24 - 1";
                return Err(Error::connection(ErrorCode::Protocol, what));
            }
            0x5 => Self::MaxFrameSize(value),
            0x6 => Self::MaxHeaderListSize(value),
            0x8 => Self::EnableConnectProtocol(switch(value)?),
            0x9 => Self::NoRfc7540Priorities(switch(value)?),
            _ => return Ok(None),
        }))
    }
}

fn switch(value: u32) -> Result<bool, Error> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => {
            let what = "a setting that is 0 or 1 is neither";
            Err(Error::connection(ErrorCode::Protocol, what))
        }
    }
}

/// The parameters of one SETTINGS frame in their order, all checked: the last of a kind holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings<'a> {
    rest: &'a [[u8; Setting::SIZE]],
}

impl<'a> Settings<'a> {
    /// `payload` has a length that [`Head::check`](super::Head::check) has passed.
    pub(super) fn parse(payload: &'a [u8]) -> Result<Self, Error> {
        let (rest, _) = payload.as_chunks();
        for octets in rest {
            Setting::parse(*octets)?;
        }
        Ok(Self { rest })
    }

    /// How many parameters are left, known or not: what the frame costs to work through.
    #[must_use]
    pub const fn parameters(&self) -> usize {
        self.rest.len()
    }
}

impl Iterator for Settings<'_> {
    type Item = Setting;

    fn next(&mut self) -> Option<Setting> {
        loop {
            let (octets, rest) = self.rest.split_first()?;
            self.rest = rest;
            if let Ok(Some(setting)) = Setting::parse(*octets) {
                return Some(setting);
            }
        }
    }
}
