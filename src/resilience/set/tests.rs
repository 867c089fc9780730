use std::time::Duration;

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::resilience::{Outcome, Phase, Turn};

struct Fleet {
    set: Set<usize>,
    now: Instant,
    random: StdRng,
}

fn member(place: usize, now: Instant, epoch: &Epoch) -> Member<usize> {
    Member {
        endpoint: Arc::new(Endpoint::new(epoch.clone(), None, now)),
        value: place,
        key: mixed(place as u64),
        local: false,
        group: 0,
    }
}

fn fleet_of(count: usize, weights: &[u32], change: impl Fn(&mut Member<usize>)) -> Fleet {
    let (epoch, now) = (Epoch::default(), Instant::now());
    let members = (0..count).map(|place| {
        let mut member = member(place, now, &epoch);
        change(&mut member);
        member
    });
    let members = members.collect();
    Fleet {
        set: Set::new(members, weights, Arc::default(), epoch),
        now,
        random: StdRng::seed_from_u64(7),
    }
}

fn fleet(count: usize) -> Fleet {
    fleet_of(count, &[], |_| {})
}

impl Fleet {
    fn ask(
        &mut self,
        sticky: Option<u64>,
        allows: &dyn Fn(&usize) -> bool,
    ) -> Option<(usize, Permit)> {
        match self
            .set
            .pick(&Ask { sticky, allows }, self.now, &mut self.random)
        {
            Pick::Taken(place, permit) => Some((*place, permit)),
            Pick::Busy | Pick::Ejected(_) | Pick::Empty => None,
        }
    }

    fn take(&mut self) -> (usize, Permit) {
        self.ask(None, &|_| true).expect("somebody can be called")
    }

    /// One call that takes this long and ends like this.
    fn call(
        &mut self,
        takes: impl Fn(usize) -> Duration,
        ends: impl Fn(usize) -> Outcome,
    ) -> usize {
        let (place, mut permit) = self.take();
        self.now += takes(place);
        let outcome = ends(place);
        if outcome == Outcome::Success {
            permit.first_message(self.now);
        }
        permit.finish(outcome, self.now, 0.0);
        place
    }

    fn calls(
        &mut self,
        count: u32,
        takes: impl Fn(usize) -> Duration,
        ends: impl Fn(usize) -> Outcome,
    ) -> Vec<u32> {
        let mut had = vec![0; self.set.members().len()];
        for _ in 0..count {
            had[self.call(&takes, &ends)] += 1;
        }
        had
    }

    /// Makes one instance's breaker open.
    fn break_down(&mut self, place: usize) {
        let own = |at: &usize| *at == place;
        while self.sight(place).phase == Phase::Closed {
            let (_, permit) = self.ask(None, &own).expect("it is closed");
            permit.finish(Outcome::Failure, self.now, 0.0);
        }
    }

