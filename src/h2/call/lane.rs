//! One direction of a call: bytes that wait for a window, and how it ends.

use tokio::time::Instant;

use crate::h2::hpack::Fields;

/// Buffers are kept for the next bytes up to this size.
const KEEP: usize = 16 << 10;

/// How the sender of a direction has ended it.
#[derive(Debug, Default)]
pub enum Ending {
    /// Not yet.
    #[default]
    Open,
    /// With its last DATA, or its header section.
    End,
    /// With trailers, which wait behind the bytes.
    Trailers(Box<Fields>),
}

/// One direction of a call.
#[derive(Debug)]
pub struct Lane {
    /// Bytes that came and could not go yet: at most the window that we gave.
    pub parked: Parked,
    /// So many of the first of them were given back to the sender already: they go again.
    pub again: usize,
    /// Bytes of the connection's window that are given back when parked bytes leave.
    pub owed: u32,
    /// How its sender has ended it.
    pub ending: Ending,
    /// The end has been passed on.
    pub sent: bool,
    /// Nobody takes it any longer: what comes is dropped.
    pub closed: bool,
    /// It stands in line for the connection it goes to.
    pub queued: bool,
    /// Bytes that came.
    pub bytes: u64,
    /// When bytes moved last.
    pub moved: Instant,
}

impl Lane {
    /// Nothing has come.
    pub fn new(now: Instant) -> Self {
        Self {
            parked: Parked::default(),
            again: 0,
            owed: 0,
            ending: Ending::Open,
            sent: false,
            closed: false,
            queued: false,
            bytes: 0,
            moved: now,
        }
    }

    /// Whether something waits: bytes, trailers, or an end that was not passed on.
    pub fn waits(&self) -> bool {
        !self.sent && (!self.parked.is_empty() || !matches!(self.ending, Ending::Open))
    }

    /// Whether its sender has ended it.
    pub fn ended(&self) -> bool {
        !matches!(self.ending, Ending::Open)
    }

    /// `bytes` of what was parked have left. Answers what to give back to the sender's connection
    /// and to its stream.
    pub fn left(&mut self, bytes: usize, now: Instant) -> (u32, u32) {
        self.parked.take(bytes);
        self.moved = now;
        let again = bytes.min(self.again);
        self.again -= again;
        let fresh = u32::try_from(bytes - again).expect("a frame has 24 bits");
        let owed = fresh.min(self.owed);
        self.owed -= owed;
        (owed, fresh)
    }
}

/// Bytes in the order in which they came.
#[derive(Debug, Default)]
pub struct Parked {
    bytes: Vec<u8>,
    /// Those before it are gone.
    from: usize,
}

impl Parked {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    /// How many.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.from
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds at the end.
    pub fn push(&mut self, bytes: &[u8]) {
        // Moved to the front once more than half is gone: each byte moves once at the most.
        if self.from > self.bytes.len() / 2 {
            self.bytes.drain(..self.from);
            self.from = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Replaces everything.
    pub fn set(&mut self, bytes: &[u8]) {
        self.bytes.clear();
        self.from = 0;
        self.bytes.extend_from_slice(bytes);
    }

    fn take(&mut self, count: usize) {
        self.from += count;
        if self.from == self.bytes.len() {
            self.from = 0;
            self.bytes.clear();
            if self.bytes.capacity() > KEEP {
                self.bytes = Vec::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_goes_again_is_not_given_back_twice() {
        let now = Instant::now();
        let mut lane = Lane::new(now);
        lane.parked.set(&[0; 100]);
        lane.again = 60;
        lane.owed = 30;
        assert_eq!(lane.left(50, now), (0, 0));
        assert_eq!(lane.left(20, now), (10, 10));
        assert_eq!(lane.left(30, now), (20, 30));
        assert!(!lane.waits());
        lane.ending = Ending::End;
        assert!(lane.waits() && lane.ended());
    }

    proptest! {
        #[test]
        fn parked_bytes_come_out_as_they_went_in(
            steps in prop::collection::vec((0usize..300, 0usize..300), 1..50),
        ) {
            let (mut parked, mut plain) = (Parked::default(), Vec::new());
            for (number, (more, less)) in (0u8..).zip(steps) {
                parked.push(&vec![number; more]);
                plain.extend(vec![number; more]);
                let less = less.min(plain.len());
                parked.take(less);
                plain.drain(..less);
                prop_assert_eq!(parked.as_slice(), &plain[..]);
                prop_assert_eq!(parked.is_empty(), plain.is_empty());
            }
        }
    }
}
