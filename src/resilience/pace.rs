//! How fast an instance answers: over all that it does, and for each kind of work by itself.
//!
//! An instance that happens to be given the slow kind is not slow for the quick one: for a kind it is
//! judged by calls of that kind, had and waited for. The number of kinds is bounded; those beyond it
//! are judged by all calls together.

use std::time::Duration;

use tokio::time::Instant;

use super::ewma::PeakEwma;

/// Kinds of work told apart at one instance: agents have a handful of skills, and a look at this many
/// takes no time. Of more, those that were called for the longest ago are judged with all others.
pub(super) const KINDS_MAX: usize = 16;

/// Names a kind of work, such as a skill: calls of one kind take about as long as each other. Any
/// number, as long as it is the same for the same work and seldom for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(u64);

impl Kind {
    /// The kind that goes by this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
}

/// How fast an instance is, as one kind of call sees it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Speed {
    /// For its kind.
    own: Reading,
    /// For all kinds together, where none of its own was ever answered.
    all: Reading,
}

/// In seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    /// `None`: no such call was ever answered.
    measured: Option<f64>,
    /// How long those that wait for an answer have done so, on average: it takes no less, also where
    /// none was ever answered.
    waited: f64,
}

impl Reading {
    fn known(self) -> Option<f64> {
        self.measured.map(|measured| measured.max(self.waited))
    }
}

impl Speed {
    /// What is known.
    pub(super) fn known(self) -> Option<f64> {
        self.own.known().or_else(|| self.all.known())
    }

    /// Two as they compare, in seconds: by their own kind, and only where neither is known for it by
    /// all they do. One that is not known is as fast as the other: it would else be flooded, or never
    /// be tried; but nobody is faster than those that wait there find it. `unknown`: where neither
    /// was ever measured.
    pub(super) fn pair(self, other: Self, unknown: f64) -> (f64, f64) {
        let by_own = self.own.measured.is_some() || other.own.measured.is_some();
        let (one, other) = if by_own {
            (self.own, other.own)
        } else {
            (self.whole(), other.whole())
        };
        let speed = |of: Reading, beside: Reading| {
            let measured = of.measured.or(beside.measured);
            measured.unwrap_or(unknown).max(of.waited)
        };
        (speed(one, other), speed(other, one))
    }

    /// By all it does: the calls of its kind may wait for longer than the average.
    fn whole(self) -> Reading {
        Reading {
            waited: self.all.waited.max(self.own.waited),
            ..self.all
        }
    }
}

/// Speeds of one instance. Times are seconds since it was first seen.
#[derive(Debug, Default)]
pub(super) struct Paces {
    all: Pace,
    /// At most [`KINDS_MAX`]. One for which calls wait stays.
    kinds: Vec<Own>,
}

#[derive(Debug)]
struct Own {
    kind: Kind,
    pace: Pace,
    /// When a call of it last went out; zero: never.
    used: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    latency: PeakEwma,
    /// Calls whose first message has not come, and the sum of the times at which they went out.
    waiting: u32,
    since: f64,
}

impl Paces {
    /// Calls of this kind will come: makes room, so that none is made while one goes out.
    pub(super) fn expect(&mut self, kind: Kind) {
        if self.find(kind).is_none() && self.kinds.len() < KINDS_MAX {
            self.kinds.reserve_exact(1);
            self.kinds.push(Own {
                kind,
                pace: Pace::default(),
                used: 0.0,
            });
        }
    }

    /// A call goes out. Says whether it is counted for its kind as well: then its end has to be.
    pub(super) fn begin(&mut self, kind: Option<Kind>, at: f64) -> bool {
        self.all.begin(at);
        let own = kind.and_then(|kind| self.place(kind));
        let own = own.map(|place| &mut self.kinds[place]);
        own.map(|own| {
            own.used = at;
            own.pace.begin(at);
        })
        .is_some()
    }

    /// A call that went out then is not waited for any more; `kind`: the one that it was counted for.
    pub(super) fn stop(&mut self, kind: Option<Kind>, begun: f64) {
        self.all.stop(begun);
        if let Some(own) = kind.and_then(|kind| self.find(kind)) {
            own.pace.stop(begun);
        }
    }

    /// A call that was counted from `begun` really goes out now.
    pub(super) fn sent(&mut self, kind: Option<Kind>, begun: f64, at: f64) {
        self.all.since += at - begun;
        if let Some(own) = kind.and_then(|kind| self.find(kind)) {
            own.pace.since += at - begun;
        }
    }

    /// The first message of a call came after so long.
    pub(super) fn answered(
        &mut self,
        kind: Option<Kind>,
        took: Duration,
        (decay, now): (Duration, Instant),
    ) {
        self.all.latency.observe(took, decay, now);
        if let Some(own) = kind.and_then(|kind| self.find(kind)) {
            own.pace.latency.observe(took, decay, now);
        }
    }

