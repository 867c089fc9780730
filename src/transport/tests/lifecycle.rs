//! Connections that age, drain, stall and fail, in plaintext.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::wire::status::{reason_of, retry_after};

/// Connections that end every 100 ms under load: no call is lost and none runs twice.
#[tokio::test]
async fn no_call_is_lost_or_run_twice_while_connections_age() {
    let seen = Seen::new();
    let threads = DataThreads::start(2).unwrap();
    let limits = Limits {
        connection_age: Duration::from_millis(100),
        ..Limits::default()
    };
    let (server, target) = serve("127.0.0.1:0", &threads, limits, &seen);
    let pool = Pool::plaintext(Nursery::here());
    let end = Instant::now() + Duration::from_secs(3);
    let callers = (0..8).map(|_| {
        let channel = pool.channel(target.clone());
        async move {
            let mut fine = 0;
            while Instant::now() < end {
                assert_eq!(call(&channel, "/echo", b"ping").await.unwrap(), "ping");
                fine += 1;
            }
            fine
        }
    });
    let flowing = async {
        let (feed, request) = flow();
        let response = pool.channel(target.clone()).oneshot(request).await.unwrap();
        let mut body = response.into_body();
        let mut echoed = 0;
        while Instant::now() < end {
            let frame = Frame::data(Bytes::from_static(b"x"));
            feed.send(Ok(frame)).await.unwrap();
            body.frame().await.unwrap().unwrap();
            echoed += 1;
        }
        drop(feed);
        let end = body.collect().await.unwrap().to_bytes();
        assert!(end.is_empty(), "the old stream ends as it should");
        echoed
    };
    let (fine, echoed) = tokio::join!(futures_util::future::join_all(callers), flowing);
    let fine: usize = fine.iter().sum();
    assert!(fine > 100 && echoed > 20, "{fine} calls, {echoed} echoes");
    assert_eq!(
        seen.calls.load(SeqCst),
        fine + 1,
        "executed == ok, and the stream"
    );
    server.drain(GRACE).await;
}

