//! Keeps what was taken of a request's body, so that an unprocessed request can be sent again.
//!
//! Decides nothing about whether it may: that is the channel's to know.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use tonic::{Status, body::Body};

/// What is kept of a body at most; beyond it the request can no longer be sent again.
pub(super) const KEPT: usize = 64 * 1024;

/// A request's body with a memory, until the response begins.
#[derive(Debug)]
pub(super) struct Recording {
    tape: Arc<Mutex<Tape>>,
}

/// One sending of the body. A newer one makes it end in an error.
#[derive(Debug)]
pub(super) struct Replay {
    tape: Arc<Mutex<Tape>>,
    turn: u32,
    next: usize,
}

#[derive(Debug)]
struct Tape {
    body: Body,
    frames: Vec<Piece>,
    kept: usize,
    touched: bool,
    recording: bool,
    turn: u32,
}

#[derive(Clone, Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl Recording {
    pub(super) fn new(body: Body) -> Self {
        let tape = Tape {
            body,
            frames: Vec::new(),
            kept: 0,
            touched: false,
            recording: true,
            turn: 0,
        };
        Self {
            tape: Arc::new(Mutex::new(tape)),
        }
    }

    /// The body from its start; `None` where more was taken than is kept.
    pub(super) fn play(&self) -> Option<Replay> {
        let mut tape = self.tape.lock();
        if !tape.recording {
            return None;
        }
        tape.turn += 1;
        Some(Replay {
            turn: tape.turn,
            tape: Arc::clone(&self.tape),
            next: 0,
        })
    }

    /// Whether nothing of a body that has something was taken: no peer can have seen a message.
    pub(super) fn untouched(&self) -> bool {
        let tape = self.tape.lock();
        !tape.touched && !tape.body.is_end_stream()
    }

    /// The peer answers: nothing will be sent again, so nothing is kept any more.
    pub(super) fn settle(&self) {
        self.tape.lock().forget();
    }
}

impl Tape {
    fn forget(&mut self) {
        self.recording = false;
        self.frames = Vec::new();
    }

    fn keep(&mut self, piece: Piece) {
        let size = match &piece {
            Piece::Data(data) => data.len(),
            Piece::Trailers(_) | Piece::End => 0,
        };
        self.kept += size;
        if self.kept > KEPT {
            self.forget();
        } else if self.recording {
            self.frames.push(piece);
        }
    }
}

impl http_body::Body for Replay {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let shared = Arc::clone(&self.tape);
        let mut tape = shared.lock();
        if tape.turn != self.turn {
            let text = "this sending was given up, the request goes another way";
            return Poll::Ready(Some(Err(Status::cancelled(text))));
        }
        if let Some(piece) = tape.frames.get(self.next).cloned() {
            self.next += 1;
            return Poll::Ready(piece.into_frame().map(Ok));
        }
        tape.touched = true;
        let polled = std::task::ready!(Pin::new(&mut tape.body).poll_frame(cx));
        self.next += 1;
        tape.keep(match &polled {
            None => Piece::End,
            Some(Ok(frame)) => match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => Piece::Data(data.clone()),
                (None, Some(trailers)) => Piece::Trailers(trailers.clone()),
                (None, None) => return Poll::Ready(polled),
            },
            Some(Err(_)) => {
                // A body that failed cannot be said again.
                tape.forget();
                return Poll::Ready(polled);
            }
        });
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        let tape = self.tape.lock();
        self.next >= tape.frames.len() && tape.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let tape = self.tape.lock();
        if tape.touched {
            SizeHint::default()
        } else {
            tape.body.size_hint()
        }
    }
}

impl Piece {
    fn into_frame(self) -> Option<Frame<Bytes>> {
        match self {
            Self::Data(data) => Some(Frame::data(data)),
            Self::Trailers(trailers) => Some(Frame::trailers(trailers)),
            Self::End => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use proptest::prelude::*;

    use super::*;

    fn body(sizes: &[usize]) -> Body {
        let frames: Vec<Result<Frame<Bytes>, Status>> = sizes
            .iter()
            .enumerate()
            .map(|(place, size)| {
                Ok(Frame::data(
                    vec![u8::try_from(place % 251).unwrap(); *size].into(),
                ))
            })
            .collect();
        Body::new(StreamBody::new(tokio_stream::iter(frames)))
    }

    async fn take(replay: &mut Replay, frames: usize) -> Vec<u8> {
        let mut all = Vec::new();
        for _ in 0..frames {
            match replay.frame().await {
                Some(frame) => all.extend_from_slice(&frame.unwrap().into_data().unwrap()),
                None => break,
            }
        }
        all
    }

    proptest! {
        #[test]
        fn a_second_sending_says_the_same_as_the_first(
            sizes in proptest::collection::vec(1_usize..20_000, 1..8), taken in 0_usize..9,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let whole = take(&mut Recording::new(body(&sizes)).play().unwrap(), 99).await;
                let recording = Recording::new(body(&sizes));
                let mut first = recording.play().unwrap();
                let seen = take(&mut first, taken).await;
                prop_assert_eq!(&whole[..seen.len()], &seen[..]);
                match recording.play() {
                    Some(mut second) => {
                        prop_assert_eq!(take(&mut second, 99).await, whole);
                        prop_assert!(first.frame().await.unwrap().is_err(), "the first is stale");
                    }
                    None => prop_assert!(seen.len() > KEPT),
                }
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn untouched_until_the_first_poll_and_settled_after_the_answer() {
        let recording = Recording::new(body(&[3]));
        let mut replay = recording.play().unwrap();
        assert!(recording.untouched());
        take(&mut replay, 1).await;
        assert!(!recording.untouched());
        recording.settle();
        assert!(recording.play().is_none());
        assert!(replay.frame().await.is_none());
        assert!(!Recording::new(Body::empty()).untouched());
    }
}
