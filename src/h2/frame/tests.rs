//! Rule by rule, as the RFC numbers them, then properties of whatever bytes there are.

use proptest::prelude::*;

use super::{
    DEFAULT_WINDOW, Error, ErrorCode, Frame, Head, Kind, MAX_MAX_FRAME_SIZE, MAX_STREAM,
    MIN_MAX_FRAME_SIZE, PREFACE, Priority, Scope, Setting, Split, flag, split, write,
};
use ErrorCode::{FlowControl, FrameSize, Protocol};
use Scope::{Connection, Stream};

/// A frame as it is sent.
#[derive(Debug, Clone, Copy)]
struct Sent(Kind, u8, u32, &'static [u8]);

impl Sent {
    fn read(self) -> Result<Frame<'static>, Error> {
        let Self(kind, flags, stream, payload) = self;
        read(kind, flags, stream, payload)
    }
}

/// What becomes of one frame.
fn read(kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Result<Frame<'_>, Error> {
    let length = u32::try_from(payload.len()).unwrap();
    let head = Head {
        length,
        kind,
        flags,
        stream,
    };
    head.check(MIN_MAX_FRAME_SIZE)?;
    Frame::parse(head, payload)
}

const fn setting(id: u8, value: u32) -> [u8; 6] {
    let [a, b, c, d] = value.to_be_bytes();
    [0, id, a, b, c, d]
}

const LONG: &[u8] = &[0; 16_385];
const PADDED: u8 = flag::PADDED;
const PRIORITY: u8 = flag::PRIORITY;
const ACK: u8 = flag::ACK;