    /// What was measured says nothing any more; who waits still does.
    pub(super) fn forget(&mut self) {
        let own = self.kinds.iter_mut().map(|own| &mut own.pace);
        for pace in own.chain([&mut self.all]) {
            pace.latency = PeakEwma::default();
        }
    }

    /// Average over all that was measured, in seconds.
    pub(super) fn measured(&self, decay: Duration, now: Instant) -> Option<f64> {
        self.all.latency.read(decay, now)
    }

    /// How fast it is for one more call of this kind.
    pub(super) fn speed(
        &self,
        kind: Option<Kind>,
        at: f64,
        (decay, now): (Duration, Instant),
    ) -> Speed {
        let own = kind.and_then(|kind| self.kinds.iter().find(|own| own.kind == kind));
        let own = own.map_or_else(Reading::default, |own| own.pace.read(at, decay, now));
        let all = match own.measured {
            Some(_) => Reading::default(),
            None => self.all.read(at, decay, now),
        };
        Speed { own, all }
    }

    fn find(&mut self, kind: Kind) -> Option<&mut Own> {
        self.kinds.iter_mut().find(|own| own.kind == kind)
    }

    /// Where a kind is, in the place of the one called for the longest ago if need be.
    fn place(&mut self, kind: Kind) -> Option<usize> {
        let known = self.kinds.iter().position(|own| own.kind == kind);
        if known.is_some() || self.kinds.len() < KINDS_MAX {
            return known;
        }
        let idle = self.kinds.iter().enumerate();
        let idle = idle.filter(|(_, own)| own.pace.waiting == 0);
        let (place, _) = idle.min_by(|(_, one), (_, other)| one.used.total_cmp(&other.used))?;
        self.kinds[place] = Own {
            kind,
            pace: Pace::default(),
            used: 0.0,
        };
        Some(place)
    }
}

impl Pace {
    fn begin(&mut self, at: f64) {
        self.waiting += 1;
        self.since += at;
    }

    fn stop(&mut self, begun: f64) {
        self.waiting = self.waiting.saturating_sub(1);
        self.since -= begun;
        if self.waiting == 0 {
            // Sums of differences drift; nobody waiting is zero.
            self.since = 0.0;
        }
    }

