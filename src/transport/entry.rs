//! One target's connection: dialled once for all who wait, replaced before it is too old.
//!
//! ```text
//! empty --dial--> linked --old, outdated--> linked and dialling --> linked (the old one drains)
//!   ^                |
//!   '---- idle, closed, spent
//! ```

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::uri::Authority;
use hyper::client::conn::http2::SendRequest;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use crate::domain::Fault;
use crate::domain::Reason;
use crate::identity::Peer;
use crate::runtime::clock::wall;
use crate::telemetry::metrics::pool::{Close, Dial};
use crate::transport::alive::{Alive, Fate, is_bad, mark};
use crate::transport::dial::{Dialed, Owner, Wrap, dial, speak};
use crate::transport::error::{DialError, fault_of};
use crate::transport::lifetime::around;
use crate::transport::pool::{Inner, SWEEP, Target};
use crate::transport::redial::Redial;
use crate::transport::replay::Replay;

/// A connection without calls for this long (give or take a tenth) is closed.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// A server's certificate that ends this soon calls for a new connection; one with less than two
/// such margins left is used for half of that.
const EXPIRY: Duration = Duration::from_secs(60);
/// Time between two replacements, however soon a certificate ends.
const REPLACE_LEAST: Duration = Duration::from_millis(250);
/// Rounds of waiting for somebody's dial before giving up.
const ROUNDS: usize = 3;

/// One target and its connection.
#[derive(Debug)]
pub(super) struct Entry {
    target: Arc<Target>,
    state: Mutex<State>,
}

/// A connection to send on. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) sender: SendRequest<Replay>,
    pub(super) authority: Authority,
    pub(super) secure: bool,
    spent: Arc<AtomicBool>,
    fate: Fate,
}

/// When and with what a connection was made.
#[derive(Clone, Copy, Debug)]
struct Made {
    retire: Instant,
    /// How long it may be without calls.
    idle: Duration,
    secure: bool,
    credentials: u64,
}

type Outcome = Option<Result<(), Fault>>;

#[derive(Debug)]
struct State {
    link: Option<Link>,
    made: Option<Made>,
    dialing: Option<watch::Receiver<Outcome>>,
    redial: Redial,
    /// What was wrong last, and until when nobody dials for it.
    failed: Option<(Instant, Fault)>,
    last_used: Instant,
    /// Connections whose sockets are open, the draining ones too.
    alive: Vec<Weak<Alive>>,
}

impl Link {
    /// Whether new calls can go on it.
    pub(super) fn usable(&self) -> bool {
        !self.spent.load(Ordering::Relaxed) && !self.sender.is_closed()
    }

    /// The peer takes no more calls on it.
    pub(super) fn spend(&self) {
        self.spent.store(true, Ordering::Relaxed);
    }

    /// A connection that was just made.
    pub(super) fn new(dialed: Dialed<SendRequest<Replay>>, fate: Fate, secure: bool) -> Self {
        Self {
            sender: dialed.link,
            authority: dialed.authority,
            secure,
            spent: Arc::default(),
            fate,
        }
    }
}

impl Entry {
    pub(super) fn new(target: Arc<Target>, now: Instant) -> Self {
        Self {
            target,
            state: Mutex::new(State {
                link: None,
                made: None,
                dialing: None,
                redial: Redial::new(),
                failed: None,
                last_used: now,
                alive: Vec::new(),
            }),
        }
    }

    pub(super) fn last_used(&self) -> Instant {
        self.state.lock().last_used
    }

