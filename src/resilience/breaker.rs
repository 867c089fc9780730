//! The circuit breaker of one instance: failures open it, time makes it ask, one probe closes it.
//!
//! ```text
//!            5 in a row, or too small a share of successes
//!   CLOSED ------------------------------------------------> OPEN (until its cool-down has passed)
//!     ^                                                       |  ^
//!     |  probe succeeded                       cool-down over |  | probe failed: twice as long
//!     '---------------------------------- HALF-OPEN <---------'--'
//!                                          (exactly one call is let through)
//! ```
//! Closed means that calls flow. How many of a set may be open at a time is the set's to say.

use std::time::Duration;

use tokio::time::Instant;

use super::outcome::Outcome;
use super::settings::BreakerSettings;
use super::window::Window;

/// A breaker that was closed this long, or as long as its last cool-down, starts over with the
/// shortest one: an instance that flaps does not.
const CALM: Duration = Duration::from_secs(10);
/// A probe that the instance took, and of which nothing bad was heard for this long, has succeeded:
/// the work itself may take hours.
pub(super) const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trip {
    /// So many failures in a row.
    Consecutive(u32),
    /// Successes of all calls within the window.
    Rate {
        /// Calls that went well.
        good: u32,
        /// All of them.
        all: u32,
    },
    /// The one call that was let through failed as well.
    Probe,
}

/// A change that whoever reported a call may want to tell of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Turn {
    /// It opened.
    Opened {
        /// Why.
        why: Trip,
        /// How long it gets no calls.
        cool_down: Duration,
    },
    /// It closed again.
    Closed,
}

/// One instance's breaker.
#[derive(Clone, Debug, Default)]
pub(super) struct Breaker {
    open: Option<Open>,
    consecutive: u32,
    window: Window,
    /// How often it opened without a calm time between.
    streak: u32,
    last_cool_down: Duration,
    /// When it was last closed again.
    closed_at: Option<Instant>,
    trips: u64,
}

/// An open breaker; half-open once `until` has passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) why: Trip,
    pub(super) since: Instant,
    pub(super) until: Instant,
    /// When it opened first: probes that failed since do not count.
    pub(super) fell: Instant,
    probe: Option<Probe>,
    /// Calls in a row that went well although it is open.
    row: u32,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    since: Instant,
    taken: bool,
}

impl Breaker {
    /// Since when and why it is open, if it is.
    pub(super) fn open(&self) -> Option<Open> {
        self.open
    }

    /// Lets one call through; false: it is not time, or one is under way.
    pub(super) fn begin_probe(&mut self, now: Instant) -> bool {
        match &mut self.open {
            Some(open) if open.until <= now && open.probe.is_none() => {
                open.probe = Some(Probe {
                    since: now,
                    taken: false,
                });
                true
            }
            Some(_) | None => false,
        }
    }

    /// The instance took the probe. It succeeds by its first message, or by time.
    pub(super) fn probe_taken(&mut self) {
        if let Some(probe) = self.open.as_mut().and_then(|open| open.probe.as_mut()) {
            probe.taken = true;
        }
    }

    /// Closes it where the probe has been at work long enough.
    pub(super) fn ripen(&mut self, now: Instant) -> Option<Turn> {
        let probe = self.open.and_then(|open| open.probe)?;
        (probe.taken && now >= probe.since + PROBE_PATIENCE).then(|| self.close(now))
    }

    /// Closes it whatever it saw: another process is there now. Its history goes with the old one.
    pub(super) fn reset(&mut self) {
        *self = Self {
            trips: self.trips,
            ..Self::default()
        };
    }

    /// How the probe went.
    pub(super) fn probed(
        &mut self,
        outcome: Outcome,
        settings: &BreakerSettings,
        now: Instant,
        chance: f64,
    ) -> Option<Turn> {
        let open = self.open.as_mut()?;
        open.probe.take()?;
        match outcome {
            Outcome::Success => Some(self.close(now)),
            Outcome::Failure | Outcome::Overload(_) => {
                Some(self.trip(Trip::Probe, settings, now, chance))
            }
            // It said nothing: the next call may be the probe.
            Outcome::Neutral => None,
        }
    }