/// Section and breach, the frame, the code and what ends.
#[rustfmt::skip]
const BREACHES: &[(&str, Sent, ErrorCode, Scope)] = &[
    ("4.2 DATA above the limit", Sent(Kind::Data, 0, 1, LONG), FrameSize, Connection),
    ("4.2 HEADERS above the limit", Sent(Kind::Headers, 4, 1, LONG), FrameSize, Connection),
    ("4.2 unknown above the limit", Sent(Kind::Unknown(99), 0, 1, LONG), FrameSize, Connection),
    ("6.1 DATA on stream 0", Sent(Kind::Data, 0, 0, b"x"), Protocol, Connection),
    ("6.1 DATA padded by all of it", Sent(Kind::Data, PADDED, 1, &[3, 0, 0]), Protocol, Connection),
    ("6.1 DATA padded by nothing", Sent(Kind::Data, PADDED, 1, &[1]), Protocol, Connection),
    ("6.1 DATA without pad length", Sent(Kind::Data, PADDED, 1, &[]), FrameSize, Connection),
    ("6.2 HEADERS on stream 0", Sent(Kind::Headers, 4, 0, b"x"), Protocol, Connection),
    ("6.2 HEADERS padded by all", Sent(Kind::Headers, PADDED, 1, &[2, 0]), Protocol, Connection),
    ("6.2 HEADERS without pad length", Sent(Kind::Headers, PADDED, 1, &[]), FrameSize, Connection),
    ("6.2 HEADERS, priority cut off", Sent(Kind::Headers, PRIORITY, 1, &[0; 4]), FrameSize, Connection),
    ("6.2 padding reaches into priority", Sent(Kind::Headers, PADDED | PRIORITY, 1, &[1, 0, 0, 0, 0, 9]), FrameSize, Connection),
    ("6.3 PRIORITY on stream 0", Sent(Kind::Priority, 0, 0, &[0; 5]), Protocol, Connection),
    ("6.3 PRIORITY of 4 octets", Sent(Kind::Priority, 0, 7, &[0; 4]), FrameSize, Stream(7)),
    ("6.3 PRIORITY of 6 octets", Sent(Kind::Priority, 0, 7, &[0; 6]), FrameSize, Stream(7)),
    ("7540 5.3.1 PRIORITY on itself", Sent(Kind::Priority, 0, 7, &[0, 0, 0, 7, 15]), Protocol, Stream(7)),
    ("6.4 RST_STREAM on stream 0", Sent(Kind::Reset, 0, 0, &[0; 4]), Protocol, Connection),
    ("6.4 RST_STREAM of 3 octets", Sent(Kind::Reset, 0, 1, &[0; 3]), FrameSize, Connection),
    ("6.4 RST_STREAM of 5 octets", Sent(Kind::Reset, 0, 1, &[0; 5]), FrameSize, Connection),
    ("6.5 SETTINGS on a stream", Sent(Kind::Settings, 0, 1, &[]), Protocol, Connection),
    ("6.5 SETTINGS of 5 octets", Sent(Kind::Settings, 0, 0, &[0; 5]), FrameSize, Connection),
    ("6.5 SETTINGS of 7 octets", Sent(Kind::Settings, 0, 0, &[0; 7]), FrameSize, Connection),
    ("6.5 ACK with a payload", Sent(Kind::Settings, ACK, 0, &[0; 6]), FrameSize, Connection),
    ("6.5 ACK on a stream", Sent(Kind::Settings, ACK, 1, &[]), Protocol, Connection),
    ("6.5.2 ENABLE_PUSH of 2", Sent(Kind::Settings, 0, 0, &setting(2, 2)), Protocol, Connection),
    ("6.5.2 window of 2^31", Sent(Kind::Settings, 0, 0, &setting(4, 1 << 31)), FlowControl, Connection),
    ("6.5.2 frame size below 2^14", Sent(Kind::Settings, 0, 0, &setting(5, 16_383)), Protocol, Connection),
    ("6.5.2 frame size of 2^24", Sent(Kind::Settings, 0, 0, &setting(5, 1 << 24)), Protocol, Connection),
    ("8441 ENABLE_CONNECT_PROTOCOL of 2", Sent(Kind::Settings, 0, 0, &setting(8, 2)), Protocol, Connection),
    ("9218 NO_RFC7540_PRIORITIES of 2", Sent(Kind::Settings, 0, 0, &setting(9, 2)), Protocol, Connection),
    ("6.6 PUSH_PROMISE on stream 0", Sent(Kind::PushPromise, 0, 0, &[0, 0, 0, 2]), Protocol, Connection),
    ("6.6 PUSH_PROMISE of 3 octets", Sent(Kind::PushPromise, 0, 1, &[0; 3]), FrameSize, Connection),
    ("6.6 PUSH_PROMISE padded by all", Sent(Kind::PushPromise, PADDED, 1, &[5, 0, 0, 0, 2]), Protocol, Connection),
    ("6.6 PUSH_PROMISE without pad length", Sent(Kind::PushPromise, PADDED, 1, &[]), FrameSize, Connection),
    ("6.6 PUSH_PROMISE of stream 0", Sent(Kind::PushPromise, 0, 1, &[0; 4]), Protocol, Connection),
    ("6.6 PUSH_PROMISE of an odd stream", Sent(Kind::PushPromise, 0, 1, &[0, 0, 0, 3]), Protocol, Connection),
    ("6.7 PING on a stream", Sent(Kind::Ping, 0, 1, &[0; 8]), Protocol, Connection),
    ("6.7 PING of 7 octets", Sent(Kind::Ping, 0, 0, &[0; 7]), FrameSize, Connection),
    ("6.7 PING of 9 octets", Sent(Kind::Ping, 0, 0, &[0; 9]), FrameSize, Connection),
    ("6.7 ACK of 6 octets", Sent(Kind::Ping, ACK, 0, &[0; 6]), FrameSize, Connection),
    ("6.8 GOAWAY on a stream", Sent(Kind::GoAway, 0, 1, &[0; 8]), Protocol, Connection),
    ("4.2 GOAWAY of 7 octets", Sent(Kind::GoAway, 0, 0, &[0; 7]), FrameSize, Connection),
    ("6.9 WINDOW_UPDATE of 3 octets", Sent(Kind::WindowUpdate, 0, 1, &[0; 3]), FrameSize, Connection),
    ("6.9 WINDOW_UPDATE of 5 octets", Sent(Kind::WindowUpdate, 0, 0, &[0; 5]), FrameSize, Connection),
    ("6.9 stream's window by 0", Sent(Kind::WindowUpdate, 0, 3, &[0; 4]), Protocol, Stream(3)),
    ("6.9 by the reserved bit alone", Sent(Kind::WindowUpdate, 0, 3, &[0x80, 0, 0, 0]), Protocol, Stream(3)),
    ("6.9 connection's window by 0", Sent(Kind::WindowUpdate, 0, 0, &[0; 4]), Protocol, Connection),
    ("6.10 CONTINUATION on stream 0", Sent(Kind::Continuation, 4, 0, b"x"), Protocol, Connection),
];

