//! How many tasks may be made below a task, and how they are shared out down the tree.
//!
//! Pure. No counter sees the whole tree: whoever hands work on hands on a part of what it has, so
//! that all parts together are never more than the root began with. A child takes one out of its
//! parent's, and a share for those below itself; what it has not used comes back with its end. What
//! is with an attempt that was lost stays lost.

use super::lineage::CHAIN_MAX;

/// Most tasks below a root, at all depths and by all attempts.
pub const DESCENDANTS_MAX: u32 = 1000;

/// Of what an attempt has, this part may go to children as shares. The rest is for children alone: a
/// wide fan of leaves needs no shares.
const SHARED: (u32, u32) = (5, 8);
/// A child gets this part of the shares that are left: ten times ten fit.
const SHARE: u32 = 10;
/// At least so many, while that is no more than a third of them: a few that go deeper fit.
const LEAST: u32 = 4;
/// The first child may get what a chain to full depth needs, but for so many: two more beside it.
const BESIDE: u32 = 2;
/// This part of what is left is kept back for another attempt, where there may be one.
const KEPT_BACK: u32 = 8;

/// What one attempt may have made below it, while it runs.
#[derive(Debug, PartialEq, Eq)]
pub struct Purse {
    got: u32,
    left: u32,
    /// Of what is left, so many may go as shares.
    shares: u32,
    /// Nobody has got a share yet.
    untouched: bool,
}

impl Purse {
    /// Of an attempt that got so many.
    pub fn new(got: u32) -> Self {
        // Of the little that a narrow chain has left, all may go on.
        let whole = got.min(below(0));
        Self {
            got,
            left: got,
            shares: (got * SHARED.0 / SHARED.1).max(whole),
            untouched: true,
        }
    }

    /// Takes a child, the task number `depth` of its chain below the root; gives what may be made
    /// below it. `None`: there is nothing left.
    pub fn take(&mut self, depth: usize) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let below = below(depth);
        let mut share = (self.shares / SHARE).max(LEAST.min(self.shares / 3));
        if std::mem::take(&mut self.untouched) {
            // Where there is one child only, a chain may go on.
            share = share.max(below.min(self.left.saturating_sub(BESIDE)));
        }
        // Where the chain ends nothing is needed.
        let share = if below == 0 { 0 } else { share };
        let share = share.min(self.shares).min(self.left);
        self.left -= share;
        self.shares = (self.shares - share).min(self.left);
        Some(share)
    }

    /// So many that were taken were not needed.
    pub fn give_back(&mut self, count: u32) {
        let count = count.min(self.used());
        self.left += count;
        self.shares = (self.shares + count).min(self.left);
    }

    /// How many it got at first.
    pub fn got(&self) -> u32 {
        self.got
    }

    /// How many are made, or with children.
    pub fn used(&self) -> u32 {
        self.got - self.left
    }
}

/// Tasks that a chain may go on for below its task number `depth`.
fn below(depth: usize) -> u32 {
    u32::try_from(CHAIN_MAX.saturating_sub(depth)).unwrap_or(0)
}

/// What the next attempt of a task gets that has so many left. `again`: another one may follow it
/// without saying what it has used.
pub fn for_attempt(left: u32, again: bool) -> u32 {
    let kept_back = if again { left / KEPT_BACK } else { 0 };
    left - kept_back
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Has every task of a tree make as many as it may, `wide` at most each; gives how many were made.
    fn grown(got: u32, depth: usize, wide: usize) -> u32 {
        let mut purse = Purse::new(got);
        let mut made = 0;
        for _ in 0..wide {
            let Some(share) = purse.take(depth + 1) else {
                break;
            };
            let below = grown(share, depth + 1, wide);
            made += 1 + below;
            purse.give_back(share - below);
        }
        made
    }

    #[test]
    fn a_fork_bomb_makes_no_more_than_a_root_may() {
        assert_eq!(grown(DESCENDANTS_MAX, 0, usize::MAX), DESCENDANTS_MAX);
        assert!(grown(DESCENDANTS_MAX, 0, 1) >= 5, "a chain");
    }

    /// Shares of `wide` children that are all there at a time.
    fn shared(got: u32, depth: usize, wide: usize) -> Option<Vec<u32>> {
        let mut purse = Purse::new(got);
        (0..wide).map(|_| purse.take(depth + 1)).collect()
    }

    /// Whether a tree fits all of whose tasks are there at a time: so many children by depth.
    fn fits(got: u32, depth: usize, shape: &[usize], again: bool) -> bool {
        let Some((wide, deeper)) = shape.split_first() else {
            return true;
        };
        let shares = shared(for_attempt(got, again), depth, *wide);
        shares.is_some_and(|shares| {
            let below = |share| fits(share, depth + 1, deeper, again);
            shares.into_iter().all(below)
        })
    }

    #[test]
    fn usual_trees_fit_also_while_all_of_them_are_there() {
        assert!(shared(DESCENDANTS_MAX, 0, 330).is_some(), "a wide fan");
        for (shape, again) in [
            (&[1, 1, 3][..], true),
            (&[1, 1, 1, 2], true),
            (&[2, 2, 2], true),
            (&[3, 3, 3], true),
            (&[10, 10], true),
        ] {
            assert!(fits(DESCENDANTS_MAX, 0, shape, again), "{shape:?} {again}");
        }
        // Ten times ten, where each may be run again.
        let root = shared(for_attempt(DESCENDANTS_MAX, true), 0, 10).unwrap();
        for share in root {
            let got = for_attempt(share, true);
            assert!(shared(got, 1, 10).is_some(), "{share}");
        }
    }

    proptest! {
        /// Whatever is taken and given back: what is with children and what is left is what there was.
        #[test]
        fn nothing_is_made_of_nothing(
            got in 0..=DESCENDANTS_MAX,
            turns in prop::collection::vec((0..10_usize, any::<bool>(), any::<u8>()), 0..300),
        ) {
            let mut purse = Purse::new(got);
            let mut out: Vec<u32> = Vec::new();
            let mut gone = 0;
            for (depth, takes, which) in turns {
                if takes {
                    match purse.take(depth) {
                        Some(share) => {
                            gone += 1;
                            out.push(share);
                        }
                        None => prop_assert_eq!(purse.left, 0),
                    }
                } else if !out.is_empty() {
                    let share = out.swap_remove(usize::from(which) % out.len());
                    let used = share / 2;
                    gone += used;
                    purse.give_back(share - used);
                }
                prop_assert_eq!(gone + out.iter().sum::<u32>() + purse.left, got);
                prop_assert!(purse.shares <= purse.left);
            }
        }
    }
}
