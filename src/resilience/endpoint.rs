//! One instance as it is seen from here: calls under way, latency, breaker, and what they cost it.
//!
//! Shared by every set that it is in and by all threads. Its lock is held for a few instructions and
//! never over anything that waits.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::breaker::{Breaker, Trip, Turn};
use super::cost::Cost;
use super::epoch::Epoch;
use super::ewma::FailureShare;
use super::outcome::Outcome;
use super::pace::{Kind, Paces};
use super::settings::{BalanceSettings, Settings};
use super::tally::Mend;

/// Least share that an instance in its slow start is given.
const SLOW_LEAST: f64 = 0.1;

/// An instance. Every method takes the time it is called at.
#[derive(Debug)]
pub struct Endpoint {
    epoch: Epoch,
    /// When it was first seen, where that was later than everybody else: its slow start.
    new_since: Option<Instant>,
    /// What the times of calls under way are summed up from.
    origin: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_flight: u32,
    /// Those of them that it has not taken yet.
    pending: u32,
    /// Somebody found no room, and is told when there is some.
    awaited: bool,
    paces: Paces,
    failures: FailureShare,
    paused_until: Option<Instant>,
    breaker: Breaker,
    /// The breaker closed by time, and nobody was told: no call was there to tell.
    risen: bool,
}

/// A call that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    /// When it went out.
    pub(super) at: Instant,
    /// What it counts for besides all calls.
    kind: Option<Kind>,
    /// Its first message has not come.
    pub(super) waiting: bool,
    /// The instance has not taken it.
    pub(super) pending: bool,
    pub(super) probe: bool,
}

/// An open breaker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    pub(super) since: Instant,
    /// Half-open from then on.
    pub(super) until: Instant,
    /// When to look at its probe, if one is under way.
    pub(super) ripe_at: Option<Instant>,
    /// When calls flowed last.
    pub(super) fell: Instant,
}

/// Whether calls flow to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Calls flow.
    Closed,
    /// None does.
    Open,
    /// One may, or is under way.
    HalfOpen,
}

/// An endpoint, told to people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sight {
    /// Whether calls flow.
    pub phase: Phase,
    /// Why not.
    pub why: Option<Trip>,
    /// Time until the next probe may go; zero where it may now.
    pub left: Option<Duration>,
    /// How often it has opened.
    pub trips: u64,
    /// Failures since the last success.
    pub consecutive: u32,
    /// Good and bad calls within the window.
    pub window: (u32, u32),
    /// Calls under way.
    pub in_flight: u32,
    /// Those of them that the instance has not taken yet.
    pub pending: u32,
    /// Peak-sensitive average of the time to the first message.
    pub latency: Option<Duration>,
    /// What failures have added to it for now.
    pub penalty: Duration,
    /// How long it asked to be left alone.
    pub paused: Option<Duration>,
    /// Share that it has reached in its slow start, from 0 to 1.
    pub share: f64,
}

impl Endpoint {
    /// An instance that nothing is known of. With `new_since` it starts slowly.
    pub fn new(epoch: Epoch, new_since: Option<Instant>, now: Instant) -> Self {
        Self {
            epoch,
            new_since,
            origin: now,
            state: Mutex::default(),
        }
    }

    /// Another process stands behind it: what the last one did says nothing about it. Says whether
    /// that closed its breaker.
    pub fn restarted(&self) -> bool {
        let mut state = self.state.lock();
        let was_open = state.breaker.open().is_some();
        state.breaker.reset();
        state.paces.forget();
        state.failures = FailureShare::default();
        state.paused_until = None;
        drop(state);
        if was_open {
            self.epoch.tally().closed(Mend::Restart);
        }
        self.epoch.advance();
        was_open
    }

    /// Whether its breaker closed by time since this was last asked.
    pub fn take_risen(&self) -> bool {
        std::mem::take(&mut self.state.lock().risen)
    }