    /// How an ordinary call went.
    pub(super) fn record(
        &mut self,
        outcome: Outcome,
        settings: &BreakerSettings,
        now: Instant,
        chance: f64,
    ) -> Option<Turn> {
        match outcome {
            Outcome::Neutral => return None,
            Outcome::Success => self.consecutive = 0,
            Outcome::Failure => self.consecutive = self.consecutive.saturating_add(1),
            Outcome::Overload(_) => {}
        }
        self.window.count(!outcome.is_bad(), settings.window, now);
        if self.open.is_some() || !settings.enabled || !outcome.is_bad() {
            // Calls that began before it opened neither lengthen nor shorten its time.
            return None;
        }
        let why = self.reason(settings, now)?;
        Some(self.trip(why, settings, now, chance))
    }

    /// How a call went that began while it was open, if it was: too many of its set are, and it gets
    /// calls in spite of itself. As many in a row as would have opened it, close it.
    pub(super) fn flowed(
        &mut self,
        outcome: Outcome,
        settings: &BreakerSettings,
        begun: Instant,
        now: Instant,
    ) -> Option<Turn> {
        let open = self.open.as_mut().filter(|open| open.since <= begun)?;
        match outcome {
            Outcome::Success => open.row = open.row.saturating_add(1),
            Outcome::Failure | Outcome::Overload(_) => open.row = 0,
            Outcome::Neutral => {}
        }
        let well = open.row >= settings.consecutive.max(1);
        well.then(|| self.close(now))
    }

    /// Makes it half-open then, if that is sooner.
    pub(super) fn hasten(&mut self, until: Instant) {
        if let Some(open) = &mut self.open {
            open.until = open.until.min(until);
        }
    }

    /// Whether it is closed because a call went well.
    pub(super) fn has_risen(&self) -> bool {
        self.open.is_none() && self.closed_at.is_some()
    }

    /// Good and bad calls within the window.
    pub(super) fn sums(&self, now: Instant) -> (u32, u32) {
        self.window.sums(now)
    }

    /// Failures since the last success.
    pub(super) fn consecutive(&self) -> u32 {
        self.consecutive
    }

    /// How often it has opened.
    pub(super) fn trips(&self) -> u64 {
        self.trips
    }

    fn reason(&self, settings: &BreakerSettings, now: Instant) -> Option<Trip> {
        if self.consecutive >= settings.consecutive.max(1) {
            return Some(Trip::Consecutive(self.consecutive));
        }
        let (good, bad) = self.window.sums(now);
        let all = good.saturating_add(bad);
        let enough = all >= settings.min_calls.max(1);
        let share = f64::from(good) / f64::from(all.max(1));
        (enough && share < settings.success_rate).then_some(Trip::Rate { good, all })
    }

    fn trip(&mut self, why: Trip, settings: &BreakerSettings, now: Instant, chance: f64) -> Turn {
        let calm = self.last_cool_down.max(CALM);
        if self.closed_at.is_some_and(|since| now >= since + calm) {
            self.streak = 0;
        }
        let doubled = settings
            .cool_down
            .saturating_mul(1_u32.checked_shl(self.streak).unwrap_or(u32::MAX));
        let jitter = 1.0 + settings.jitter.clamp(0.0, 1.0) * chance.clamp(0.0, 1.0);
        let cool_down = doubled.min(settings.cool_down_max).mul_f64(jitter);
        self.streak = self.streak.saturating_add(1);
        self.trips += 1;
        self.last_cool_down = cool_down;
        self.closed_at = None;
        self.open = Some(Open {
            why,
            since: now,
            until: now + cool_down,
            fell: self.open.map_or(now, |open| open.fell),
            probe: None,
            row: 0,
        });
        Turn::Opened { why, cool_down }
    }

    fn close(&mut self, now: Instant) -> Turn {
        self.open = None;
        self.consecutive = 0;
        self.window.clear();
        self.closed_at = Some(now);
        Turn::Closed
    }
}

