//! The static table: RFC 7541, appendix A.

use super::{
    fields::Facts,
    name::{NAMES, Name},
    table::Row,
};

/// Entries 1 to 61.
#[rustfmt::skip]
pub(super) const ENTRIES: [(Name, &str); 61] = [
    (Name::Authority, ""),
    (Name::Method, "GET"), (Name::Method, "POST"),
    (Name::Path, "/"), (Name::Path, "/index.html"),
    (Name::Scheme, "http"), (Name::Scheme, "https"),
    (Name::Status, "200"), (Name::Status, "204"), (Name::Status, "206"), (Name::Status, "304"),
    (Name::Status, "400"), (Name::Status, "404"), (Name::Status, "500"),
    (Name::AcceptCharset, ""), (Name::AcceptEncoding, "gzip, deflate"),
    (Name::AcceptLanguage, ""), (Name::AcceptRanges, ""), (Name::Accept, ""),
    (Name::AccessControlAllowOrigin, ""), (Name::Age, ""), (Name::Allow, ""),
    (Name::Authorization, ""), (Name::CacheControl, ""), (Name::ContentDisposition, ""),
    (Name::ContentEncoding, ""), (Name::ContentLanguage, ""), (Name::ContentLength, ""),
    (Name::ContentLocation, ""), (Name::ContentRange, ""), (Name::ContentType, ""),
    (Name::Cookie, ""), (Name::Date, ""), (Name::Etag, ""), (Name::Expect, ""),
    (Name::Expires, ""), (Name::From, ""), (Name::Host, ""), (Name::IfMatch, ""),
    (Name::IfModifiedSince, ""), (Name::IfNoneMatch, ""), (Name::IfRange, ""),
    (Name::IfUnmodifiedSince, ""), (Name::LastModified, ""), (Name::Link, ""),
    (Name::Location, ""), (Name::MaxForwards, ""), (Name::ProxyAuthenticate, ""),
    (Name::ProxyAuthorization, ""), (Name::Range, ""), (Name::Referer, ""),
    (Name::Refresh, ""), (Name::RetryAfter, ""), (Name::Server, ""), (Name::SetCookie, ""),
    (Name::StrictTransportSecurity, ""), (Name::TransferEncoding, ""), (Name::UserAgent, ""),
    (Name::Vary, ""), (Name::Via, ""), (Name::WwwAuthenticate, ""),
];

#[expect(clippy::cast_possible_truncation, reason = "indices are at most 61")]
/// By name: the index of its first entry, 0 for none.
pub(super) const FIRST: [u8; NAMES] = {
    let mut first = [0; NAMES];
    let mut at = ENTRIES.len();
    while at > 0 {
        first[ENTRIES[at - 1].0 as usize] = at as u8;
        at -= 1;
    }
    first
};

/// An entry; none for 0 and beyond the table.
#[inline]
pub(super) fn row(index: usize) -> Option<Row<'static>> {
    let (name, value) = ENTRIES.get(index.checked_sub(1)?)?;
    let value = value.as_bytes();
    Some(Row {
        name: b"",
        value,
        facts: Facts::of(*name, name.octets(), value),
    })
}

/// The index of the entry with this name and value.
#[inline]
pub(super) fn exact(name: Name, value: &[u8]) -> Option<usize> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "no other name has values there"
    )]
    let candidates = match name {
        Name::Method => 2..4,
        Name::Path => 4..6,
        Name::Scheme => 6..8,
        Name::Status => 8..15,
        Name::AcceptEncoding => 16..17,
        _ => return None,
    };
    candidates
        .into_iter()
        .find(|index| ENTRIES[index - 1].1.as_bytes() == value)
}