#[test]
fn every_breach_has_the_code_and_the_scope_of_its_section() {
    for (case, sent, code, scope) in BREACHES {
        let error = sent.read().expect_err(case);
        assert_eq!(
            (error.code, error.scope),
            (*code, *scope),
            "{case}: {error}"
        );
        assert!(error.to_string().contains(error.what));
    }
}

const fn data(data: &[u8], flow: u32, end_stream: bool) -> Frame<'_> {
    let stream = 1;
    Frame::Data {
        stream,
        data,
        flow,
        end_stream,
    }
}

const fn headers(block: &[u8], end_stream: bool, end_headers: bool) -> Frame<'_> {
    prioritized(block, None, (end_stream, end_headers))
}

const fn prioritized(block: &[u8], priority: Option<Priority>, ends: (bool, bool)) -> Frame<'_> {
    let (end_stream, end_headers) = ends;
    Frame::Headers {
        stream: 1,
        block,
        priority,
        end_stream,
        end_headers,
    }
}

const fn priority(depends_on: u32, exclusive: bool, weight: u8) -> Priority {
    Priority {
        depends_on,
        exclusive,
        weight,
    }
}

/// Section and what is shown, the frame, and what is read.
#[rustfmt::skip]
const ALLOWED: &[(&str, Sent, Frame<'_>)] = &[
    ("6.1 DATA", Sent(Kind::Data, 0, 1, b"abc"), data(b"abc", 3, false)),
    ("6.1 DATA that is empty", Sent(Kind::Data, 1, 1, b""), data(b"", 0, true)),
    ("6.1 padding counts against windows", Sent(Kind::Data, 8, 1, b"\x02abc00"), data(b"abc", 6, false)),
    ("6.1 nothing but padding", Sent(Kind::Data, 9, 1, &[2, 0, 0]), data(b"", 3, true)),
    ("6.1 no padding, said so", Sent(Kind::Data, 8, 1, b"\x00abc"), data(b"abc", 4, false)),
    ("6.1 padding that is not zero", Sent(Kind::Data, 8, 1, b"\x01ab"), data(b"a", 3, false)),
    ("4.1 flags without a meaning", Sent(Kind::Data, 0xf6, 1, b"abc"), data(b"abc", 3, false)),
    ("6.2 HEADERS", Sent(Kind::Headers, 5, 1, b"hb"), headers(b"hb", true, true)),
    ("6.2 the beginning of a block", Sent(Kind::Headers, 0, 1, b"hb"), headers(b"hb", false, false)),
    ("6.2 HEADERS that are empty", Sent(Kind::Headers, 4, 1, b""), headers(b"", false, true)),
    ("6.2 with priority", Sent(Kind::Headers, 0x24, 1, b"\x80\0\0\x09\x0fhb"), prioritized(b"hb", Some(priority(9, true, 15)), (false, true))),
    ("6.2 with padding and priority", Sent(Kind::Headers, 0x2c, 1, b"\x01\0\0\0\0\xffhb0"), prioritized(b"hb", Some(priority(0, false, 255)), (false, true))),
    ("6.2 on itself: for the connection", Sent(Kind::Headers, 0x24, 1, b"\0\0\0\x01\0h"), prioritized(b"h", Some(priority(1, false, 0)), (false, true))),
    ("6.3 PRIORITY", Sent(Kind::Priority, 0, 3, &[0, 0, 0, 1, 7]), Frame::Priority { stream: 3, priority: priority(1, false, 7) }),
    ("6.4 RST_STREAM", Sent(Kind::Reset, 0, 3, &[0, 0, 0, 8]), Frame::Reset { stream: 3, code: ErrorCode::Cancel }),
    ("7 a code that nobody knows", Sent(Kind::Reset, 0, 3, &[0, 0, 1, 0]), Frame::Reset { stream: 3, code: ErrorCode::Other(256) }),
    ("6.5 ACK", Sent(Kind::Settings, 1, 0, &[]), Frame::SettingsAck),
    ("6.6 PUSH_PROMISE", Sent(Kind::PushPromise, 0xc, 1, b"\x01\x80\0\0\x02hb0"), Frame::PushPromise { stream: 1, promised: 2, block: b"hb", end_headers: true }),
    ("6.7 PING", Sent(Kind::Ping, 0, 0, b"12345678"), Frame::Ping { ack: false, opaque: *b"12345678" }),
    ("6.7 PING with ACK", Sent(Kind::Ping, 1, 0, b"12345678"), Frame::Ping { ack: true, opaque: *b"12345678" }),
    ("6.8 GOAWAY", Sent(Kind::GoAway, 0, 0, b"\xff\xff\xff\xff\0\0\0\x0bslow"), Frame::GoAway { last_stream: MAX_STREAM, code: ErrorCode::EnhanceYourCalm, debug: b"slow" }),
    ("6.9 WINDOW_UPDATE", Sent(Kind::WindowUpdate, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), Frame::WindowUpdate { stream: 0, increment: MAX_STREAM }),
    ("6.9 the reserved bit is ignored", Sent(Kind::WindowUpdate, 0, 5, &[0x80, 0, 0, 1]), Frame::WindowUpdate { stream: 5, increment: 1 }),
    ("6.10 CONTINUATION", Sent(Kind::Continuation, 4, 1, b"hb"), Frame::Continuation { stream: 1, block: b"hb", end_headers: true }),
    ("6.10 it has no padding", Sent(Kind::Continuation, 8, 1, b"\x09hb"), Frame::Continuation { stream: 1, block: b"\x09hb", end_headers: false }),
    ("5.5 an extension", Sent(Kind::Unknown(0xbe), 0xff, 0, b"?"), Frame::Unknown { kind: 0xbe, stream: 0 }),
];

#[test]
fn what_is_allowed_is_read_as_its_section_says() {
    for (case, sent, frame) in ALLOWED {
        assert_eq!(sent.read().as_ref(), Ok(frame), "{case}");
    }
    let on_itself = priority(1, false, 0).check(1).expect_err("7540 5.3.1");
    assert_eq!(on_itself.scope, Stream(1));
    assert_eq!(priority(1, false, 0).check(3), Ok(()));
}

#[test]
fn settings_are_read_in_order_and_unknown_ones_are_ignored() {
    // 6.5.3: values are processed in order, so the last one of a kind holds.
    let payload = [
        [0, 1, 0, 0, 0, 0],
        [0, 2, 0, 0, 0, 1],
        [0, 3, 0, 0, 0, 100],
        [0xab, 0xcd, 9, 9, 9, 9],
        [0, 4, 0x7f, 0xff, 0xff, 0xff],
        [0, 5, 0, 0xff, 0xff, 0xff],
        [0, 7, 0, 0, 0, 1],
        [0, 6, 0, 0, 0x40, 0],
        [0, 8, 0, 0, 0, 0],
        [0, 9, 0, 0, 0, 1],
        [0, 3, 0, 0, 0, 1],
    ];
    let Ok(Frame::Settings(settings)) = read(Kind::Settings, 0, 0, payload.as_flattened()) else {
        panic!("not settings");
    };
    assert_eq!(settings.parameters(), 11);
    assert_eq!(
        settings.collect::<Vec<_>>(),
        [
            Setting::HeaderTableSize(0),
            Setting::EnablePush(true),
            Setting::MaxConcurrentStreams(100),
            Setting::InitialWindowSize(MAX_STREAM),
            Setting::MaxFrameSize(MAX_MAX_FRAME_SIZE),
            Setting::MaxHeaderListSize(16 << 10),
            Setting::EnableConnectProtocol(false),
            Setting::NoRfc7540Priorities(true),
            Setting::MaxConcurrentStreams(1),
        ]
    );
}

#[test]
fn a_frame_is_refused_before_its_payload_is_there() {
    let mut bytes = Vec::new();
    write::head(&mut bytes, 9, Kind::Ping, 0, 0);
    assert_eq!(split(&bytes[..8], MIN_MAX_FRAME_SIZE), Ok(None));
    let error = split(&bytes, MIN_MAX_FRAME_SIZE).expect_err("PING of 9 octets");
    assert_eq!(error.code, FrameSize);

    let mut bytes = Vec::new();
    write::head(&mut bytes, MIN_MAX_FRAME_SIZE + 1, Kind::Data, 0, 1);
    assert!(split(&bytes, MIN_MAX_FRAME_SIZE).is_err());
    assert_eq!(split(&bytes, MIN_MAX_FRAME_SIZE + 1), Ok(None));
}

#[test]
fn codes_and_kinds_keep_their_numbers() {
    for number in 0..=300 {
        assert_eq!(ErrorCode::from_number(number).number(), number);
    }
    for number in 0..=u8::MAX {
        assert_eq!(Kind::from_number(number).number(), number);
    }
    assert_eq!(ErrorCode::EnhanceYourCalm.to_string(), "ENHANCE_YOUR_CALM");
    assert_eq!(ErrorCode::Other(0xff).to_string(), "0xff");
}

/// Writes one frame.
type Write = fn(&mut Vec<u8>);

/// A section, what is written and its octets.
#[rustfmt::skip]
const DRAWN: &[(&str, Write, &[u8])] = &[
    ("6.1", |out| write::data(out, 3, b"hi", true), b"\0\0\x02\x00\x01\0\0\0\x03hi"),
    ("6.2", |out| write::headers(out, 1, true, 9, |out| out.extend_from_slice(b"hb")), b"\0\0\x02\x01\x05\0\0\0\x01hb"),
    ("6.3", |out| write::priority(out, 1, priority(3, true, 4)), b"\0\0\x05\x02\0\0\0\0\x01\x80\0\0\x03\x04"),
    ("6.4", |out| write::reset(out, 5, ErrorCode::Cancel), b"\0\0\x04\x03\0\0\0\0\x05\0\0\0\x08"),
    ("6.5", |out| write::settings(out, &[Setting::MaxConcurrentStreams(256)]), b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\x01\0"),
    ("6.5 ACK", write::settings_ack, b"\0\0\0\x04\x01\0\0\0\0"),
    ("6.7", |out| write::ping(out, true, *b"12345678"), b"\0\0\x08\x06\x01\0\0\0\x0012345678"),
    ("6.8", |out| write::goaway(out, 7, ErrorCode::NoError, b"bye"), b"\0\0\x0b\x07\0\0\0\0\0\0\0\0\x07\0\0\0\0bye"),
    ("6.9", |out| write::window_update(out, 0, DEFAULT_WINDOW), b"\0\0\x04\x08\0\0\0\0\0\0\0\xff\xff"),
    ("6.10", |out| write::headers(out, 1, true, 2, |out| out.extend_from_slice(b"hblok")), b"\0\0\x02\x01\x01\0\0\0\x01hb\0\0\x02\x09\0\0\0\0\x01lo\0\0\x01\x09\x04\0\0\0\x01k"),
];

#[test]
fn what_is_written_is_what_the_rfc_draws() {
    for (section, write, octets) in DRAWN {
        // Behind what is already there.
        let mut out = b"before".to_vec();
        write(&mut out);
        assert_eq!(out.split_off(6), *octets, "{section}");
    }
    let mut long = Vec::new();
    write::goaway(&mut long, 0, Protocol, &[b'x'; 70_000]);
    let whole = split(&long, MIN_MAX_FRAME_SIZE).unwrap().unwrap();
    assert!(whole.rest.is_empty());
    assert_eq!(PREFACE.len(), 24);
}

/// A frame as values, to be written and read again.
#[derive(Debug, Clone)]
enum Written {
    Data(u32, Vec<u8>, bool),
    Headers(u32, Vec<u8>, bool, u32),
    Priority(u32, Priority),
    Reset(u32, ErrorCode),
    Settings(Vec<Setting>),
    SettingsAck,
    Ping(bool, [u8; 8]),
    GoAway(u32, ErrorCode, Vec<u8>),
    WindowUpdate(u32, u32),
}

impl Written {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Data(stream, data, end) => write::data(out, *stream, data, *end),
            Self::Headers(stream, block, end, most) => {
                write::headers(out, *stream, *end, *most, |out| {
                    out.extend_from_slice(block);
                });
            }
            Self::Priority(stream, priority) => write::priority(out, *stream, *priority),
            Self::Reset(stream, code) => write::reset(out, *stream, *code),
            Self::Settings(settings) => write::settings(out, settings),
            Self::SettingsAck => write::settings_ack(out),
            Self::Ping(ack, opaque) => write::ping(out, *ack, *opaque),
            Self::GoAway(last, code, debug) => write::goaway(out, *last, *code, debug),
            Self::WindowUpdate(stream, increment) => {
                write::window_update(out, *stream, *increment);
            }
        }
    }
}

