//! The far end: does what the plan of each call says, and keeps what it saw until it is asked.

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use attache::runtime::Nursery;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Duration, Instant, sleep, timeout_at},
};

use super::{
    Fields, Seen,
    plan::{Cut, Kind, Plan},
};

/// How long a reset may take to come.
const LATE: Duration = Duration::from_secs(5);
/// Windows that let no message wait for long, and some of them wait.
const WINDOW: u32 = 256 << 10;

/// What a server that lies does to one call of three: each must be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    BodyByte,
    TwoValuesSwapped,
    ValueCut,
    TrailerLeftOut,
    StatusText,
    EndsWell,
}

impl Lie {
    pub const ALL: [Self; 6] = [
        Self::BodyByte,
        Self::TwoValuesSwapped,
        Self::ValueCut,
        Self::TrailerLeftOut,
        Self::StatusText,
        Self::EndsWell,
    ];
}

type Board = Arc<Mutex<HashMap<u64, Seen>>>;

/// A server on loopback; ends with its runtime.
pub struct Server {
    pub address: SocketAddr,
    board: Board,
}

impl Server {
    /// Starts an honest one, or one that tells a lie; both write to the board of `beside`.
    pub async fn start(lie: Option<Lie>, beside: Option<&Self>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let board = beside.map_or_else(Board::default, |other| Arc::clone(&other.board));
        let nursery = Nursery::here();
        let (shared, connections) = (Arc::clone(&board), nursery.clone());
        nursery.adopt("differential server", async move {
            while let Ok((socket, _)) = listener.accept().await {
                let board = Arc::clone(&shared);
                connections.adopt("differential connection", async move {
                    // Its end is the calls' to tell.
                    drop(Box::pin(connection(socket, lie, board)).await);
                });
            }
        });
        Self { address, board }
    }

    /// What it saw of a call, once that is over; `None`: nothing.
    pub async fn saw(&self, seed: u64, patience: Duration) -> Option<Seen> {
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if let Some(seen) = self.board.lock().unwrap().remove(&seed) {
                return Some(seen);
            }
            sleep(Duration::from_millis(2)).await;
        }
        None
    }
}

async fn connection(socket: TcpStream, lie: Option<Lie>, board: Board) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .max_header_list_size(64 << 10);
    let connection = builder.handshake::<_, Bytes>(socket).await;
    let mut connection = connection.map_err(io::Error::other)?;
    let mut calls = FuturesUnordered::new();
    poll_fn(|cx| {
        loop {
            if let std::task::Poll::Ready(accepted) = connection.poll_accept(cx) {
                let Some(accepted) = accepted else {
                    return std::task::Poll::Ready(Ok(()));
                };
                let (request, respond) = accepted.map_err(io::Error::other)?;
                calls.push(call(request, respond, lie, Arc::clone(&board)).boxed());
                continue;
            }
            if !matches!(calls.poll_next_unpin(cx), std::task::Poll::Ready(Some(()))) {
                return std::task::Poll::Pending;
            }
        }
    })
    .await
}

/// Headers of a message by key, with what HTTP/2 says before them.
pub(super) fn fields<const N: usize>(headers: &HeaderMap, pseudo: [(&str, String); N]) -> Fields {
    let mut fields = Fields::new();
    for (key, value) in headers {
        let values = fields.entry(key.as_str().to_owned()).or_default();
        values.push(value.as_bytes().to_vec());
    }
    for (key, value) in pseudo {
        fields.insert(key.to_owned(), vec![value.into_bytes()]);
    }
    fields
}

async fn call(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    lie: Option<Lie>,
    board: Board,
) {
    let (parts, mut body) = request.into_parts();
    let seed = parts
        .headers
        .get("x-plan")
        .and_then(|seed| seed.to_str().ok());
    let Some(seed) = seed.and_then(|seed| seed.parse().ok()) else {
        // A sidecar that asks its agent about itself.
        let mut unknown = Response::new(());
        let fields = unknown.headers_mut();
        fields.insert("content-type", HeaderValue::from_static("application/grpc"));
        fields.insert("grpc-status", HeaderValue::from_static("12"));
        // Whoever has gone needs no answer.
        drop(respond.send_response(unknown, true));
        return;
    };
    let uri = &parts.uri;
    let mut seen = Seen {
        headers: fields(
            &parts.headers,
            [
                (":method", parts.method.to_string()),
                (":path", uri.path().to_owned()),
                (
                    ":authority",
                    uri.authority()
                        .map_or_else(String::new, ToString::to_string),
                ),
            ],
        ),
        ..Seen::default()
    };
    let mut plan = Plan::drawn(seed);
    if let Some(lie) = lie
        && seed % 3 == 0
    {
        tell(lie, &mut plan);
    }
    let answered = Box::pin(answer(&plan, &mut body, &mut respond, &mut seen)).await;
    if let Err(error) = answered {
        seen.end = ended(&error);
    }
    board.lock().unwrap().insert(seed, seen);
}

