//! Each rule of RFC 9113 section 8 by a list that breaks it and only it.

use super::{super::hpack::Fields, Answer, Malformed, Request, answer, request, trailers};

fn list(fields: &[(&str, &str)]) -> Fields {
    let mut list = Fields::new();
    for (name, value) in fields {
        list.push(name.as_bytes(), value.as_bytes());
    }
    list
}

const CALL: [(&str, &str); 5] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "x"),
    (":path", "/s/m"),
    ("te", "trailers"),
];

fn call_with(more: &[(&str, &str)]) -> Fields {
    list(&[&CALL[..], more].concat())
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn requests() {
    let plain = Request {
        length: None,
        head_only: false,
    };
    for (fields, verdict) in [
        (call_with(&[]), Ok(plain)),
        (call_with(&[("x-a", ""), ("x-a", "b")]), Ok(plain)),
        (call_with(&[("host", "x")]), Ok(plain)),
        (call_with(&[("host", "y")]), Err(Malformed::Host)),
        (list(&CALL[..1]), Err(Malformed::Missing)),
        (list(&[CALL[0], CALL[1], CALL[2]]), Err(Malformed::Missing)),
        (list(&[CALL[0], CALL[2], CALL[3]]), Err(Malformed::Missing)),
        (list(&[CALL[1], CALL[3]]), Err(Malformed::Missing)),
        (list(&[CALL[0], CALL[1], CALL[3]]), Ok(plain)),
        (call_with(&[(":path", "/a")]), Err(Malformed::Order)),
        (list(&[CALL[0], CALL[0]]), Err(Malformed::Twice)),
        (
            list(&[CALL[0], CALL[1], (":path", "")]),
            Err(Malformed::Value),
        ),
        (list(&[(":status", "200")]), Err(Malformed::Misplaced)),
        (list(&[(":test", "ok")]), Err(Malformed::Octets)),
        (call_with(&[("X-A", "b")]), Err(Malformed::Octets)),
        (call_with(&[("x a", "b")]), Err(Malformed::Octets)),
        (call_with(&[("x-a", "b\r\nc")]), Err(Malformed::Octets)),
        (
            call_with(&[("connection", "close")]),
            Err(Malformed::ConnectionSpecific),
        ),
        (
            call_with(&[("keep-alive", "1")]),
            Err(Malformed::ConnectionSpecific),
        ),
        (
            call_with(&[("proxy-connection", "1")]),
            Err(Malformed::ConnectionSpecific),
        ),
        (
            call_with(&[("transfer-encoding", "chunked")]),
            Err(Malformed::ConnectionSpecific),
        ),
        (
            call_with(&[("upgrade", "h2c")]),
            Err(Malformed::ConnectionSpecific),
        ),
        (
            call_with(&[("te", "trailers, deflate")]),
            Err(Malformed::Te),
        ),
        (
            call_with(&[("content-length", "1x")]),
            Err(Malformed::ContentLength),
        ),
        (
            call_with(&[("content-length", "")]),
            Err(Malformed::ContentLength),
        ),
        (
            call_with(&[("content-length", "1"), ("content-length", "2")]),
            Err(Malformed::ContentLength),
        ),
        (
            call_with(&[("content-length", "7"), ("content-length", "7")]),
            Ok(Request {
                length: Some(7),
                ..plain
            }),
        ),
        (
            list(&[(":method", "CONNECT"), (":authority", "x:1")]),
            Ok(plain),
        ),
        (list(&[(":method", "CONNECT")]), Err(Malformed::Missing)),
        (
            list(&[
                (":method", "CONNECT"),
                (":authority", "x:1"),
                (":path", "/"),
            ]),
            Err(Malformed::Misplaced),
        ),
        (
            list(&[(":method", "HEAD"), CALL[1], CALL[3]]),
            Ok(Request {
                head_only: true,
                ..plain
            }),
        ),
    ] {
        assert_eq!(request(&fields), verdict, "{fields:?}");
    }
}

#[test]
fn answers() {
    let plain = Answer {
        length: None,
        interim: false,
    };
    for (fields, head_only, verdict) in [
        (&[(":status", "200")][..], false, Ok(plain)),
        (
            &[(":status", "200"), ("content-length", "3")],
            false,
            Ok(Answer {
                length: Some(3),
                ..plain
            }),
        ),
        (
            &[(":status", "200"), ("content-length", "3")],
            true,
            Ok(plain),
        ),
        (
            &[(":status", "304"), ("content-length", "3")],
            false,
            Ok(plain),
        ),
        (
            &[(":status", "100")],
            false,
            Ok(Answer {
                interim: true,
                ..plain
            }),
        ),
        (&[(":status", "101")], false, Err(Malformed::Value)),
        (&[(":status", "20")], false, Err(Malformed::Value)),
        (&[(":status", "abc")], false, Err(Malformed::Value)),
        (&[("x-a", "b")], false, Err(Malformed::Missing)),
        (
            &[("x-a", "b"), (":status", "200")],
            false,
            Err(Malformed::Order),
        ),
        (
            &[(":status", "200"), (":status", "200")],
            false,
            Err(Malformed::Twice),
        ),
        (&[(":path", "/")], false, Err(Malformed::Misplaced)),
        (
            &[(":status", "200"), ("connection", "x")],
            false,
            Err(Malformed::ConnectionSpecific),
        ),
    ] {
        assert_eq!(answer(&list(fields), head_only), verdict, "{fields:?}");
    }
}

#[test]
fn trailer_sections() {
    for (fields, verdict) in [
        (&[][..], Ok(())),
        (&[("grpc-status", "0"), ("x-bin", "AA")], Ok(())),
        (
            &[("grpc-status", "0"), (":status", "200")],
            Err(Malformed::Misplaced),
        ),
        (&[("Grpc-Status", "0")], Err(Malformed::Octets)),
        (&[("upgrade", "x")], Err(Malformed::ConnectionSpecific)),
    ] {
        assert_eq!(trailers(&list(fields)), verdict, "{fields:?}");
    }
}
