//! Our client half against our server half, and single frames against each rule.

use std::time::Duration;

use tokio::time::Instant;

use super::{Config, Connection, Room};
use crate::h2::{
    frame::{self, ErrorCode, Frame, Head, Kind, PREFACE, Setting, flag, write},
    hpack::{Encoder, Fields},
    tests::{End, list, request},
};

fn pump(client: &mut End, server: &mut End, piece: usize) {
    loop {
        let (up, down) = (client.take(), server.take());
        if up.is_empty() && down.is_empty() {
            return;
        }
        for piece in up.chunks(piece) {
            server.give(piece).unwrap();
        }
        for piece in down.chunks(piece) {
            client.give(piece).unwrap();
        }
    }
}

fn pair() -> (End, End) {
    let now = Instant::now();
    let mut client = End::new(Config::upstream(), now);
    let mut server = End::new(Config::caller(), now);
    assert_eq!(client.connection.room(), Room::Later, "SETTINGS first");
    pump(&mut client, &mut server, 7);
    assert_eq!(client.connection.room(), Room::Yes);
    (client, server)
}

#[test]
fn a_call_there_and_back_in_pieces_of_any_size() {
    for piece in [1, 2, 9, 100, 100_000] {
        let (mut client, mut server) = pair();
        let call = client.start(&request("/a/b"), false);
        let content = vec![7; 40_000];
        assert_eq!(client.send(call, &content, true), content.len());
        pump(&mut client, &mut server, piece);
        assert_eq!(server.calls[0].body, content);
        let told = server.told();
        let ends = (told[0].as_str(), told.last().unwrap().as_str());
        assert_eq!(ends, ("request /a/b false", "data 7232 true"));
        assert!(server.fields(0, &[(":status", "103")], false));
        assert!(server.fields(0, &[(":status", "200")], false));
        assert_eq!(server.send(0, b"hello", false), 5);
        assert!(server.fields(0, &[("grpc-status", "0")], true));
        assert!(!server.fields(0, &[("x", "y")], true));
        pump(&mut client, &mut server, piece);
        let told = client.told();
        assert_eq!(
            told,
            [
                "Interim false",
                "Head false",
                "data 5 false",
                "Trailers true"
            ]
        );
        assert_eq!(
            (client.connection.active(), server.connection.active()),
            (0, 0)
        );
    }
}

#[test]
fn data_stops_at_the_windows_and_goes_on_when_they_open() {
    let (mut client, mut server) = pair();
    server.reads = false;
    let call = client.start(&request("/"), false);
    let content = vec![1; 2 << 20];
    let mut sent = 0;
    loop {
        let more = client.send(call, &content[sent..], false);
        if more == 0 {
            break;
        }
        sent += more;
        pump(&mut client, &mut server, 1 << 20);
    }
    assert_eq!(
        sent,
        1 << 20,
        "the stream's window: nothing of it was released"
    );
    server.read(0);
    pump(&mut client, &mut server, 1 << 20);
    assert_eq!(client.told(), ["widened"]);
    let stream = client.calls[call].stream.unwrap();
    assert_eq!(client.connection.capacity(stream), 1 << 20);
}

#[test]
fn a_reset_is_told_and_late_frames_are_forgiven() {
    let (mut client, mut server) = pair();
    let call = client.start(&request("/"), false);
    pump(&mut client, &mut server, 64);
    server.reset(0, ErrorCode::Cancel);
    // The client does not know yet.
    assert_eq!(client.send(call, b"late", false), 4);
    pump(&mut client, &mut server, 64);
    assert_eq!(client.told(), ["reset CANCEL false"]);
    assert_eq!(server.told(), ["request / false"]);
    client.start(&request("/again"), true);
    pump(&mut client, &mut server, 64);
    assert_eq!(server.told(), ["request /again true"]);
}

#[test]
fn who_is_answered_early_is_forgiven_what_was_under_way() {
    let (mut client, mut server) = pair();
    for round in 0..2000 {
        let call = client.start(&request("/"), false);
        pump(&mut client, &mut server, 4096);
        server.reset(round, ErrorCode::NoError);
        // The client does not know yet: its message, and its end.
        assert_eq!(client.send(call, b"late", false), 4);
        client.send(call, b"", true);
        pump(&mut client, &mut server, 4096);
        assert_eq!(server.told(), ["request / false"], "{round}");
    }
}

#[test]
fn the_most_streams_are_kept_by_both() {
    let (mut client, mut server) = pair();
    for _ in 0..100 {
        client.start(&request("/"), false);
    }
    assert_eq!(client.connection.room(), Room::Later);
    pump(&mut client, &mut server, 4096);
    assert_eq!(server.connection.active(), 100);
}