/// The request's body is a stream that is open while the connection under it goes away.
#[tokio::test]
async fn streams_that_start_on_an_ending_connection_start_again() {
    let seen = Seen::new();
    let threads = DataThreads::start(1).unwrap();
    let limits = Limits {
        connection_age: Duration::from_millis(20),
        ..Limits::default()
    };
    let (server, target) = serve("127.0.0.1:0", &threads, limits, &seen);
    let channel = Pool::plaintext(Nursery::here()).channel(target);
    let end = Instant::now() + Duration::from_secs(1);
    let mut streams = 0;
    while Instant::now() < end {
        let (feed, request) = flow();
        let start = Frame::data(Bytes::from_static(b"start"));
        feed.send(Ok(start)).await.unwrap();
        let mut body = channel.clone().oneshot(request).await.unwrap().into_body();
        for word in ["start", "ack"] {
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), word);
            let next = Frame::data(Bytes::from_static(b"ack"));
            feed.send(Ok(next)).await.unwrap();
        }
        streams += 1;
    }
    assert_eq!(seen.calls.load(SeqCst), streams);
    server.drain(GRACE).await;
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let seen = Seen::new();
    let threads = DataThreads::start(2).unwrap();
    let (server, target) = serve("127.0.0.1:0", &threads, Limits::default(), &seen);
    let channel = Pool::plaintext(Nursery::here()).channel(target);
    let waiting = {
        let channel = channel.clone();
        async move { call(&channel, "/wait", b"late").await }
    };
    let (feed, request) = flow();
    let mut body = channel.clone().oneshot(request).await.unwrap().into_body();
    let draining = async {
        until("the call runs", || seen.calls.load(SeqCst) == 2).await;
        let drain = server.drain(GRACE);
        let checks = async {
            let address = server.address().to_owned();
            loop {
                if TcpStream::connect(&address).await.is_err() {
                    break;
                }
            }
            // Calls that cross the GOAWAY are still answered.
            let fault = loop {
                match call(&channel, "/echo", b"new").await {
                    Ok(answer) => assert_eq!(answer, "new"),
                    Err(fault) => break fault,
                }
            };
            assert_eq!(reason_of(&fault).as_deref(), Some("PEER_UNREACHABLE"));
            seen.gate.add_permits(1);
            feed.send(Ok(Frame::data("last".into()))).await.unwrap();
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), "last");
            drop(feed);
            assert!(body.collect().await.unwrap().to_bytes().is_empty());
        };
        tokio::join!(drain, checks);
    };
    let (answer, ()) = tokio::join!(waiting, draining);
    assert_eq!(answer.unwrap(), "late");
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_drain_cuts_what_does_not_end() {
    let seen = Seen::new();
    let threads = DataThreads::start(1).unwrap();
    let (server, target) = serve("127.0.0.1:0", &threads, Limits::default(), &seen);
    let channel = Pool::plaintext(Nursery::here()).channel(target);
    let draining = async {
        until("the call runs", || seen.calls.load(SeqCst) == 1).await;
        server.drain(Duration::from_millis(50)).await;
    };
    let (answer, ()) = tokio::join!(call(&channel, "/wait", b"x"), draining);
    let fault = answer.unwrap_err();
    assert_eq!(
        reason_of(&fault).as_deref(),
        Some("CONNECTION_LOST"),
        "{fault}"
    );
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_closed() {
    let seen = Seen::new();
    let threads = DataThreads::start(1).unwrap();
    let limits = Limits {
        handshake_time: Duration::from_millis(50),
        ..Limits::default()
    };
    let (server, target) = serve("127.0.0.1:0", &threads, limits, &seen);
    let mut silent = TcpStream::connect(&target.endpoints[0]).await.unwrap();
    silent.write_all(b"PRI * HTT").await.unwrap();
    let mut heard = Vec::new();
    // Ends with our SETTINGS at most, by close or reset.
    drop(silent.read_to_end(&mut heard).await);
    until("it is forgotten", || server.connections() == 0).await;
    let channel = Pool::plaintext(Nursery::here()).channel(target);
    call(&channel, "/echo", b"x").await.unwrap();
    server.drain(GRACE).await;
}

#[tokio::test]
async fn more_connections_than_allowed_are_closed_at_once() {
    let seen = Seen::new();
    let threads = DataThreads::start(1).unwrap();
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let (server, target) = serve("127.0.0.1:0", &threads, limits, &seen);
    let channel = Pool::plaintext(Nursery::here()).channel(target.clone());
    call(&channel, "/echo", b"x").await.unwrap();
    let other = Pool::plaintext(Nursery::here()).channel(target);
    let fault = call(&other, "/echo", b"x").await.unwrap_err();
    assert_eq!(reason_of(&fault).as_deref(), Some("PEER_UNREACHABLE"));
    call(&channel, "/echo", b"x").await.unwrap();
    server.drain(GRACE).await;
}

#[tokio::test]
async fn a_failed_dial_fails_all_who_wait_and_then_at_once_until_it_may_be_tried_again() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = closed.local_addr().unwrap().to_string();
    drop(closed);
    let pool = Pool::plaintext(Nursery::here());
    let target = Target {
        endpoints: vec!["nonsense".into(), endpoint.clone()],
        expect: None,
    };
    let channel = pool.channel(target);
    let calls = (0..10).map(|_| call(&channel, "/echo", b"x"));
    for answer in futures_util::future::join_all(calls).await {
        let fault = answer.unwrap_err();
        assert_eq!(reason_of(&fault).as_deref(), Some("PEER_UNREACHABLE"));
        assert!(fault.message().contains(&endpoint), "{fault}");
        assert!(fault.message().contains("host:port"), "{fault}");
    }
    // Jitter may have made the first waits nothing; they grow.
    let mut asked_to_wait = false;
    for _ in 0..50 {
        let fault = call(&channel, "/echo", b"x").await.unwrap_err();
        asked_to_wait |= retry_after(&fault).is_some();
    }
    assert!(asked_to_wait);
    let none = Target {
        endpoints: Vec::new(),
        expect: None,
    };
    let fault = call(&pool.channel(none), "/echo", b"x").await.unwrap_err();
    assert!(fault.message().contains("no endpoint"), "{fault}");
}

