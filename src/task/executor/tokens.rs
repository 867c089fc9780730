//! Parent tokens: what a running handler shows when it submits children, and who hears when one is
//! over, since its children go with it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::domain::{Fault, Reason};
use crate::task::descendants::{DESCENDANTS_MAX, Purse};
use crate::task::doors::Parent;

/// Tokens that are over and not heard of by everybody yet; who is further behind asks for each.
const OVER: usize = 1024;

/// The tokens of all attempts whose handlers run and are wanted.
#[derive(Debug)]
pub(super) struct Tokens {
    lent: Mutex<HashMap<String, Lent>>,
    over: broadcast::Sender<Arc<str>>,
}

#[derive(Debug)]
struct Lent {
    parent: Parent,
    /// It was shown: there may be children.
    shown: bool,
    /// Tasks that may still be made below.
    purse: Purse,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self {
            lent: Mutex::default(),
            over: broadcast::Sender::new(OVER),
        }
    }

    /// From now on who shows `token` speaks for `parent`, and may have so many tasks made below it.
    pub(super) fn lend(&self, token: String, parent: Parent, descendants: u32) {
        let lent = Lent {
            parent,
            shown: false,
            purse: Purse::new(descendants),
        };
        self.lent.lock().insert(token, lent);
    }

    /// Takes a child out of what may be made below; gives what that one may have made below itself.
    ///
    /// # Errors
    /// PARENT_TOKEN_INVALID, DESCENDANTS_EXHAUSTED.
    pub(super) fn take(&self, token: &str, depth: usize) -> Result<u32, Fault> {
        let mut lent = self.lent.lock();
        let found = lent.get_mut(token).ok_or_else(|| {
            let text = "the attempt that parent_token names is over";
            Fault::new(Reason::ParentTokenInvalid, text)
        })?;
        found.purse.take(depth).ok_or_else(|| {
            let got = found.purse.got();
            let text = format!(
                "no more tasks may be made below this one: it may have {got} at all depths (a root {DESCENDANTS_MAX}, a child a share of what its parent has left); do the work here, or wait for children to end, which gives back what they have not used"
            );
            Fault::new(Reason::DescendantsExhausted, text)
        })
    }

    /// So many were not needed.
    pub(super) fn give_back(&self, token: &str, count: u32) {
        if let Some(lent) = self.lent.lock().get_mut(token) {
            lent.purse.give_back(count);
        }
    }

    /// Tasks that were made below the token, or may yet be by those that were; 0: it is over.
    pub(super) fn used(&self, token: &str) -> u32 {
        let lent = self.lent.lock();
        lent.get(token).map_or(0, |lent| lent.purse.used())
    }

    /// Whom the token speaks for.
    pub(super) fn parent(&self, token: &str) -> Option<Parent> {
        let mut lent = self.lent.lock();
        let found = lent.get_mut(token)?;
        found.shown = true;
        Some(found.parent.clone())
    }

    /// Whether the token still speaks for anybody.
    pub(super) fn lives(&self, token: &str) -> bool {
        self.lent.lock().contains_key(token)
    }

    /// The token speaks for nobody any more. May be said twice; the first time it says how many
    /// tasks were made below it, or may yet be.
    pub(super) fn end(&self, token: &str) -> Option<u32> {
        let ended = self.lent.lock().remove(token)?;
        if ended.shown {
            // Nobody may listen.
            drop(self.over.send(token.into()));
        }
        Some(ended.purse.used())
    }

    /// Tokens that were shown and are over from now on.
    pub(super) fn over(&self) -> broadcast::Receiver<Arc<str>> {
        self.over.subscribe()
    }
}
