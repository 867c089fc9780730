//! Rule by rule, as the RFC numbers them, then properties of whatever bytes there are.

use proptest::prelude::*;

use super::{
    DEFAULT_WINDOW, Error, ErrorCode, Frame, Head, Kind, MAX_MAX_FRAME_SIZE, MAX_STREAM,
    MIN_MAX_FRAME_SIZE, PREFACE, Priority, Scope, Setting, Split, flag, split, write,
};

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

#[test]
fn every_breach_has_the_code_and_the_scope_of_its_section() {
    use ErrorCode::{FlowControl, FrameSize, Protocol};
    use Scope::{Connection, Stream};
    const LONG: &[u8] = &[0; 16_385];
    // Padding of one octet more than there is.
    const PADDED: u8 = flag::PADDED;
    const ACK: u8 = flag::ACK;
    let self_on_7 = &[0, 0, 0, 7, 15];
    let cases: &[(&str, Kind, u8, u32, &[u8], ErrorCode, Scope)] = &[
        (
            "4.2 DATA longer than the limit",
            Kind::Data,
            0,
            1,
            LONG,
            FrameSize,
            Connection,
        ),
        (
            "4.2 HEADERS longer than the limit",
            Kind::Headers,
            4,
            1,
            LONG,
            FrameSize,
            Connection,
        ),
        (
            "4.2 unknown longer than the limit",
            Kind::Unknown(99),
            0,
            1,
            LONG,
            FrameSize,
            Connection,
        ),
        (
            "6.1 DATA on stream 0",
            Kind::Data,
            0,
            0,
            b"x",
            Protocol,
            Connection,
        ),
        (
            "6.1 DATA padded by all of it",
            Kind::Data,
            PADDED,
            1,
            &[3, 0, 0],
            Protocol,
            Connection,
        ),
        (
            "6.1 DATA padded by nothing",
            Kind::Data,
            PADDED,
            1,
            &[1],
            Protocol,
            Connection,
        ),
        (
            "6.1 DATA without pad length",
            Kind::Data,
            PADDED,
            1,
            &[],
            FrameSize,
            Connection,
        ),
        (
            "6.2 HEADERS on stream 0",
            Kind::Headers,
            4,
            0,
            b"x",
            Protocol,
            Connection,
        ),
        (
            "6.2 HEADERS padded by all",
            Kind::Headers,
            PADDED,
            1,
            &[2, 0],
            Protocol,
            Connection,
        ),
        (
            "6.2 HEADERS without pad length",
            Kind::Headers,
            PADDED,
            1,
            &[],
            FrameSize,
            Connection,
        ),
        (
            "6.2 HEADERS without priority",
            Kind::Headers,
            0x20,
            1,
            &[0; 4],
            FrameSize,
            Connection,
        ),
        (
            "6.2 padding reaches into priority",
            Kind::Headers,
            0x28,
            1,
            &[1, 0, 0, 0, 0, 9],
            FrameSize,
            Connection,
        ),
        (
            "6.3 PRIORITY on stream 0",
            Kind::Priority,
            0,
            0,
            &[0; 5],
            Protocol,
            Connection,
        ),
        (
            "6.3 PRIORITY of 4 octets",
            Kind::Priority,
            0,
            7,
            &[0; 4],
            FrameSize,
            Stream(7),
        ),
        (
            "6.3 PRIORITY of 6 octets",
            Kind::Priority,
            0,
            7,
            &[0; 6],
            FrameSize,
            Stream(7),
        ),
        (
            "5.3 PRIORITY on itself",
            Kind::Priority,
            0,
            7,
            self_on_7,
            Protocol,
            Stream(7),
        ),
        (
            "6.4 RST_STREAM on stream 0",
            Kind::Reset,
            0,
            0,
            &[0; 4],
            Protocol,
            Connection,
        ),
        (
            "6.4 RST_STREAM of 3 octets",
            Kind::Reset,
            0,
            1,
            &[0; 3],
            FrameSize,
            Connection,
        ),
        (
            "6.4 RST_STREAM of 5 octets",
            Kind::Reset,
            0,
            1,
            &[0; 5],
            FrameSize,
            Connection,
        ),
        (
            "6.5 SETTINGS on a stream",
            Kind::Settings,
            0,
            1,
            &[],
            Protocol,
            Connection,
        ),
        (
            "6.5 SETTINGS of 5 octets",
            Kind::Settings,
            0,
            0,
            &[0; 5],
            FrameSize,
            Connection,
        ),
        (
            "6.5 SETTINGS of 7 octets",
            Kind::Settings,
            0,
            0,
            &[0; 7],
            FrameSize,
            Connection,
        ),
        (
            "6.5 ACK with a payload",
            Kind::Settings,
            ACK,
            0,
            &[0; 6],
            FrameSize,
            Connection,
        ),
        (
            "6.5 ACK on a stream",
            Kind::Settings,
            ACK,
            1,
            &[],
            Protocol,
            Connection,
        ),
        (
            "6.5.2 ENABLE_PUSH of 2",
            Kind::Settings,
            0,
            0,
            &[0, 2, 0, 0, 0, 2],
            Protocol,
            Connection,
        ),
        (
            "6.5.2 window of 2^31",
            Kind::Settings,
            0,
            0,
            &[0, 4, 0x80, 0, 0, 0],
            FlowControl,
            Connection,
        ),
        (
            "6.5.2 frame size below 2^14",
            Kind::Settings,
            0,
            0,
            &[0, 5, 0, 0, 0x3f, 0xff],
            Protocol,
            Connection,
        ),
        (
            "6.5.2 frame size of 2^24",
            Kind::Settings,
            0,
            0,
            &[0, 5, 1, 0, 0, 0],
            Protocol,
            Connection,
        ),
        (
            "8441 ENABLE_CONNECT_PROTOCOL of 2",
            Kind::Settings,
            0,
            0,
            &[0, 8, 0, 0, 0, 2],
            Protocol,
            Connection,
        ),
        (
            "9218 NO_RFC7540_PRIORITIES of 2",
            Kind::Settings,
            0,
            0,
            &[0, 9, 0, 0, 0, 2],
            Protocol,
            Connection,
        ),
        (
            "6.6 PUSH_PROMISE on stream 0",
            Kind::PushPromise,
            0,
            0,
            &[0, 0, 0, 2],
            Protocol,
            Connection,
        ),
        (
            "6.6 PUSH_PROMISE of 3 octets",
            Kind::PushPromise,
            0,
            1,
            &[0; 3],
            FrameSize,
            Connection,
        ),
        (
            "6.6 PUSH_PROMISE padded by all",
            Kind::PushPromise,
            PADDED,
            1,
            &[5, 0, 0, 0, 2],
            Protocol,
            Connection,
        ),
        (
            "6.6 PUSH_PROMISE without pad length",
            Kind::PushPromise,
            PADDED,
            1,
            &[],
            FrameSize,
            Connection,
        ),
        (
            "5.1.1 PUSH_PROMISE of stream 0",
            Kind::PushPromise,
            0,
            1,
            &[0; 4],
            Protocol,
            Connection,
        ),
        (
            "5.1.1 PUSH_PROMISE of an odd stream",
            Kind::PushPromise,
            0,
            1,
            &[0, 0, 0, 3],
            Protocol,
            Connection,
        ),
        (
            "6.7 PING on a stream",
            Kind::Ping,
            0,
            1,
            &[0; 8],
            Protocol,
            Connection,
        ),
        (
            "6.7 PING of 7 octets",
            Kind::Ping,
            0,
            0,
            &[0; 7],
            FrameSize,
            Connection,
        ),
        (
            "6.7 PING of 9 octets",
            Kind::Ping,
            0,
            0,
            &[0; 9],
            FrameSize,
            Connection,
        ),
        (
            "6.7 ACK of 6 octets",
            Kind::Ping,
            ACK,
            0,
            &[0; 6],
            FrameSize,
            Connection,
        ),
        (
            "6.8 GOAWAY on a stream",
            Kind::GoAway,
            0,
            1,
            &[0; 8],
            Protocol,
            Connection,
        ),
        (
            "4.2 GOAWAY of 7 octets",
            Kind::GoAway,
            0,
            0,
            &[0; 7],
            FrameSize,
            Connection,
        ),
        (
            "6.9 WINDOW_UPDATE of 3 octets",
            Kind::WindowUpdate,
            0,
            1,
            &[0; 3],
            FrameSize,
            Connection,
        ),
        (
            "6.9 WINDOW_UPDATE of 5 octets",
            Kind::WindowUpdate,
            0,
            0,
            &[0; 5],
            FrameSize,
            Connection,
        ),
        (
            "6.9 stream's window by 0",
            Kind::WindowUpdate,
            0,
            3,
            &[0; 4],
            Protocol,
            Stream(3),
        ),
        (
            "6.9 stream's window by the reserved bit",
            Kind::WindowUpdate,
            0,
            3,
            &[0x80, 0, 0, 0],
            Protocol,
            Stream(3),
        ),
        (
            "6.9 connection's window by 0",
            Kind::WindowUpdate,
            0,
            0,
            &[0; 4],
            Protocol,
            Connection,
        ),
        (
            "6.10 CONTINUATION on stream 0",
            Kind::Continuation,
            4,
            0,
            b"x",
            Protocol,
            Connection,
        ),
    ];
    for (case, kind, flags, stream, payload, code, scope) in cases {
        let error = read(*kind, *flags, *stream, payload).expect_err(case);
        assert_eq!(
            (error.code, error.scope),
            (*code, *scope),
            "{case}: {error}"
        );
        assert!(error.what.len() > 5 && error.to_string().contains(error.what));
    }
}

