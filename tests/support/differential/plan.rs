//! What is done in a call, drawn from its number: both ends draw the same.

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Names that are drawn often, so that keys repeat.
const NAMES: [&str; 8] = [
    "x-a",
    "x-trace",
    "authorization",
    "x-blob-bin",
    "x-many-bin",
    "user-agent",
    "x-empty",
    "cookie-like",
];
const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Printable ASCII: what gRPC allows in a value that is not binary.
const PRINTABLE: std::ops::RangeInclusive<u8> = b' '..=b'~';
/// All metadata of a request or answer together, so that no default limit of 16 KiB is met.
const METADATA_MAX: usize = 11 << 10;
/// A message, mostly small; some need several frames and credit.
const MESSAGE_MAX: usize = 300 << 10;

/// The four kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Unary,
    ClientStream,
    ServerStream,
    Both,
}

/// How a call ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The client cancels once it has the headers and all messages of the answer.
    Client,
    /// The server resets instead of an answer, with this code of RFC 9113 section 7. Never with
    /// REFUSED_STREAM: a pair is right to send such a call again.
    Server(u32),
}

/// A call.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub kind: Kind,
    pub request: HeaderMap,
    /// Messages with their prefixes.
    pub asks: Vec<Vec<u8>>,
    /// Whether END_STREAM comes on a frame of its own.
    pub late_end: bool,
    pub response: HeaderMap,
    pub answers: Vec<Vec<u8>>,
    /// `grpc-status` and all that goes with it.
    pub trailers: HeaderMap,
    /// Nothing but one block of headers is answered.
    pub trailers_only: bool,
    pub cut: Option<Cut>,
}

impl Plan {
    /// The call of this number.
    pub fn drawn(seed: u64) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let kind = match chance.random_range(0..4) {
            0 => Kind::Unary,
            1 => Kind::ClientStream,
            2 => Kind::ServerStream,
            _ => Kind::Both,
        };
        let (many, few) = (chance.random_range(0..12), 1);
        let (asks, answers) = match kind {
            Kind::Unary => (few, few),
            Kind::ClientStream => (many, few),
            Kind::ServerStream => (few, many),
            Kind::Both => (many, chance.random_range(0..12)),
        };
        let mut messages = |count: usize| (0..count).map(|_| message(&mut chance)).collect();
        let (asks, answers): (Vec<_>, Vec<_>) = (messages(asks), messages(answers));
        let mut request = metadata(&mut chance);
        request.insert("x-plan", HeaderValue::from(seed));
        let trailers_only = chance.random_ratio(1, 12);
        let cut = match chance.random_range(0..20) {
            _ if trailers_only => None,
            0..3 => Some(Cut::Client),
            3 => Some(Cut::Server([2, 8, 11][chance.random_range(0..3)])),
            _ => None,
        };
        Self {
            seed,
            kind,
            request,
            asks,
            late_end: chance.random_ratio(1, 3),
            response: metadata(&mut chance),
            answers,
            trailers: trailers(&mut chance, trailers_only),
            trailers_only,
            cut,
        }
    }

    /// Whether it ends before its time.
    pub fn cuts(&self) -> bool {
        self.cut.is_some()
    }
}

fn message(chance: &mut StdRng) -> Vec<u8> {
    let size = match chance.random_range(0..20) {
        0 => 0,
        1 => chance.random_range(0..MESSAGE_MAX),
        2..5 => chance.random_range(0..40 << 10),
        _ => chance.random_range(0..512),
    };
    let mut message = vec![0; 5 + size];
    // Of no length that frames are cut at, so that a piece in a wrong place shows.
    let mut block = [0; 61];
    chance.fill(&mut block);
    for piece in message[5..].chunks_mut(block.len()) {
        piece.copy_from_slice(&block[..piece.len()]);
    }
    message[0] = u8::from(chance.random_ratio(1, 10));
    message[1..5].copy_from_slice(&u32::try_from(size).unwrap().to_be_bytes());
    message
}

fn metadata(chance: &mut StdRng) -> HeaderMap {
    let mut fields = HeaderMap::new();
    let count = match chance.random_range(0..10) {
        0 => 40,
        1..4 => 0,
        _ => chance.random_range(1..8),
    };
    let mut left = METADATA_MAX;
    for place in 0..count {
        let name = match chance.random_range(0..3) {
            0 => format!("x-{place}-{}", chance.random_range(0..1000)),
            _ => NAMES[chance.random_range(0..NAMES.len())].to_owned(),
        };
        let size = match chance.random_range(0..12) {
            0 => 0,
            1 => chance.random_range(0..3000),
            _ => chance.random_range(1..60),
        };
        let value = if name.ends_with("-bin") {
            base64(chance, size)
        } else {
            ascii(chance, size)
        };
        // As HPACK counts: both lengths and 32.
        let cost = name.len() + value.len() + 32;
        if cost <= left {
            left -= cost;
            let name: HeaderName = name.parse().unwrap();
            fields.append(name, HeaderValue::from_bytes(&value).unwrap());
        }
    }
    fields
}

fn trailers(chance: &mut StdRng, alone: bool) -> HeaderMap {
    let mut fields = if alone {
        HeaderMap::new()
    } else {
        metadata(chance)
    };
    let status = match chance.random_range(0..2) {
        0 if !alone => 0,
        _ => chance.random_range(1..17_u32),
    };
    fields.insert("grpc-status", HeaderValue::from(status));
    if status > 0 {
        // As gRPC writes text that is not printable: percent and two digits.
        let text = "t\u{e9}st %25 \u{2192} \t"
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b' ' => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            })
            .collect::<String>();
        fields.insert("grpc-message", text.parse().unwrap());
        let size = chance.random_range(0..400);
        let details = HeaderValue::from_bytes(&base64(chance, size)).unwrap();
        fields.insert("grpc-status-details-bin", details);
    }
    fields
}

/// No blank at either end: HTTP takes those off.
fn ascii(chance: &mut StdRng, size: usize) -> Vec<u8> {
    let mut value: Vec<u8> = (0..size).map(|_| chance.random_range(PRINTABLE)).collect();
    for end in [0, size.wrapping_sub(1)] {
        if let Some(letter) = value.get_mut(end)
            && *letter == b' '
        {
            *letter = b'_';
        }
    }
    value
}

/// As gRPC writes bytes: base64 without padding.
fn base64(chance: &mut StdRng, size: usize) -> Vec<u8> {
    let size = if size % 4 == 1 { size + 1 } else { size };
    // The last letter's low bits stay zero, as in every proper encoding.
    let mut value: Vec<u8> = (0..size)
        .map(|_| LETTERS[chance.random_range(0..LETTERS.len())])
        .collect();
    if size % 4 != 0 {
        value.pop();
        value.push(b'A');
    }
    value
}
