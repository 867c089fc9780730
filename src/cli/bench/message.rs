//! Messages of `grpc.testing.BenchmarkService`, and the five bytes that gRPC puts before each.
//!
//! Field numbers are those of grpc's own benchmark and interop servers; what is not used is left
//! out and skipped when read.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// Every method of the service has this before its name.
pub(super) const SERVICE: &str = "/grpc.testing.BenchmarkService/";
/// gRPC's flag and length before each message.
pub(super) const PREFIX: usize = 5;
/// Largest message that is asked for or answered: what gRPC's length says at most, and no machine
/// should be asked for more by accident.
pub(super) const MESSAGE_MAX: u64 = 256 << 20;

/// `grpc.testing.SimpleRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SimpleRequest {
    /// Bytes to be answered.
    #[prost(int32, tag = "2")]
    pub(super) response_size: i32,
    #[prost(message, optional, tag = "3")]
    pub(super) payload: Option<Payload>,
}

/// `grpc.testing.SimpleResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SimpleResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) payload: Option<Payload>,
}

/// `grpc.testing.Payload`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Payload {
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) body: Bytes,
}

/// A request of `size` bytes that asks for `answer` bytes, with its prefix.
pub(super) fn request(size: usize, answer: i32) -> Bytes {
    framed(&SimpleRequest {
        response_size: answer,
        payload: Some(payload(size)),
    })
}

/// An answer of `size` bytes, with its prefix.
pub(super) fn answer(size: usize) -> Bytes {
    framed(&SimpleResponse {
        payload: Some(payload(size)),
    })
}

fn payload(size: usize) -> Payload {
    Payload {
        body: vec![0; size].into(),
    }
}

fn framed(message: &impl Message) -> Bytes {
    prefixed(&message.encode_to_vec())
}

/// A message as gRPC sends it.
pub(super) fn prefixed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

/// Finds messages in a stream of bytes that comes in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// What is here of a prefix that is not whole.
    head: [u8; PREFIX],
    filled: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl Messages {
    /// How many messages end within `piece`.
    pub(super) fn ended(&mut self, mut piece: &[u8]) -> u64 {
        let mut ended = 0;
        loop {
            if self.filled == PREFIX {
                let step = self.left.min(piece.len());
                self.left -= step;
                piece = &piece[step..];
                if self.left > 0 {
                    return ended;
                }
                self.filled = 0;
                ended += 1;
            }
            if piece.is_empty() {
                return ended;
            }
            let step = (PREFIX - self.filled).min(piece.len());
            self.head[self.filled..self.filled + step].copy_from_slice(&piece[..step]);
            self.filled += step;
            piece = &piece[step..];
            if self.filled == PREFIX {
                let [_, length @ ..] = self.head;
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            }
        }
    }

    /// Whether the stream may end here.
    pub(super) fn is_between(&self) -> bool {
        self.filled == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let all = [prefixed(b""), request(300, 7), answer(0), prefixed(b"x")].concat();
        for cut in 1..all.len() {
            let mut messages = Messages::default();
            let count: u64 = all.chunks(cut).map(|piece| messages.ended(piece)).sum();
            assert_eq!(count, 4, "pieces of {cut}");
            assert!(messages.is_between());
        }
        let mut messages = Messages::default();
        assert_eq!(messages.ended(&all[..all.len() - 1]), 3);
        assert!(!messages.is_between());
    }

    #[test]
    fn messages_are_those_of_the_official_service() {
        // response_size = 7, payload.body = two zeros; then payload.body = one zero.
        assert_eq!(request(2, 7)[5..], [0x10, 7, 0x1a, 4, 0x12, 2, 0, 0]);
        assert_eq!(answer(1)[..], [0, 0, 0, 0, 5, 0x0a, 3, 0x12, 1, 0]);
    }
}
