//! One direction of one connection: what was read, in pieces, and when each may be written. Pure:
//! time and chance come in as arguments, and nobody is read from or written to here.

use std::{collections::VecDeque, mem, time::Duration};

use bytes::{Bytes, BytesMut};
use rand::{Rng, rngs::StdRng};
use tokio::time::Instant;

use super::faults::{Kind, Shape, Stamp};

/// Most bytes that wait in one direction; beyond it the sender is held up. As much as one stream of
/// a mesh peer has under way.
const HELD_MAX: usize = 1 << 20;
/// Most pieces that wait, for slices of a few bytes; one more read may come on top.
const PIECES_MAX: usize = 16 << 10;
/// With a rate, so many pieces pass in a second: enough to look even.
const RATE_STEPS: u64 = 50;
/// What is done to a byte that is to be corrupted.
const FLIP: u8 = 0b0101_0101;

/// How a direction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The sender has said all, or the receiver is told so: the other direction goes on.
    Finished,
    /// The whole connection ends in good order.
    Closed,
    /// The whole connection ends by RST.
    Reset,
}

/// What waits to be written.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    shape: Shape,
    pieces: VecDeque<(Instant, Bytes)>,
    held: usize,
    /// How it ends once all pieces are written, and not before when.
    end: Option<(Instant, End)>,
    /// The last piece may be written then; the next one not earlier.
    last: Option<Instant>,
    /// Bytes that were read.
    read: u64,
    /// Since when what is counted in bytes holds, and how many were read before.
    cut_from: Option<(Stamp, u64)>,
    corrupt_from: Option<(Stamp, u64)>,
    tally: Tally,
}

/// How often faults were done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally([u64; Kind::ALL.len()]);

impl Lane {
    /// Goes by another shape from now on. What waits is let go earlier if the new one would.
    pub(crate) fn reshape(&mut self, shape: Shape, now: Instant) {
        if shape == self.shape {
            return;
        }
        if shape.blackhole && !self.shape.blackhole {
            self.tally.add(Kind::Blackhole, 1);
        }
        self.cut_from = began(
            shape.cut.map(|(_, _, stamp)| stamp),
            self.cut_from,
            self.read,
        );
        self.corrupt_from = began(
            shape.corrupt.map(|(_, _, stamp)| stamp),
            self.corrupt_from,
            self.read,
        );
        self.shape = shape;
        if self.shape.half_close && self.end.is_none() {
            self.tally.add(Kind::HalfClose, 1);
            self.end = Some((now, End::Finished));
        }
        self.hurry(now);
    }

    /// Whether anything may be read: there is room, and nothing says otherwise.
    pub(crate) fn reads(&self) -> bool {
        !self.shape.blackhole
            && self.end.is_none()
            && self.held < HELD_MAX
            && self.pieces.len() < PIECES_MAX
    }

    /// What may be written next, and when.
    pub(crate) fn next(&self) -> Option<(Instant, Bytes)> {
        let next = self.pieces.front().filter(|_| !self.shape.blackhole);
        next.cloned()
    }

    /// How it ends and when, once all is written.
    pub(crate) fn end(&self) -> Option<(Instant, End)> {
        self.end
            .filter(|_| self.pieces.is_empty() && !self.shape.blackhole)
    }

    /// Takes in what was read.
    pub(crate) fn push(&mut self, mut bytes: BytesMut, now: Instant, chance: &mut StdRng) {
        let before = self.read;
        self.read += bytes.len() as u64;
        self.corrupt(before, &mut bytes, chance);
        let ended = self.cut(before, &mut bytes);
        let mut bytes = bytes.freeze();
        let soonest = now + self.delay(chance);
        while !bytes.is_empty() {
            let piece = bytes.split_to(self.piece().min(bytes.len()));
            let due = self.due(soonest, piece.len());
            self.held += piece.len();
            self.pieces.push_back((due, piece));
        }
        if let Some(end) = ended {
            self.end = Some((self.last.unwrap_or(now), end));
        }
    }

    /// The sender has said all.
    pub(crate) fn finish(&mut self, now: Instant, chance: &mut StdRng) {
        let soonest = now + self.delay(chance);
        let due = self.last.map_or(soonest, |last| last.max(soonest));
        self.end.get_or_insert((due, End::Finished));
    }

