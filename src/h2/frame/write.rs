//! Frames as they are sent: appended to the buffer of a connection, nothing kept, nothing copied twice.

use super::{ErrorCode, Head, Kind, Priority, Setting, flag};

/// A head whose payload of `length` octets the caller appends next.
pub fn head(out: &mut Vec<u8>, length: u32, kind: Kind, flags: u8, stream: u32) {
    let head = Head {
        length,
        kind,
        flags,
        stream,
    };
    out.extend_from_slice(&head.octets());
}

/// DATA without padding. `data` is no longer than the peer's SETTINGS_MAX_FRAME_SIZE.
pub fn data(out: &mut Vec<u8>, stream: u32, data: &[u8], end_stream: bool) {
    let flags = if end_stream { flag::END_STREAM } else { 0 };
    head(out, octets(data.len()), Kind::Data, flags, stream);
    out.extend_from_slice(data);
}

/// HEADERS, and CONTINUATION as needed, around the field block that `encode` appends.
///
/// `max_frame_size` is the peer's, or less, and not 0.
pub fn headers(
    out: &mut Vec<u8>,
    stream: u32,
    end_stream: bool,
    max_frame_size: u32,
    encode: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; Head::SIZE]);
    encode(out);
    let most = usize::try_from(max_frame_size).expect("24 bits fit").max(1);
    let block = out.len() - start - Head::SIZE;
    let frames = block.div_ceil(most).max(1);
    out.resize(out.len() + (frames - 1) * Head::SIZE, 0);
    // The last fragment moves furthest, so it moves first, and none is overwritten.
    for index in (0..frames).rev() {
        let from = start + Head::SIZE + index * most;
        let to = from + index * Head::SIZE;
        let length = most.min(block - index * most);
        if index > 0 {
            out.copy_within(from..from + length, to);
        }
        let head = fragment(index, frames, octets(length), stream, end_stream);
        out[to - Head::SIZE..to].copy_from_slice(&head.octets());
    }
}

/// The head of fragment `index` of a field block that takes so many frames.
fn fragment(index: usize, frames: usize, length: u32, stream: u32, end_stream: bool) -> Head {
    let mut flags = 0;
    if index + 1 == frames {
        flags |= flag::END_HEADERS;
    }
    if index == 0 && end_stream {
        flags |= flag::END_STREAM;
    }
    let kind = if index == 0 {
        Kind::Headers
    } else {
        Kind::Continuation
    };
    Head {
        length,
        kind,
        flags,
        stream,
    }
}

/// PRIORITY.
pub fn priority(out: &mut Vec<u8>, stream: u32, priority: Priority) {
    head(out, 5, Kind::Priority, 0, stream);
    let word = priority.depends_on | (u32::from(priority.exclusive) << 31);
    out.extend_from_slice(&word.to_be_bytes());
    out.push(priority.weight);
}

/// RST_STREAM.
pub fn reset(out: &mut Vec<u8>, stream: u32, code: ErrorCode) {
    head(out, 4, Kind::Reset, 0, stream);
    out.extend_from_slice(&code.number().to_be_bytes());
}

/// SETTINGS of ours.
pub fn settings(out: &mut Vec<u8>, settings: &[Setting]) {
    let length = octets(settings.len() * Setting::SIZE);
    head(out, length, Kind::Settings, 0, 0);
    for setting in settings {
        out.extend_from_slice(&setting.octets());
    }
}

/// The answer to SETTINGS.
pub fn settings_ack(out: &mut Vec<u8>) {
    head(out, 0, Kind::Settings, flag::ACK, 0);
}

/// PING, or the answer to one.
pub fn ping(out: &mut Vec<u8>, ack: bool, opaque: [u8; 8]) {
    let flags = if ack { flag::ACK } else { 0 };
    head(out, 8, Kind::Ping, flags, 0);
    out.extend_from_slice(&opaque);
}

/// GOAWAY. `debug` is for people, and is kept short enough for any peer's frame size.
pub fn goaway(out: &mut Vec<u8>, last_stream: u32, code: ErrorCode, debug: &[u8]) {
    let debug = &debug[..debug.len().min(MAX_DEBUG)];
    head(out, octets(8 + debug.len()), Kind::GoAway, 0, 0);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&code.number().to_be_bytes());
    out.extend_from_slice(debug);
}

/// WINDOW_UPDATE; stream 0 is the connection's window. `increment` is 1 to 2^31 - 1.
pub fn window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    head(out, 4, Kind::WindowUpdate, 0, stream);
    out.extend_from_slice(&increment.to_be_bytes());
}

/// Octets of debug data: a sentence, far below the least frame size.
const MAX_DEBUG: usize = 256;

fn octets(length: usize) -> u32 {
    u32::try_from(length).expect("a payload is shorter than 2^24 octets")
}
