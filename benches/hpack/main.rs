//! What frames and header compression cost: `cargo bench --bench hpack`.
//!
//! One line each: the least of the means of many short rounds, so that a busy machine does not show.
//! Header blocks are those of one connection that has been in use for a while: what comes again is
//! in the tables, timeouts and trace contexts differ from call to call.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and ends where something is wrong"
)]

use std::{hint::black_box, time::Duration};

use attache::h2::{
    frame::{Frame, MIN_MAX_FRAME_SIZE, Split, split, write},
    hpack::{Decoder, Encoder, Fields, Limits},
};
use tokio::time::Instant;

/// Calls whose blocks are gone through.
const CALLS: usize = 512;
const ROUNDS: usize = 60;

/// The list of the call with this number.
type List = fn(usize) -> Fields;

fn main() {
    // Benches are also run as tests, to see that they still run.
    let test = std::env::args().any(|word| word == "--test");
    let rounds = if test { 1 } else { ROUNDS };
    let kinds: [(&str, List); 3] = [
        ("request of 10 fields", request),
        ("response of 4 fields", response),
        ("trailers of 2 fields", trailers),
    ];
    for (kind, list) in kinds {
        header_blocks(rounds, kind, list);
    }
    huffman(rounds);
    frames(rounds);
}

fn request(call: usize) -> Fields {
    list(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.testing.TestService/UnaryCall"),
        (":authority", "127.0.0.1:50051"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        (
            "user-agent",
            "grpc-python/1.85.0 grpc-c/46.0.0 (linux; chttp2)",
        ),
        ("grpc-accept-encoding", "identity, deflate, gzip"),
        ("grpc-timeout", &format!("{}m", 9000 + call)),
        (
            "traceparent",
            &format!("00-{:032x}-{:016x}-01", call * 7919, call * 104_729),
        ),
    ])
}

fn response(_call: usize) -> Fields {
    list(&[
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "identity, deflate, gzip"),
        ("grpc-encoding", "identity"),
    ])
}

fn trailers(_call: usize) -> Fields {
    list(&[("grpc-status", "0"), ("grpc-message", "")])
}

fn list(fields: &[(&str, &str)]) -> Fields {
    let mut list = Fields::new();
    for (name, value) in fields {
        list.push(name.as_bytes(), value.as_bytes());
    }
    list
}

/// Decoding, encoding, and both as a forwarder does it: from one connection to another.
fn header_blocks(rounds: usize, kind: &str, list: List) {
    let lists: Vec<Fields> = (0..CALLS).map(list).collect();
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
    let (limits, mut fields) = (Limits::default(), Fields::new());
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    // Three times, until both tables hold what comes again.
    for _ in 0..3 {
        blocks.clear();
        for list in &lists {
            let mut block = Vec::new();
            encoder.encode(list, &mut block);
            assert!(decoder.decode(&block, &limits, &mut fields).is_ok());
            blocks.push(block);
        }
    }
    let size = blocks[CALLS / 2].len();
    figure(rounds, &format!("{kind}, {size} octets: decode"), |call| {
        assert!(decoder.decode(&blocks[call], &limits, &mut fields).is_ok());
    });
    let mut block = Vec::new();
    figure(rounds, &format!("{kind}: encode"), |call| {
        block.clear();
        encoder.encode(&lists[call], &mut block);
        black_box(&block);
    });
    let mut onward = Encoder::new();
    figure(
        rounds,
        &format!("{kind}: decode and encode again"),
        |call| {
            assert!(decoder.decode(&blocks[call], &limits, &mut fields).is_ok());
            block.clear();
            onward.encode(&fields, &mut block);
            black_box(&block);
        },
    );
}

/// A trace context in the Huffman code: what other implementations send with every call.
fn huffman(rounds: usize) {
    let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut encoder = Encoder::new();
    let fields = list(&[("x-trace", text)]);
    let mut block = Vec::new();
    for _ in 0..2 {
        block.clear();
        encoder.encode(&fields, &mut block);
    }
    let (mut decoder, mut fields) = (Decoder::new(4096), Fields::new());
    let limits = Limits::default();
    let what = format!(
        "a field of {} octets by Huffman code, into the table",
        text.len()
    );
    figure(rounds, &what, |_| {
        assert!(decoder.decode(&block, &limits, &mut fields).is_ok());
    });
}

/// Frames as a forwarder sees them: HEADERS, small DATA, WINDOW_UPDATE.
fn frames(rounds: usize) {
    let mut bytes = Vec::new();
    write::headers(&mut bytes, 1, false, MIN_MAX_FRAME_SIZE, |out| {
        out.extend([0x82; 20]);
    });
    write::data(&mut bytes, 1, &[0; 128], true);
    write::window_update(&mut bytes, 0, 133);
    figure(rounds, "three frames: read", |_| {
        let mut rest = &bytes[..];
        while let Some(found) = split(rest, MIN_MAX_FRAME_SIZE).unwrap() {
            let Split {
                head,
                payload,
                rest: behind,
            } = found;
            black_box(Frame::parse(head, payload).unwrap());
            rest = behind;
        }
    });
    let mut out = Vec::new();
    figure(rounds, "three frames: written", |_| {
        out.clear();
        write::headers(&mut out, 1, false, MIN_MAX_FRAME_SIZE, |out| {
            out.extend([0x82; 20]);
        });
        write::data(&mut out, 1, &[0; 128], true);
        write::window_update(&mut out, 0, 133);
        black_box(&out);
    });
}

fn figure(rounds: usize, what: &str, mut work: impl FnMut(usize)) {
    let mut least = Duration::MAX;
    for _ in 0..rounds {
        let began = Instant::now();
        for call in 0..CALLS {
            work(call);
        }
        least = least.min(began.elapsed());
    }
    let each = least.as_secs_f64() / CALLS as f64;
    println!("{what:<60} {:>7.0} ns {:>7.2} M/s", each * 1e9, 1e-6 / each);
}