#[tokio::test]
async fn a_server_of_another_protocol_is_named_as_such() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target {
        endpoints: vec![other.local_addr().unwrap().to_string()],
        expect: None,
    };
    let channel = Pool::plaintext(Nursery::here()).channel(target);
    let speaking = async {
        let (mut stream, _) = other.accept().await.unwrap();
        let answer = b"HTTP/1.1 400 Bad Request\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest).await);
    };
    let (answer, ()) = tokio::join!(call(&channel, "/echo", b"x"), speaking);
    let fault = answer.unwrap_err();
    assert!(fault.message().contains("not HTTP/2"), "{fault}");
}

#[tokio::test]
async fn a_deadline_is_answered_by_the_server_too() {
    let seen = Seen::new();
    let threads = DataThreads::start(1).unwrap();
    let (server, target) = serve("127.0.0.1:0", &threads, Limits::default(), &seen);
    let channel = Pool::plaintext(Nursery::here()).channel(target);
    let mut late = request("/wait", b"x");
    let limit = http::HeaderValue::from_static("20m");
    late.headers_mut().insert("grpc-timeout", limit);
    let response = channel.oneshot(late).await.unwrap();
    let status = Status::from_header_map(response.headers()).unwrap();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    server.drain(GRACE).await;
}

#[tokio::test]
async fn a_pool_that_closes_lets_calls_finish_and_opens_nothing() {
    let seen = Seen::new();
    let threads = DataThreads::start(1).unwrap();
    let (server, target) = serve("127.0.0.1:0", &threads, Limits::default(), &seen);
    let nursery = Nursery::here();
    let channel = Pool::plaintext(nursery.clone()).channel(target);
    let closing = async {
        until("the call runs", || seen.calls.load(SeqCst) == 1).await;
        let release = async {
            until("the pool stops", || nursery.stop_token().is_cancelled()).await;
            let fault = call(&channel, "/echo", b"new").await.unwrap_err();
            assert!(fault.message().contains("stopping"), "{fault}");
            seen.gate.add_permits(1);
        };
        tokio::join!(nursery.close(GRACE), release);
    };
    let (answer, ()) = tokio::join!(call(&channel, "/wait", b"late"), closing);
    assert_eq!(answer.unwrap(), "late");
    assert!(nursery.is_empty());
    server.drain(GRACE).await;
}

#[tokio::test]
async fn who_leaves_closes_the_socket_tells_its_peers_and_lets_their_streams_go_on() {
    let seen = Seen::new();
    let threads = DataThreads::start(2).unwrap();
    let (server, target) = serve("127.0.0.1:0", &threads, Limits::default(), &seen);
    let channel = Pool::plaintext(Nursery::here()).channel(target);
    let (feed, request) = flow();
    let mut body = channel.clone().oneshot(request).await.unwrap().into_body();
    let mut echo = async || {
        let frame = Frame::data(Bytes::from_static(b"x"));
        feed.send(Ok(frame)).await.unwrap();
        body.frame().await.unwrap().unwrap();
    };
    echo().await;
    server.leave().await;
    assert!(TcpStream::connect(server.address()).await.is_err());
    // Nothing is waited for and nothing is cut.
    echo().await;
    assert_eq!(server.connections(), 1);
    // The GOAWAY was sent before `leave` returned: the second call at the latest knows.
    let mut refused = 0;
    while refused == 0 {
        match call(&channel, "/echo", b"late").await {
            Ok(answer) => assert_eq!(answer, "late", "on its way is served"),
            Err(fault) => {
                assert_eq!(reason_of(&fault).as_deref(), Some("PEER_UNREACHABLE"));
                refused += 1;
            }
        }
    }
    echo().await;
    drop(feed);
    server.drain(GRACE).await;
}
