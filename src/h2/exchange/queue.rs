//! Calls that wait for a stream, and who is next.
//!
//! Callers take turns, whatever each of them has waiting, and the calls of one go in their order. Of
//! those whose turn is near, the one with the fewest streams is next: nobody gets more while another
//! who has less waits. In a full queue the newest call of whoever has most waiting makes room. Owns
//! nothing but that order; bounded by [`WAITING_MAX`].

use std::collections::VecDeque;

use crate::h2::{connection::Share, slab::Key};

/// Calls that wait for a stream of one connection: as many as it has streams, once more.
pub(super) const WAITING_MAX: usize = 1024;
/// So many of those whose turn is next are compared: more than this hold most of a connection only
/// together, and then each of them has little.
const LOOK: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// In turn; each has something waiting.
    callers: VecDeque<Caller>,
    len: usize,
}

#[derive(Debug)]
struct Caller {
    share: Share,
    waiting: VecDeque<Key>,
}

impl Queue {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a call. Answers which one has no place: where the queue is full, that is the newest of
    /// whoever has most waiting, which may be this one.
    pub(super) fn push(&mut self, share: Share, call: Key) -> Option<Key> {
        let own = self.callers.iter().position(|caller| caller.share == share);
        let mut left = None;
        if self.len >= WAITING_MAX {
            let mine = own.map_or(0, |own| self.callers[own].waiting.len());
            let most = self.callers.iter_mut();
            let most = most.max_by_key(|caller| caller.waiting.len());
            // Nothing is gained where it would have as many as that one.
            let most = most.filter(|most| most.waiting.len() > mine + 1);
            left = most.and_then(|most| most.waiting.pop_back());
            if left.is_none() {
                return Some(call);
            }
            self.len -= 1;
        }
        self.len += 1;
        if let Some(own) = own {
            self.callers[own].waiting.push_back(call);
        } else {
            let waiting = VecDeque::from([call]);
            self.callers.push_back(Caller { share, waiting });
        }
        left
    }

    /// Takes the call that is next, where `held` says how many streams each has, and nobody gets
    /// another who has `most`.
    pub(super) fn next(&mut self, held: impl Fn(Share) -> usize, most: usize) -> Option<Key> {
        let near = self.callers.iter().take(LOOK).enumerate();
        let near = near.map(|(at, caller)| (held(caller.share), at));
        let (_, at) = near.min().filter(|(held, _)| *held < most)?;
        let mut caller = self.callers.remove(at)?;
        let call = caller.waiting.pop_front();
        self.len -= 1;
        if !caller.waiting.is_empty() {
            self.callers.push_back(caller);
        }
        call
    }

    /// A call waits no longer.
    pub(super) fn remove(&mut self, share: Share, call: Key) {
        let own = self.callers.iter().position(|caller| caller.share == share);
        let Some(own) = own else { return };
        let waiting = &mut self.callers[own].waiting;
        let Some(at) = waiting.iter().position(|waiting| *waiting == call) else {
            return;
        };
        waiting.remove(at);
        self.len -= 1;
        if waiting.is_empty() {
            self.callers.remove(own);
        }
    }