    /// The connection, after a dial if there is none.
    pub(super) async fn link(self: &Arc<Self>, pool: &Arc<Inner>) -> Result<Link, Fault> {
        for _ in 0..ROUNDS {
            let mut waiting = match self.look(pool, Instant::now())? {
                Found::Link(link) => return Ok(link),
                Found::Dialing(waiting) => waiting,
            };
            let outcome = waiting.wait_for(Option::is_some).await;
            match outcome.map(|outcome| outcome.clone()) {
                Ok(Some(Err(fault))) => return Err(fault),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        let text = "the peer closes every connection at once; nothing was sent";
        Err(Fault::new(Reason::PeerUnreachable, text))
    }

    /// Replaces or closes the connection where it is time to; whether a dial was started.
    pub(super) fn tend(self: &Arc<Self>, pool: &Arc<Inner>, now: Instant) -> bool {
        let mut state = self.state.lock();
        state.alive.retain(|alive| alive.strong_count() > 0);
        state.let_go(now);
        let outdated = state.outdated(pool, now);
        let verdict = care(Condition {
            linked: state.link.is_some(),
            draining: !state.alive.is_empty(),
            idle: (state.made).is_some_and(|made| now >= state.last_used + made.idle),
            outdated,
        });
        match verdict {
            Care::Keep => false,
            Care::Close => {
                state.close(Close::Idle);
                state.redial.left(now);
                false
            }
            Care::Replace => self.redial(&mut state, pool, now),
        }
    }

    /// Takes no more calls on the connection; without its sender it ends after those that run.
    pub(super) fn close(&self, cause: Close) {
        self.state.lock().close(cause);
    }

    /// Whether nothing is left to look after.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let state = self.state.lock();
        state.link.is_none()
            && state.dialing.is_none()
            && state.alive.iter().all(|alive| alive.strong_count() == 0)
            && state.failed.as_ref().is_none_or(|(until, _)| *until <= now)
    }

    /// When a connection is next to be replaced; nothing where there is none, or a dial runs.
    pub(super) fn due(&self, pool: &Inner, now: Instant) -> Option<Instant> {
        let state = self.state.lock();
        let open = state.link.is_some() || state.alive.iter().any(|one| one.strong_count() > 0);
        if !open || state.dialing.is_some() {
            return None;
        }
        let retire = if state.outdated(pool, now) {
            now
        } else {
            state.made?.retire
        };
        let rested = state.failed.as_ref().map(|(until, _)| *until);
        Some(rested.map_or(retire, |until| until.max(retire)))
    }

    fn look(self: &Arc<Self>, pool: &Arc<Inner>, now: Instant) -> Result<Found, Fault> {
        let mut state = self.state.lock();
        state.last_used = now;
        state.let_go(now);
        if let Some(link) = state.link.clone() {
            if state.outdated(pool, now) {
                self.redial(&mut state, pool, now);
            }
            return Ok(Found::Link(link));
        }
        if let Some((until, fault)) = state.failed.clone().filter(|(until, _)| *until > now) {
            return Err(fault.retry_after(until - now));
        }
        self.redial(&mut state, pool, now);
        let waiting = state.dialing.clone();
        waiting.map(Found::Dialing).ok_or_else(|| {
            let text = "this process has no certificate to show to that peer";
            Fault::new(Reason::PeerUnreachable, text)
        })
    }

    /// Starts a dial unless one runs, or the last one failed just now.
    fn redial(self: &Arc<Self>, state: &mut State, pool: &Arc<Inner>, now: Instant) -> bool {
        let resting = state.failed.as_ref().is_some_and(|(until, _)| *until > now);
        if state.dialing.is_some() || resting {
            return false;
        }
        let Some(wrap) = Wrap::of(&self.target, pool.credentials.as_ref()) else {
            return false;
        };
        let (tell, told) = watch::channel(None);
        state.dialing = Some(told);
        let (entry, pool_of) = (Arc::clone(self), Arc::clone(pool));
        pool.nursery.start("dial", move |stop| async move {
            let outcome = tokio::select! {
                outcome = entry.dial(&pool_of, wrap) => outcome,
                () = stop.cancelled() => Err(vec![DialError::Unreachable {
                    endpoint: entry.target.endpoints.join(", "),
                    why: "this process is stopping".into(),
                }]),
            };
            let outcome = entry.finish(&pool_of, outcome, Instant::now());
            drop(tell.send(Some(outcome)));
        });
        true
    }

    async fn dial(&self, pool: &Arc<Inner>, wrap: Wrap) -> Result<(Link, Made), Vec<DialError>> {
        let credentials = pool.credentials_now();
        let alive = Arc::new(Alive::new(Arc::clone(&pool.counts)));
        let fate = alive.fate();
        let watched = Arc::downgrade(&alive);
        let owner = Owner {
            nursery: pool.nursery.clone(),
            sightings: pool.sightings.clone(),
            alive: Arc::clone(&alive),
        };
        let dialed = Box::pin(dial(&self.target.endpoints, &wrap, &owner, speak)).await?;
        alive.opened();
        self.state.lock().alive.push(watched);
        let now = Instant::now();
        let life = lasting(pool.age, dialed.peer.as_ref());
        let secure = self.target.expect.is_some();
        let made = Made {
            retire: now + life,
            idle: around(IDLE, rand::random()),
            secure,
            credentials,
        };
        Ok((Link::new(dialed, fate, secure), made))
    }

    fn finish(
        &self,
        pool: &Inner,
        outcome: Result<(Link, Made), Vec<DialError>>,
        now: Instant,
    ) -> Result<(), Fault> {
        let mut state = self.state.lock();
        state.dialing = None;
        match outcome {
            Ok((link, made)) => {
                state.made = Some(made);
                state.failed = None;
                state.redial.linked(now);
                pool.counts.dialed(Dial::Done);
                // The old one drains: without a sender it closes after its last call.
                state.close(Close::Replaced);
                state.link = Some(link);
                if made.retire < now + SWEEP {
                    pool.sooner.notify_one();
                }
                Ok(())
            }
            Err(tried) => {
                let fault = fault_of(&tried);
                pool.counts.dialed(outcome_of(&tried));
                let wait = state.redial.failed(now, rand::random());
                state.failed = Some((now + wait, fault.clone()));
                tracing::info!(%fault, "dial failed");
                Err(fault)
            }
        }
    }
}

impl State {
    /// Lets go of a connection that takes no more calls; one that broke young is waited for.
    fn let_go(&mut self, now: Instant) {
        let Some(link) = self.link.take_if(|link| !link.usable()) else {
            return;
        };
        if !is_bad(&link.fate) {
            return self.redial.left(now);
        }
        if let Some(wait) = self.redial.broke(now, rand::random()) {
            let text = "the peer's connections break soon after they are made; nothing was sent";
            self.failed = Some((now + wait, Fault::new(Reason::PeerUnreachable, text)));
        }
    }