    /// Whether calls flow, its breaker alone asked.
    pub fn phase(&self, now: Instant) -> Phase {
        self.state.lock().phase(now)
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u32 {
        self.state.lock().in_flight
    }

    /// What people are told.
    pub fn sight(&self, settings: &Settings, now: Instant) -> Sight {
        let state = self.state.lock();
        let open = state.breaker.open();
        let decay = settings.balance.decay;
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or_default();
        let left = |until: Instant| until.saturating_duration_since(now);
        Sight {
            phase: state.phase(now),
            why: open.map(|open| open.why),
            left: open.map(|open| left(open.until)),
            trips: state.breaker.trips(),
            consecutive: state.breaker.consecutive(),
            window: state.breaker.sums(now),
            in_flight: state.in_flight,
            pending: state.pending,
            latency: state.paces.measured(decay, now).map(seconds),
            penalty: settings
                .balance
                .penalty
                .mul_f64(state.failures.read(decay, now)),
            paused: state.paused_until.map(left).filter(|left| !left.is_zero()),
            share: self.share(&settings.balance, now),
        }
    }

    /// Whether its breaker is open, and since when.
    pub(super) fn opened(&self, now: Instant) -> Option<Opened> {
        let mut state = self.state.lock();
        if state.breaker.ripen(now).is_some() {
            state.risen = true;
            drop(state);
            self.epoch.tally().closed(Mend::Time);
            self.epoch.rise();
            return None;
        }
        let open = state.breaker.open()?;
        Some(Opened {
            since: open.since,
            until: open.until,
            ripe_at: open.ripe_at(),
            fell: open.fell,
        })
    }

    /// Whether its breaker is closed because calls went well again.
    pub(super) fn has_risen(&self) -> bool {
        self.state.lock().breaker.has_risen()
    }

    /// Lets its probe go then, if that is sooner.
    pub(super) fn hasten(&self, until: Instant) {
        self.state.lock().breaker.hasten(until);
    }

    /// It asks to be left alone that long.
    pub(super) fn pause(&self, pause: Duration, settings: &BalanceSettings, now: Instant) {
        let until = now + pause.min(settings.pushback_max);
        let mut state = self.state.lock();
        state.paused_until = Some(state.paused_until.map_or(until, |other| other.max(until)));
    }

    /// Until when it asked to be left alone, if that is not over.
    pub(super) fn paused(&self, now: Instant) -> Option<Instant> {
        self.state.lock().paused_until.filter(|until| *until > now)
    }

    /// Whether its bounds leave room for one more call. Who is told that they do not hears the bell
    /// of the [`Epoch`] when they do again.
    pub fn is_within(&self, settings: &BalanceSettings) -> bool {
        self.state.lock().is_within(settings)
    }

    /// Whether one more call may go there, the breaker aside.
    pub(super) fn has_room(&self, settings: &BalanceSettings, now: Instant) -> bool {
        self.state.lock().has_room(settings, now)
    }

    /// Calls of this kind will come.
    pub(super) fn expect(&self, kind: Kind) {
        self.state.lock().paces.expect(kind);
    }

    /// What the next call of a kind would cost there; `None`: it has no room for one, the breaker
    /// aside.
    pub(super) fn cost(
        &self,
        kind: Option<Kind>,
        settings: &BalanceSettings,
        now: Instant,
    ) -> Option<Cost> {
        let mut state = self.state.lock();
        if !state.has_room(settings, now) {
            return None;
        }
        let speed = state
            .paces
            .speed(kind, self.offset(now), (settings.decay, now));
        let failures = state.failures.read(settings.decay, now);
        Some(Cost {
            speed,
            penalty: settings.penalty.as_secs_f64() * failures,
            factor: f64::from(state.in_flight + 1) / self.share(settings, now),
        })
    }

    /// A call goes out; `None`: it was to be the probe, and somebody else's is.
    pub(super) fn begin(&self, kind: Option<Kind>, probe: bool, now: Instant) -> Option<Begun> {
        let mut state = self.state.lock();
        if probe && !state.breaker.begin_probe(now) {
            return None;
        }
        state.in_flight += 1;
        state.pending += 1;
        let counted = state.paces.begin(kind, self.offset(now));
        drop(state);
        if probe {
            self.epoch.advance();
        }
        Some(Begun {
            at: now,
            kind: kind.filter(|_| counted),
            waiting: true,
            pending: true,
            probe,
        })
    }

    /// A call that it has taken before is not waited for.
    pub(super) fn resumed(&self, call: &mut Begun) {
        self.taken(call);
        if std::mem::take(&mut call.waiting) {
            let mut state = self.state.lock();
            state.paces.stop(call.kind, self.offset(call.at));
        }
    }

    /// A call that is waited for really goes out now.
    pub(super) fn sent(&self, call: &mut Begun, now: Instant) {
        let (counted, at) = (self.offset(call.at), self.offset(now));
        self.state.lock().paces.sent(call.kind, counted, at);
        call.at = now;
    }

    /// It took a call.
    pub(super) fn taken(&self, call: &mut Begun) {
        let mut state = self.state.lock();
        if call.probe {
            state.breaker.probe_taken();
        }
        let rings = state.settle(call);
        drop(state);
        if rings {
            self.epoch.ring();
        }
    }

    /// The first message of a call that is waited for is here. No more than that is asked of a probe.
    pub(super) fn answered(
        &self,
        call: &mut Begun,
        settings: &Settings,
        now: Instant,
    ) -> Option<Turn> {
        let probe = std::mem::take(&mut call.probe);
        call.waiting = false;
        let mut state = self.state.lock();
        let took = now.saturating_duration_since(call.at);
        let by = (settings.balance.decay, now);
        state.paces.stop(call.kind, self.offset(call.at));
        state.paces.answered(call.kind, took, by);
        let rings = state.settle(call);
        if !probe {
            drop(state);
            if rings {
                self.epoch.ring();
            }
            return None;
        }
        let turn = state
            .breaker
            .probed(Outcome::Success, &settings.breaker, now, 0.0);
        if turn.is_some() {
            // It has paid with its cool-down.
            state.failures = FailureShare::default();
        }
        drop(state);
        self.count(turn, true);
        self.epoch.advance();
        turn
    }

    /// A call is over.
    pub(super) fn finish(
        &self,
        mut call: Begun,
        outcome: Outcome,
        settings: &Settings,
        (now, chance): (Instant, f64),
    ) -> Option<Turn> {
        let mut state = self.state.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        let rings = state.settle(&mut call) || std::mem::take(&mut state.awaited);
        if call.waiting {
            state.paces.stop(call.kind, self.offset(call.at));
        }
        let balance = &settings.balance;
        match outcome {
            Outcome::Failure | Outcome::Overload(None) => {
                state.failures.observe(true, balance.decay, now);
            }
            Outcome::Overload(Some(pause)) => {
                let until = now + pause.min(balance.pushback_max);
                state.paused_until = Some(state.paused_until.map_or(until, |at| at.max(until)));
            }
            Outcome::Success => state.failures.observe(false, balance.decay, now),
            Outcome::Neutral => {}
        }
        let breaker = &settings.breaker;
        let turn = if call.probe {
            state.breaker.probed(outcome, breaker, now, chance)
        } else {
            let flowed = state.breaker.flowed(outcome, breaker, call.at, now);
            flowed.or_else(|| state.breaker.record(outcome, breaker, now, chance))
        };
        if turn == Some(Turn::Closed) {
            state.failures = FailureShare::default();
        }
        drop(state);
        self.epoch.tally().ended(outcome);
        self.count(turn, call.probe);
        if turn.is_some() || call.probe {
            self.epoch.advance();
        } else if rings {
            self.epoch.ring();
        }
        turn
    }

    fn count(&self, turn: Option<Turn>, probe: bool) {
        match turn {
            Some(Turn::Opened { why, .. }) => self.epoch.tally().opened(why),
            Some(Turn::Closed) if probe => self.epoch.tally().closed(Mend::Probe),
            Some(Turn::Closed) => self.epoch.tally().closed(Mend::Calls),
            None => {}
        }
    }

    fn offset(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.origin).as_secs_f64()
    }

