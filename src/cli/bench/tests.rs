//! Both halves against each other.

use std::time::Duration;

use clap::Parser;
use tonic::Code;

use super::{
    args::BenchArgs,
    load,
    message::{self, SERVICE},
    serve::{Listener, answer},
    tally::Tally,
    target::Place,
};
use crate::cli::args::{Cli, Verb};
use crate::runtime::{DataThreads, Nursery, Stop};

/// The far end, in this process.
struct End {
    address: String,
    stop: Stop,
    nursery: Nursery,
}

impl End {
    async fn start(place: &str) -> Self {
        let nursery = Nursery::here();
        let listener = Listener::bind(&Place::parse(place).unwrap()).await.unwrap();
        let address = listener.address();
        let stop = Stop::new();
        let stopped = stop.clone();
        nursery.adopt("end", async move {
            let threads = DataThreads::start(1).unwrap();
            answer(&listener, None, &threads, &stopped).await;
        });
        Self {
            address,
            stop,
            nursery,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.nursery.close(Duration::from_secs(5)).await;
    }
}

fn args(line: &str) -> BenchArgs {
    let words = ["attache", "bench"].into_iter().chain(line.split(' '));
    let Verb::Bench(args) = Cli::parse_from(words).verb else {
        panic!("not bench")
    };
    args
}

async fn bench(line: &str) -> Tally {
    let args = args(&format!("{line} --warmup 0ms --time 300ms"));
    let answer = args.answer.unwrap_or(args.size);
    let plan = super::plan(args.target.as_deref().unwrap(), &args, answer).unwrap();
    Box::pin(load::run(&plan)).await.unwrap()
}

#[tokio::test]
async fn calls_of_all_kinds_are_answered_and_counted() {
    let end = End::start("127.0.0.1:0").await;
    let at = format!("http://{}", end.address);
    for line in [
        "--callers 1",
        "--callers 9 --connections 3 --threads 2 --size 16KiB",
        "--callers 3 --size 0 --answer 100KiB",
        "--callers 4 --kind ping-pong --size 1KiB",
        "--callers 2 --rate 500",
        "--callers 2 --rate 500 --kind ping-pong",
    ] {
        let tally = bench(&format!("{at} {line}")).await;
        assert!(tally.took.count() > 0, "{line}: {tally:?}");
        assert_eq!(
            (tally.failed_calls(), tally.open),
            (0, 0),
            "{line}: {tally:?}"
        );
    }
    let tally = bench(&format!("{at} --callers 2 --kind server-stream")).await;
    assert!(tally.messages > 0 && tally.failed_calls() == 0, "{tally:?}");
    end.stop().await;
}

#[tokio::test]
async fn a_status_that_is_not_ok_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let message = dir.path().join("message");
    std::fs::write(&message, b"").unwrap();
    let socket = format!("unix:{}", dir.path().join("s").display());
    let end = End::start(&socket).await;
    let line = format!(
        "{} --method a.B/C --message {}",
        end.address,
        message.display()
    );
    let tally = bench(&line).await;
    assert_eq!(tally.took.count(), 0);
    let (code, (count, text)) = tally.failures.first_key_value().unwrap();
    assert_eq!(*code, Code::Unimplemented as i32);
    assert!(*count > 0 && text.contains("answered here"), "{tally:?}");
    end.stop().await;
}

#[tokio::test]
async fn a_pause_of_the_far_end_shows_in_every_call_that_it_held_up() {
    // Answers nothing: what comes due in these 300 ms is never answered, and all of it is told.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}", silent.local_addr().unwrap());
    let tally = bench(&format!("{at} --callers 2 --rate 1000")).await;
    assert_eq!(tally.took.count(), 0);
    assert_eq!(tally.failed_calls(), 300, "{tally:?}");
}

#[tokio::test]
async fn nobody_there_is_told_at_once() {
    let args = args("http://127.0.0.1:1");
    let plan = super::plan("http://127.0.0.1:1", &args, args.size).unwrap();
    assert!(Box::pin(load::run(&plan)).await.is_err());
}

#[tokio::test]
async fn a_unary_call_is_answered_at_its_end_and_not_before() {
    let end = End::start("127.0.0.1:0").await;
    let io = tokio::net::TcpStream::connect(&end.address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
    end.nursery.adopt("client", async move {
        connection.await.ok();
    });
    let uri = format!("http://localhost{SERVICE}UnaryCall");
    let request = http::Request::post(uri).body(()).unwrap();
    let (mut response, mut stream) = sender.send_request(request, false).unwrap();
    stream.send_data(message::request(1, 1), false).unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), &mut response);
    assert!(early.await.is_err(), "answered before the call's end");
    stream.send_data(bytes::Bytes::new(), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), message::answer(1));
    drop((body, stream, sender));
    end.stop().await;
}
