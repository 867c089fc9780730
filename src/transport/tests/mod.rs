//! Whole connections, from a channel to a handler and back.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::Router;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{sync::Semaphore, sync::mpsc, time::Instant};
use tonic::{Status, body::Body, service::Routes};
use tower::ServiceExt;

mod lifecycle;
mod mutual;
mod parting;

use crate::identity::{Caller, Connection};
use crate::runtime::{DataThreads, Nursery};
use crate::transport::{Answer, Channel, Limits, Listener, Pool, Security, Server, Target};

/// What the handlers of a test have seen, and the gate that `/wait` waits at.
#[derive(Clone)]
struct Seen {
    calls: Arc<AtomicUsize>,
    threads: Arc<parking_lot::Mutex<std::collections::HashSet<String>>>,
    callers: Arc<parking_lot::Mutex<Vec<Caller>>>,
    exporters: Arc<parking_lot::Mutex<Vec<Option<[u8; 32]>>>>,
    gate: Arc<Semaphore>,
}

impl Seen {
    fn new() -> Self {
        Self {
            calls: Arc::default(),
            threads: Arc::default(),
            callers: Arc::default(),
            exporters: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
        }
    }

    /// `/echo` answers with the body; `/wait` after the gate; `/flow` streams the body back.
    fn routes(&self) -> Routes {
        let seen = self.clone();
        let answer = move |request: axum::extract::Request| {
            let seen = seen.clone();
            async move {
                seen.calls.fetch_add(1, SeqCst);
                let thread = std::thread::current().name().unwrap_or("?").to_owned();
                seen.threads.lock().insert(thread);
                let connection = request.extensions().get::<Arc<Connection>>().unwrap();
                seen.callers.lock().push(connection.caller.clone());
                seen.exporters.lock().push(connection.exporter);
                let wait = request.uri().path() == "/wait";
                if request.uri().path() == "/flow" {
                    return Ok::<_, Infallible>(Response::new(request.into_body()));
                }
                let body = request.into_body().collect().await.unwrap().to_bytes();
                if wait {
                    seen.gate.acquire().await.unwrap().forget();
                }
                Ok(Response::new(axum::body::Body::from(body)))
            }
        };
        Router::new()
            .fallback_service(tower::service_fn(answer))
            .into()
    }
}

fn serve(address: &str, threads: &DataThreads, limits: Limits, seen: &Seen) -> (Server, Target) {
    let listener = Listener::parse(address).unwrap();
    let endpoint = listener.address().to_owned();
    let server = Server::start(listener, Security::Plaintext, threads, limits, |_| {
        seen.routes()
    });
    let target = Target {
        endpoints: vec![endpoint],
        expect: None,
    };
    (server, target)
}

/// What is not gRPC is told so, and goes no further.
fn asked(path: &str) -> http::request::Builder {
    Request::post(path).header("content-type", "application/grpc")
}

fn request(path: &str, body: &'static [u8]) -> Request<Body> {
    let body = Full::new(Bytes::from_static(body)).map_err(|never| match never {});
    asked(path).body(Body::new(body)).unwrap()
}

async fn call(channel: &Channel, path: &str, body: &'static [u8]) -> Result<Bytes, Status> {
    let response = channel.clone().oneshot(request(path, body)).await?;
    whole(response).await
}

async fn whole(response: Response<Answer>) -> Result<Bytes, Status> {
    let body = response.into_body().collect().await;
    body.map(|body| body.to_bytes())
        .map_err(|error| Status::unknown(error.to_string()))
}

/// A request body that is fed by hand.
fn flow() -> (mpsc::Sender<Result<Frame<Bytes>, Status>>, Request<Body>) {
    let (feed, fed) = mpsc::channel(4);
    let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(fed));
    let request = asked("/flow").body(Body::new(body)).unwrap();
    (feed, request)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::task::yield_now().await;
    }
}