    fn sight(&self, place: usize) -> crate::resilience::Sight {
        self.set.members()[place]
            .endpoint
            .sight(self.set.settings(), self.now)
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn one_that_is_slow_gets_little_and_the_others_share() {
    let mut fleet = fleet(5);
    let slow = |place| if place == 2 { millis(100) } else { millis(10) };
    let had = fleet.calls(1000, slow, |_| Outcome::Success);
    assert!(had[2] < 50, "{had:?}");
    let fast = [had[0], had[1], had[3], had[4]];
    assert!(fast.iter().all(|had| (150..350).contains(had)), "{had:?}");
}

#[test]
fn one_that_is_given_the_slow_work_is_not_slow_for_the_quick() {
    let share = |kinds: Option<[Kind; 2]>| {
        let mut quick = fleet(4);
        let same = quick.set.members().iter().map(|member| Member {
            endpoint: member.endpoint.clone(),
            ..*member
        });
        let mut slow = Fleet {
            set: Set::new(same.collect(), &[], Arc::default(), quick.set.epoch.clone()),
            now: quick.now,
            random: StdRng::seed_from_u64(8),
        };
        if let Some([of_quick, of_slow]) = kinds {
            quick.set = quick.set.of_kind(of_quick);
            slow.set = slow.set.of_kind(of_slow);
        }
        let mut had = 0;
        for _ in 0..50 {
            // Only the first one offers the slow skill.
            let (_, mut permit) = slow.ask(None, &|place| *place == 0).expect("it is well");
            slow.now += Duration::from_secs(2);
            permit.first_message(slow.now);
            permit.finish(Outcome::Success, slow.now, 0.0);
            quick.now = slow.now;
            had += quick.calls(20, |_| millis(10), |_| Outcome::Success)[0];
            slow.now = quick.now;
        }
        had
    };
    let apart = share(Some([Kind::new(1), Kind::new(2)]));
    assert!((150..350).contains(&apart), "a quarter of 1000: {apart}");
    let together = share(Some([Kind::new(1), Kind::new(1)]));
    assert!(together < 50, "{together}");
    assert_eq!(share(None), together, "as it is where kinds are not known");
}

#[test]
fn one_that_is_slow_for_a_kind_is_found_out_by_that_kind() {
    let mut fleet = fleet(5);
    fleet.set = fleet.set.of_kind(Kind::new(1));
    let slow = |place| if place == 2 { millis(100) } else { millis(10) };
    let had = fleet.calls(1000, slow, |_| Outcome::Success);
    assert!(had[2] < 50, "{had:?}");
    let old = Arc::clone(&fleet.set.members()[2].endpoint);
    old.restarted();
    let had = fleet.calls(100, |_| millis(10), |_| Outcome::Success);
    assert!(had[2] > 5, "another process: {had:?}");
}

#[test]
fn one_that_hangs_gets_nothing_more_before_anything_was_heard() {
    let mut fleet = fleet(3);
    let mut held = Vec::new();
    let mut had = [0; 3];
    for _ in 0..300 {
        let (place, mut permit) = fleet.take();
        had[place] += 1;
        fleet.now += millis(10);
        if place == 1 {
            held.push(permit);
        } else {
            permit.first_message(fleet.now);
            permit.finish(Outcome::Success, fleet.now, 0.0);
        }
    }
    assert!(held.len() < 10, "{had:?}");
    drop(held);
    assert_eq!(fleet.set.members()[1].endpoint.in_flight(), 0);
}

#[test]
fn errors_that_come_fast_attract_no_traffic() {
    let mut fleet = fleet(5);
    let off = Settings {
        breaker: crate::resilience::BreakerSettings {
            enabled: false,
            ..Default::default()
        },
        ..Settings::default()
    };
    fleet.set.settings = Arc::new(off);
    let takes = |place| if place == 0 { millis(1) } else { millis(20) };
    let ends = |place| {
        if place == 0 {
            Outcome::Failure
        } else {
            Outcome::Success
        }
    };
    let had = fleet.calls(1000, takes, ends);
    assert!(had[0] < 50, "without a breaker the penalty alone: {had:?}");
}

#[test]
fn who_failed_too_often_gets_nothing_then_one_probe_then_its_share() {
    let mut fleet = fleet(4);
    fleet.break_down(3);
    assert_eq!(fleet.set.ejected(fleet.now), 1);
    let had = fleet.calls(50, |_| millis(1), |_| Outcome::Success);
    assert_eq!(had[3], 0);
    fleet.now += Duration::from_secs(1);
    let (first, mut probe) = fleet.take();
    assert!(first == 3 && probe.is_probe(), "the next call is the probe");
    let had = fleet.calls(50, |_| Duration::ZERO, |_| Outcome::Success);
    assert_eq!(had[3], 0, "one probe");
    assert_eq!(probe.first_message(fleet.now), Some(Turn::Closed));
    probe.finish(Outcome::Success, fleet.now, 0.0);
    let had = fleet.calls(1000, |_| millis(1), |_| Outcome::Success);
    assert!(had[3] > 100, "{had:?}");
}

#[test]
fn a_probe_that_works_on_for_long_opens_the_way_for_others() {
    let mut fleet = fleet(4);
    fleet.break_down(3);
    fleet.now += Duration::from_secs(1);
    let (first, mut probe) = fleet.take();
    assert!(first == 3 && probe.is_probe());
    probe.taken();
    assert_eq!(fleet.set.ejected(fleet.now + Duration::from_secs(4)), 1);
    assert_eq!(fleet.set.ejected(fleet.now + Duration::from_secs(5)), 0);
}

#[test]
fn at_most_half_are_left_out_those_that_opened_first() {
    let mut fleet = fleet(4);
    for place in 0..4 {
        fleet.break_down(place);
        fleet.now += millis(1);
    }
    assert_eq!(fleet.set.ejected(fleet.now), 2);
    let had = fleet.calls(200, |_| millis(1), |_| Outcome::Failure);
    assert_eq!(had[..2], [0, 0]);
    assert_eq!(had[2] + had[3], 200);
}

#[test]
fn of_two_both_may_be_left_out_and_it_is_said_until_when() {
    let mut fleet = fleet(2);
    fleet.break_down(0);
    fleet.break_down(1);
    let ask = Ask {
        sticky: None,
        allows: &|_| true,
    };
    let picked = fleet.set.pick(&ask, fleet.now, &mut fleet.random);
    let Pick::Ejected(Some(until)) = picked else {
        panic!("{picked:?}");
    };
    assert_eq!(until, fleet.now + Duration::from_secs(1));
}

#[test]
fn traffic_is_shared_by_weight_and_who_has_none_gets_none() {
    let mut fleet = fleet_of(6, &[90, 10], |member| member.group = member.value / 2);
    let had = fleet.calls(10_000, |_| millis(1), |_| Outcome::Success);
    let canary = had[2] + had[3];
    assert!((900..1100).contains(&canary), "{had:?}");
    assert_eq!(had.len(), 4);
    let canaries = |place: &usize| *place > 1;
    assert!(
        fleet.ask(None, &canaries).is_some(),
        "rather them than nobody"
    );
}

#[test]
fn the_own_zone_is_taken_while_it_can_be() {
    let mut fleet = fleet_of(6, &[], |member| member.local = member.value < 2);
    let had = fleet.calls(100, |_| millis(1), |_| Outcome::Success);
    assert_eq!(had[0] + had[1], 100);
    fleet.break_down(0);
    fleet.break_down(1);
    let had = fleet.calls(100, |_| millis(1), |_| Outcome::Success);
    assert_eq!(had[0] + had[1], 0);
}

#[test]
fn a_context_stays_where_it_is_and_moves_when_it_must() {
    let mut fleet = fleet(10);
    let mut homes = Vec::new();
    for context in 0..100 {
        let (home, _) = fleet.ask(Some(context), &|_| true).unwrap();
        assert_eq!(fleet.ask(Some(context), &|_| true).unwrap().0, home);
        homes.push(home);
    }
    assert!((0..10).all(|place| homes.contains(&place)), "{homes:?}");
    let gone = |place: &usize| *place != 4;
    for (context, home) in (0..100).zip(homes) {
        let (now, _) = fleet.ask(Some(context), &gone).unwrap();
        assert_eq!(
            now == home,
            home != 4,
            "only those of the one that went move"
        );
    }
}

#[test]
fn a_new_instance_comes_up_slowly() {
    let start = Instant::now();
    let had = |new: bool, pause: Duration| {
        let epoch = Epoch::default();
        let mut members: Vec<_> = (0..4).map(|place| member(place, start, &epoch)).collect();
        if new {
            members[0].endpoint = Arc::new(Endpoint::new(epoch.clone(), Some(start), start));
        }
        let mut fleet = Fleet {
            set: Set::new(members, &[], Arc::default(), epoch),
            now: start + pause,
            random: StdRng::seed_from_u64(1),
        };
        // All at once: what decides is who has how many under way.
        let taken: Vec<_> = (0..400).map(|_| fleet.take()).collect();
        taken.iter().filter(|(place, _)| *place == 0).count()
    };
    assert!((80..120).contains(&had(false, Duration::ZERO)));
    assert!(had(true, Duration::ZERO) < 30);
    assert!((80..120).contains(&had(true, Duration::from_secs(10))));
}

#[test]
fn who_asks_to_be_left_alone_is_and_a_bound_on_calls_holds() {
    let mut fleet = fleet(2);
    let bounded = Settings {
        balance: crate::resilience::BalanceSettings {
            max_in_flight: 3,
            ..Default::default()
        },
        ..Settings::default()
    };
    fleet.set.settings = Arc::new(bounded);
    let (paused, permit) = fleet.take();
    permit.finish(
        Outcome::Overload(Some(Duration::from_secs(4))),
        fleet.now,
        0.0,
    );
    let held: Vec<_> = (0..3).map(|_| fleet.take()).collect();
    assert!(held.iter().all(|(place, _)| *place != paused));
    assert!(fleet.ask(None, &|_| true).is_none(), "three at most");
    fleet.now += Duration::from_secs(4);
    assert_eq!(fleet.take().0, paused);
}

#[test]
fn calls_that_were_not_taken_yet_are_bounded_and_room_is_told_of() {
    let bounded = |max_pending| {
        let mut fleet = fleet(2);
        let mut settings = Settings::default();
        settings.balance.max_pending = max_pending;
        fleet.set.settings = Arc::new(settings);
        fleet
    };
    type Free = fn(&mut Permit);
    let frees: [(&str, Free); 4] = [
        ("taken", |permit| permit.taken()),
        ("answered", |permit| {
            permit.first_message(Instant::now());
        }),
        ("over", |permit| {
            std::mem::take(permit).finish(Outcome::Failure, Instant::now(), 0.0);
        }),
        ("given up", |permit| drop(std::mem::take(permit))),
    ];
    for (how, free) in frees {
        let mut fleet = bounded(3);
        let mut bell = fleet.set.epoch.changes();
        let mut held: Vec<_> = (0..6).map(|_| fleet.take()).collect();
        assert_eq!((fleet.sight(0).pending, fleet.sight(1).pending), (3, 3));
        held[0].1.taken();
        held.push(fleet.take());
        assert!(fleet.ask(None, &|_| true).is_none(), "{how}: three at each");
        bell.mark_unchanged();
        let (place, permit) = &mut held[1];
        free(permit);
        assert!(bell.has_changed().unwrap(), "{how}: there is room");
        let (next, _) = fleet.ask(None, &|_| true).expect("there is room");
        assert_eq!(next, *place, "{how}");
        // What was counted out once is so only once.
        let mut held = held.into_iter().map(|(_, permit)| permit);
        held.by_ref().for_each(|mut permit| permit.taken());
        let pending = [0, 1].map(|place| fleet.sight(place).pending);
        assert_eq!(pending, [0, 0], "{how}");
    }
    let mut fleet = bounded(3);
    let bell = fleet.set.epoch.changes();
    fleet.take().1.taken();
    assert!(!bell.has_changed().unwrap(), "nobody has asked");
    let mut fleet = bounded(0);
    let held: Vec<_> = (0..2000).map(|_| fleet.take()).collect();
    assert_eq!(held.len(), 2000, "no bound");
    let mut fleet = bounded(1);
    let endpoint = fleet.set.members()[0].endpoint.clone();
    let resumed = Permit::outside(endpoint, Arc::default(), fleet.now);
    assert_eq!((fleet.sight(0).in_flight, fleet.sight(0).pending), (1, 0));
    assert!(fleet.ask(None, &|place| *place == 0).is_some());
    drop(resumed);
}

#[test]
fn what_happens_is_counted_by_what_it_says() {
    let mut fleet = fleet(4);
    fleet.break_down(0);
    fleet.now += Duration::from_secs(1);
    let (_, probe) = fleet.take();
    assert!(probe.is_probe());
    probe.finish(Outcome::Failure, fleet.now, 0.0);
    fleet.now += Duration::from_secs(2);
    let (_, mut probe) = fleet.take();
    probe.first_message(fleet.now);
    probe.finish(Outcome::Success, fleet.now, 0.0);
    for outcome in [Outcome::Overload(None), Outcome::Neutral, Outcome::Neutral] {
        fleet.take().1.finish(outcome, fleet.now, 0.0);
    }
    drop(fleet.take());
    let counts = fleet.set.epoch.counts();
    assert_eq!(
        counts.ended,
        [
            ("success", 1),
            ("failure", 6),
            ("overload", 1),
            ("nothing", 3)
        ]
    );
    assert_eq!(
        counts.opened,
        [("consecutive", 1), ("rate", 0), ("probe", 1)]
    );
    assert_eq!(
        counts.closed,
        [("probe", 1), ("time", 0), ("calls", 0), ("restart", 0)]
    );
    // Of four, all fail: two get calls all the same, and one closes by them.
    for place in 0..4 {
        fleet.break_down(place);
    }
    fleet.calls(20, |_| millis(1), |_| Outcome::Success);
    assert!(fleet.set.epoch.counts().closed[2].1 > 0);
}

#[test]
fn another_process_behind_an_instance_starts_with_nothing_against_it() {
    let mut fleet = fleet(2);
    fleet.break_down(0);
    assert_eq!(
        (
            fleet.set.ejected(fleet.now),
            fleet.set.would_eject(fleet.now)
        ),
        (1, 1)
    );
    assert!(fleet.set.members()[0].endpoint.restarted());
    assert!(!fleet.set.members()[1].endpoint.restarted());
    assert_eq!(fleet.set.ejected(fleet.now), 0);
    assert_eq!(fleet.sight(0).trips, 1, "but it is remembered");
}

#[test]
fn a_choice_allocates_nothing() {
    for (weights, ejected) in [(&[][..], 0), (&[90, 10][..], 10)] {
        let mut fleet = fleet_of(100, weights, |member| {
            member.local = member.value % 3 == 0;
            member.group = member.value % 2;
        });
        (0..ejected).for_each(|place| fleet.break_down(place * 10 + 1));
        fleet.set = fleet.set.of_kind(Kind::new(9));
        // The first one looks at everybody.
        drop(fleet.take());
        let but = |place: &usize| *place != 7;
        let counted = allocation_counter::measure(|| {
            for call in 0..1000 {
                let sticky = (call % 4 == 0).then_some(call);
                let (_, mut permit) = fleet.ask(sticky, &but).expect("somebody can be called");
                permit.first_message(fleet.now);
                permit.finish(Outcome::Success, fleet.now, 0.5);
            }
        });
        assert_eq!(counted.count_total, 0, "{ejected} ejected");
    }
}

#[test]
fn whoever_does_not_fail_is_found_though_half_do() {
    let mut fleet = fleet(10);
    let off = Settings {
        breaker: crate::resilience::BreakerSettings {
            enabled: false,
            ..Default::default()
        },
        ..Settings::default()
    };
    fleet.set.settings = Arc::new(off);
    let ends = |place| {
        if place < 5 {
            Outcome::Failure
        } else {
            Outcome::Success
        }
    };
    let had = fleet.calls(1000, |_| millis(10), ends);
    let failed: u32 = had[..5].iter().sum();
    // Of two alone, one call in four would find two that fail.
    assert!((5..50).contains(&failed), "{had:?}");
}

#[test]
fn a_new_instances_share_grows_with_its_age() {
    let start = Instant::now();
    let new = Endpoint::new(Epoch::default(), Some(start), start);
    let at = |settings: &Settings, millis| {
        let now = start + Duration::from_millis(millis);
        new.sight(settings, now).share
    };
    for (age, share) in [
        (0, 0.1),
        (1000, 0.1),
        (2500, 0.25),
        (5000, 0.5),
        (9990, 0.999),
        (10_000, 1.0),
        (99_000, 1.0),
    ] {
        let is = at(&Settings::default(), age);
        assert!((is - share).abs() < 1e-9, "{age} ms: {is}");
    }
    let mut at_once = Settings::default();
    at_once.balance.slow_start = Duration::ZERO;
    assert!((at(&at_once, 0) - 1.0).abs() < 1e-9);
    let old = Endpoint::new(Epoch::default(), None, start);
    assert!((old.sight(&Settings::default(), start).share - 1.0).abs() < 1e-9);
}

#[test]
fn nobody_is_left_alone_longer_than_the_most() {
    let mut fleet = fleet(1);
    for (asks, paused) in [(1, 1), (300, 300), (301, 300), (86_400, 300)] {
        let (_, permit) = fleet.take();
        let pause = Duration::from_secs(asks);
        permit.finish(Outcome::Overload(Some(pause)), fleet.now, 0.0);
        assert_eq!(fleet.sight(0).paused, Some(Duration::from_secs(paused)));
        assert!(fleet.ask(None, &|_| true).is_none());
        fleet.now += Duration::from_secs(paused);
    }
}

#[test]
fn where_nobody_is_left_somebody_is_asked_every_few_seconds() {
    for members in [1, 2] {
        let mut fleet = fleet(members);
        (0..members).for_each(|place| fleet.break_down(place));
        let begun = fleet.now;
        let mut probes = 0;
        while fleet.now < begun + Duration::from_secs(60) {
            if let Some((_, permit)) = fleet.ask(None, &|_| true) {
                assert!(permit.is_probe());
                probes += 1;
                permit.finish(Outcome::Failure, fleet.now, 1.0);
            }
            fleet.now += millis(100);
        }
        // Every two to three seconds each, however long it has lasted.
        assert!((20 * members..=36 * members).contains(&probes), "{probes}");
    }
}

#[test]
fn who_fell_together_is_asked_again_together() {
    let mut fleet = fleet(8);
    (0..3).for_each(|place| fleet.break_down(place));
    fleet.now += millis(500);
    let settled: Vec<_> = (0..3).map(|place| fleet.sight(place).left).collect();
    assert!(
        settled.iter().all(|left| *left > Some(millis(400))),
        "{settled:?}"
    );
    fleet.now += Duration::from_secs(20);
    fleet.break_down(3);
    // Their probes fail until the first has 32 s to wait and the others half as much again.
    for _ in 0..5 {
        fleet.now += Duration::from_secs(100);
        for place in 0..4 {
            let own = |at: &usize| *at == place;
            let (_, permit) = fleet.ask(None, &own).expect("its time has come");
            assert!(permit.is_probe(), "{place}");
            let chance = if place == 0 { 0.0 } else { 1.0 };
            permit.finish(Outcome::Failure, fleet.now, chance);
        }
    }
    fleet.now += Duration::from_secs(32);
    let left = |fleet: &Fleet| [1, 2, 3].map(|place| fleet.sight(place).left.unwrap().as_secs());
    let before = left(&fleet);
    assert!(before[..2].iter().all(|left| *left == 16), "{before:?}");
    let (_, mut probe) = fleet.ask(None, &|at| *at == 0).expect("its time has come");
    assert_eq!(probe.first_message(fleet.now), Some(Turn::Closed));
    probe.finish(Outcome::Success, fleet.now, 0.0);
    fleet.set.ejected(fleet.now);
    let after = left(&fleet);
    assert_eq!(after[..2], [0, 0], "within a second");
    assert_eq!(after[2], before[2], "it had fallen for itself");
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u16),
    Call { allowed: Vec<bool> },
    End { which: usize, outcome: Outcome },
}

fn step(members: usize) -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        1 => Just(Outcome::Success),
        3 => Just(Outcome::Failure),
        1 => Just(Outcome::Overload(Some(millis(300)))),
        1 => Just(Outcome::Neutral)
    ];
    prop_oneof![
        1 => (0_u16..2000).prop_map(Step::Wait),
        4 => prop::collection::vec(prop::bool::weighted(0.8), members)
            .prop_map(|allowed| Step::Call { allowed }),
        4 => (any::<usize>(), outcome).prop_map(|(which, outcome)| Step::End { which, outcome }),
    ]
}