#[test]
fn what_is_allowed_is_read_as_its_section_says() {
    let priority = |depends_on, exclusive, weight| Priority {
        depends_on,
        exclusive,
        weight,
    };
    let data = |data, flow, end_stream| Frame::Data {
        stream: 1,
        data,
        flow,
        end_stream,
    };
    let headers = |block, priority, end_stream, end_headers| Frame::Headers {
        stream: 1,
        block,
        priority,
        end_stream,
        end_headers,
    };
    let cases: &[(&str, Kind, u8, u32, &[u8], Frame<'_>)] = &[
        ("6.1 DATA", Kind::Data, 0, 1, b"abc", data(b"abc", 3, false)),
        (
            "6.1 DATA that is empty",
            Kind::Data,
            1,
            1,
            b"",
            data(b"", 0, true),
        ),
        (
            "6.1 padding counts against windows",
            Kind::Data,
            8,
            1,
            b"\x02abc00",
            data(b"abc", 6, false),
        ),
        (
            "6.1 nothing but padding",
            Kind::Data,
            9,
            1,
            &[2, 0, 0],
            data(b"", 3, true),
        ),
        (
            "6.1 no padding, said so",
            Kind::Data,
            8,
            1,
            b"\x00abc",
            data(b"abc", 4, false),
        ),
        (
            "6.1 padding that is not zero",
            Kind::Data,
            8,
            1,
            b"\x01ab",
            data(b"a", 3, false),
        ),
        (
            "4.1 flags of no meaning are ignored",
            Kind::Data,
            0xf6,
            1,
            b"abc",
            data(b"abc", 3, false),
        ),
        (
            "6.2 HEADERS",
            Kind::Headers,
            0x5,
            1,
            b"hb",
            headers(b"hb", None, true, true),
        ),
        (
            "6.2 the beginning of a block",
            Kind::Headers,
            0,
            1,
            b"hb",
            headers(b"hb", None, false, false),
        ),
        (
            "6.2 HEADERS that are empty",
            Kind::Headers,
            0x4,
            1,
            b"",
            headers(b"", None, false, true),
        ),
        (
            "6.2 with priority",
            Kind::Headers,
            0x24,
            1,
            b"\x80\0\0\x09\x0fhb",
            headers(b"hb", Some(priority(9, true, 15)), false, true),
        ),
        (
            "6.2 with padding and priority",
            Kind::Headers,
            0x2c,
            1,
            b"\x01\0\0\0\0\xffhb0",
            headers(b"hb", Some(priority(0, false, 255)), false, true),
        ),
        (
            "6.2 on itself is left to the connection",
            Kind::Headers,
            0x24,
            1,
            b"\0\0\0\x01\0h",
            headers(b"h", Some(priority(1, false, 0)), false, true),
        ),
        (
            "6.3 PRIORITY",
            Kind::Priority,
            0,
            3,
            &[0, 0, 0, 1, 7],
            Frame::Priority {
                stream: 3,
                priority: priority(1, false, 7),
            },
        ),
        (
            "6.4 RST_STREAM",
            Kind::Reset,
            0,
            3,
            &[0, 0, 0, 8],
            Frame::Reset {
                stream: 3,
                code: ErrorCode::Cancel,
            },
        ),
        (
            "7 a code that nobody knows",
            Kind::Reset,
            0,
            3,
            &[0, 0, 1, 0],
            Frame::Reset {
                stream: 3,
                code: ErrorCode::Other(256),
            },
        ),
        ("6.5 ACK", Kind::Settings, 1, 0, &[], Frame::SettingsAck),
        (
            "6.6 PUSH_PROMISE",
            Kind::PushPromise,
            0xc,
            1,
            b"\x01\x80\0\0\x02hb0",
            Frame::PushPromise {
                stream: 1,
                promised: 2,
                block: b"hb",
                end_headers: true,
            },
        ),
        (
            "6.7 PING",
            Kind::Ping,
            0,
            0,
            b"12345678",
            Frame::Ping {
                ack: false,
                opaque: *b"12345678",
            },
        ),
        (
            "6.7 PING with ACK",
            Kind::Ping,
            1,
            0,
            b"12345678",
            Frame::Ping {
                ack: true,
                opaque: *b"12345678",
            },
        ),
        (
            "6.8 GOAWAY",
            Kind::GoAway,
            0,
            0,
            b"\xff\xff\xff\xff\0\0\0\x0bslow",
            Frame::GoAway {
                last_stream: MAX_STREAM,
                code: ErrorCode::EnhanceYourCalm,
                debug: b"slow",
            },
        ),
        (
            "6.9 WINDOW_UPDATE",
            Kind::WindowUpdate,
            0,
            0,
            &[0x7f, 0xff, 0xff, 0xff],
            Frame::WindowUpdate {
                stream: 0,
                increment: MAX_STREAM,
            },
        ),
        (
            "6.9 the reserved bit is ignored",
            Kind::WindowUpdate,
            0,
            5,
            &[0x80, 0, 0, 1],
            Frame::WindowUpdate {
                stream: 5,
                increment: 1,
            },
        ),
        (
            "6.10 CONTINUATION",
            Kind::Continuation,
            0x4,
            1,
            b"hb",
            Frame::Continuation {
                stream: 1,
                block: b"hb",
                end_headers: true,
            },
        ),
        (
            "6.10 CONTINUATION has no padding",
            Kind::Continuation,
            0x8,
            1,
            b"\x09hb",
            Frame::Continuation {
                stream: 1,
                block: b"\x09hb",
                end_headers: false,
            },
        ),
        (
            "5.5 an extension",
            Kind::Unknown(0xbe),
            0xff,
            0,
            b"?",
            Frame::Unknown {
                kind: 0xbe,
                stream: 0,
            },
        ),
    ];
    for (case, kind, flags, stream, payload, frame) in cases {
        assert_eq!(
            read(*kind, *flags, *stream, payload).as_ref(),
            Ok(frame),
            "{case}"
        );
    }
    let on_itself = priority(1, false, 0).check(1).expect_err("5.3.1");
    assert_eq!(on_itself.scope, Scope::Stream(1));
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
    assert_eq!(error.code, ErrorCode::FrameSize);

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

#[test]
fn what_is_written_is_what_the_rfc_draws() {
    let written = |write: fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    let cases: [(&str, fn(&mut Vec<u8>), &[u8]); 9] = [
        (
            "6.1",
            |out| write::data(out, 3, b"hi", true),
            b"\0\0\x02\x00\x01\0\0\0\x03hi",
        ),
        (
            "6.4",
            |out| write::reset(out, 5, ErrorCode::Cancel),
            b"\0\0\x04\x03\0\0\0\0\x05\0\0\0\x08",
        ),
        (
            "6.5",
            |out| write::settings(out, &[Setting::MaxConcurrentStreams(256)]),
            b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\x01\0",
        ),
        ("6.5 ACK", write::settings_ack, b"\0\0\0\x04\x01\0\0\0\0"),
        (
            "6.7",
            |out| write::ping(out, true, *b"12345678"),
            b"\0\0\x08\x06\x01\0\0\0\x0012345678",
        ),
        (
            "6.8",
            |out| write::goaway(out, 7, ErrorCode::NoError, b"bye"),
            b"\0\0\x0b\x07\0\0\0\0\0\0\0\0\x07\0\0\0\0bye",
        ),
        (
            "6.9",
            |out| write::window_update(out, 0, DEFAULT_WINDOW),
            b"\0\0\x04\x08\0\0\0\0\0\0\0\xff\xff",
        ),
        (
            "6.2",
            |out| write::headers(out, 1, true, 9, |out| out.extend_from_slice(b"hb")),
            b"\0\0\x02\x01\x05\0\0\0\x01hb",
        ),
        (
            "6.10",
            |out| write::headers(out, 1, true, 2, |out| out.extend_from_slice(b"hblok")),
            b"\0\0\x02\x01\x01\0\0\0\x01hb\0\0\x02\x09\0\0\0\0\x01lo\0\0\x01\x09\x04\0\0\0\x01k",
        ),
    ];
    for (section, write, bytes) in cases {
        assert_eq!(written(write), bytes, "{section}");
    }
    let long = written(|out| write::goaway(out, 0, ErrorCode::Protocol, &[b'x'; 70_000]));
    assert!(matches!(
        split(&long, 1 << 14),
        Ok(Some(Split { rest: [], .. }))
    ));
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
                    out.extend_from_slice(block)
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

fn stream() -> impl Strategy<Value = u32> {
    1..=MAX_STREAM
}

fn setting() -> impl Strategy<Value = Setting> {
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
        (stream(), bytes(), any::<bool>()).prop_map(|(a, b, c)| Written::Data(a, b, c)),
        (stream(), bytes(), any::<bool>(), 1..100_u32)
            .prop_map(|(a, b, c, d)| Written::Headers(a, b, c, d)),
        (stream(), priority).prop_map(|(a, b)| Written::Priority(a, b)),
        (stream(), code()).prop_map(|(a, b)| Written::Reset(a, b)),
        prop::collection::vec(setting(), 0..9).prop_map(Written::Settings),
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
            prop_assert!(error.scope == Scope::Connection || error.scope == Scope::Stream(stream));
            prop_assert!(error.scope != Scope::Stream(0));
        }
    }
}
