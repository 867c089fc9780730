//! How many tasks may be made below a root, and how what may be made gets to where it is.
//!
//! Pure. The root's home alone counts. Whoever makes a child takes it out of what its attempt has in
//! hand; where that is used up, the attempt asks its home for more, that home asks for its own parent's
//! attempt, and so on up to the root. Nothing is shared out beforehand, so that the tree may have any
//! shape; what is lost with a process stays used up.

use crate::pb;

use super::lineage::CHAIN_MAX;

/// Most tasks below a root, at all depths and by all attempts.
pub const DESCENDANTS_MAX: u32 = 1000;

/// What an attempt of a root gets with its Start: the first children cost nothing more.
pub const FIRST: u32 = 8;
/// Most that a root's attempt gets beyond what it asks for. All that is made in the tree is asked for
/// by way of it, so nobody else lacks what it has in hand; it is lost with its executor.
const AHEAD_MAX: u32 = 64;
/// What an attempt with detached children has in hand beyond what it needs, if there is so much: once
/// it has ended nobody can be asked for more.
pub const RESERVE: u32 = 8;
/// What an attempt whose home does not say what it may have gets on its own account, below a root and
/// at each further hop: such a home counts nothing, so each executor counts what is made below it.
const UNSAID: [u32; CHAIN_MAX] = [DESCENDANTS_MAX, 16, 8, 8, 8, 8, 8, 8];
/// Of what is left for a tree, so much is for single children while shares are given away.
const SINGLES: (u32, u32) = (3, 8);
/// Of the rest, a child for an executor that cannot ask for more gets this part as its share.
const SHARE: u32 = 10;
/// At least so many, while the rest lasts.
const SHARE_LEAST: u32 = 4;
/// Where another attempt may follow one that says nothing at its end, this part is kept back from it.
const KEPT_BACK: u32 = 8;

/// What an attempt asks its home for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    /// Number of the asking; only the newest counts.
    pub turn: u64,
    /// What it would have been given in all then.
    pub total: u32,
}

/// What its home answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Of the asking that is answered; those before it are, too.
    pub turn: u64,
    /// What the attempt has been given in all.
    pub total: u32,
    /// What is left for the tree, as far as is known.
    pub left: u32,
    /// What was asked for cannot be given now.
    pub exhausted: bool,
}

impl From<&pb::DescendantsGranted> for Given {
    fn from(granted: &pb::DescendantsGranted) -> Self {
        Self {
            turn: granted.turn,
            total: granted.total,
            left: granted.left,
            exhausted: granted.exhausted,
        }
    }
}

impl From<Given> for pb::DescendantsGranted {
    fn from(given: Given) -> Self {
        Self {
            turn: given.turn,
            total: given.total,
            left: given.left,
            exhausted: given.exhausted,
        }
    }
}

/// What came of wanting more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The answer to this asking is awaited.
    Waits(u64),
    /// There is none.
    Exhausted,
}

/// What one attempt may have made below it, while it runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Purse {
    /// Got in all.
    got: u32,
    in_hand: u32,
    /// For children that wait for it.
    awaited: u32,
    /// It is to have so many more in hand, for what outlives its attempt.
    reserve: u32,
    /// Its home gives more when asked.
    grows: bool,
    turn: u64,
    answered: u64,
    exhausted: u64,
    /// For the whole tree, as its home said; `None`: it has not said so.
    left: Option<u32>,
}

impl Purse {
    /// Of an attempt that got so many; `grows`: its home gives more.
    pub fn new(got: u32, grows: bool) -> Self {
        Self {
            got,
            in_hand: got,
            grows,
            ..Self::default()
        }
    }

    /// Takes up to so many of what is in hand.
    pub fn take(&mut self, most: u32) -> u32 {
        let taken = most.min(self.in_hand);
        self.in_hand -= taken;
        taken
    }

