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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    fn chance() -> StdRng {
        StdRng::seed_from_u64(11)
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn bytes(from: usize, many: usize) -> BytesMut {
        (from..from + many)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect()
    }

    fn shaped(shape: Shape, now: Instant) -> Lane {
        let mut lane = Lane::default();
        lane.reshape(shape, now);
        lane
    }

    /// Writes everything as fast as it may be: what, and when each piece was due.
    fn drain(lane: &mut Lane) -> (Vec<u8>, Vec<Instant>) {
        let (mut got, mut dues) = (Vec::new(), Vec::new());
        while let Some((due, piece)) = lane.next() {
            got.extend_from_slice(&piece);
            dues.push(due);
            lane.written(piece.len());
        }
        (got, dues)
    }

    #[tokio::test(start_paused = true)]
    async fn latency_and_jitter_have_their_bounds_and_the_seed_decides() {
        let now = Instant::now();
        let shape = Shape {
            latency: millis(100),
            jitter: millis(50),
            ..Shape::default()
        };
        let dues = |seed| {
            let mut chance = StdRng::seed_from_u64(seed);
            let first = (0..100).map(|_| {
                let mut lane = shaped(shape.clone(), now);
                lane.push(bytes(0, 10), now, &mut chance);
                drain(&mut lane).1[0] - now
            });
            first.collect::<Vec<_>>()
        };
        let seen = dues(1);
        assert!(
            seen.iter()
                .all(|due| (millis(100)..=millis(150)).contains(due))
        );
        assert!(seen.iter().any(|due| *due < millis(115)));
        assert!(seen.iter().any(|due| *due > millis(135)));
        assert_eq!(seen, dues(1));
        assert_ne!(seen, dues(2));
    }

    #[tokio::test(start_paused = true)]
    async fn delays_are_pipelined_and_rates_are_not() {
        let now = Instant::now();
        let late = Shape {
            latency: millis(100),
            ..Shape::default()
        };
        let mut lane = shaped(late, now);
        for at in 0..10 {
            lane.push(bytes(0, 10), now + millis(at), &mut chance());
        }
        let (_, dues) = drain(&mut lane);
        assert_eq!(*dues.last().unwrap(), now + millis(109));

        let slow = Shape {
            rate: Some(1000),
            ..Shape::default()
        };
        let mut lane = shaped(slow, now);
        for _ in 0..10 {
            lane.push(bytes(0, 100), now, &mut chance());
        }
        let (_, dues) = drain(&mut lane);
        assert_eq!(dues.len(), 50, "pieces of 20 ms");
        assert_eq!(*dues.last().unwrap(), now + millis(1000));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_is_bounded() {
        let now = Instant::now();
        let hole = Shape {
            latency: millis(1000),
            ..Shape::default()
        };
        let mut lane = shaped(hole, now);
        let mut reads = 0;
        while lane.reads() {
            lane.push(bytes(0, 16 << 10), now, &mut chance());
            reads += 1;
        }
        assert_eq!(reads, HELD_MAX / (16 << 10));
        lane.written(16 << 10);
        assert!(lane.reads(), "room again");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_comes_after_the_last_byte_and_a_hole_swallows_both() {
        let now = Instant::now();
        let late = Shape {
            latency: millis(100),
            ..Shape::default()
        };
        let mut lane = shaped(late, now);
        lane.push(bytes(0, 10), now, &mut chance());
        lane.finish(now, &mut chance());
        assert_eq!(lane.end(), None, "a byte is still to come");
        let hole = Shape {
            blackhole: true,
            ..Shape::default()
        };
        lane.reshape(hole, now);
        assert_eq!((lane.next(), lane.reads()), (None, false));
        lane.reshape(Shape::default(), now);
        assert_eq!(drain(&mut lane).0.len(), 10);
        assert_eq!(lane.end(), Some((now, End::Finished)));
    }

    /// Any shape that neither ends nor falsifies what passes.
    fn harmless() -> impl Strategy<Value = Shape> {
        let slice = proptest::option::of((1usize..50, (0u64..5).prop_map(millis)));
        (
            0u64..200,
            0u64..50,
            proptest::option::of(1u64..100_000),
            any::<bool>(),
            slice,
        )
            .prop_map(|(latency, jitter, rate, blackhole, slice)| Shape {
                latency: millis(latency),
                jitter: millis(jitter),
                rate,
                blackhole,
                slice,
                ..Shape::default()
            })
    }

    proptest! {
        #[test]
        fn whatever_the_shapes_everything_passes_once_and_in_order(
            steps in proptest::collection::vec((harmless(), 1usize..400, 0u64..100), 1..20),
        ) {
            let (mut now, mut sent) = (Instant::now(), 0);
            let (mut lane, mut got) = (Lane::default(), Vec::new());
            for (shape, many, passes) in steps {
                lane.reshape(shape.clone(), now);
                let soonest = now + shape.latency;
                lane.push(bytes(sent, many), now, &mut chance());
                sent += many;
                prop_assert!(lane.pieces.back().unwrap().0 >= soonest);
                prop_assert!(lane.pieces.iter().is_sorted_by_key(|(due, _)| *due));
                now += millis(passes);
                while let Some((due, piece)) = lane.next().filter(|(due, _)| *due <= now) {
                    prop_assert!(due <= now);
                    got.extend_from_slice(&piece);
                    lane.written(piece.len());
                }
            }
            lane.reshape(Shape::default(), now);
            let (rest, dues) = drain(&mut lane);
            prop_assert!(dues.iter().all(|due| *due <= now), "cleared, nothing waits");
            got.extend_from_slice(&rest);
            prop_assert_eq!(got, &bytes(0, sent)[..]);
            prop_assert_eq!(lane.held, 0);
        }

        #[test]
        fn a_cut_lets_just_so_many_bytes_pass_from_where_it_was_set(
            before in 0usize..100, after in 0u64..300, reads in proptest::collection::vec(1usize..90, 1..10),
        ) {
            let now = Instant::now();
            let mut lane = Lane::default();
            lane.push(bytes(0, before), now, &mut chance());
            let cut = Shape { cut: Some((after, true, (1, 0))), ..Shape::default() };
            lane.reshape(cut.clone(), now);
            let mut sent = before;
            for many in &reads {
                // Said again, it is the same cut.
                lane.reshape(cut.clone(), now);
                if lane.reads() {
                    lane.push(bytes(sent, *many), now, &mut chance());
                    sent += many;
                }
            }
            let all: usize = reads.iter().sum();
            let passed = usize::try_from(after).unwrap().min(all);
            prop_assert_eq!(drain(&mut lane).0, &bytes(0, before + passed)[..]);
            let end = lane.end().map(|(_, end)| end);
            prop_assert_eq!(end, (all as u64 >= after).then_some(End::Reset));
        }
    }
}
