//! The static table: RFC 7541, appendix A.

use super::{
    facts::{Facts, Row},
    name::{NAMES, Name},
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

/// The entries with what is known of them.
static ROWS: [Row<'_>; ENTRIES.len()] = {
    let (name, value) = ENTRIES[0];
    let mut rows = [row_of(name, value, 1); ENTRIES.len()];
    let mut at = 1;
    while at < rows.len() {
        let (name, value) = ENTRIES[at];
        rows[at] = row_of(name, value, at + 1);
        at += 1;
    }
    rows
};

/// An entry; none for 0 and beyond the table.
#[inline]
pub(super) fn row(index: usize) -> Option<Row<'static>> {
    ROWS.get(index.wrapping_sub(1)).copied()
}

/// The index of the entry with this name and value; 0 for none.
#[inline]
pub(super) fn exact(name: Name, value: &[u8]) -> u8 {
    if value.is_empty() {
        let first = FIRST[name as usize];
        let is_empty = first > 0 && ENTRIES[usize::from(first) - 1].1.is_empty();
        return if is_empty { first } else { 0 };
    }
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "no other name has values there"
    )]
    let mut candidates = match name {
        Name::Method => 2..=3,
        Name::Path => 4..=5,
        Name::Scheme => 6..=7,
        Name::Status => 8..=14,
        Name::AcceptEncoding => 16..=16,
        _ => return 0,
    };
    let same = |index: &u8| ENTRIES[usize::from(*index) - 1].1.as_bytes() == value;
    candidates.find(same).unwrap_or(0)
}

#[expect(clippy::cast_possible_truncation, reason = "indices are at most 61")]
const fn row_of(name: Name, value: &'static str, index: usize) -> Row<'static> {
    Row {
        octets: value.as_bytes(),
        split: 0,
        facts: Facts::of_static(name, value, index as u8),
    }
}