    /// So many bytes of the next piece are written.
    ///
    /// # Panics
    /// When there was no next piece, or not so many bytes of it.
    pub(crate) fn written(&mut self, bytes: usize) {
        let front = self.pieces.front_mut().expect("a piece was written");
        drop(front.1.split_to(bytes));
        if front.1.is_empty() {
            self.pieces.pop_front();
        }
        self.held -= bytes;
    }

    /// What was done since this was asked last.
    pub(crate) fn tally(&mut self) -> Tally {
        mem::take(&mut self.tally)
    }

    fn delay(&mut self, chance: &mut StdRng) -> Duration {
        if self.shape.latency.is_zero() && self.shape.jitter.is_zero() {
            return Duration::ZERO;
        }
        self.tally.add(Kind::Latency, 1);
        self.shape.latency + self.shape.jitter.mul_f64(chance.random())
    }

    /// Bytes of a piece.
    fn piece(&self) -> usize {
        let by_rate = self.shape.rate.map_or(usize::MAX, |rate| {
            usize::try_from(rate / RATE_STEPS).unwrap_or(usize::MAX)
        });
        let by_slice = self.shape.slice.map_or(usize::MAX, |(bytes, _)| bytes);
        by_rate.min(by_slice).max(1)
    }

    /// When a piece may be written that has come, by latency, at `soonest`.
    fn due(&mut self, soonest: Instant, bytes: usize) -> Instant {
        let mut due = self.last.map_or(soonest, |last| last.max(soonest));
        if let Some(rate) = self.shape.rate {
            self.tally.add(Kind::Rate, 1);
            due += Duration::from_secs_f64(bytes as f64 / rate as f64);
        }
        if let Some((_, gap)) = self.shape.slice {
            self.tally.add(Kind::Slice, 1);
            // Before the piece, so that the first one of a burst has its gap to the one before.
            due += gap;
        }
        self.last = Some(due);
        due
    }

    /// Lets what waits go at its time or as soon as the shape lets new bytes, whatever is earlier.
    fn hurry(&mut self, now: Instant) {
        let soonest = now + self.shape.latency + self.shape.jitter;
        self.last = None;
        let tally = self.tally;
        for at in 0..self.pieces.len() {
            let (was, bytes) = (self.pieces[at].0, self.pieces[at].1.len());
            let due = self.due(soonest, bytes).min(was);
            self.pieces[at].0 = due;
            self.last = Some(due);
        }
        if let Some((due, _)) = &mut self.end {
            *due = (*due).min(self.last.unwrap_or(soonest).max(soonest));
        }
        self.tally = tally;
    }

    fn corrupt(&mut self, before: u64, bytes: &mut BytesMut, chance: &mut StdRng) {
        let (Some((at, one_in, _)), Some((_, from))) = (self.shape.corrupt, self.corrupt_from)
        else {
            return;
        };
        for (offset, byte) in (before - from..).zip(bytes.iter_mut()) {
            let drawn = one_in.is_some_and(|one_in| chance.random_ratio(1, one_in));
            if drawn || at == Some(offset) {
                *byte ^= FLIP;
                self.tally.add(Kind::Corrupt, 1);
            }
        }
    }

    fn cut(&mut self, before: u64, bytes: &mut BytesMut) -> Option<End> {
        let ((after, reset, _), (_, from)) = (self.shape.cut?, self.cut_from?);
        let left = usize::try_from((from + after).saturating_sub(before)).unwrap_or(usize::MAX);
        if bytes.len() < left {
            return None;
        }
        bytes.truncate(left);
        self.tally.add(Kind::Cut, 1);
        Some(if reset { End::Reset } else { End::Closed })
    }
}

impl Tally {
    fn add(&mut self, kind: Kind, times: u64) {
        self.0[kind as usize] += times;
    }

    /// What was done at all.
    pub(crate) fn done(&self) -> impl Iterator<Item = (Kind, u64)> {
        let all = Kind::ALL.into_iter().zip(self.0);
        all.filter(|(_, times)| *times > 0)
    }
}

/// Since when and where something is counted, if it holds at all.
fn began(holds: Option<Stamp>, before: Option<(Stamp, u64)>, read: u64) -> Option<(Stamp, u64)> {
    let stamp = holds?;
    Some(
        before
            .filter(|(since, _)| *since == stamp)
            .unwrap_or((stamp, read)),
    )
}