    fn share(&self, settings: &BalanceSettings, now: Instant) -> f64 {
        let Some(since) = self.new_since else {
            return 1.0;
        };
        let whole = settings.slow_start.as_secs_f64();
        let passed = now.saturating_duration_since(since).as_secs_f64();
        if passed >= whole {
            1.0
        } else {
            (passed / whole).max(SLOW_LEAST)
        }
    }
}

impl State {
    fn phase(&self, now: Instant) -> Phase {
        match self.breaker.open() {
            None => Phase::Closed,
            Some(open) if open.until > now => Phase::Open,
            Some(_) => Phase::HalfOpen,
        }
    }

    fn has_room(&mut self, settings: &BalanceSettings, now: Instant) -> bool {
        self.is_within(settings) && self.paused_until.is_none_or(|until| until <= now)
    }

    fn is_within(&mut self, settings: &BalanceSettings) -> bool {
        let below = |count: u32, bound: u32| bound == 0 || count < bound;
        let within = below(self.in_flight, settings.max_in_flight)
            && below(self.pending, settings.max_pending);
        self.awaited |= !within;
        within
    }

    /// It was taken, or is over. Says whether somebody wants to know.
    fn settle(&mut self, call: &mut Begun) -> bool {
        if !std::mem::take(&mut call.pending) {
            return false;
        }
        self.pending = self.pending.saturating_sub(1);
        std::mem::take(&mut self.awaited)
    }
}
