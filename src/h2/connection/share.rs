//! Who has how many streams of a connection that callers share.
//!
//! Callers are told apart by a few bits: one array per connection says how many streams each has, and
//! nothing is looked up, kept for callers who have gone, or grows with their number. Two callers may
//! fall on the same number; then they have one share together.

use std::num::Wrapping;

use crate::h2::slab::Key;

/// Numbers for callers that are known by their connection; as many again for those known by name.
const HALF: u16 = 512;
/// One part in so many of a connection's streams is never taken by one caller alone: others get a
/// stream at once, however long the calls of that one last.
const RESERVE: usize = 8;

/// A caller, among those who share a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Share(u16);

impl Share {
    /// The only one on its connection.
    pub const ONLY: Self = Self(0);

    /// A caller that is who its connection is.
    pub fn of_line(line: Key) -> Self {
        // The next one in the same place gets another number: streams may still be left of this one.
        let place = Wrapping(line.index()) + Wrapping(line.turn() as usize) * Wrapping(61);
        Self::within(place.0 as u64)
    }

    /// A caller that has this number on all of its connections.
    pub fn of_name(number: u64) -> Self {
        Self(HALF + Self::within(number).0)
    }

    fn within(number: u64) -> Self {
        let number = number % u64::from(HALF);
        Self(u16::try_from(number).expect("less than HALF"))
    }
}

/// How many streams one may have of `most`.
pub(super) fn most_of(most: u32) -> usize {
    let most = most as usize;
    most - most / RESERVE
}

/// How many streams each has.
#[derive(Debug, Default)]
pub(super) struct Held {
    by_share: Vec<u32>,
}

impl Held {
    #[inline]
    pub(super) fn of(&self, share: Share) -> usize {
        let held = self.by_share.get(usize::from(share.0));
        held.map_or(0, |held| *held as usize)
    }

    #[inline]
    pub(super) fn add(&mut self, share: Share) {
        let at = usize::from(share.0);
        if self.by_share.len() <= at {
            self.by_share.resize(at + 1, 0);
        }
        self.by_share[at] += 1;
    }

    #[inline]
    pub(super) fn remove(&mut self, share: Share) {
        if let Some(held) = self.by_share.get_mut(usize::from(share.0)) {
            *held = held.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h2::slab::Slab;

    #[test]
    fn callers_are_told_apart_by_connection_or_by_name() {
        let mut lines = Slab::default();
        let first = lines.insert(());
        let second = lines.insert(());
        lines.remove(second);
        let third = lines.insert(());
        let shares = [first, second, third].map(Share::of_line);
        assert_ne!(shares[0], shares[1]);
        assert_ne!(shares[1], shares[2], "the same place, another caller");
        let named = Share::of_name(u64::MAX);
        assert!(named.0 >= HALF && named.0 < 2 * HALF);
        assert!(shares.iter().all(|share| share.0 < HALF));
    }

    #[test]
    fn what_is_held_is_counted_and_a_part_is_for_others() {
        let mut held = Held::default();
        let (one, other) = (Share::of_name(3), Share::ONLY);
        held.remove(one);
        for _ in 0..3 {
            held.add(one);
        }
        held.remove(one);
        assert_eq!((held.of(one), held.of(other)), (2, 0));
        let most: Vec<usize> = [0, 1, 7, 8, 100, 1024].map(most_of).into();
        assert_eq!(most, [0, 1, 7, 7, 88, 896]);
    }
}
