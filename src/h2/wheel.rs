//! Timers by the thousand: setting and clearing one costs the same however many there are.
//!
//! Owns what is due and when, in levels of 64 slots: level 0 has a slot per millisecond, each next
//! level one per 64 slots of the level below. A timer sits on the highest level on which its time
//! differs from now and moves down as its time comes near. Never early, at most one tick late by
//! its own doing. Knows no clock: time is passed in.

use std::time::Duration;

use tokio::time::Instant;

const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
/// 2^42 ms are 139 years: longer than any process runs.
const LEVELS: usize = 7;
/// Timers further away than 2^36 ms (two years) are due then.
const FURTHEST: u64 = 1 << 36;
const NONE: u32 = u32::MAX;

/// A timer that is set. Worth nothing once it was due or cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    node: u32,
    turn: u32,
}

#[derive(Debug)]
struct Node<T> {
    /// The tick at which it is due.
    at: u64,
    item: Option<T>,
    turn: u32,
    prev: u32,
    next: u32,
    slot: u16,
}

/// What is due when. See the module.
#[derive(Debug)]
pub struct Wheel<T> {
    start: Instant,
    /// Ticks since `start` that were gone through.
    passed: u64,
    heads: Box<[u32; LEVELS * SLOTS]>,
    /// Per level, a bit per slot that is not empty.
    filled: [u64; LEVELS],
    nodes: Vec<Node<T>>,
    free: Vec<u32>,
}

