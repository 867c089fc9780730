//! What was sent before but is in no table yet.

/// A small memory of hashes. It forgets, and takes one for another once in four billion times: both
/// only make a block longer.
#[derive(Debug)]
pub(super) struct Seen {
    /// Parts of hashes, two to a set.
    marks: [[u32; 2]; SETS],
    /// Which one of a set is overwritten next, so that no two push each other out for ever.
    turn: usize,
}

const SETS: usize = 128;

impl Seen {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            marks: [[0; 2]; SETS],
            turn: 0,
        })
    }

    /// Whether it was seen before; now it is.
    pub(super) fn again(&mut self, hash: u64) -> bool {
        let [low, a, b, c, d, ..] = hash.to_le_bytes();
        let mark = u32::from_le_bytes([a, b, c, d]);
        let set = &mut self.marks[usize::from(low) % SETS];
        if set.contains(&mark) {
            return true;
        }
        self.turn = self.turn.wrapping_add(1);
        set[self.turn % 2] = mark;
        false
    }
}
