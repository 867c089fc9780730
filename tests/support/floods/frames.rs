//! HTTP/2 frames by hand, the wrong ones too: no library would send them.

/// What a client says first, with empty SETTINGS.
pub fn hello() -> Vec<u8> {
    hello_with(&[])
}

/// The same with settings.
pub fn hello_with(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in settings {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    all.extend(frame(SETTINGS, 0, 0, &payload));
    all
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// Bytes before each payload.
pub const HEAD: usize = 9;

/// A frame of any kind.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A block of the headers of a gRPC call, each as a literal without indexing.
pub fn call(path: &str, authority: &str) -> Vec<u8> {
    // :method POST and :scheme http stand in the static table.
    let mut block = vec![0x83, 0x86];
    literal(&mut block, ":path", path);
    literal(&mut block, ":authority", authority);
    literal(&mut block, "te", "trailers");
    literal(&mut block, "content-type", "application/grpc");
    block
}

/// One field of a block, by its name, with no coding of Huffman's.
pub fn literal(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        let length = u8::try_from(text.len()).ok().filter(|length| *length < 127);
        block.push(length.expect("short texts only"));
        block.extend(text.bytes());
    }
}

/// The frames that came and are whole, taken off the front: kind, flags and payload.
pub fn taken(here: &mut Vec<u8>) -> Vec<(u8, u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while here.len() >= HEAD {
        let length = usize::from(here[0]) << 16 | usize::from(here[1]) << 8 | usize::from(here[2]);
        if here.len() < HEAD + length {
            break;
        }
        let frame: Vec<u8> = here.drain(..HEAD + length).collect();
        frames.push((frame[3], frame[4], frame[HEAD..].to_vec()));
    }
    frames
}