/// Requests without an end on streams `from..`, so many.
fn requests(from: u32, number: u32) -> Vec<u8> {
    let block = block(&request("/"));
    let streams = (from..).step_by(2).take(number as usize);
    let frames = streams.map(|stream| raw(Kind::Headers, flag::END_HEADERS, stream, &block));
    frames.collect::<Vec<_>>().concat()
}

#[test]
fn who_has_not_acknowledged_the_most_streams_cannot_keep_to_it() {
    let mut server = End::new(Config::caller(), Instant::now());
    let mut early = PREFACE.to_vec();
    write::settings(&mut early, &[]);
    early.extend(requests(1, 1024));
    server.give(&early).unwrap();
    assert_eq!(server.connection.active(), 1024);
    server.take();
    server.give(&requests(2049, 1)).unwrap();
    assert_eq!(server.connection.active(), 1024, "and no more");

    let mut acknowledged = Vec::new();
    write::settings_ack(&mut acknowledged);
    acknowledged.extend(raw(Kind::Reset, 0, 1, &[0, 0, 0, 8]));
    acknowledged.extend(requests(2051, 1));
    server.give(&acknowledged).unwrap();
    assert_eq!(server.connection.active(), 1023, "now it knows");
}

#[test]
fn a_drain_takes_what_was_under_way_and_ends_with_the_last_stream() {
    let (mut client, mut server) = pair();
    client.start(&request("/first"), true);
    pump(&mut client, &mut server, 64);
    server.connection.drain(server.now);
    // Crosses the first GOAWAY.
    client.start(&request("/crossing"), true);
    pump(&mut client, &mut server, 64);
    assert_eq!(client.connection.room(), Room::Never);
    assert_eq!(client.told(), ["goaway 2147483647 NO_ERROR"]);
    // Written behind the answer to the PING, as some clients do.
    assert_eq!(server.told().len(), 2);
    let held = server.connection.next_deadline().unwrap();
    assert_eq!(held, server.now + Duration::from_millis(100));
    server.connection.on_time(held).unwrap();
    pump(&mut client, &mut server, 64);
    assert_eq!(client.told(), ["goaway 3 NO_ERROR"]);
    for call in 0..2 {
        assert!(!server.connection.over());
        assert!(server.fields(call, &[(":status", "200")], true));
    }
    assert!(server.connection.over());
    pump(&mut client, &mut server, 64);
    assert!(client.connection.over());
}

#[test]
fn what_a_goaway_says_was_not_looked_at_is_given_back() {
    let (mut client, mut server) = pair();
    client.start(&request("/"), true);
    client.start(&request("/"), true);
    let mut out = Vec::new();
    write::goaway(&mut out, 1, ErrorCode::NoError, b"");
    client.give(&out).unwrap();
    assert_eq!(
        (client.calls[0].reset, client.calls[1].reset),
        (false, true)
    );
    assert_eq!(client.connection.active(), 1);
    pump(&mut client, &mut server, 64);
}

#[test]
fn deadlines_are_asked_for_and_kept() {
    let (mut client, mut server) = pair();
    let (start, second) = (client.now, Duration::from_secs(1));
    assert_eq!(
        server.connection.next_deadline(),
        None,
        "a caller may be quiet"
    );
    assert_eq!(client.connection.next_deadline(), Some(start + 15 * second));
    client.connection.on_time(start + 15 * second).unwrap();
    assert_eq!(client.connection.next_deadline(), Some(start + 25 * second));
    assert!(client.connection.on_time(start + 24 * second).is_ok());
    let dead = client.connection.on_time(start + 25 * second).unwrap_err();
    assert_eq!(dead.what, "no answer to PING");
    server.give(&[0, 0, 1]).unwrap();
    assert_eq!(server.connection.next_deadline(), Some(start + 10 * second));
    let slow = server.connection.on_time(start + 10 * second).unwrap_err();
    assert_eq!(slow.code, ErrorCode::EnhanceYourCalm);
    // A slow reader of a busy connection never sees the end of a batch at the end of a frame.
    server.now = start + 5 * second;
    server.give(&[0x42, 0, 0, 0, 0, 0, b'?', 0, 0, 1]).unwrap();
    let next = server.connection.next_deadline();
    assert_eq!(
        next,
        Some(start + 15 * second),
        "from the frame's own beginning"
    );
    server.now = start;
    let block = raw(Kind::Headers, 0, 1, &[0x82]);
    server.give(&block[3..]).unwrap();
    server.now = start + second;
    let piece = [raw(Kind::Continuation, 0, 1, &[0x86]), vec![0]].concat();
    server.give(&piece).unwrap();
    let next = server.connection.next_deadline();
    assert_eq!(
        next,
        Some(start + 10 * second),
        "from the block's own beginning"
    );
    let mut silent = Connection::new(Config::caller(), start);
    assert!(silent.on_time(start + 4 * second).is_ok());
    let silence = silent.on_time(start + 5 * second).unwrap_err();
    assert_eq!(silence.code, ErrorCode::SettingsTimeout);
    let mut out = Vec::new();
    silent.take_output(&mut out, start);
    assert_eq!(silent.next_deadline(), Some(start + 5 * second));
}