    /// So many that were taken were not needed.
    pub fn give_back(&mut self, count: u32) {
        self.in_hand += count.min(self.used());
    }

    /// Asks for so many more than are in hand, until [`Purse::leave`]. `before`: the asking whose
    /// answer was awaited so far; 0: none.
    pub fn want(&mut self, count: u32, before: u64) -> Wanted {
        let refused = before > 0 && before <= self.exhausted;
        if !self.grows || refused {
            return Wanted::Exhausted;
        }
        if before == 0 {
            self.awaited = self.awaited.saturating_add(count);
        }
        if before > self.answered {
            return Wanted::Waits(before);
        }
        // New, or somebody else has taken what came.
        self.turn += 1;
        Wanted::Waits(self.turn)
    }

    /// Something is made that may outlive the attempt: asks for [`RESERVE`]. Whether that is new.
    pub fn reserve(&mut self) -> bool {
        let new = self.grows && self.reserve == 0;
        if new {
            self.reserve = RESERVE;
            self.turn += 1;
        }
        new
    }

    /// Takes all that is in hand; what is left counts as used.
    pub fn close(&mut self) -> u32 {
        std::mem::take(&mut self.in_hand)
    }

    /// Who asked for so many waits no longer.
    pub fn leave(&mut self, count: u32) {
        self.awaited = self.awaited.saturating_sub(count);
    }

    /// What its home has not answered yet.
    pub fn wants(&self) -> Option<Wants> {
        let wanted = self.awaited.saturating_add(self.reserve);
        let short = wanted.saturating_sub(self.in_hand);
        (self.turn > self.answered).then(|| Wants {
            turn: self.turn,
            total: self.got.saturating_add(short),
        })
    }

    /// Its home has answered. An old answer takes nothing away.
    pub fn given(&mut self, given: Given) {
        let more = given.total.min(DESCENDANTS_MAX).saturating_sub(self.got);
        self.got += more;
        self.in_hand += more;
        if given.turn >= self.answered {
            self.answered = given.turn.min(self.turn);
            self.left = Some(given.left);
        }
        if given.exhausted {
            self.exhausted = self.exhausted.max(given.turn.min(self.turn));
        }
    }

    /// How many are made, or with children.
    pub fn used(&self) -> u32 {
        self.got - self.in_hand
    }

    /// What may still be made in the tree, as far as is known here.
    pub fn left(&self) -> u32 {
        let left = match self.left {
            Some(left) => left,
            // What was given beforehand is all that there is.
            None if !self.grows || self.got > FIRST => 0,
            None => DESCENDANTS_MAX,
        };
        left.max(self.in_hand)
    }
}

/// What an attempt may have made below it where its home does not say; it came by so many hops.
pub fn unsaid(depth: usize) -> u32 {
    UNSAID.get(depth).copied().unwrap_or(0)
}

/// What a root's attempt gets that asks for `short` more than the `got` that it has; `left`: for the
/// tree. The more it has made the more it gets ahead.
pub fn lot(short: u32, got: u32, left: u32) -> u32 {
    short.max(got.min(AHEAD_MAX)).min(left)
}

/// What a child gets for what is made below itself, where its executor cannot ask for more and so many
/// are left for the tree.
pub fn share(left: u32) -> u32 {
    let rest = left.saturating_sub(DESCENDANTS_MAX * SINGLES.0 / SINGLES.1);
    (rest / SHARE).max(SHARE_LEAST).min(rest)
}