/// What frames say, with field blocks put together.
fn said(mut bytes: &[u8]) -> Vec<Written> {
    let mut said = Vec::new();
    while let Some(Split {
        head,
        payload,
        rest,
    }) = split(bytes, MIN_MAX_FRAME_SIZE).unwrap()
    {
        bytes = rest;
        let most = head.length;
        said.push(match Frame::parse(head, payload).unwrap() {
            Frame::Data {
                stream,
                data,
                end_stream,
                ..
            } => Written::Data(stream, data.to_vec(), end_stream),
            Frame::Headers {
                stream,
                block,
                end_stream,
                ..
            } => Written::Headers(stream, block.to_vec(), end_stream, most),
            Frame::Continuation { stream, block, .. } => {
                let Some(Written::Headers(opened, whole, ..)) = said.last_mut() else {
                    panic!("CONTINUATION without HEADERS");
                };
                assert_eq!(*opened, stream);
                whole.extend_from_slice(block);
                continue;
            }
            Frame::Priority { stream, priority } => Written::Priority(stream, priority),
            Frame::Reset { stream, code } => Written::Reset(stream, code),
            Frame::Settings(settings) => Written::Settings(settings.collect()),
            Frame::SettingsAck => Written::SettingsAck,
            Frame::Ping { ack, opaque } => Written::Ping(ack, opaque),
            Frame::GoAway {
                last_stream,
                code,
                debug,
            } => Written::GoAway(last_stream, code, debug.to_vec()),
            Frame::WindowUpdate { stream, increment } => Written::WindowUpdate(stream, increment),
            other @ (Frame::PushPromise { .. } | Frame::Unknown { .. }) => panic!("{other:?}"),
        });
    }
    assert!(bytes.is_empty());
    said
}

