//! Names of fields that something is known about, found by one look-up.

use super::statics;

/// The name of a field.
macro_rules! names {
    ($($name:ident = $text:literal,)*) => {
        /// A name that is in the static table, or that HTTP/2, gRPC or the mesh gives a meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Name {
            $(#[doc = concat!("`", $text, "`")] $name,)*
            /// Any other: its octets are in the field.
            Other,
        }

        /// In the order of the variants.
        pub(super) const KNOWN: [(Name, &str); NAMES] = [$((Name::$name, $text),)* (Name::Other, "")];
    };
}

names! {
    // In the order of the static table: RFC 7541, appendix A.
    Authority = ":authority",
    Method = ":method",
    Path = ":path",
    Scheme = ":scheme",
    Status = ":status",
    AcceptCharset = "accept-charset",
    AcceptEncoding = "accept-encoding",
    AcceptLanguage = "accept-language",
    AcceptRanges = "accept-ranges",
    Accept = "accept",
    AccessControlAllowOrigin = "access-control-allow-origin",
    Age = "age",
    Allow = "allow",
    Authorization = "authorization",
    CacheControl = "cache-control",
    ContentDisposition = "content-disposition",
    ContentEncoding = "content-encoding",
    ContentLanguage = "content-language",
    ContentLength = "content-length",
    ContentLocation = "content-location",
    ContentRange = "content-range",
    ContentType = "content-type",
    Cookie = "cookie",
    Date = "date",
    Etag = "etag",
    Expect = "expect",
    Expires = "expires",
    From = "from",
    Host = "host",
    IfMatch = "if-match",
    IfModifiedSince = "if-modified-since",
    IfNoneMatch = "if-none-match",
    IfRange = "if-range",
    IfUnmodifiedSince = "if-unmodified-since",
    LastModified = "last-modified",
    Link = "link",
    Location = "location",
    MaxForwards = "max-forwards",
    ProxyAuthenticate = "proxy-authenticate",
    ProxyAuthorization = "proxy-authorization",
    Range = "range",
    Referer = "referer",
    Refresh = "refresh",
    RetryAfter = "retry-after",
    Server = "server",
    SetCookie = "set-cookie",
    StrictTransportSecurity = "strict-transport-security",
    TransferEncoding = "transfer-encoding",
    UserAgent = "user-agent",
    Vary = "vary",
    Via = "via",
    WwwAuthenticate = "www-authenticate",
    // HTTP/2: RFC 9113, section 8, and RFC 8441.
    Protocol = ":protocol",
    Connection = "connection",
    KeepAlive = "keep-alive",
    ProxyConnection = "proxy-connection",
    Te = "te",
    Upgrade = "upgrade",
    // gRPC, and what traces it.
    GrpcTimeout = "grpc-timeout",
    GrpcEncoding = "grpc-encoding",
    GrpcAcceptEncoding = "grpc-accept-encoding",
    GrpcMessageType = "grpc-message-type",
    GrpcStatus = "grpc-status",
    GrpcMessage = "grpc-message",
    GrpcStatusDetails = "grpc-status-details-bin",
    GrpcPreviousAttempts = "grpc-previous-rpc-attempts",
    GrpcRetryPushback = "grpc-retry-pushback-ms",
    GrpcTrace = "grpc-trace-bin",
    Traceparent = "traceparent",
    Tracestate = "tracestate",
    Baggage = "baggage",
    RequestId = "x-request-id",
    // A secret that is no standard's, but many people's.
    ApiKey = "x-api-key",
    // The mesh's own.
    AttacheAgent = "attache-agent",
    AttacheCaller = "attache-caller",
    AttacheCorrelationId = "attache-correlation-id",
}

/// How a field may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Indexing {
    /// Into the table, once it was seen twice.
    Wanted,
    /// Only its name: the value differs from call to call and would push others out.
    NameOnly,
    /// As a literal that nobody after us may index either: it is a secret (RFC 7541, section 7.1).
    Forbidden,
}

impl Name {
    /// The octets; none for [`Name::Other`].
    #[must_use]
    pub const fn octets(self) -> &'static [u8] {
        KNOWN[self as usize].1.as_bytes()
    }

    /// The name that these octets are.
    #[must_use]
    #[inline]
    pub fn of(octets: &[u8]) -> Self {
        let name = LOOKUP[slot(octets, FACTOR)];
        match name.octets() == octets {
            true => name,
            false => Self::Other,
        }
    }

    /// Whether it is one of the pseudo-header fields that begin a list: RFC 9113, section 8.3.
    #[must_use]
    pub const fn is_pseudo(self) -> bool {
        matches!(
            self,
            Self::Authority
                | Self::Method
                | Self::Path
                | Self::Scheme
                | Self::Status
                | Self::Protocol
        )
    }

    /// Its first entry in the static table; 0 for none.
    pub(super) const fn static_index(self) -> u8 {
        statics::FIRST[self as usize]
    }

    /// What the name says about indexing.
    pub(super) const fn indexing(self) -> Indexing {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "every other name is ordinary"
        )]
        match self {
            Self::Authorization
            | Self::ProxyAuthorization
            | Self::Cookie
            | Self::SetCookie
            | Self::ApiKey => Indexing::Forbidden,
            Self::Traceparent
            | Self::Tracestate
            | Self::Baggage
            | Self::RequestId
            | Self::AttacheCorrelationId
            | Self::GrpcTimeout
            | Self::GrpcMessage
            | Self::GrpcStatusDetails
            | Self::GrpcTrace
            | Self::GrpcRetryPushback
            | Self::ContentLength
            | Self::ContentRange
            | Self::Date
            | Self::Etag
            | Self::Age
            | Self::LastModified => Indexing::NameOnly,
            _ => Indexing::Wanted,
        }
    }
}

impl Indexing {
    /// What a name that is not known says: gRPC's binary metadata is seldom the same twice.
    pub(super) fn of_other(name: &[u8]) -> Self {
        match name.ends_with(b"-bin") {
            true => Self::NameOnly,
            false => Self::Wanted,
        }
    }
}

/// How many names there are, [`Name::Other`] with them.
pub(super) const NAMES: usize = Name::Other as usize + 1;

const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 10;

/// The factor with which no two names share a slot, found by the compiler.
const FACTOR: u32 = {
    let mut factor = 0x9e37_79b1;
    while !keeps_apart(factor) {
        factor = factor.wrapping_add(2);
    }
    factor
};

static LOOKUP: [Name; SLOTS] = {
    let mut lookup = [Name::Other; SLOTS];
    let mut at = 0;
    while at < Name::Other as usize {
        let (name, text) = KNOWN[at];
        lookup[slot(text.as_bytes(), FACTOR)] = name;
        at += 1;
    }
    lookup
};

/// A slot from the length and three octets: names of one length differ in one of these.
#[inline]
const fn slot(octets: &[u8], factor: u32) -> usize {
    let [.., last] = octets else { return 0 };
    let [length, ..] = octets.len().to_le_bytes();
    let word = u32::from_le_bytes([length, octets[0], octets[octets.len() / 2], *last]);
    (word.wrapping_mul(factor) >> (u32::BITS - SLOT_BITS)) as usize
}

const fn keeps_apart(factor: u32) -> bool {
    let mut taken = [false; SLOTS];
    let mut at = 0;
    while at < Name::Other as usize {
        let slot = slot(KNOWN[at].1.as_bytes(), factor);
        if taken[slot] {
            return false;
        }
        taken[slot] = true;
        at += 1;
    }
    true
}
