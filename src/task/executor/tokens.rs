//! Parent tokens: what a running handler shows when it submits children, and who hears when one is
//! over, since its children go with it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::time::{Instant, timeout_at};

use crate::domain::{Fault, Reason};
use crate::runtime::watch;
use crate::task::descendants::{Given, Purse, Wanted, Wants};
use crate::task::doors::{Parent, descendants_exhausted};

/// Tokens that are over and not heard of by everybody yet; who is further behind asks for each.
const OVER: usize = 1024;
/// Where nothing else is said, who waits for more does so to the end of the attempt: no longer than
/// this.
const ATTEMPT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// The tokens of all attempts whose handlers run and are wanted.
#[derive(Debug)]
pub(super) struct Tokens {
    lent: Mutex<HashMap<String, Lent>>,
    /// What attempts that are over have left to their detached children; never locked before `lent`.
    left: Mutex<HashMap<String, Estate>>,
    over: broadcast::Sender<Arc<str>>,
}

#[derive(Debug)]
struct Lent {
    parent: Parent,
    /// It was shown: there may be children.
    shown: bool,
    /// Tasks that may still be made below.
    purse: Purse,
    /// Detached children that have not ended.
    detached: usize,
    /// Moves when more is wanted than its home has answered.
    asks: watch::Sender<()>,
    /// Moves when its home answers, or some come back.
    comes: watch::Sender<()>,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self {
            lent: Mutex::default(),
            left: Mutex::default(),
            over: broadcast::Sender::new(OVER),
        }
    }

    /// From now on who shows `token` speaks for `parent`, and may have made below it what is in the
    /// purse. Moves when more is wanted than that.
    pub(super) fn lend(&self, token: String, parent: Parent, purse: Purse) -> watch::Receiver<()> {
        let lent = Lent {
            parent,
            shown: false,
            purse,
            detached: 0,
            asks: watch::Sender::new(()),
            comes: watch::Sender::new(()),
        };
        let asks = lent.asks.subscribe();
        self.lent.lock().insert(token, lent);
        asks
    }

    /// Takes up to so many of what is in hand.
    ///
    /// # Errors
    /// PARENT_TOKEN_INVALID.
    pub(super) fn take(&self, token: &str, most: u32) -> Result<u32, Fault> {
        let mut lent = self.lent.lock();
        let found = lent.get_mut(token).ok_or_else(over)?;
        Ok(found.purse.take(most))
    }

    /// The same, waiting until there is one; no longer than `within`.
    ///
    /// # Errors
    /// PARENT_TOKEN_INVALID, DESCENDANTS_EXHAUSTED, HOME_UNAVAILABLE.
    pub(super) async fn draw(
        &self,
        token: &str,
        count: u32,
        within: Option<Duration>,
    ) -> Result<u32, Fault> {
        let until = Instant::now() + within.unwrap_or(ATTEMPT_MAX);
        let mut asking = Asking {
            tokens: self,
            token,
            count,
            turn: 0,
        };
        loop {
            let mut comes = match asking.look()? {
                Look::Taken(taken) => return Ok(taken),
                Look::Waits(comes) => comes,
            };
            // An error means that the token is over, which the next look finds.
            if timeout_at(until, comes.changed()).await.is_err() {
                return Err(silent());
            }
        }
    }

    /// So many were not needed.
    pub(super) fn give_back(&self, token: &str, count: u32) {
        if let Some(lent) = self.lent.lock().get_mut(token) {
            lent.purse.give_back(count);
            lent.comes.send_replace(());
        } else if let Some(estate) = self.left.lock().get_mut(token) {
            estate.in_hand += count;
        }
    }

    /// A detached child was made.
    pub(super) fn keep_for(&self, token: &str) {
        if let Some(lent) = self.lent.lock().get_mut(token) {
            lent.detached += 1;
            if lent.purse.reserve() {
                lent.asks.send_replace(());
            }
        }
    }

    /// One of those has ended; what is left after the last one stays used up.
    pub(super) fn let_go(&self, token: &str) {
        if let Some(lent) = self.lent.lock().get_mut(token) {
            lent.detached = lent.detached.saturating_sub(1);
            return;
        }
        let mut left = self.left.lock();
        if let Some(estate) = left.get_mut(token) {
            estate.children = estate.children.saturating_sub(1);
            if estate.children == 0 {
                left.remove(token);
            }
        }
    }

    /// What the attempt's home has not answered yet.
    pub(super) fn wants(&self, token: &str) -> Option<Wants> {
        self.lent.lock().get(token)?.purse.wants()
    }

    /// The attempt's home has answered.
    pub(super) fn given(&self, token: &str, given: Given) {
        if let Some(lent) = self.lent.lock().get_mut(token) {
            lent.purse.given(given);
            lent.comes.send_replace(());
        }
    }

    /// How many more may be made in the tree, as far as is known here.
    pub(super) fn left(&self, token: &str) -> u32 {
        let lent = self.lent.lock();
        lent.get(token).map_or(0, |lent| lent.purse.left())
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
        let mut lent = self.lent.lock();
        let mut ended = lent.remove(token)?;
        if ended.detached > 0 {
            let estate = Estate {
                in_hand: ended.purse.close(),
                children: ended.detached,
            };
            self.left.lock().insert(token.to_owned(), estate);
        }
        drop(lent);
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

/// What an attempt that is over has left to its detached children.
#[derive(Debug)]
struct Estate {
    in_hand: u32,
    children: usize,
}

/// Somebody who waits for tasks that may be made.
struct Asking<'a> {
    tokens: &'a Tokens,
    token: &'a str,
    count: u32,
    /// Of the asking whose answer it waits for; 0: none yet.
    turn: u64,
}

enum Look {
    Taken(u32),
    /// Until this moves.
    Waits(watch::Receiver<()>),
}

impl Asking<'_> {
    fn look(&mut self) -> Result<Look, Fault> {
        let mut lent = self.tokens.lent.lock();
        let Some(found) = lent.get_mut(self.token) else {
            return self.look_back();
        };
        let taken = found.purse.take(self.count);
        if taken > 0 {
            return Ok(Look::Taken(taken));
        }
        match found.purse.want(self.count, self.turn) {
            Wanted::Exhausted => Err(descendants_exhausted()),
            Wanted::Waits(turn) => {
                if std::mem::replace(&mut self.turn, turn) != turn {
                    found.asks.send_replace(());
                }
                Ok(Look::Waits(found.comes.subscribe()))
            }
        }
    }
}

impl Asking<'_> {
    /// The attempt is over: what it has left is all that there is.
    fn look_back(&self) -> Result<Look, Fault> {
        let mut left = self.tokens.left.lock();
        let estate = left.get_mut(self.token).ok_or_else(over)?;
        let taken = self.count.min(estate.in_hand);
        if taken == 0 {
            return Err(descendants_exhausted());
        }
        estate.in_hand -= taken;
        Ok(Look::Taken(taken))
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.turn > 0
            && let Some(lent) = self.tokens.lent.lock().get_mut(self.token)
        {
            lent.purse.leave(self.count);
        }
    }
}

fn over() -> Fault {
    let text = "the attempt that parent_token names is over";
    Fault::new(Reason::ParentTokenInvalid, text)
}

fn silent() -> Fault {
    let text = "the homes of the tasks above, which count how many are made in a tree, do not answer: try again in a moment";
    Fault::new(Reason::HomeUnavailable, text)
}