proptest! {
    /// Whatever happens: nobody gets a call that it may not have; an open breaker that counts gets
    /// none; at most half of many are left out; one probe at a time; and what began is counted out.
    #[test]
    fn keeps_its_promises((members, steps) in (1_usize..7).prop_flat_map(|members| {
        (Just(members), prop::collection::vec(step(members), 1..300))
    })) {
        let mut fleet = fleet(members);
        let mut under_way: Vec<(usize, Permit)> = Vec::new();
        for step in steps {
            match step {
                Step::Wait(millis) => fleet.now += Duration::from_millis(millis.into()),
                Step::Call { allowed } => {
                    let before: Vec<_> = (0..members).map(|place| fleet.sight(place)).collect();
                    // Half-open ones take no traffic either.
                    let open = before.iter().filter(|sight| sight.phase != Phase::Closed).count();
                    let honoured = if members < 3 { members } else { members / 2 };
                    if let Some((place, permit)) = fleet.ask(None, &|place| allowed[*place]) {
                        prop_assert!(allowed[place]);
                        prop_assert!(before[place].paused.is_none());
                        prop_assert!(before[place].phase != Phase::Open || open > honoured);
                        if permit.is_probe() {
                            let other = |(at, other): &(usize, Permit)| *at == place && other.is_probe();
                            prop_assert!(!under_way.iter().any(other), "two probes at {place}");
                        }
                        under_way.push((place, permit));
                    }
                    let would = fleet.set.would_eject(fleet.now);
                    let ejected = fleet.set.ejected(fleet.now);
                    prop_assert_eq!(would, ejected);
                    prop_assert!(ejected <= honoured, "{ejected} of {members}");
                }
                Step::End { which, outcome } if !under_way.is_empty() => {
                    let (_, permit) = under_way.swap_remove(which % under_way.len());
                    permit.finish(outcome, fleet.now, 0.5);
                }
                Step::End { .. } => {}
            }
            for place in 0..members {
                let count = under_way.iter().filter(|(at, _)| *at == place).count();
                let counted = fleet.set.members()[place].endpoint.in_flight();
                prop_assert_eq!(usize::try_from(counted).unwrap(), count);
            }
        }
    }
}