/// How a stream ended that did not end well.
pub(super) fn ended(error: &h2::Error) -> String {
    match error.reason() {
        Some(reason) if error.is_reset() => format!("reset {}", u32::from(reason)),
        _ => error.to_string(),
    }
}

async fn answer(
    plan: &Plan,
    body: &mut RecvStream,
    respond: &mut SendResponse<Bytes>,
    seen: &mut Seen,
) -> Result<(), h2::Error> {
    let together = plan.kind == Kind::Both || plan.cut == Some(Cut::Client);
    if plan.trailers_only || !together || matches!(plan.cut, Some(Cut::Server(_))) {
        while read(body, seen).await?.is_some() {}
    }
    if let Some(Cut::Server(code)) = plan.cut {
        seen.end = "end".to_owned();
        respond.send_reset(Reason::from(code));
        return Ok(());
    }
    let mut response = Response::new(());
    if plan.trailers_only {
        *response.headers_mut() = typed(&plan.trailers);
        respond.send_response(response, true)?;
        seen.end = "end".to_owned();
        return Ok(());
    }
    *response.headers_mut() = typed(&plan.response);
    let mut stream = respond.send_response(response, false)?;
    for message in &plan.answers {
        if plan.kind == Kind::Both && plan.cut.is_none() {
            read(body, seen).await?;
        }
        send(&mut stream, message).await?;
    }
    while read(body, seen).await?.is_some() {}
    if plan.cut == Some(Cut::Client) {
        let until = Instant::now() + LATE;
        let reset = poll_fn(|cx| stream.poll_reset(cx));
        seen.end = match timeout_at(until, reset).await {
            Ok(reason) => format!("reset {}", u32::from(reason?)),
            Err(_) => "no reset came".to_owned(),
        };
        return Ok(());
    }
    seen.end = "end".to_owned();
    stream.send_trailers(plan.trailers.clone())
}

fn typed(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers
}

/// Some bytes of a body; `None` at its end.
pub(super) async fn read(body: &mut RecvStream, seen: &mut Seen) -> Result<Option<()>, h2::Error> {
    match body.data().await {
        Some(piece) => {
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
            seen.body.extend_from_slice(&piece);
            Ok(Some(()))
        }
        None => {
            if let Some(trailers) = body.trailers().await? {
                seen.trailers = fields(&trailers, []);
            }
            Ok(None)
        }
    }
}

/// Sends bytes as credit allows.
pub(super) async fn send(stream: &mut SendStream<Bytes>, all: &[u8]) -> Result<(), h2::Error> {
    let mut left = Bytes::copy_from_slice(all);
    while !left.is_empty() {
        stream.reserve_capacity(left.len());
        let Some(room) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
            // It was reset meanwhile: reading tells why.
            return Ok(());
        };
        let room = room?.min(left.len());
        stream.send_data(left.split_to(room), false)?;
    }
    Ok(())
}

/// Makes the plan one that differs in just this.
fn tell(lie: Lie, plan: &mut Plan) {
    match lie {
        Lie::BodyByte => {
            let longest = plan.answers.iter_mut().max_by_key(|answer| answer.len());
            if let Some(byte) = longest.and_then(|answer| answer.last_mut()) {
                *byte ^= 1;
            }
        }
        Lie::TwoValuesSwapped => {
            // Keys with two values are drawn often enough.
            let keys: Vec<_> = plan.response.keys().cloned().collect();
            for key in keys {
                let mut values: Vec<_> = plan.response.get_all(&key).iter().cloned().collect();
                values.reverse();
                plan.response.remove(&key);
                for value in values {
                    plan.response.append(key.clone(), value);
                }
            }
        }
        Lie::ValueCut => {
            for value in plan.response.values_mut() {
                let short = value.as_bytes().split_last().map(|(_, rest)| rest.to_vec());
                *value = HeaderValue::from_bytes(&short.unwrap_or_default()).unwrap();
            }
        }
        Lie::TrailerLeftOut => {
            plan.trailers.remove("grpc-status-details-bin");
        }
        Lie::StatusText => {
            plan.trailers
                .insert("grpc-message", HeaderValue::from_static("other"));
        }
        Lie::EndsWell => {
            if let Some(Cut::Server(code)) = &mut plan.cut {
                *code = 5;
            } else {
                plan.trailers
                    .insert("grpc-status", HeaderValue::from_static("0"));
            }
        }
    }
}