    fn read(&self, at: f64, decay: Duration, now: Instant) -> Reading {
        // Whoever waits for an answer now tells more than those that had one.
        let waited = match self.waiting {
            0 => 0.0,
            waiting => at - self.since / f64::from(waiting),
        };
        Reading {
            measured: self.latency.read(decay, now),
            waited: waited.max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: Duration = Duration::from_secs(10);
    const QUICK: Option<Kind> = Some(Kind::new(1));
    const SLOW: Option<Kind> = Some(Kind::new(2));
    const UNKNOWN: f64 = 0.03;

    struct Bench {
        paces: Paces,
        start: Instant,
    }

    impl Bench {
        fn new(kinds: impl IntoIterator<Item = u64>) -> Self {
            let (mut paces, start) = (Paces::default(), Instant::now());
            for kind in kinds {
                paces.expect(Kind::new(kind));
            }
            Self { paces, start }
        }

        fn at(&self, seconds: f64) -> (Duration, Instant) {
            (DECAY, self.start + Duration::from_secs_f64(seconds))
        }

        /// A call from `from` to `to`.
        fn call(&mut self, kind: Option<Kind>, from: f64, to: f64) {
            let counted = self.paces.begin(kind, from);
            let kind = kind.filter(|_| counted);
            self.paces.stop(kind, from);
            let took = Duration::from_secs_f64(to - from);
            self.paces.answered(kind, took, self.at(to));
        }

        fn speed(&self, kind: Option<Kind>, at: f64) -> Speed {
            self.paces.speed(kind, at, self.at(at))
        }
    }

    #[test]
    fn each_kind_has_its_own_pace_and_others_are_judged_by_all() {
        let mut bench = Bench::new([1, 2]);
        bench.call(QUICK, 0.0, 0.01);
        bench.call(SLOW, 0.0, 2.0);
        assert!(bench.speed(QUICK, 2.0).known() < Some(0.01));
        assert_eq!(bench.speed(SLOW, 2.0).known(), Some(2.0));
        for (kind, known) in [
            (None, Some(2.0)),
            (Some(Kind::new(3)), Some(2.0)),
            (SLOW, Some(2.0)),
        ] {
            assert_eq!(bench.speed(kind, 2.0).known(), known, "{kind:?}");
        }
        // So does what is waited for.
        assert!(bench.paces.begin(SLOW, 2.0));
        assert_eq!(bench.speed(SLOW, 9.0).known(), Some(7.0));
        assert_eq!(bench.speed(None, 9.0).known(), Some(7.0));
        assert!(bench.speed(QUICK, 9.0).known() < Some(0.01));
        bench.paces.sent(SLOW, 2.0, 8.0);
        assert!(
            bench.speed(SLOW, 9.0).known() < Some(2.0),
            "it went out late"
        );
        bench.paces.forget();
        assert_eq!(bench.speed(SLOW, 9.0).known(), None);
    }

    #[test]
    fn two_are_compared_by_what_is_alike() {
        let reading = |measured| Reading {
            measured,
            waited: 0.0,
        };
        let speed = |own, all| Speed {
            own: reading(own),
            all: reading(all),
        };
        for (one, other, pair) in [
            (speed(None, None), speed(None, None), (UNKNOWN, UNKNOWN)),
            (speed(Some(1.0), None), speed(Some(2.0), None), (1.0, 2.0)),
            // Another kind's figure says nothing beside one of this kind.
            (speed(Some(1.0), None), speed(None, Some(9.0)), (1.0, 1.0)),
            (speed(None, Some(9.0)), speed(Some(1.0), None), (1.0, 1.0)),
            (speed(None, Some(9.0)), speed(None, Some(8.0)), (9.0, 8.0)),
            (speed(None, Some(9.0)), speed(None, None), (9.0, 9.0)),
        ] {
            assert_eq!(one.pair(other, UNKNOWN), pair, "{one:?} {other:?}");
        }
    }

    #[test]
    fn calls_that_wait_count_where_none_was_ever_answered() {
        let (mut hangs, mut answers) = (Bench::new([1, 2]), Bench::new([1, 2]));
        let pair = |hangs: &Bench, answers: &Bench, kind, at| {
            let (one, other) = (hangs.speed(kind, at), answers.speed(kind, at));
            assert_eq!(other.pair(one, UNKNOWN).0, one.pair(other, UNKNOWN).1);
            one.pair(other, UNKNOWN)
        };
        // Neither was ever measured.
        assert!(hangs.paces.begin(SLOW, 0.0));
        for kind in [SLOW, None] {
            assert_eq!(pair(&hangs, &answers, kind, 5.0), (5.0, UNKNOWN));
        }
        assert_eq!(pair(&hangs, &answers, QUICK, 5.0), (5.0, UNKNOWN));
        // One has answered another kind, and the other may be as fast.
        hangs.call(QUICK, 5.0, 5.01);
        let (one, other) = pair(&hangs, &answers, SLOW, 5.01);
        assert!(one == 5.01 && other < 0.011, "{one} {other}");
        // The other one has answered this kind, and is as fast as it was.
        answers.call(SLOW, 5.0, 7.0);
        assert_eq!(pair(&hangs, &answers, SLOW, 7.0), (7.0, 2.0));
        assert!(hangs.paces.begin(QUICK, 7.0));
        assert_eq!(pair(&hangs, &answers, SLOW, 9.0).0, 9.0);
        // For a kind that it answers it is no slower by that.
        hangs.paces.stop(QUICK, 7.0);
        answers.call(QUICK, 7.0, 7.01);
        let (one, other) = pair(&hangs, &answers, QUICK, 7.01);
        assert!(one <= 0.01 && other <= 0.011, "{one} {other}");
    }

    #[test]
    fn kinds_are_bounded_and_the_one_called_for_the_longest_ago_goes() {
        let most = KINDS_MAX as u64;
        let mut bench = Bench::new(0..2 * most);
        assert_eq!(bench.paces.kinds.len(), KINDS_MAX);
        for kind in 0..most {
            let at = kind as f64;
            bench.call(Some(Kind::new(kind)), at, at + 1.0);
        }
        // The oldest waits: the second oldest goes for the new one.
        let (oldest, second, new) = (Kind::new(0), Kind::new(1), Kind::new(most));
        assert!(bench.paces.begin(Some(oldest), 0.5));
        assert!(bench.paces.begin(Some(new), 50.0));
        let at = |kind| bench.paces.kinds.iter().position(|own| own.kind == kind);
        assert_eq!((at(oldest), at(second), at(new)), (Some(0), None, Some(1)));
        assert_eq!(bench.paces.kinds.len(), KINDS_MAX);
    }

    #[test]
    fn where_calls_of_every_kind_wait_one_more_kind_is_counted_with_all() {
        let most = KINDS_MAX as u64;
        let mut bench = Bench::new(0..most);
        for kind in 0..most {
            assert!(bench.paces.begin(Some(Kind::new(kind)), 1.0));
        }
        assert!(!bench.paces.begin(Some(Kind::new(most)), 1.0));
        assert_eq!(bench.paces.all.waiting, 17);
        bench.paces.stop(None, 1.0);
        for kind in 0..most {
            bench.paces.stop(Some(Kind::new(kind)), 1.0);
        }
        let none = |pace: &Pace| pace.waiting == 0 && pace.since == 0.0;
        assert!(none(&bench.paces.all));
        assert!(bench.paces.kinds.iter().all(|own| none(&own.pace)));
    }

    #[test]
    fn only_what_is_expected_takes_room() {
        let mut bench = Bench::new([1]);
        let counted = allocation_counter::measure(|| {
            for kind in 0..100 {
                bench.call(Some(Kind::new(kind % 20)), 0.0, 1.0);
            }
        });
        assert_eq!(counted.count_total, 0);
        assert_eq!(bench.paces.kinds.len(), 1);
    }
}
