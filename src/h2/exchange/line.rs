//! A connection's place at the exchange, and what its driver does with it.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{Exchange, GivenBack, Policy, Target, queue::Queue};
use crate::h2::{
    connection::{Config, Connection, Role, Share},
    frame,
    slab::Key,
    wheel::Timer,
};

/// Who is at the other end.
#[derive(Debug)]
pub(super) enum Far<Peer> {
    /// Somebody who calls.
    Caller {
        peer: Peer,
        /// Its pipe to our own services, once it was needed.
        local: Option<Key>,
    },
    /// Somebody who answers.
    Answering(Destination),
}

/// Where a line leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To a target of the policy's.
    Target(Target),
    /// To our own services, for the calls of this line alone: its peer is who calls.
    Local {
        /// The caller's line.
        caller: Key,
    },
}

/// A connection to be made: then [`Exchange::connected`], or [`Exchange::closed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dial {
    /// The line it will be.
    pub line: Key,
    /// Where to.
    pub to: Destination,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Line<Peer> {
    pub(super) connection: Connection,
    pub(super) far: Far<Peer>,
    /// Whose share the calls from here have of other lines.
    pub(super) share: Share,
    /// There is a connection: only then do its deadlines run.
    pub(super) connected: bool,
    /// It came to life: whatever fails from then on is not a failure to connect.
    pub(super) greeted: bool,
    /// Calls with something parked for it, in turn.
    pub(super) ready: VecDeque<Key>,
    /// Calls that wait for a stream on it.
    pub(super) waiting: Queue,
    pub(super) due: Option<(Instant, Timer)>,
    pub(super) dirty: bool,
}

impl<Peer> Line<Peer> {
    pub(super) fn new(connection: Connection, far: Far<Peer>, connected: bool) -> Self {
        Self {
            connection,
            far,
            share: Share::ONLY,
            connected,
            greeted: false,
            ready: VecDeque::new(),
            waiting: Queue::default(),
            due: None,
            dirty: false,
        }
    }

    /// Whose share of its streams a caller's call takes: a pipe to our own services is one caller's.
    pub(super) fn share_of(&self, caller: Share) -> Share {
        match self.far {
            Far::Answering(Destination::Local { .. }) => Share::ONLY,
            Far::Answering(Destination::Target(_)) | Far::Caller { .. } => caller,
        }
    }
}

impl<P: Policy> Exchange<P> {
    /// Somebody who calls has connected. What it is sent first is in its output.
    pub fn accept(&mut self, peer: P::Peer, config: Config, now: Instant) -> Key {
        let caller = self.policy.caller(&peer);
        let far = Far::Caller { peer, local: None };
        let line = Line::new(Connection::new(config, now), far, true);
        let key = self.lines.insert(line);
        if let Some(place) = self.lines.get_mut(key) {
            place.share = caller.map_or_else(|| Share::of_line(key), Share::of_name);
        }
        self.arm_line(key);
        key
    }

    /// Who calls on this line.
    pub fn peer(&self, line: Key) -> Option<&P::Peer> {
        match &self.lines.get(line)?.far {
            Far::Caller { peer, .. } => Some(peer),
            Far::Answering(_) => None,
        }
    }

    /// A connection that was dialed is there.
    pub fn connected(&mut self, line: Key, now: Instant) {
        if let Some(place) = self.lines.get_mut(line) {
            place.connected = true;
            place.connection.begin(now);
            self.arm_line(line);
        }
    }

    /// A connection to be made; ask until there is none.
    pub fn next_dial(&mut self) -> Option<Dial> {
        self.dials.pop()
    }

    /// Moves the lines whose drivers are to be woken to `into`.
    pub fn take_dirty(&mut self, into: &mut Vec<Key>) {
        into.append(&mut self.dirty);
    }

    /// Whether the driver should read on.
    pub fn wants_input(&self, line: Key) -> bool {
        let line = self.lines.get(line);
        line.is_some_and(|line| line.connection.wants_input())
    }

    /// Whether the line is through: write what is there, close it, and say [`Self::closed`].
    pub fn over(&self, line: Key) -> bool {
        let line = self.lines.get(line);
        line.is_none_or(|line| line.connection.over())
    }

    /// The rule that the peer of a line has broken, for which it was ended.
    pub fn failed(&self, line: Key) -> Option<frame::Error> {
        self.lines.get(line)?.connection.failed()
    }

    /// Bytes for a line that were not written yet.
    pub fn backlog(&self, line: Key) -> usize {
        let line = self.lines.get(line);
        line.map_or(0, |line| line.connection.backlog())
    }

    /// Takes what is to be written, into an empty buffer. `false` where there is nothing.
    pub fn take_output(&mut self, line: Key, into: &mut Vec<u8>, now: Instant) -> bool {
        let Some(place) = self.lines.get_mut(line) else {
            return false;
        };
        place.dirty = false;
        if !place.connection.has_output() {
            return false;
        }
        place.connection.take_output(into, now);
        self.arm_line(line);
        true
    }

    /// So many bytes of what was taken are written: what is parked may follow.
    pub fn written(&mut self, line: Key, bytes: usize, now: Instant) {
        let Some(place) = self.lines.get_mut(line) else {
            return;
        };
        place.connection.written(bytes, now);
        if !place.ready.is_empty() {
            self.current = Some(line);
            self.stir(line);
            self.settle(now);
            self.current = None;
        }
    }

    /// Takes no new calls from this line, or gives it none; it is over with the last one.
    pub fn drain(&mut self, line: Key, now: Instant) {
        let Some(place) = self.lines.get_mut(line) else {
            return;
        };
        place.connection.drain(now);
        let waiting = match place.connection.role() {
            // No stream will be opened for them here any more.
            Role::Client => std::mem::take(&mut place.waiting),
            Role::Server => Queue::default(),
        };
        self.touch(line);
        self.arm_line(line);
        if !waiting.is_empty() {
            self.forget(line);
        }
        self.wait_elsewhere(waiting, line, GivenBack::Unprocessed, now);
    }

    /// Drains the lines of all callers. Lines to those who answer stay: calls that are open, or
    /// under way, still need them.
    pub fn drain_all(&mut self, now: Instant) {
        let lines = self.lines.iter();
        let callers = lines.filter(|(_, line)| matches!(line.far, Far::Caller { .. }));
        let callers: Vec<Key> = callers.map(|(key, _)| key).collect();
        for line in callers {
            self.drain(line, now);
        }
    }
}