/// What the next attempt of a task gets that has so many left, where its executor cannot ask for more.
/// `again`: another one may follow it without saying what it has used.
pub fn for_attempt(left: u32, again: bool) -> u32 {
    let kept_back = if again { left / KEPT_BACK } else { 0 };
    left - kept_back
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn waits(wanted: Wanted) -> u64 {
        match wanted {
            Wanted::Waits(turn) => turn,
            Wanted::Exhausted => panic!("exhausted"),
        }
    }

    #[test]
    fn who_has_none_asks_and_hears() {
        let mut purse = Purse::new(1, true);
        assert_eq!(purse.take(2), 1);
        let first = waits(purse.want(1, 0));
        let second = waits(purse.want(3, 0));
        let asked = Wants { turn: 2, total: 5 };
        assert_eq!(purse.wants(), Some(asked));
        let given = |turn, total, exhausted| Given {
            turn,
            total,
            left: 7,
            exhausted,
        };
        purse.given(given(1, 2, false));
        assert_eq!(purse.wants(), Some(asked), "the rest");
        // Somebody else takes it: who asked first asks again.
        assert_eq!(purse.take(1), 1);
        let again = waits(purse.want(1, first));
        assert_eq!(again, 3);
        purse.given(given(3, 4, true));
        assert_eq!(purse.take(2), 2);
        assert_eq!(purse.want(1, again), Wanted::Exhausted);
        assert_eq!(purse.want(3, second), Wanted::Exhausted);
        assert_eq!((purse.used(), purse.left(), purse.wants()), (4, 7, None));
        purse.leave(1);
        purse.leave(3);
        // Who comes later asks anew: some may have come back.
        assert_eq!(waits(purse.want(1, 0)), 4);
        assert_eq!(purse.wants(), Some(Wants { turn: 4, total: 5 }));
        assert_eq!(Purse::new(0, false).want(1, 0), Wanted::Exhausted);
    }

    #[test]
    fn a_root_gets_ahead_as_it_makes_more_and_never_more_than_is_left() {
        assert_eq!(lot(1, 8, 992), 8);
        assert_eq!(lot(1, 500, 400), AHEAD_MAX);
        assert_eq!(lot(300, 8, 992), 300);
        assert_eq!(lot(3, 500, 2), 2);
        assert_eq!(lot(1, 8, 0), 0);
    }

    #[test]
    fn shares_leave_room_for_a_wide_fan() {
        let (mut left, mut wide) = (DESCENDANTS_MAX, 0);
        while left > 0 {
            left -= 1;
            left -= share(left);
            wide += 1;
        }
        assert!(wide > 375, "{wide}");
        assert!(share(DESCENDANTS_MAX) >= 11, "ten times ten");
        // So it is for an attempt that was given all there is, whether it may ask or not.
        for grows in [false, true] {
            let mut purse = Purse::new(DESCENDANTS_MAX, grows);
            let fan = (0..).take_while(|_| purse.take(1 + share(purse.left())) > 0);
            let fan = fan.count();
            assert!(fan > 375, "{grows}: {fan}");
            assert_eq!(Purse::new(FIRST, grows).left() > FIRST, grows);
        }
        assert_eq!((unsaid(0), unsaid(7), unsaid(8)), (DESCENDANTS_MAX, 8, 0));
    }

    proptest! {
        /// Whatever is taken, given back, asked and answered, in whatever order: what was taken and
        /// what is in hand is what was given.
        #[test]
        fn nothing_is_made_of_nothing(
            turns in prop::collection::vec((0..5_u8, 0..20_u32, 0..8_u64), 0..300),
        ) {
            let mut purse = Purse::new(3, true);
            let (mut given, mut taken) = (3, 0);
            for (turn, count, number) in turns {
                match turn {
                    0 => taken += purse.take(count),
                    1 => {
                        purse.give_back(count);
                        taken -= count.min(taken);
                    }
                    2 => {
                        purse.want(count, 0);
                    }
                    3 => purse.leave(count),
                    _ => {
                        let total = count * 10;
                        given = given.max(total);
                        purse.given(Given { turn: number, total, left: 0, exhausted: false });
                    }
                }
                prop_assert_eq!(purse.used(), taken);
                prop_assert_eq!(purse.used() + purse.in_hand, given);
                prop_assert!(purse.wants().is_none_or(|wants| wants.total >= given));
            }
        }
    }
}