const GRACE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn calls_go_to_every_thread_and_say_where_they_came_from() {
    let seen = Seen::new();
    let threads = DataThreads::start(2).unwrap();
    let (server, target) = serve("127.0.0.1:0", &threads, Limits::default(), &seen);
    let pools: Vec<Pool> = (0..2).map(|_| Pool::plaintext(Nursery::here())).collect();
    for pool in &pools {
        let channel = pool.channel(target.clone());
        assert_eq!(call(&channel, "/echo", b"hello").await.unwrap(), "hello");
        assert_eq!(call(&channel, "/echo", b"again").await.unwrap(), "again");
        assert_eq!(pool.len(), 1);
    }
    assert_eq!(
        server.connections(),
        2,
        "one connection per pool and target"
    );
    assert_eq!(seen.threads.lock().len(), 2, "{:?}", seen.threads.lock());
    assert!(
        seen.callers
            .lock()
            .iter()
            .all(|caller| *caller == Caller::Local)
    );
    server.drain(GRACE).await;
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn concurrent_calls_wait_for_one_dial() {
    let seen = Seen::new();
    let threads = DataThreads::start(1).unwrap();
    let (server, target) = serve("127.0.0.1:0", &threads, Limits::default(), &seen);
    let pool = Pool::plaintext(Nursery::here());
    let channel = pool.channel(target);
    let calls = (0..50).map(|_| call(&channel, "/echo", b"x"));
    for answer in futures_util::future::join_all(calls).await {
        answer.unwrap();
    }
    assert_eq!(server.connections(), 1);
    server.drain(GRACE).await;
}

#[tokio::test]
async fn a_unix_socket_serves_too() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", dir.path().join("s").display());
    let seen = Seen::new();
    let threads = DataThreads::start(1).unwrap();
    let (server, target) = serve(&address, &threads, Limits::default(), &seen);
    assert_eq!(server.address(), address);
    let channel = Pool::plaintext(Nursery::here()).channel(target);
    assert_eq!(call(&channel, "/echo", b"hello").await.unwrap(), "hello");
    server.drain(GRACE).await;
    assert!(!dir.path().join("s").exists());
}

#[tokio::test]
async fn generated_clients_and_servers_fit() {
    let (reporter, health) = tonic_health::server::health_reporter();
    let serving = tonic_health::ServingStatus::Serving;
    reporter.set_service_status("billing", serving).await;
    let threads = DataThreads::start(1).unwrap();
    let listener = Listener::tcp("127.0.0.1:0").unwrap();
    let target = Target {
        endpoints: vec![listener.address().to_owned()],
        expect: None,
    };
    let routes = Routes::new(health);
    let limits = Limits::default();
    let server = Server::start(listener, Security::Plaintext, &threads, limits, |_| {
        routes.clone()
    });
    let channel = Pool::plaintext(Nursery::here()).channel(target);
    let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
    let ask = |service: &str| tonic_health::pb::HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = client.check(ask("billing")).await.unwrap().into_inner();
    assert_eq!(answer.status, 1);
    let unknown = client.check(ask("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let mut watch = client.watch(ask("billing")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
    drop(watch);
    server.drain(GRACE).await;
    let gone = client.check(ask("billing")).await.unwrap_err();
    let reason = crate::wire::status::reason_of(&gone);
    assert_eq!(reason.as_deref(), Some("PEER_UNREACHABLE"), "{gone}");
}

#[tokio::test]
async fn details_of_a_hostile_peer_are_left_out() {
    let answer = |request: axum::extract::Request| async move {
        let details = ("grpc-status-details-bin", "%%% not base64 %%%");
        let hostile = Response::builder().header("content-type", "application/grpc");
        if request.uri().path().ends_with("Check") {
            let hostile = hostile
                .header("grpc-status", "5")
                .header(details.0, details.1);
            return Ok::<_, Infallible>(hostile.body(Body::empty()).unwrap());
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "7".parse().unwrap());
        trailers.insert(details.0, details.1.parse().unwrap());
        let frames = [Ok::<_, Status>(Frame::trailers(trailers))];
        let body = StreamBody::new(tokio_stream::iter(frames));
        Ok(hostile.body(Body::new(body)).unwrap())
    };
    let threads = DataThreads::start(1).unwrap();
    let listener = Listener::tcp("127.0.0.1:0").unwrap();
    let target = Target {
        endpoints: vec![listener.address().to_owned()],
        expect: None,
    };
    let limits = Limits::default();
    let server = Server::start(listener, Security::Plaintext, &threads, limits, |_| {
        Router::new()
            .fallback_service(tower::service_fn(answer))
            .into()
    });
    let channel = Pool::plaintext(Nursery::here()).channel(target);
    let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
    let ask = tonic_health::pb::HealthCheckRequest::default;
    let in_headers = client.check(ask()).await.unwrap_err();
    assert_eq!(in_headers.code(), tonic::Code::NotFound);
    let mut stream = client.watch(ask()).await.unwrap().into_inner();
    let in_trailers = stream.message().await.unwrap_err();
    assert_eq!(in_trailers.code(), tonic::Code::PermissionDenied);
    server.drain(GRACE).await;
}
