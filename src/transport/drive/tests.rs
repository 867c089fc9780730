//! Our engine between a client and a server of the `h2` crate, over pipes in memory.

use std::{cell::Cell, future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, Request, Response};
use tokio::{
    io::{AsyncWriteExt, BufWriter},
    task::{LocalSet, spawn_local},
    time::Instant,
};

use super::{Core, driver::LISTENED};
use crate::h2::{
    connection::Config,
    exchange::{GivenBack, Outcome, Policy, Request as Asked, Target, Verdict},
};

#[derive(Debug, Default)]
struct Straight {
    outcomes: Vec<Outcome>,
    dials: Cell<usize>,
}

impl Policy for Straight {
    type Peer = ();
    type Call = ();

    fn on_request(&mut self, (): &(), request: &mut Asked<'_>) -> (Verdict, ()) {
        request.fields.push(b"x-stamp", b"stamped");
        (Verdict::Forward(Target(1)), ())
    }

    fn on_again(&mut self, (): &mut (), _: &mut Asked<'_>, _: GivenBack) -> Verdict {
        Verdict::Forward(Target(1))
    }

    fn on_end(&mut self, (): (), outcome: &Outcome) {
        self.outcomes.push(*outcome);
    }

    fn config(&self, _: Option<Target>) -> Config {
        self.dials.set(self.dials.get() + 1);
        Config::upstream()
    }
}

type Client = client::SendRequest<Bytes>;

/// A client whose calls go through the engine to a server of another implementation.
async fn world(pipe: usize) -> (Arc<Core<Straight>>, Client) {
    world_with(pipe, usize::MAX).await
}

async fn world_with(pipe: usize, most: usize) -> (Arc<Core<Straight>>, Client) {
    let core = Core::new(Straight::default());
    let (near, far) = tokio::io::duplex(pipe);
    let serving = core.clone();
    spawn_local(async move { serving.accept(far, (), Config::caller()).run().await });
    let clock = core.clone();
    spawn_local(async move { clock.keep_time().await });
    let dialing = core.clone();
    spawn_local(async move {
        loop {
            let dial = dialing.next_dial().await;
            let (near, far) = tokio::io::duplex(pipe);
            spawn_local(answer_some(far, most));
            let mut driver = dialing.dialed(near, dial.line);
            spawn_local(async move { driver.run().await });
        }
    });
    let (client, connection) = client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .handshake(near)
        .await
        .unwrap();
    spawn_local(connection);
    (core, client.ready().await.unwrap())
}

/// Serves until so many calls came, then takes no more on this connection.
async fn answer_some(io: tokio::io::DuplexStream, most: usize) {
    let mut connection = server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .handshake::<_, Bytes>(io)
        .await
        .unwrap();
    let mut count = 0;
    while let Some(Ok((request, respond))) = connection.accept().await {
        spawn_local(answer(request, respond));
        count += 1;
        if count == most {
            connection.graceful_shutdown();
        }
    }
}

/// What it is asked for stands in the path.
async fn answer(request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    assert_eq!(parts.headers["x-stamp"], "stamped");
    let head = Response::builder().header("content-type", "application/grpc");
    let head = head.header(
        "x-echo-bin",
        parts
            .headers
            .get("x-ask-bin")
            .map_or(&b""[..], |v| v.as_bytes()),
    );
    match parts.uri.path() {
        "/echo" => {
            let mut out = respond
                .send_response(head.body(()).unwrap(), false)
                .unwrap();
            while let Some(Ok(data)) = body.data().await {
                let _given = body.flow_control().release_capacity(data.len());
                send(&mut out, data).await;
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            trailers.insert("grpc-status-details-bin", "AAEC".parse().unwrap());
            let _sent = out.send_trailers(trailers);
        }
        "/pour" => {
            let mut out = respond
                .send_response(head.body(()).unwrap(), false)
                .unwrap();
            for _ in 0..64 {
                send(&mut out, Bytes::from(vec![7; 256 << 10])).await;
            }
            let _sent = out.send_trailers(HeaderMap::new());
        }
        "/only" => {
            let head = head.header("grpc-status", "5").body(()).unwrap();
            respond.send_response(head, true).unwrap();
        }
        "/reset" => respond.send_reset(h2::Reason::ENHANCE_YOUR_CALM),
        "/never" => {
            let reason = poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
            assert_eq!(reason, h2::Reason::CANCEL);
        }
        path => panic!("{path}?"),
    }
}

async fn send(out: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        out.reserve_capacity(data.len());
        let Some(Ok(room)) = poll_fn(|cx| out.poll_capacity(cx)).await else {
            return;
        };
        if out
            .send_data(data.split_to(room.min(data.len())), false)
            .is_err()
        {
            return;
        }
    }
}

fn ask(path: &str) -> Request<()> {
    let uri = format!("http://x{path}");
    let request = Request::post(uri).header("te", "trailers");
    let request = request.header("content-type", "application/grpc");
    request.header("x-ask-bin", "3q2+7w").body(()).unwrap()
}

async fn read(body: &mut RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    all
}

async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

