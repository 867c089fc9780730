//! Which streams there are, and which there were.
//!
//! Owns identifiers: whose turn it is, what is open, and a bounded memory of streams that we have
//! reset, whose frames may still be under way. Any other stream that ended is forgotten.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

use tokio::time::Instant;

use super::{
    Role,
    share::{Held, Share},
};
use crate::h2::{
    frame::MAX_STREAM,
    slab::{Key, Slab},
    stream::State,
    window::{ReceiveWindow, SendWindow},
};

/// Resets that are remembered: as many as a peer with all of its streams open can have under way.
const RESETS: usize = 1024;

/// One open stream.
#[derive(Debug)]
pub struct Stream {
    /// Its identifier.
    pub id: u32,
    /// How far both messages are.
    pub state: State,
    /// When it was opened.
    pub opened: Instant,
    /// What its owner calls it; `None` too where nobody wants it any longer.
    pub call: Option<Key>,
    /// Whose it is.
    pub(super) share: Share,
    /// What we may send.
    pub send: SendWindow,
    /// What the peer may send.
    pub receive: ReceiveWindow,
    /// Bytes of DATA still to come, where `content-length` says so.
    pub(super) length: Option<u64>,
    /// The answer to HEAD has no body, whatever its `content-length` says.
    pub(super) head_only: bool,
}

/// Where an identifier stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// Open.
    Open(Key),
    /// Never opened.
    Idle,
    /// We have reset it: frames of it may be under way.
    Reset,
    /// It has ended, the peer has reset it, or we have long ago.
    Ended,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Streams {
    role: Role,
    open: Slab<Stream>,
    ids: HashMap<u32, Key, BuildHasherDefault<IdHasher>>,
    held: Held,
    /// The last that the peer has opened.
    last: u32,
    /// The next that we open.
    next: u32,
    resets: VecDeque<u32>,
}

impl Streams {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            open: Slab::default(),
            ids: HashMap::default(),
            held: Held::default(),
            last: 0,
            next: 1,
            resets: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// How many are open of this one's.
    #[inline]
    pub(super) fn held(&self, share: Share) -> usize {
        self.held.of(share)
    }

    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<&Stream> {
        self.open.get(key)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Stream> {
        self.open.get_mut(key)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.open.values_mut()
    }

    pub(super) fn calls(&self) -> impl Iterator<Item = Key> {
        self.open.iter().filter_map(|(_, stream)| stream.call)
    }

    /// Open streams of ours above `last`.
    pub(super) fn above(&self, last: u32) -> impl Iterator<Item = Key> {
        let streams = self.open.iter();
        streams.filter_map(move |(key, stream)| (stream.id > last).then_some(key))
    }

    #[inline]
    pub(super) fn find(&self, id: u32) -> Whereabouts {
        if let Some(key) = self.ids.get(&id) {
            return Whereabouts::Open(*key);
        }
        let idle = match self.role {
            Role::Server => id > self.last,
            Role::Client => id >= self.next,
        };
        if idle || id.is_multiple_of(2) {
            Whereabouts::Idle
        } else if self.resets.contains(&id) {
            Whereabouts::Reset
        } else {
            Whereabouts::Ended
        }
    }

    /// The last stream that the peer has opened.
    pub(super) fn last_of_peer(&self) -> u32 {
        self.last
    }

    /// The peer used this identifier, whatever becomes of the stream.
    pub(super) fn seen(&mut self, id: u32) {
        self.last = self.last.max(id);
    }

    /// Whether identifiers of ours are left.
    pub(super) fn exhausted(&self) -> bool {
        self.next > MAX_STREAM
    }

    /// The identifier for the next stream of ours.
    pub(super) fn next(&mut self) -> u32 {
        let id = self.next;
        self.next += 2;
        id
    }

    pub(super) fn insert(&mut self, stream: Stream) -> Key {
        let id = stream.id;
        self.held.add(stream.share);
        let key = self.open.insert(stream);
        self.ids.insert(id, key);
        key
    }

    /// The stream has ended, or is given up without a frame.
    pub(super) fn remove(&mut self, key: Key) -> Option<Stream> {
        let stream = self.open.remove(key)?;
        self.ids.remove(&stream.id);
        self.held.remove(stream.share);
        Some(stream)
    }

    /// RST_STREAM was sent.
    pub(super) fn remember_reset(&mut self, id: u32) {
        if self.resets.len() == RESETS {
            self.resets.pop_front();
        }
        self.resets.push_back(id);
    }
}

/// 2^64 by the golden ratio: the factor of Fibonacci hashing.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Identifiers are small and the peer's choice only by their order: one multiplication spreads
/// them, and no choice of odd numbers makes a table of at most 1,024 slow.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(SPREAD);
        }
    }

    #[inline]
    fn write_u32(&mut self, id: u32) {
        self.0 = u64::from(id).wrapping_mul(SPREAD);
    }
}