impl<T> Wheel<T> {
    /// Nothing is due; time begins at `start`.
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            passed: 0,
            heads: Box::new([NONE; LEVELS * SLOTS]),
            filled: [0; LEVELS],
            nodes: Vec::new(),
            free: Vec::new(),
        }
    }

    /// `item` is due at `at`, or at the next tick where that is past.
    pub fn set(&mut self, at: Instant, item: T) -> Timer {
        let wait = at.saturating_duration_since(self.start);
        let ticks = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let at = ticks.clamp(self.passed + 1, self.passed + FURTHEST);
        let index = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node {
                at,
                item: None,
                turn: 0,
                prev: NONE,
                next: NONE,
                slot: 0,
            });
            u32::try_from(self.nodes.len() - 1).expect("fewer than 2^32 timers fit memory")
        });
        let node = &mut self.nodes[index as usize];
        node.at = at;
        node.item = Some(item);
        let turn = node.turn;
        self.link(index);
        Timer { node: index, turn }
    }

    /// Has `item` due at `at` at the latest: what is `set` for earlier stays.
    #[inline]
    pub fn sooner(&mut self, set: &mut Option<(Instant, Timer)>, at: Instant, item: T) {
        match *set {
            Some((before, _)) if before <= at => return,
            Some((_, timer)) => {
                self.clear(timer);
            }
            None => {}
        }
        *set = Some((at, self.set(at, item)));
    }

    /// Clears a timer; one that was due already is no fault.
    pub fn clear(&mut self, timer: Timer) -> Option<T> {
        let node = self.nodes.get(timer.node as usize)?;
        if node.turn != timer.turn {
            return None;
        }
        self.unlink(timer.node);
        self.free(timer.node)
    }

    /// When to come again: never later than the first timer is due.
    pub fn next(&self) -> Option<Instant> {
        let (_, _, tick) = self.first()?;
        Some(self.start + Duration::from_millis(tick))
    }

    /// Whatever is due by `now`, one after the other.
    pub fn due(&mut self, now: Instant) -> Option<T> {
        let elapsed = now.saturating_duration_since(self.start).as_millis();
        let now = u64::try_from(elapsed).unwrap_or(u64::MAX);
        loop {
            let Some((level, slot, tick)) = self.first().filter(|(_, _, tick)| *tick <= now) else {
                self.passed = self.passed.max(now);
                return None;
            };
            self.passed = self.passed.max(tick);
            let place = level * SLOTS + slot;
            if level == 0 {
                let index = self.heads[place];
                self.unlink(index);
                return self.free(index);
            }
            // All of them: what stayed would hide behind what moved down.
            while self.heads[place] != NONE {
                let index = self.heads[place];
                self.unlink(index);
                self.link(index);
            }
        }
    }

    /// How many timers are set.
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Whether no timer is set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The slot to look at first: level, slot, and the tick at which it begins.
    fn first(&self) -> Option<(usize, usize, u64)> {
        let level = self.filled.iter().position(|slots| *slots != 0)?;
        let shift = BITS * u32::try_from(level).ok()?;
        let here = (self.passed >> shift) & (SLOTS as u64 - 1);
        let here = u32::try_from(here).ok()?;
        let ahead = self.filled[level].rotate_right(here).trailing_zeros();
        let slot = (here + ahead) as usize % SLOTS;
        let base = (self.passed >> shift) + u64::from(ahead);
        Some((level, slot, (base << shift).max(self.passed)))
    }

    fn link(&mut self, index: u32) {
        let at = self.nodes[index as usize].at;
        let differ = (at ^ self.passed) | (SLOTS as u64 - 1);
        let level = ((u64::BITS - 1 - differ.leading_zeros()) / BITS) as usize;
        let slot = (at >> (BITS as usize * level)) % SLOTS as u64;
        let slot = usize::try_from(slot).expect("below 64");
        let place = level * SLOTS + slot;
        let head = self.heads[place];
        let node = &mut self.nodes[index as usize];
        (node.prev, node.next) = (NONE, head);
        node.slot = u16::try_from(place).expect("448 slots");
        if head != NONE {
            self.nodes[head as usize].prev = index;
        }
        self.heads[place] = index;
        self.filled[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let node = &self.nodes[index as usize];
        let (prev, next, place) = (node.prev, node.next, node.slot as usize);
        if next != NONE {
            self.nodes[next as usize].prev = prev;
        }
        if prev != NONE {
            self.nodes[prev as usize].next = next;
        } else {
            self.heads[place] = next;
            if next == NONE {
                self.filled[place / SLOTS] &= !(1 << (place % SLOTS));
            }
        }
    }

    fn free(&mut self, index: u32) -> Option<T> {
        let node = &mut self.nodes[index as usize];
        node.turn = node.turn.wrapping_add(1);
        self.free.push(index);
        node.item.take()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(wheel: &mut Wheel<u32>, now: Instant) -> Vec<u32> {
        let mut due: Vec<u32> = std::iter::from_fn(|| wheel.due(now)).collect();
        due.sort_unstable();
        due
    }

    #[test]
    fn a_timer_is_due_at_its_time_and_not_before() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut wheel = Wheel::new(start);
        wheel.set(at(5), 1);
        let cleared = wheel.set(at(70), 2);
        wheel.set(at(70), 3);
        wheel.set(at(300_000), 4);
        assert_eq!(wheel.next(), Some(at(5)));
        assert!(drain(&mut wheel, at(4)).is_empty());
        assert_eq!(drain(&mut wheel, at(5)), [1]);
        assert_eq!(wheel.clear(cleared), Some(2));
        assert_eq!(wheel.clear(cleared), None);
        assert!(drain(&mut wheel, at(69)).is_empty());
        assert_eq!(drain(&mut wheel, at(299_999)), [3]);
        assert_eq!(drain(&mut wheel, at(300_000)), [4]);
        assert!(wheel.is_empty() && wheel.next().is_none());
    }

    proptest! {
        /// Against a list of all timers that is searched through.
        #[test]
        fn the_wheel_agrees_with_a_plain_list(
            steps in prop::collection::vec((0u64..200_000, 0u64..5_000, any::<bool>()), 1..80),
        ) {
            let start = Instant::now();
            let (mut wheel, mut plain, mut now) = (Wheel::new(start), Vec::new(), 0);
            for (number, (ahead, step, clear)) in (0u32..).zip(steps) {
                let at = now + 1 + ahead;
                let timer = wheel.set(start + Duration::from_millis(at), number);
                if clear { wheel.clear(timer); } else { plain.push((at, number)); }
                let next = wheel.next().map(|at| at - start);
                let first = plain.iter().map(|(at, _)| Duration::from_millis(*at)).min();
                prop_assert!(next <= first && next.is_some() == first.is_some());
                now += step;
                let mut due: Vec<u32> =
                    plain.extract_if(.., |(at, _)| *at <= now).map(|(_, number)| number).collect();
                due.sort_unstable();
                prop_assert_eq!(drain(&mut wheel, start + Duration::from_millis(now)), due);
                prop_assert_eq!(wheel.len(), plain.len());
            }
        }
    }
}