/// What a server says to raw frames of a client that has greeted.
fn answer_to(frames: &[u8]) -> (Result<(), ErrorCode>, Vec<String>, Vec<String>) {
    let now = Instant::now();
    let mut server = End::new(Config::caller(), now);
    let mut greeting = PREFACE.to_vec();
    write::settings(&mut greeting, &[]);
    write::settings_ack(&mut greeting);
    server.give(&greeting).unwrap();
    server.take();
    let result = server.give(frames).map_err(|error| error.code);
    let told = server.told();
    let mut said = Vec::new();
    let out = server.take();
    let mut rest = &out[..];
    while let Ok(Some(frame::Split {
        head,
        payload,
        rest: more,
    })) = frame::split(rest, 1 << 14)
    {
        #[expect(clippy::wildcard_enum_match_arm, reason = "shown as they are")]
        said.push(match Frame::parse(head, payload).unwrap() {
            Frame::Reset { stream, code } => format!("{stream} {code}"),
            Frame::GoAway { code, .. } => format!("goaway {code}"),
            other => format!("{other:?}"),
        });
        rest = more;
    }
    (result, told, said)
}

fn raw(kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let head = Head {
        length,
        kind,
        flags,
        stream,
    };
    [&head.octets()[..], payload].concat()
}

fn block(fields: &Fields) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::new().encode(fields, &mut out);
    out
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn every_rule_by_a_frame_that_breaks_it() {
    use ErrorCode as E;
    let whole = flag::END_HEADERS;
    let end = flag::END_HEADERS | flag::END_STREAM;
    let good = block(&request("/"));
    let open = raw(Kind::Headers, whole, 1, &good);
    let ended = raw(Kind::Headers, end, 1, &good);
    let reset = [open.clone(), raw(Kind::Reset, 0, 1, &[0, 0, 0, 8])].concat();
    let length = block(&{
        let mut fields = request("/");
        fields.push(b"content-length", b"3");
        fields
    });
    let with_length = raw(Kind::Headers, whole, 1, &length);
    let then = |first: &[u8], next: Vec<u8>| [first, &next].concat();
    let data = |flags, stream, bytes: &[u8]| raw(Kind::Data, flags, stream, bytes);
    for (frames, result, said) in [
        (
            data(0, 1, b"x"),
            Err(E::Protocol),
            &["goaway PROTOCOL_ERROR"][..],
        ),
        (
            raw(Kind::Reset, 0, 1, &[0; 4]),
            Err(E::Protocol),
            &["goaway PROTOCOL_ERROR"],
        ),
        (
            raw(Kind::WindowUpdate, 0, 1, &[0, 0, 0, 1]),
            Err(E::Protocol),
            &["goaway PROTOCOL_ERROR"],
        ),
        (
            raw(Kind::Headers, end, 2, &good),
            Err(E::Protocol),
            &["goaway PROTOCOL_ERROR"],
        ),
        (
            raw(Kind::Continuation, whole, 1, &good),
            Err(E::Protocol),
            &["goaway PROTOCOL_ERROR"],
        ),
        (
            raw(Kind::PushPromise, whole, 1, &[0, 0, 0, 2]),
            Err(E::Protocol),
            &["goaway PROTOCOL_ERROR"],
        ),
        (
            raw(Kind::Headers, end, 1, &[0xff; 9]),
            Err(E::Compression),
            &["goaway COMPRESSION_ERROR"],
        ),
        (
            raw(Kind::Ping, 0, 0, &[0; 7]),
            Err(E::FrameSize),
            &["goaway FRAME_SIZE_ERROR"],
        ),
        (
            raw(Kind::WindowUpdate, 0, 0, &[0x7f, 255, 255, 255]),
            Err(E::FlowControl),
            &["goaway FLOW_CONTROL_ERROR"],
        ),
        (
            then(
                &raw(Kind::Headers, 0, 1, &good),
                raw(Kind::Ping, 0, 0, &[0; 8]),
            ),
            Err(E::Protocol),
            &["goaway PROTOCOL_ERROR"],
        ),
        (then(&ended, data(0, 1, b"x")), Ok(()), &["1 STREAM_CLOSED"]),
        (
            then(&ended, raw(Kind::Headers, end, 1, &good)),
            Ok(()),
            &["1 STREAM_CLOSED"],
        ),
        (
            then(&open, raw(Kind::Headers, whole, 1, &good)),
            Ok(()),
            &["1 PROTOCOL_ERROR"],
        ),
        (
            then(&open, raw(Kind::WindowUpdate, 0, 1, &[0; 4])),
            Ok(()),
            &["1 PROTOCOL_ERROR"],
        ),
        (
            then(&open, raw(Kind::WindowUpdate, 0, 1, &[0x7f, 255, 255, 255])),
            Ok(()),
            &["1 FLOW_CONTROL_ERROR"],
        ),
        (then(&reset, data(0, 1, b"x")), Ok(()), &["1 STREAM_CLOSED"]),
        (
            raw(Kind::Headers, end, 1, &block(&list(&[(":method", "POST")]))),
            Ok(()),
            &["1 PROTOCOL_ERROR"],
        ),
        (
            raw(Kind::Headers, end, 1, &length),
            Ok(()),
            &["1 PROTOCOL_ERROR"],
        ),
        (
            then(&with_length, data(0, 1, b"four")),
            Ok(()),
            &["1 PROTOCOL_ERROR"],
        ),
        (
            then(&with_length, data(1, 1, b"2!")),
            Ok(()),
            &["1 PROTOCOL_ERROR"],
        ),
        (then(&with_length, data(1, 1, b"3!!")), Ok(()), &[]),
        (raw(Kind::Unknown(77), 255, 9, b"?"), Ok(()), &[]),
    ] {
        let (got, told, wrote) = answer_to(&frames);
        assert_eq!(
            (got, &wrote[..]),
            (
                result,
                &said.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..]
            ),
            "{frames:x?} {told:?}"
        );
    }
}

