//! Calls of `grpc.testing.BenchmarkService`, answered with as many bytes as they ask for.

use std::{future::poll_fn, sync::Arc, task::Poll};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use parking_lot::Mutex;
use prost::Message;
use tonic::Code;

use super::message::{self, MESSAGE_MAX, PREFIX, SERVICE, SimpleRequest};

/// A stream of answers is sent in pieces of about this size, several messages in each.
const PIECE: usize = 32 << 10;

/// The answer that was made last: most that are asked for are of one size.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<Option<(i32, Bytes)>>);

impl Answers {
    fn of(&self, asked: i32) -> Result<Bytes, Refusal> {
        let mut last = self.0.lock();
        match &*last {
            Some((size, answer)) if *size == asked => Ok(answer.clone()),
            _ => {
                let size = usize::try_from(asked).ok();
                let size = size.filter(|size| *size as u64 <= MESSAGE_MAX);
                let answer = message::answer(size.ok_or(Refusal::TooLarge)?);
                *last = Some((asked, answer.clone()));
                Ok(answer)
            }
        }
    }
}

/// Why a call is not answered.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("only UnaryCall, StreamingCall and StreamingFromServer are answered here")]
    Unknown,
    #[error("this is not one SimpleRequest of grpc.testing, uncompressed")]
    Malformed,
    #[error("more was asked for than 256 MiB, or less than nothing")]
    TooLarge,
    #[error("the caller has left: {0}")]
    Left(#[from] h2::Error),
}

impl Refusal {
    fn code(&self) -> Code {
        match self {
            Self::Unknown => Code::Unimplemented,
            Self::Malformed | Self::TooLarge => Code::InvalidArgument,
            Self::Left(_) => Code::Cancelled,
        }
    }
}

/// Answers one call to its end.
pub(super) async fn call(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    answers: Arc<Answers>,
) {
    let (parts, body) = request.into_parts();
    let mut requests = Requests::of(body);
    let answered = match parts.uri.path().strip_prefix(SERVICE) {
        Some("UnaryCall") => unary(&mut requests, &mut respond, &answers).await,
        Some("StreamingCall") => exchange(&mut requests, &mut respond, &answers).await,
        Some("StreamingFromServer") => pour(&mut requests, &mut respond, &answers).await,
        _ => Err(Refusal::Unknown),
    };
    let Err(refusal) = answered else { return };
    let mut response = head();
    let code = HeaderValue::from(refusal.code() as i32);
    response.headers_mut().insert("grpc-status", code);
    if let Ok(text) = refusal.to_string().parse() {
        response.headers_mut().insert("grpc-message", text);
    }
    if respond.send_response(response, true).is_err() {
        // It is half answered: the caller learns no more than that.
        respond.send_reset(Reason::INTERNAL_ERROR);
    }
}

/// Requests of one call, one after the other.
struct Requests {
    body: RecvStream,
    here: BytesMut,
}

impl Requests {
    fn of(body: RecvStream) -> Self {
        let here = BytesMut::new();
        Self { body, here }
    }

    /// The bytes that the next one asks for; `None` at the end.
    async fn next(&mut self) -> Result<Option<i32>, Refusal> {
        loop {
            if let Some(message) = self.whole()? {
                let request = SimpleRequest::decode(message).map_err(|_| Refusal::Malformed)?;
                return Ok(Some(request.response_size));
            }
            match self.body.data().await {
                Some(piece) => {
                    let piece = piece?;
                    self.body.flow_control().release_capacity(piece.len())?;
                    self.here.extend_from_slice(&piece);
                }
                None if self.here.is_empty() => return Ok(None),
                None => return Err(Refusal::Malformed),
            }
        }
    }

    /// The one there is, once the caller has said that it is: whoever answers before would make a
    /// reset of the end that is still on its way.
    async fn only(&mut self) -> Result<i32, Refusal> {
        let only = self.next().await?.ok_or(Refusal::Malformed)?;
        match self.next().await? {
            None => Ok(only),
            Some(_) => Err(Refusal::Malformed),
        }
    }

    fn whole(&mut self) -> Result<Option<BytesMut>, Refusal> {
        let Some((head, rest)) = self.here.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let [compressed, length @ ..] = *head;
        let length = u32::from_be_bytes(length);
        if compressed != 0 || u64::from(length) > MESSAGE_MAX {
            return Err(Refusal::Malformed);
        }
        let length = usize::try_from(length).map_err(|_| Refusal::Malformed)?;
        if rest.len() < length {
            return Ok(None);
        }
        let mut message = self.here.split_to(PREFIX + length);
        Ok(Some(message.split_off(PREFIX)))
    }
}

type Respond = SendResponse<Bytes>;

async fn unary(asked: &mut Requests, to: &mut Respond, answers: &Answers) -> Result<(), Refusal> {
    let size = asked.only().await?;
    let answer = answers.of(size)?;
    let mut stream = to.send_response(head(), false)?;
    stream.send_data(answer, false)?;
    Ok(stream.send_trailers(ok())?)
}

/// One answer for each message.
async fn exchange(
    asked: &mut Requests,
    to: &mut Respond,
    answers: &Answers,
) -> Result<(), Refusal> {
    let mut stream = to.send_response(head(), false)?;
    while let Some(size) = asked.next().await? {
        stream.send_data(answers.of(size)?, false)?;
    }
    Ok(stream.send_trailers(ok())?)
}

/// Answers without end to one message.
async fn pour(asked: &mut Requests, to: &mut Respond, answers: &Answers) -> Result<(), Refusal> {
    let size = asked.only().await?;
    let answer = answers.of(size)?;
    let piece: Bytes = answer.repeat((PIECE / answer.len()).max(1)).into();
    let mut stream = to.send_response(head(), false)?;
    let mut left = Bytes::new();
    loop {
        if left.is_empty() {
            left = piece.clone();
        }
        stream.reserve_capacity(left.len());
        let Some(room) = room(&mut stream).await? else {
            return Ok(());
        };
        stream.send_data(left.split_to(room.min(left.len())), false)?;
    }
}

/// How many bytes may be sent now; `None`: the caller wants no more.
async fn room(stream: &mut SendStream<Bytes>) -> Result<Option<usize>, Refusal> {
    let room = poll_fn(|cx| match stream.poll_reset(cx) {
        Poll::Ready(_) => Poll::Ready(None),
        Poll::Pending => stream.poll_capacity(cx),
    });
    Ok(room.await.transpose()?)
}

fn head() -> Response<()> {
    let mut response = Response::new(());
    let content = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", content);
    response
}

fn ok() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers
}