impl Open {
    /// When its probe, if one is under way, may have succeeded by time alone.
    pub(super) fn ripe_at(&self) -> Option<Instant> {
        self.probe.map(|probe| probe.since + PROBE_PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings() -> BreakerSettings {
        BreakerSettings::default()
    }

    fn failing(breaker: &mut Breaker, times: u32, now: Instant) -> Option<Turn> {
        let mut turn = None;
        for _ in 0..times {
            turn = breaker.record(Outcome::Failure, &settings(), now, 0.0);
        }
        turn
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn five_in_a_row_open_it_and_a_success_between_does_not_count_as_a_row() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert_eq!(failing(&mut breaker, 4, now), None);
        breaker.record(Outcome::Success, &settings(), now, 0.0);
        assert_eq!(failing(&mut breaker, 4, now), None);
        let opened = Turn::Opened {
            why: Trip::Consecutive(5),
            cool_down: secs(1),
        };
        assert_eq!(failing(&mut breaker, 1, now), Some(opened));
    }

    #[test]
    fn a_share_below_four_fifths_of_twenty_calls_opens_it() {
        // A failure after every third success: never two in a row.
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        let mut calls = 0;
        let turn = loop {
            calls += 1;
            now += Duration::from_millis(100);
            let outcome = if calls % 4 == 0 {
                Outcome::Failure
            } else {
                Outcome::Success
            };
            if let Some(turn) = breaker.record(outcome, &settings(), now, 0.0) {
                break turn;
            }
            assert!(calls < 100, "never opened");
        };
        let why = Trip::Rate { good: 15, all: 20 };
        assert!(
            matches!(turn, Turn::Opened { why: is, .. } if is == why),
            "{turn:?}"
        );
    }

    #[test]
    fn too_much_to_do_counts_in_the_rate_and_not_in_the_row() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for call in 1..20 {
            let turn = breaker.record(Outcome::Overload(None), &settings(), now, 0.0);
            assert_eq!(turn, None, "{call}");
        }
        let turn = breaker.record(Outcome::Overload(None), &settings(), now, 0.0);
        assert!(matches!(turn, Some(Turn::Opened { .. })));
    }

    #[test]
    fn each_probe_that_fails_doubles_the_time_up_to_the_most() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        failing(&mut breaker, 5, now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let open = breaker.open().unwrap();
            waits.push((open.until - open.since).as_secs());
            assert!(!breaker.begin_probe(open.until - Duration::from_millis(1)));
            now = open.until;
            assert!(breaker.begin_probe(now), "it is time");
            assert!(!breaker.begin_probe(now), "one at a time");
            breaker.probed(Outcome::Failure, &settings(), now, 0.0);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn jitter_only_lengthens() {
        let mut breaker = Breaker::default();
        let mut turn = None;
        for _ in 0..5 {
            turn = breaker.record(Outcome::Failure, &settings(), Instant::now(), 1.0);
        }
        assert!(
            matches!(turn, Some(Turn::Opened { cool_down, .. }) if cool_down == secs(1) * 3 / 2)
        );
    }

    #[test]
    fn one_that_flaps_waits_longer_each_time_and_one_that_was_calm_starts_over() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        let mut waits = Vec::new();
        for calm in [0, 3, 3, 3, 30] {
            now += secs(calm);
            failing(&mut breaker, 5, now);
            let open = breaker.open().unwrap();
            waits.push((open.until - open.since).as_secs());
            now = open.until;
            assert!(breaker.begin_probe(now));
            assert_eq!(
                breaker.probed(Outcome::Success, &settings(), now, 0.0),
                Some(Turn::Closed)
            );
        }
        assert_eq!(waits, [1, 2, 4, 8, 1]);
    }

    #[test]
    fn one_that_comes_and_goes_every_three_seconds_is_asked_ever_more_rarely() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        let mut waits = Vec::new();
        // Ten calls per second for four minutes.
        for tick in 0..2400_u32 {
            let now = start + Duration::from_millis(100) * tick;
            let outcome = if tick / 30 % 2 == 0 {
                Outcome::Failure
            } else {
                Outcome::Success
            };
            let turn = if breaker.open().is_none() {
                breaker.record(outcome, &settings(), now, 0.0)
            } else if breaker.begin_probe(now) {
                breaker.probed(outcome, &settings(), now, 0.0)
            } else {
                None
            };
            if let Some(Turn::Opened { cool_down, .. }) = turn {
                waits.push(cool_down.as_secs());
            }
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn as_many_that_go_well_as_would_open_it_close_it_where_calls_flow_in_spite_of_it() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        failing(&mut breaker, 5, now);
        let flow = |breaker: &mut Breaker, outcome, begun| {
            breaker.flowed(outcome, &settings(), begun, now + secs(1))
        };
        let before = now.checked_sub(secs(1)).unwrap();
        for _ in 0..10 {
            // They began before it opened: what they say is older.
            assert_eq!(flow(&mut breaker, Outcome::Success, before), None);
        }
        for _ in 0..4 {
            assert_eq!(flow(&mut breaker, Outcome::Success, now), None);
        }
        assert_eq!(flow(&mut breaker, Outcome::Failure, now), None);
        for _ in 0..4 {
            assert_eq!(flow(&mut breaker, Outcome::Success, now), None);
        }
        assert_eq!(
            flow(&mut breaker, Outcome::Success, now),
            Some(Turn::Closed)
        );
        assert!(breaker.has_risen());
    }

    #[test]
    fn its_time_is_only_ever_shortened() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        failing(&mut breaker, 5, now);
        breaker.hasten(now + secs(9));
        assert_eq!(breaker.open().unwrap().until, now + secs(1));
        breaker.hasten(now);
        assert!(breaker.begin_probe(now));
    }