    fn close(&mut self, cause: Close) {
        if let Some(link) = self.link.take() {
            mark(&link.fate, cause);
        }
    }

    /// Whether the last connection made is too old, or showed a certificate that we replaced.
    fn outdated(&self, pool: &Inner, now: Instant) -> bool {
        self.made.is_some_and(|made| {
            now >= made.retire || (made.secure && made.credentials != pool.credentials_now())
        })
    }
}

/// What a dial that failed is counted as.
pub(super) fn outcome_of(tried: &[DialError]) -> Dial {
    let any = |of: fn(&DialError) -> bool| tried.iter().any(of);
    if any(|error| matches!(error, DialError::Mismatch { .. })) {
        Dial::Mismatch
    } else if any(|error| matches!(error, DialError::Refused { .. })) {
        Dial::Refused
    } else {
        Dial::Unreachable
    }
}

/// How long a connection that was just made is used: to its age, or for as long as the certificate
/// that its peer has shown allows.
pub(super) fn lasting(age: Duration, peer: Option<&Peer>) -> Duration {
    let life = around(age, rand::random());
    let left = peer.map(|peer| peer.not_after.duration_since(wall()).unwrap_or_default());
    left.map_or(life, |left| life.min(usable(left)))
}

/// How long a connection is used whose server's certificate has so much left.
fn usable(left: Duration) -> Duration {
    left.saturating_sub(EXPIRY).max(left / 2).max(REPLACE_LEAST)
}

/// How a target's connections stand.
#[derive(Clone, Copy, Debug)]
struct Condition {
    /// New calls have a connection.
    linked: bool,
    /// Sockets are open; without a link, because calls still run on them.
    draining: bool,
    /// No call came for long.
    idle: bool,
    /// The last connection made is to be replaced.
    outdated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Care {
    Keep,
    Close,
    Replace,
}

/// Closing lets running calls finish. While they do, a replaced certificate, ours or the peer's,
/// has to be shown on a new connection, or theirs is closed when the old one ends.
fn care(condition: Condition) -> Care {
    match condition {
        Condition {
            linked: true,
            idle: true,
            ..
        } => Care::Close,
        Condition {
            linked: true,
            outdated: true,
            ..
        }
        | Condition {
            linked: false,
            draining: true,
            outdated: true,
            ..
        } => Care::Replace,
        Condition { .. } => Care::Keep,
    }
}

enum Found {
    Link(Link),
    Dialing(watch::Receiver<Outcome>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_kept_closed_and_replaced() {
        let table = [
            // linked, draining, idle, outdated
            ([true, true, false, false], Care::Keep),
            ([true, true, false, true], Care::Replace),
            ([true, true, true, false], Care::Close),
            ([true, true, true, true], Care::Close),
            ([false, true, true, false], Care::Keep),
            ([false, true, true, true], Care::Replace),
            ([false, true, false, true], Care::Replace),
            ([false, false, true, true], Care::Keep),
            ([false, false, false, false], Care::Keep),
        ];
        for ([linked, draining, idle, outdated], expected) in table {
            let condition = Condition {
                linked,
                draining,
                idle,
                outdated,
            };
            assert_eq!(care(condition), expected, "{condition:?}");
        }
    }
}
