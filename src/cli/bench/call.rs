//! One gRPC call on an HTTP/2 connection, and how it ended.

use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use tonic::{Code, Status};

use super::message::Messages;

const GRPC_STATUS: &str = "grpc-status";

/// What every call of a bench is made of.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    /// The message with its prefix.
    pub(super) message: Bytes,
}

/// Why a call counts as failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: Code,
    pub(super) text: String,
    /// Whether the connection is of no use any more.
    pub(super) lost: bool,
}

/// Answers of a call that are read as they come.
#[derive(Debug)]
pub(super) struct Answers {
    body: RecvStream,
    messages: Messages,
    status: Option<Said>,
}

/// What the far side said of the call.
#[derive(Debug)]
enum Said {
    Ok,
    Bad(Box<Status>),
}

impl Template {
    fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers.clone();
        request
    }

    /// One message, one answer.
    ///
    /// # Errors
    /// Whatever is not an answer with status OK.
    pub(super) async fn unary(&self, sender: &mut SendRequest<Bytes>) -> Result<(), Failure> {
        let (response, mut stream) = sender.send_request(self.request(), false)?;
        stream.send_data(self.message.clone(), true)?;
        let mut answers = Answers::of(response.await?);
        let mut count = 0;
        while let Some(some) = answers.next().await? {
            count += some;
        }
        match count {
            1 => Ok(()),
            count => Err(Failure::new(
                Code::Internal,
                format!("OK with {count} answers"),
            )),
        }
    }

    /// Opens a call that goes on; its message is sent, and the caller may send more.
    ///
    /// # Errors
    /// When it cannot be opened, or its answer is an error at once.
    pub(super) async fn open(
        &self,
        sender: &mut SendRequest<Bytes>,
        last: bool,
    ) -> Result<(h2::SendStream<Bytes>, Answers), Failure> {
        let (response, mut stream) = sender.send_request(self.request(), false)?;
        stream.send_data(self.message.clone(), last)?;
        Ok((stream, Answers::of(response.await?)))
    }
}

impl Answers {
    fn of(response: Response<RecvStream>) -> Self {
        let (parts, body) = response.into_parts();
        // Without a body the status is in the headers.
        let said = said(&parts.headers);
        let status = match parts.status.as_u16() {
            200 => said,
            other => Some(said.unwrap_or_else(|| {
                Said::Bad(Box::new(Status::unknown(format!("HTTP status {other}"))))
            })),
        };
        Self {
            body,
            messages: Messages::default(),
            status,
        }
    }

    /// How many answers have ended within the next bytes; `None` at the end.
    ///
    /// # Errors
    /// When the end is not an OK between two messages.
    pub(super) async fn next(&mut self) -> Result<Option<u64>, Failure> {
        if let Some(piece) = self.body.data().await {
            let piece = piece?;
            self.body.flow_control().release_capacity(piece.len())?;
            return Ok(Some(self.messages.ended(&piece)));
        }
        if self.status.is_none() {
            let trailers = self.body.trailers().await?;
            self.status = trailers.as_ref().and_then(said);
        }
        match &self.status {
            Some(Said::Bad(status)) => Err(Failure::new(status.code(), status.message())),
            Some(Said::Ok) if self.messages.is_between() => Ok(None),
            Some(Said::Ok) => Err(Failure::new(Code::Internal, "OK within an answer")),
            None => Err(Failure::new(Code::Unknown, "no gRPC status came")),
        }
    }
}

impl Failure {
    /// A failure of one call only.
    pub(super) fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            lost: false,
        }
    }
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        Self {
            code: Code::Unavailable,
            // A stream that was reset leaves its connection as it is; nothing else does.
            lost: !error.is_reset(),
            text: error.to_string(),
        }
    }
}

/// Most calls are OK: that is told by one byte, without taking the headers apart.
fn said(headers: &HeaderMap) -> Option<Said> {
    if headers.get(GRPC_STATUS)?.as_bytes() == b"0" {
        return Some(Said::Ok);
    }
    Status::from_header_map(headers).map(|status| Said::Bad(Box::new(status)))
}
