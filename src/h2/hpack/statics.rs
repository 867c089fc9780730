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
    match (name, value) {
        (Name::Method, b"GET") => 2,
        (Name::Method, b"POST") => 3,
        (Name::Path, b"/") => 4,
        (Name::Path, b"/index.html") => 5,
        (Name::Scheme, b"http") => 6,
        (Name::Scheme, b"https") => 7,
        (Name::Status, b"200") => 8,
        (Name::Status, b"204") => 9,
        (Name::Status, b"206") => 10,
        (Name::Status, b"304") => 11,
        (Name::Status, b"400") => 12,
        (Name::Status, b"404") => 13,
        (Name::Status, b"500") => 14,
        (Name::AcceptEncoding, b"gzip, deflate") => 16,
        (_, b"") => match usize::from(FIRST[name as usize]) {
            first @ 1.. if ENTRIES[first - 1].1.is_empty() => FIRST[name as usize],
            _ => 0,
        },
        (_, _) => 0,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "indices are at most 61")]
const fn row_of(name: Name, value: &'static str, index: usize) -> Row<'static> {
    Row {
        octets: value.as_bytes(),
        split: 0,
        facts: Facts::of_static(name, value, index as u8),
    }
}
