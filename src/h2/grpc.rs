//! The little of gRPC that a forwarder has to know: `grpc-timeout`, statuses, what a reset means.
//!
//! Owns the reading and writing of these values as the protocol's document (`PROTOCOL-HTTP2.md`)
//! has them. Refuses messages: what is inside DATA is nobody's business here.

use std::time::Duration;

use super::frame::ErrorCode;

/// A gRPC status code as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u8);

impl Code {
    /// The call succeeded.
    pub const OK: Self = Self(0);
    /// The caller gave up.
    pub const CANCELLED: Self = Self(1);
    /// An answer that says nothing.
    pub const UNKNOWN: Self = Self(2);
    /// The deadline passed.
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    /// The caller may not.
    pub const PERMISSION_DENIED: Self = Self(7);
    /// Too much, too large, too often.
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// Nobody here does that.
    pub const UNIMPLEMENTED: Self = Self(12);
    /// A rule between us and the peer was broken.
    pub const INTERNAL: Self = Self(13);
    /// Not now, perhaps later.
    pub const UNAVAILABLE: Self = Self(14);

    /// The value of `grpc-status`; what is not a code of 0 to 16 is [`Self::UNKNOWN`].
    pub fn read(value: &[u8]) -> Self {
        match value {
            [digit @ b'0'..=b'9'] => Self(digit - b'0'),
            [b'1', digit @ b'0'..=b'6'] => Self(10 + digit - b'0'),
            _ => Self::UNKNOWN,
        }
    }

    /// As it stands in `grpc-status`.
    pub fn text(self) -> &'static str {
        const TEXTS: [&str; 17] = [
            "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15",
            "16",
        ];
        TEXTS.get(usize::from(self.0)).unwrap_or(&"2")
    }

    /// What a client makes of RST_STREAM.
    pub fn of_reset(code: ErrorCode) -> Self {
        match code {
            ErrorCode::RefusedStream => Self::UNAVAILABLE,
            ErrorCode::Cancel => Self::CANCELLED,
            ErrorCode::EnhanceYourCalm => Self::RESOURCE_EXHAUSTED,
            ErrorCode::InadequateSecurity => Self::PERMISSION_DENIED,
            ErrorCode::NoError
            | ErrorCode::Protocol
            | ErrorCode::Internal
            | ErrorCode::FlowControl
            | ErrorCode::SettingsTimeout
            | ErrorCode::FrameSize
            | ErrorCode::Compression
            | ErrorCode::Connect => Self::INTERNAL,
            ErrorCode::StreamClosed | ErrorCode::Http11Required | ErrorCode::Other(_) => {
                Self::UNKNOWN
            }
        }
    }
}

/// The value of `grpc-timeout`: one to eight digits and a unit.
pub fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits
        .iter()
        .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// A `grpc-timeout` as text, in the smallest unit that eight digits can hold: at least 1, never
/// longer than what is left.
#[derive(Debug, Clone, Copy)]
pub struct TimeoutText {
    text: [u8; 9],
    from: usize,
}

impl TimeoutText {
    /// What is left, as text.
    pub fn new(left: Duration) -> Self {
        const MOST: u128 = 99_999_999;
        let units = [
            (left.as_micros(), b'u'),
            (left.as_millis(), b'm'),
            (u128::from(left.as_secs()), b'S'),
            (u128::from(left.as_secs() / 3600), b'H'),
        ];
        let fits = units.into_iter().find(|(amount, _)| *amount <= MOST);
        let (amount, unit) = fits.unwrap_or((MOST, b'H'));
        let mut amount = u64::try_from(amount).unwrap_or(1).max(1);
        let mut written = Self {
            text: [unit; 9],
            from: 8,
        };
        while amount > 0 {
            written.from -= 1;
            written.text[written.from] =
                b'0' + u8::try_from(amount % 10).expect("a digit is below ten");
            amount /= 10;
        }
        written
    }

    /// The field's value.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text[self.from..]
    }
}

/// Appends a `grpc-message`: everything outside of printable ASCII, and `%`, percent-encoded.
pub fn write_message(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(byte);
        } else {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            out.extend_from_slice(&[b'%', HEX[high], HEX[low]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        for (text, millis) in [
            ("2H", Some(7200 * 1000)),
            ("1M", Some(60 * 1000)),
            ("99999999S", Some(99_999_999_000)),
            ("250m", Some(250)),
            ("5000u", Some(5)),
            ("7000000n", Some(7)),
            ("123456789m", None),
            ("m", None),
            ("", None),
            ("1", None),
            ("-1m", None),
            ("+1m", None),
            ("1d", None),
            ("1é", None),
        ] {
            let read = timeout(text.as_bytes());
            assert_eq!(read, millis.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn codes_and_messages_are_what_clients_read() {
        for number in 0..=16 {
            assert_eq!(Code::read(Code(number).text().as_bytes()), Code(number));
        }
        for odd in ["", "17", "-1", "x", "00"] {
            assert_eq!(Code::read(odd.as_bytes()), Code::UNKNOWN, "{odd}");
        }
        let mut out = Vec::new();
        write_message("100% ä\n", &mut out);
        assert_eq!(out, b"100%25 %C3%A4%0A");
        for (reset, code) in [
            (ErrorCode::RefusedStream, Code::UNAVAILABLE),
            (ErrorCode::Cancel, Code::CANCELLED),
            (ErrorCode::EnhanceYourCalm, Code::RESOURCE_EXHAUSTED),
            (ErrorCode::NoError, Code::INTERNAL),
            (ErrorCode::Other(77), Code::UNKNOWN),
        ] {
            assert_eq!(Code::of_reset(reset), code);
        }
    }

    proptest! {
        /// Never longer than what is left, and shorter by less than a thousandth (or a microsecond).
        #[test]
        fn a_written_timeout_is_no_longer_and_hardly_shorter(nanos in 1_000u64..u64::MAX / 2) {
            let left = Duration::from_nanos(nanos);
            let text = TimeoutText::new(left);
            let read = timeout(text.as_bytes()).unwrap();
            prop_assert!(text.as_bytes().len() <= 9 && read <= left);
            prop_assert!(left - read <= left / 1000 + Duration::from_micros(1));
        }
    }
}
