//! Where every content is that somebody names, and which packs may go. Pure.

use std::collections::{BTreeMap, HashMap};

use super::hash::Hash;
use super::names::{Holder, Names};
use super::pack::Entry;

/// A pack is written anew when less than one part in so many of it is named: so the packs are at
/// most twice as large as what is named, and what is written again is less than what comes free.
const SPARSE: u64 = 2;
/// Where a content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) pack: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

/// How much of a pack is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stand {
    /// Bytes of its contents.
    bytes: u64,
    /// Bytes of those that are named, and have no newer copy.
    live: u64,
    /// It could not be written anew: not tried again before the next start.
    stays: bool,
}

/// All packs, and who names what is in them.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    spots: HashMap<Hash, Spot>,
    packs: BTreeMap<u64, Stand>,
    names: Names,
    /// Bytes of `spots`.
    live: u64,
    /// Bytes of `packs`.
    disk: u64,
    /// A pack that holds less is not worth the work, and goes with the last of its contents.
    worth: u64,
    /// Everybody who names something has said so: what nobody does may go.
    settled: bool,
    /// Something may go since it was last looked for.
    untidy: bool,
}

impl Shelf {
    /// An empty one; a pack of fewer bytes than `worth` is not written anew.
    pub(super) fn new(worth: u64) -> Self {
        Self {
            worth,
            ..Self::default()
        }
    }

    /// A pack is on disk. What somebody names of it is there from here on.
    pub(super) fn add(&mut self, pack: u64, entries: &[Entry]) {
        let bytes = entries.iter().map(|entry| u64::from(entry.len)).sum();
        let stand = Stand {
            bytes,
            ..Stand::default()
        };
        self.packs.insert(pack, stand);
        self.disk += bytes;
        self.untidy = true;
        for entry in entries {
            if self.settled && !self.names.named(entry.hash) {
                continue;
            }
            let spot = Spot {
                pack,
                offset: entry.offset,
                len: entry.len,
            };
            self.forget(entry.hash);
            self.spots.insert(entry.hash, spot);
            self.live += u64::from(entry.len);
            if let Some(stand) = self.packs.get_mut(&pack) {
                stand.live += u64::from(entry.len);
            }
        }
    }

    /// From here on `holder` names it.
    pub(super) fn hold(&mut self, holder: Holder, hash: Hash) {
        self.names.hold(holder, hash);
    }

    /// `holder` names nothing any more; what nobody does is forgotten. How many those are.
    pub(super) fn let_go(&mut self, holder: Holder) -> usize {
        let free = self.names.let_go(holder);
        if !self.settled {
            return 0;
        }
        let gone = free.into_iter().filter(|hash| self.forget(*hash));
        gone.count()
    }

    /// Whoever is to name something has: what nobody does is forgotten. How many those are.
    pub(super) fn settle(&mut self) -> usize {
        (self.settled, self.untidy) = (true, true);
        let unnamed = self.spots.keys().filter(|hash| !self.names.named(**hash));
        let unnamed: Vec<Hash> = unnamed.copied().collect();
        let gone = unnamed.iter().filter(|hash| self.forget(**hash));
        gone.count()
    }

    /// Whether somebody names it.
    pub(super) fn named(&self, hash: Hash) -> bool {
        self.names.named(hash)
    }

    /// Where it is.
    pub(super) fn find(&self, hash: Hash) -> Option<Spot> {
        self.spots.get(&hash).copied()
    }

    /// Whether there may be anything to do; asked again it is not, until something has changed.
    pub(super) fn untidy(&mut self) -> bool {
        self.settled && std::mem::take(&mut self.untidy)
    }

    /// Something was done, there may be more.
    pub(super) fn look_again(&mut self) {
        self.untidy = true;
    }

    /// A pack of which nothing is needed.
    pub(super) fn needless(&self) -> Option<u64> {
        let mut packs = self.packs.iter();
        let found = packs.find(|(_, stand)| stand.live == 0);
        found.map(|(pack, _)| *pack)
    }

    /// A pack of which little is needed, and what that is.
    pub(super) fn sparse(&self) -> Option<(u64, Vec<(Hash, Spot)>)> {
        let mut packs = self.packs.iter();
        let (pack, _) = packs.find(|(_, stand)| {
            !stand.stays && stand.bytes > self.worth && stand.live * SPARSE < stand.bytes
        })?;
        let needed = self.spots.iter().filter(|(_, spot)| spot.pack == *pack);
        let mut needed: Vec<_> = needed.map(|(hash, spot)| (*hash, *spot)).collect();
        // The same each time, whatever the hashes: a simulation has to end as it did before.
        needed.sort_unstable_by_key(|(_, spot)| spot.offset);
        Some((*pack, needed))
    }

    /// The pack cannot be written anew.
    pub(super) fn stays(&mut self, pack: u64) {
        if let Some(stand) = self.packs.get_mut(&pack) {
            stand.stays = true;
        }
    }

    /// The pack is gone.
    pub(super) fn removed(&mut self, pack: u64) {
        let gone = self.packs.remove(&pack).unwrap_or_default();
        self.disk -= gone.bytes;
    }

    /// Contents that are named and there, their bytes, and those of all packs.
    pub(super) fn sums(&self) -> (usize, u64, u64) {
        (self.spots.len(), self.live, self.disk)
    }

    /// Bytes of all packs.
    pub(super) fn disk(&self) -> u64 {
        self.disk
    }

    fn forget(&mut self, hash: Hash) -> bool {
        let Some(spot) = self.spots.remove(&hash) else {
            return false;
        };
        self.live -= u64::from(spot.len);
        self.untidy = true;
        if let Some(stand) = self.packs.get_mut(&spot.pack) {
            stand.live -= u64::from(spot.len);
        }
        true
    }
}
