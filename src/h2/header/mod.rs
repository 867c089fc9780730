//! Which lists of fields are a message: RFC 9113 section 8.
//!
//! Owns what must hold before a list is passed on: pseudo-header fields (which, how often, in what
//! order), fields that belong to one connection and must not pass, `te`, `content-length`. A list
//! that breaks a rule makes its message malformed: an error of its stream (section 8.1.1). What
//! octets a name or a value may have was found out when it was decoded (`hpack::Field::malformed`).
//! Refuses to judge what is beyond HTTP: content types, gRPC, whether a path exists.

#[cfg(test)]
mod tests;

use super::hpack::{Field, Fields, Name};

/// Why a message is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Octets that no name or value may have, or an unknown pseudo-header field.
    Octets,
    /// A pseudo-header field that this kind of message does not have.
    Misplaced,
    /// A pseudo-header field after a regular one.
    Order,
    /// A pseudo-header field twice.
    Twice,
    /// A pseudo-header field that must be there is not.
    Missing,
    /// An empty path, or a status that is not three digits.
    Value,
    /// A field that speaks about an HTTP/1 connection.
    ConnectionSpecific,
    /// `te` other than `trailers`.
    Te,
    /// `content-length` that is no number, two that differ, or one that the content is not of.
    ContentLength,
    /// `:authority` and `host` differ.
    Host,
}

impl Malformed {
    /// The rule that was broken, for people.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Octets => "a field name or value with octets that are not allowed",
            Self::Misplaced => "a pseudo-header field that does not belong here",
            Self::Order => "a pseudo-header field after a regular field",
            Self::Twice => "a pseudo-header field twice",
            Self::Missing => "a pseudo-header field is missing",
            Self::Value => "a pseudo-header field with an impossible value",
            Self::ConnectionSpecific => "a field that belongs to a connection of HTTP/1",
            Self::Te => "te is not trailers",
            Self::ContentLength => "content-length is not the length of the content",
            Self::Host => "authority and host differ",
        }
    }
}

/// What a request's fields say about its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The length of the content, where it is announced.
    pub length: Option<u64>,
    /// It is HEAD: the answer has no content.
    pub head_only: bool,
}

/// What an answer's fields say about its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The length of the content, where it is announced and there is content.
    pub length: Option<u64>,
    /// Status 1xx: the final answer is still to come.
    pub interim: bool,
}

/// The pseudo-header fields seen so far.
#[derive(Debug, Default)]
struct Pseudo {
    seen: u8,
    regular: bool,
}

const METHOD: u8 = 1;
const SCHEME: u8 = 2;
const AUTHORITY: u8 = 4;
const PATH: u8 = 8;
const STATUS: u8 = 16;
const PROTOCOL: u8 = 32;

/// A request's header section.
///
/// # Errors
/// [`Malformed`].
pub fn request(fields: &Fields) -> Result<Request, Malformed> {
    let (mut pseudo, mut length, mut host) = (Pseudo::default(), None, None);
    let (mut connect, mut head_only) = (false, false);
    let mut authority = None;
    for field in fields.iter() {
        if pseudo.begins(&field)? {
            #[expect(clippy::wildcard_enum_match_arm, reason = "no other begins a request")]
            let bit = match field.id {
                Name::Method => METHOD,
                Name::Scheme => SCHEME,
                Name::Authority => AUTHORITY,
                Name::Path => PATH,
                Name::Protocol => PROTOCOL,
                _ => return Err(Malformed::Misplaced),
            };
            pseudo.once(bit)?;
            match bit {
                METHOD => {
                    (connect, head_only) = (field.value == b"CONNECT", field.value == b"HEAD");
                }
                AUTHORITY => authority = Some(field.value),
                PATH | SCHEME if field.value.is_empty() => return Err(Malformed::Value),
                _ => {}
            }
        } else if field.id == Name::Host {
            host = Some(field.value);
        } else {
            regular(&field, &mut length)?;
        }
    }
    let needed = if connect {
        METHOD | AUTHORITY
    } else {
        METHOD | SCHEME | PATH
    };
    // We never say SETTINGS_ENABLE_CONNECT_PROTOCOL, so `:protocol` belongs nowhere.
    let excess = if connect {
        SCHEME | PATH | PROTOCOL
    } else {
        PROTOCOL
    };
    if pseudo.seen & needed != needed {
        return Err(Malformed::Missing);
    }
    if pseudo.seen & excess != 0 {
        return Err(Malformed::Misplaced);
    }
    if let (Some(host), Some(authority)) = (host, authority)
        && host != authority
    {
        return Err(Malformed::Host);
    }
    Ok(Request { length, head_only })
}

/// An answer's header section, interim or final. `head_only`: it answers HEAD.
///
/// # Errors
/// [`Malformed`].
pub fn answer(fields: &Fields, head_only: bool) -> Result<Answer, Malformed> {
    let (mut pseudo, mut length, mut status) = (Pseudo::default(), None, None);
    for field in fields.iter() {
        if pseudo.begins(&field)? {
            if field.id != Name::Status {
                return Err(Malformed::Misplaced);
            }
            pseudo.once(STATUS)?;
            status = Some(field.value);
        } else {
            regular(&field, &mut length)?;
        }
    }
    let status = status.ok_or(Malformed::Missing)?;
    let [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'] = status else {
        return Err(Malformed::Value);
    };
    // 101 is not a part of HTTP/2 (section 8.6).
    if status == b"101" {
        return Err(Malformed::Value);
    }
    let interim = status[0] == b'1';
    let no_content = head_only || interim || status == b"204" || status == b"304";
    Ok(Answer {
        length: length.filter(|_| !no_content),
        interim,
    })
}

/// A trailer section: no pseudo-header field at all.
///
/// # Errors
/// [`Malformed`].
pub fn trailers(fields: &Fields) -> Result<(), Malformed> {
    let mut length = None;
    for field in fields.iter() {
        if field.id.is_pseudo() {
            return Err(Malformed::Misplaced);
        }
        if field.malformed {
            return Err(Malformed::Octets);
        }
        regular(&field, &mut length)?;
    }
    Ok(())
}

impl Pseudo {
    /// Whether the field is one of the pseudo-header fields, which come first.
    #[inline]
    fn begins(&mut self, field: &Field<'_>) -> Result<bool, Malformed> {
        if field.malformed {
            return Err(Malformed::Octets);
        }
        let pseudo = field.id.is_pseudo();
        if pseudo && self.regular {
            return Err(Malformed::Order);
        }
        self.regular |= !pseudo;
        Ok(pseudo)
    }

    #[inline]
    fn once(&mut self, bit: u8) -> Result<(), Malformed> {
        if self.seen & bit != 0 {
            return Err(Malformed::Twice);
        }
        self.seen |= bit;
        Ok(())
    }
}

/// What every section's regular fields have to obey.
#[inline]
fn regular(field: &Field<'_>, length: &mut Option<u64>) -> Result<(), Malformed> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other field may pass")]
    match field.id {
        Name::Connection
        | Name::KeepAlive
        | Name::ProxyConnection
        | Name::TransferEncoding
        | Name::Upgrade => Err(Malformed::ConnectionSpecific),
        Name::Te if field.value != b"trailers" => Err(Malformed::Te),
        Name::ContentLength => {
            let said = number(field.value).ok_or(Malformed::ContentLength)?;
            if length.is_some_and(|before| before != said) {
                return Err(Malformed::ContentLength);
            }
            *length = Some(said);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    digits.iter().try_fold(0, |sum: u64, digit| {
        digit
            .is_ascii_digit()
            .then(|| sum * 10 + u64::from(digit - b'0'))
    })
}
