//! What was said on a stream, so that what is heard can be held against it: all of it, once, in order.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::h2::connection::Role;

/// Messages that were sent and have not come yet, by their sums.
#[derive(Debug, Default)]
pub(in crate::task::simulation) struct Said {
    forth: Mutex<VecDeque<u64>>,
    back: Mutex<VecDeque<u64>>,
    slow: AtomicBool,
    taken: AtomicBool,
}

impl Said {
    /// What the end in this role sends.
    fn by(&self, role: Role) -> &Mutex<VecDeque<u64>> {
        match role {
            Role::Client => &self.forth,
            Role::Server => &self.back,
        }
    }

    /// One of its messages is read late.
    pub(super) fn slows(&self) {
        self.slow.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    /// The services have the call.
    pub(super) fn takes(&self) {
        self.taken.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }

    /// A message goes.
    pub(super) fn says(&self, role: Role, message: &[u8]) {
        self.by(role).lock().push_back(sum(message));
    }

    /// A message has come at the end in this role; whether it is the one that has to.
    pub(super) fn hears(&self, role: Role, message: &[u8]) -> bool {
        self.by(other(role)).lock().pop_front() == Some(sum(message))
    }

    /// Whether everything has come at the end in this role.
    pub(super) fn all_heard(&self, role: Role) -> bool {
        self.by(other(role)).lock().is_empty()
    }
}

fn other(role: Role) -> Role {
    match role {
        Role::Client => Role::Server,
        Role::Server => Role::Client,
    }
}

fn sum(message: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    message.hash(&mut hasher);
    hasher.finish()
}