fn any_stream() -> impl Strategy<Value = u32> {
    1..=MAX_STREAM
}

fn any_setting() -> impl Strategy<Value = Setting> {
    prop_oneof![
        any::<u32>().prop_map(Setting::HeaderTableSize),
        any::<bool>().prop_map(Setting::EnablePush),
        any::<u32>().prop_map(Setting::MaxConcurrentStreams),
        (0..=MAX_STREAM).prop_map(Setting::InitialWindowSize),
        (MIN_MAX_FRAME_SIZE..=MAX_MAX_FRAME_SIZE).prop_map(Setting::MaxFrameSize),
        any::<u32>().prop_map(Setting::MaxHeaderListSize),
        any::<bool>().prop_map(Setting::EnableConnectProtocol),
        any::<bool>().prop_map(Setting::NoRfc7540Priorities),
    ]
}

fn written() -> impl Strategy<Value = Written> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..200);
    let code = || any::<u32>().prop_map(ErrorCode::from_number);
    let priority = (any::<bool>(), any::<u8>()).prop_map(|(exclusive, weight)| Priority {
        depends_on: 0,
        exclusive,
        weight,
    });
    prop_oneof![
        (any_stream(), bytes(), any::<bool>()).prop_map(|(a, b, c)| Written::Data(a, b, c)),
        (any_stream(), bytes(), any::<bool>(), 1..100_u32)
            .prop_map(|(a, b, c, d)| Written::Headers(a, b, c, d)),
        (any_stream(), priority).prop_map(|(a, b)| Written::Priority(a, b)),
        (any_stream(), code()).prop_map(|(a, b)| Written::Reset(a, b)),
        prop::collection::vec(any_setting(), 0..9).prop_map(Written::Settings),
        Just(Written::SettingsAck),
        any::<(bool, [u8; 8])>().prop_map(|(a, b)| Written::Ping(a, b)),
        (0..=MAX_STREAM, code(), bytes()).prop_map(|(a, b, c)| Written::GoAway(a, b, c)),
        (0..=MAX_STREAM, 1..=MAX_STREAM).prop_map(|(a, b)| Written::WindowUpdate(a, b)),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(frames in prop::collection::vec(written(), 0..8)) {
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes);
        }
        let said = said(&bytes);
        prop_assert_eq!(said.len(), frames.len());
        for (said, meant) in said.iter().zip(&frames) {
            match (said, meant) {
                // The size of the first fragment is not a part of what is said.
                (Written::Headers(s, b, e, _), Written::Headers(stream, block, end, _)) => {
                    prop_assert_eq!((s, b, e), (stream, block, end));
                }
                (said, meant) => prop_assert_eq!(format!("{said:?}"), format!("{meant:?}")),
            }
        }
    }

    #[test]
    fn a_part_of_a_frame_is_waited_for(frame in written(), cut in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        let first = Head::SIZE + Head::read(&bytes).unwrap().length as usize;
        let cut = cut.index(first);
        prop_assert_eq!(split(&bytes[..cut], MIN_MAX_FRAME_SIZE), Ok(None));
        prop_assert!(split(&bytes[..first], MIN_MAX_FRAME_SIZE).unwrap().is_some());
    }

    #[test]
    fn whatever_comes_is_a_frame_or_an_error(
        kind in 0_u8..11,
        flags in any::<u8>(),
        stream in prop_oneof![Just(0), 1..4_u32],
        payload in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        if let Err(error) = read(Kind::from_number(kind), flags, stream, &payload) {
            // An error of a stream names a stream, and it is this one.
            prop_assert!(error.scope == Connection || error.scope == Stream(stream));
            prop_assert!(error.scope != Stream(0));
        }
    }
}