#[tokio::test]
async fn calls_of_every_kind_pass_with_all_they_carry() {
    for pipe in [100, 4096, 1 << 20] {
        local(async {
            let (core, client) = world(pipe).await;
            // Unary with 3 MiB there and back; streams of small messages; both at once.
            let shapes = [
                vec![3 << 20],
                vec![128; 200],
                vec![0, 1, 16_384, 16_385, 70_000],
            ];
            let calls = shapes.map(|sizes| {
                let mut client = client.clone();
                spawn_local(async move {
                    let (response, mut out) = client.send_request(ask("/echo"), false).unwrap();
                    let whole: usize = sizes.iter().sum();
                    let sending = spawn_local(async move {
                        for size in sizes {
                            send(&mut out, Bytes::from(vec![5; size])).await;
                        }
                        out.send_data(Bytes::new(), true).unwrap();
                    });
                    let response = response.await.unwrap();
                    assert_eq!(response.headers()["x-echo-bin"], "3q2+7w");
                    let mut body = response.into_body();
                    let came = read(&mut body).await;
                    assert!(came.len() == whole && came.iter().all(|byte| *byte == 5));
                    let trailers = body.trailers().await.unwrap().unwrap();
                    assert_eq!(trailers["grpc-status"], "0");
                    assert_eq!(trailers["grpc-status-details-bin"], "AAEC");
                    sending.await.unwrap();
                })
            });
            for call in calls {
                call.await.unwrap();
            }
            let count = core.with(|exchange| exchange.policy().outcomes.len());
            assert_eq!((count, core.with(|exchange| exchange.calls())), (3, 0));
        })
        .await;
    }
}

#[tokio::test]
async fn statuses_and_resets_pass_both_ways() {
    local(async {
        let (core, mut client) = world(1 << 16).await;
        let (response, _) = client.send_request(ask("/only"), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "5");
        assert!(response.body().is_end_stream());
        let (response, _) = client.send_request(ask("/reset"), true).unwrap();
        let reset = response.await.unwrap_err();
        assert_eq!(reset.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
        let (response, mut out) = client.send_request(ask("/never"), false).unwrap();
        tokio::task::yield_now().await;
        out.send_reset(h2::Reason::CANCEL);
        drop(response);
        while core.with(|exchange| exchange.calls()) > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(core.with(|exchange| exchange.policy().outcomes.len()), 3);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_call_that_nobody_answers() {
    local(async {
        let (_, mut client) = world(1 << 16).await;
        let mut request = ask("/never");
        let timeout = "250m".parse().unwrap();
        request.headers_mut().insert("grpc-timeout", timeout);
        let begun = Instant::now();
        let (response, _) = client.send_request(request, true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "4");
        let took = begun.elapsed();
        assert!(
            took >= Duration::from_millis(250) && took < Duration::from_millis(300),
            "{took:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn connections_that_end_by_goaway_all_the_time_lose_no_call() {
    local(async {
        let (core, client) = world_with(1 << 16, 7).await;
        let calls: Vec<_> = (0..50)
            .map(|_| {
                let mut client = client.clone();
                spawn_local(async move {
                    for _ in 0..10 {
                        client = client.ready().await.unwrap();
                        let (response, mut out) = client.send_request(ask("/echo"), false).unwrap();
                        out.send_data(Bytes::from_static(b"hello"), true).unwrap();
                        let mut body = response.await.unwrap().into_body();
                        assert_eq!(read(&mut body).await, b"hello");
                        let trailers = body.trailers().await.unwrap().unwrap();
                        assert_eq!(trailers["grpc-status"], "0");
                    }
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
        let outcomes = core.with(|exchange| exchange.policy().outcomes.clone());
        assert_eq!(outcomes.len(), 500);
        let dials = core.with(|exchange| exchange.policy().dials.get());
        assert!(dials >= 5, "{dials} connections, one after the other");
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_stops_stops_its_writer_and_nobody_else() {
    local(async {
        let (core, mut client) = world(1 << 16).await;
        let (response, _) = client.send_request(ask("/pour"), true).unwrap();
        let mut slow = response.await.unwrap().into_body();
        let mut most = 0;
        for _ in 0..200 {
            let (response, mut out) = client.send_request(ask("/echo"), false).unwrap();
            out.send_data(Bytes::from_static(b"hello"), true).unwrap();
            let mut body = response.await.unwrap().into_body();
            assert_eq!(read(&mut body).await, b"hello");
            most = most.max(core.with(|exchange| exchange.parked()));
        }
        assert!(
            most > 0 && most <= 1 << 20,
            "{most} bytes parked for one slow stream"
        );
        assert_eq!(
            read(&mut slow).await.len(),
            16 << 20,
            "and it all comes in the end"
        );
        assert_eq!(core.with(|exchange| exchange.parked()), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_never_closes_is_left_in_time_and_who_floods_at_once() {
    let core = Core::new(Straight::default());
    let (near, far) = tokio::io::duplex(1024);
    let mut driver = core.accept(near, (), Config::caller());
    let began = Instant::now();
    driver.part().await;
    assert_eq!(began.elapsed(), LISTENED);
    drop(far);

    let (near, mut far) = tokio::io::duplex(1 << 20);
    let mut driver = core.accept(near, (), Config::caller());
    let began = Instant::now();
    let flood = async move { while far.write_all(&[7; 4096]).await.is_ok() {} };
    let left = async move {
        driver.part().await;
        drop(driver);
    };
    tokio::join!(left, flood);
    assert!(began.elapsed() < LISTENED);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_even_read_our_last_word_is_left_in_time() {
    let core = Core::new(Straight::default());
    let (near, far) = tokio::io::duplex(1);
    let mut near = BufWriter::new(near);
    near.write_all(b"the last word").await.unwrap();
    let began = Instant::now();
    core.accept(near, (), Config::caller()).part().await;
    assert_eq!(began.elapsed(), LISTENED);
    drop(far);
}