#[test]
fn fields_in_pieces_are_one_list_and_too_many_are_refused_politely() {
    let block = block(&request("/pieces"));
    let mut frames = raw(Kind::Headers, flag::END_STREAM, 1, &block[..2]);
    for octet in &block[2..block.len() - 1] {
        frames.extend(raw(Kind::Continuation, 0, 1, &[*octet]));
    }
    frames.extend(raw(
        Kind::Continuation,
        flag::END_HEADERS,
        1,
        &block[block.len() - 1..],
    ));
    let (result, told, _) = answer_to(&frames);
    assert_eq!(
        (result, &told[..]),
        (Ok(()), &["request /pieces true".to_owned()][..])
    );

    let mut fields = request("/large");
    fields.push(b"x-large", &[b'a'; 17_000]);
    let mut frames = Vec::new();
    write::headers(&mut frames, 1, true, 1 << 14, |out| {
        Encoder::new().encode(&fields, out);
    });
    let (result, told, _) = answer_to(&frames);
    assert_eq!((result, &told[..]), (Ok(()), &["oversized".to_owned()][..]));
}

#[test]
fn what_is_not_http2_is_told_so() {
    let mut server = End::new(Config::caller(), Instant::now());
    assert_eq!(server.give(b"PRI * HT").map_err(|error| error.code), Ok(()));
    assert_eq!(
        server.give(b"GET / HTTP/1.1").unwrap_err().what,
        "this is not HTTP/2"
    );
    assert!(server.connection.over());
    let mut server = End::new(Config::caller(), Instant::now());
    let early = [&PREFACE[..], &raw(Kind::Ping, 0, 0, &[0; 8])].concat();
    assert_eq!(server.give(&early).unwrap_err().code, ErrorCode::Protocol);
}

#[test]
fn a_smaller_initial_window_takes_back_what_was_given() {
    let (mut client, _) = pair();
    let call = client.start(&request("/"), false);
    let mut out = Vec::new();
    write::settings(&mut out, &[Setting::InitialWindowSize(10)]);
    client.send(call, &[0; 100], false);
    client.give(&out).unwrap();
    let stream = client.calls[call].stream.unwrap();
    assert_eq!(client.connection.capacity(stream), 0);
    let mut out = Vec::new();
    write::window_update(&mut out, 1, 100);
    client.give(&out).unwrap();
    assert_eq!(client.connection.capacity(stream), 10);
    assert_eq!(client.told(), ["widened"]);
}