    /// All calls, of one caller after the other.
    pub(super) fn into_calls(self) -> impl Iterator<Item = Key> {
        let callers = self.callers.into_iter();
        callers.flat_map(|caller| caller.waiting)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::h2::slab::Slab;

    /// Calls by name: whose they are, and which of them.
    #[derive(Default)]
    struct Names {
        calls: Slab<(u64, usize)>,
        made: HashMap<u64, usize>,
    }

    impl Names {
        fn call(&mut self, caller: u64) -> Key {
            let made = self.made.entry(caller).or_default();
            *made += 1;
            self.calls.insert((caller, *made))
        }

        fn fill(&mut self, queue: &mut Queue, caller: u64, calls: usize) {
            for _ in 0..calls {
                assert_eq!(queue.push(Share::of_name(caller), self.call(caller)), None);
            }
        }

        fn next(&self, queue: &mut Queue) -> Option<(u64, usize)> {
            queue.next(|_| 0, 1).map(|call| self.of(call))
        }

        fn of(&self, call: Key) -> (u64, usize) {
            *self.calls.get(call).unwrap()
        }
    }

    #[test]
    fn callers_take_turns_however_many_calls_one_has() {
        let (mut queue, mut names) = (Queue::default(), Names::default());
        names.fill(&mut queue, 1, 1000);
        names.fill(&mut queue, 2, 3);
        let first: Vec<_> = (0..8).filter_map(|_| names.next(&mut queue)).collect();
        let turns = [
            (1, 1),
            (2, 1),
            (1, 2),
            (2, 2),
            (1, 3),
            (2, 3),
            (1, 4),
            (1, 5),
        ];
        assert_eq!(first, turns);
    }

    #[test]
    fn who_has_fewest_streams_is_next_and_nobody_gets_more_than_most() {
        let (mut queue, mut names) = (Queue::default(), Names::default());
        for caller in [1, 2, 3] {
            names.fill(&mut queue, caller, 10);
        }
        let mut held: HashMap<Share, usize> =
            [(Share::of_name(1), 9), (Share::of_name(2), 4)].into();
        let mut taken = Vec::new();
        while let Some(call) = queue.next(|share| held.get(&share).copied().unwrap_or(0), 10) {
            let (caller, _) = names.of(call);
            *held.entry(Share::of_name(caller)).or_default() += 1;
            taken.push(caller);
        }
        assert_eq!(taken[..4], [3, 3, 3, 3]);
        assert_eq!(taken[4..14], [2, 3, 2, 3, 2, 3, 2, 3, 2, 3]);
        taken[14..].sort_unstable();
        assert_eq!(taken[14..], [1, 2, 3], "ten each, and others wait");
        assert_eq!(queue.len, 9 + 4);
    }

    #[test]
    fn in_a_full_queue_whoever_has_most_makes_room() {
        let (mut queue, mut names) = (Queue::default(), Names::default());
        names.fill(&mut queue, 2, 3);
        names.fill(&mut queue, 1, WAITING_MAX - 3);
        let newest = names.calls.insert((1, 0));
        assert_eq!(queue.push(Share::of_name(1), newest), Some(newest));
        let left = queue.push(Share::of_name(3), names.calls.insert((3, 1)));
        assert_eq!(left.map(|call| names.of(call)), Some((1, WAITING_MAX - 3)));
        let left = queue.push(Share::of_name(2), names.calls.insert((2, 4)));
        assert_eq!(left.map(|call| names.of(call).0), Some(1));
        assert_eq!(queue.len, WAITING_MAX);
        // All have one: then nobody makes room for another.
        let (mut queue, mut names) = (Queue::default(), Names::default());
        for caller in 0..512 {
            names.fill(&mut queue, caller, 2);
        }
        let late = names.calls.insert((0, 9));
        assert_eq!(queue.push(Share::of_name(0), late), Some(late));
    }

    /// Whatever comes and goes: each call comes out once, in its caller's order, and the number is
    /// right; and a caller with few calls waits for no more than one turn of each other.
    #[test]
    fn nothing_is_lost_or_doubled_and_nobody_waits_for_more_than_a_turn_of_each() {
        let mut seed = 0x9e37_79b9_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let (mut queue, mut names) = (Queue::default(), Names::default());
        let mut waiting: Vec<Key> = Vec::new();
        let mut passed: HashMap<u64, HashMap<u64, usize>> = HashMap::new();
        for _ in 0..20_000 {
            let caller = random(10) * random(2);
            match random(5) {
                0..=2 => {
                    let call = names.call(caller);
                    waiting.push(call);
                    if let Some(left) = queue.push(Share::of_name(caller), call) {
                        waiting.retain(|call| *call != left);
                    }
                }
                3 if !waiting.is_empty() => {
                    let at = usize::try_from(random(waiting.len() as u64)).unwrap();
                    let call = waiting.remove(at);
                    queue.remove(Share::of_name(names.of(call).0), call);
                }
                _ => {
                    let expected = waiting.is_empty();
                    let Some(call) = queue.next(|_| 0, 1) else {
                        assert!(expected);
                        continue;
                    };
                    let (caller, _) = names.of(call);
                    let first = waiting.iter().position(|call| names.of(*call).0 == caller);
                    assert_eq!(waiting.remove(first.unwrap()), call);
                    passed.remove(&caller);
                    for other in waiting.iter().map(|call| names.of(*call).0) {
                        passed.entry(other).or_default().entry(caller).or_insert(0);
                    }
                    for (other, by) in &mut passed {
                        let waits = waiting.iter().any(|call| names.of(*call).0 == *other);
                        if !waits {
                            by.clear();
                        } else if let Some(by) = by.get_mut(&caller) {
                            *by += 1;
                            assert!(*by <= 2, "{caller} went before {other}");
                        }
                    }
                }
            }
            assert_eq!(queue.len, waiting.len());
            assert!(queue.len <= WAITING_MAX);
        }
        assert_eq!(queue.into_calls().count(), waiting.len());
    }
}