    #[test]
    fn a_probe_that_says_nothing_lets_the_next_one_go() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        failing(&mut breaker, 5, now);
        let later = now + secs(1);
        assert!(breaker.begin_probe(later));
        assert_eq!(
            breaker.probed(Outcome::Neutral, &settings(), later, 0.0),
            None
        );
        assert!(breaker.begin_probe(later));
    }

    #[test]
    fn a_probe_at_work_closes_it_by_time_and_one_that_was_never_taken_does_not() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        failing(&mut breaker, 5, now);
        let later = now + secs(1);
        assert!(breaker.begin_probe(later));
        assert_eq!(breaker.ripen(later + secs(60)), None);
        breaker.probe_taken();
        assert_eq!(breaker.ripen(later + secs(4)), None);
        assert_eq!(breaker.ripen(later + secs(5)), Some(Turn::Closed));
    }

    #[test]
    fn switched_off_it_never_opens() {
        let off = BreakerSettings {
            enabled: false,
            ..settings()
        };
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(breaker.record(Outcome::Failure, &off, now, 0.0), None);
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Act {
        Wait(u16),
        Call(Outcome),
        Probe(Outcome),
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::Success),
            Just(Outcome::Failure),
            Just(Outcome::Overload(None)),
            Just(Outcome::Neutral)
        ]
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            any::<u16>().prop_map(Act::Wait),
            outcome().prop_map(Act::Call),
            outcome().prop_map(Act::Probe)
        ]
    }

    proptest! {
        /// Whatever happens: it opens on bad news only, closes by a probe only, never before its time,
        /// never has two probes, and its times stay within their bounds.
        #[test]
        fn keeps_its_promises(acts in prop::collection::vec(act(), 1..400), chance in 0.0..1.0_f64) {
            let (mut breaker, mut now) = (Breaker::default(), Instant::now());
            for act in acts {
                let was_open = breaker.open().is_some();
                match act {
                    Act::Wait(millis) => now += Duration::from_millis(millis.into()),
                    Act::Call(outcome) => {
                        let turn = breaker.record(outcome, &settings(), now, chance);
                        prop_assert!(turn.is_none() || (outcome.is_bad() && !was_open));
                        prop_assert!(!was_open || breaker.open().is_some());
                    }
                    Act::Probe(outcome) => {
                        let due = breaker.open().is_some_and(|open| open.until <= now);
                        prop_assert_eq!(breaker.begin_probe(now), due);
                        prop_assert!(!breaker.begin_probe(now));
                        let turn = breaker.probed(outcome, &settings(), now, chance);
                        prop_assert_eq!(turn == Some(Turn::Closed), due && outcome == Outcome::Success);
                    }
                }
                if let Some(open) = breaker.open() {
                    let time = open.until - open.since;
                    prop_assert!(time >= secs(1) && time <= secs(90), "{time:?}");
                }
            }
        }
    }
}
