//! Parent tokens: what a running handler shows when it submits children, and who hears when one is
//! over, since its children go with it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::broadcast;

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
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self {
            lent: Mutex::default(),
            over: broadcast::Sender::new(OVER),
        }
    }

    /// From now on who shows `token` speaks for `parent`.
    pub(super) fn lend(&self, token: String, parent: Parent) {
        let shown = false;
        self.lent.lock().insert(token, Lent { parent, shown });
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

    /// The token speaks for nobody any more. May be said twice.
    pub(super) fn end(&self, token: &str) {
        let ended = self.lent.lock().remove(token);
        if ended.is_some_and(|lent| lent.shown) {
            // Nobody may listen.
            drop(self.over.send(token.into()));
        }
    }

    /// Tokens that were shown and are over from now on.
    pub(super) fn over(&self) -> broadcast::Receiver<Arc<str>> {
        self.over.subscribe()
    }
}
