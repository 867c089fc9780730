//! Slots that executors grant: which task goes, and who is said to wait.

use super::*;
use crate::domain::InstanceId;
use crate::task::home::granted::{Granted, LANES_MAX};

fn granted(origin: &str, priority: u32, until: Instant) -> Granted {
    Granted {
        instance: "i1".parse().unwrap(),
        id: "g1".into(),
        number: 7,
        origin: origin.into(),
        priority,
        until,
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_where_slots_are_granted_goes_with_a_grant_only() {
    let mut bench = Bench::new(&["i1"], false);
    let first = bench.submit();
    bench.hear(first, Heard::Accepted);
    let low = bench.submit_with(pb::TaskOptions {
        priority: 1,
        ..Default::default()
    });
    bench.hear(low, refused(Reason::SlotsFull));
    let high = bench.submit_with(pb::TaskOptions {
        priority: 10,
        ..Default::default()
    });
    bench.pass(Duration::from_millis(1));
    let (i1, now): (InstanceId, _) = ("i1".parse().unwrap(), bench.at.now);
    bench.step(|tasks, _| tasks.set_grants(&i1, true, now));
    let report = bench.step(|tasks, _| tasks.report());
    let waiting = report.waiting[&i1].iter();
    let waiting: Vec<_> = waiting
        .map(|((_, priority, skill), count)| (*priority, &**skill, *count))
        .collect();
    assert_eq!(waiting, [(1, "work.do", 1), (10, "work.do", 1)]);
    // A slot comes free, and is not for whoever is quickest.
    bench.update(first, 1, done());
    bench.pass(Duration::from_secs(10));
    let sent = bench.started().len();
    let until = bench.at.now + Duration::from_secs(1);
    let origin = own().to_string();
    let give = |bench: &mut Bench, origin: &str, priority, until| {
        let grant = granted(origin, priority, until);
        bench.step(|tasks, world| tasks.granted(&grant, world))
    };
    let now = bench.at.now;
    assert!(!give(&mut bench, &origin, 1, now), "void");
    assert!(!give(
        &mut bench,
        "spiffe://a/ns/default/agent/other",
        1,
        until
    ));
    assert_eq!(bench.started().len(), sent);
    assert!(give(&mut bench, &origin, 1, until));
    let last = bench.effects.iter().rev();
    let mut starts = last.filter_map(|effect| {
        let Effect::Start { to, start, .. } = effect else {
            return None;
        };
        Some((to.task, start.grant_id.clone()))
    });
    assert_eq!(starts.next(), Some((low, "g1".into())));
    // None of that priority is left: another one of the origin goes.
    assert!(give(&mut bench, &origin, 1, until));
    assert!(bench.tasks.tasks[&high].kept.running.is_some());
    assert!(!give(&mut bench, &origin, 1, until), "nobody waits");
    let report = bench.step(|tasks, _| tasks.report());
    assert_eq!((report.waiting.len(), report.seen[&i1]), (0, 7));
}

#[tokio::test(start_paused = true)]
async fn where_no_slots_are_granted_any_more_those_who_wait_are_offered_again() {
    let mut bench = Bench::new(&["i1"], false);
    let (i1, now): (InstanceId, _) = ("i1".parse().unwrap(), bench.at.now);
    bench.step(|tasks, _| tasks.set_grants(&i1, true, now));
    // Nobody waits: it needs no grant.
    let task = bench.submit();
    assert_eq!(bench.started().len(), 1);
    bench.hear(task, refused(Reason::SlotsFull));
    bench.pass(Duration::from_secs(20));
    assert!(bench.tasks.tasks[&task].kept.running.is_none());
    let now = bench.at.now;
    bench.step(|tasks, _| tasks.set_grants(&i1, false, now));
    bench.pass(Duration::from_secs(1));
    assert!(bench.tasks.tasks[&task].kept.running.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_home_that_gives_nothing_out_uses_no_grant_and_says_that_nobody_waits() {
    let mut bench = Bench::new(&["i1"], false);
    let task = bench.submit();
    bench.hear(task, refused(Reason::SlotsFull));
    assert_eq!(bench.step(|tasks, _| tasks.report()).waiting.len(), 1);
    bench.step(|tasks, _| tasks.hold());
    let grant = granted(&own().to_string(), 5, bench.at.now + Duration::from_secs(1));
    assert!(!bench.step(|tasks, world| tasks.granted(&grant, world)));
    assert!(bench.tasks.lanes.moved, "it says so");
    assert_eq!(bench.step(|tasks, _| tasks.report()).waiting.len(), 0);
}

fn i1() -> InstanceId {
    "i1".parse().unwrap()
}

/// Who is said to wait for i1: origins and how many.
fn said(bench: &mut Bench) -> Vec<(String, u32)> {
    let report = bench.step(|tasks, _| tasks.report());
    let waiting = report.waiting.get(&i1()).cloned().unwrap_or_default();
    let short = |origin: &str| origin.rsplit('/').next().unwrap().to_owned();
    let waiting = waiting.into_iter();
    waiting
        .map(|((origin, ..), count)| (short(&origin), count))
        .collect()
}

/// Puts a task of `origin` into a lane of its own where `own_lane` says so.
fn submit_by(bench: &mut Bench, origin: &str, own_lane: bool) -> Uuid {
    let mut new = bench.checked(pb::TaskOptions::default());
    new.task.origin = format!("spiffe://attache.local/ns/default/agent/{origin}");
    if own_lane {
        let selector = new.spec.selector.as_mut().unwrap();
        selector.labels.insert("lane".into(), origin.into());
    }
    bench.step(|tasks, world| tasks.submit(new, world)).unwrap()
}

/// Tasks that were lost at i1, which is full and grants its slots; there is another instance now.
fn tried(count: usize) -> Bench {
    let mut bench = Bench::new(&["i1"], true);
    let first = bench.submit();
    bench.hear(first, refused(Reason::SlotsFull));
    for _ in 1..count {
        bench.submit();
    }
    for entry in bench.tasks.tasks.values_mut() {
        Arc::make_mut(&mut entry.kept).tried = vec![i1()];
    }
    let now = bench.at.now;
    bench.step(|tasks, _| tasks.set_grants(&i1(), true, now));
    bench.route.set(&["i1", "i2"], true);
    bench
}

fn give(bench: &mut Bench) -> bool {
    let until = bench.at.now + Duration::from_secs(1);
    let grant = granted(&own().to_string(), 5, until);
    bench.step(|tasks, world| tasks.granted(&grant, world))
}

#[tokio::test(start_paused = true)]
async fn tasks_that_have_been_there_keep_no_slot_from_those_that_have_not() {
    let mut bench = tried(40);
    let fresh = bench.submit();
    assert!(give(&mut bench));
    assert!(bench.tasks.tasks[&fresh].kept.running.is_some());
    assert!(!give(&mut bench), "the others go elsewhere");
    // Where there is nobody else, they go there again.
    bench.route.set(&["i1"], true);
    assert!(give(&mut bench));
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_cannot_use_a_slot_is_not_told_of_for_a_while() {
    let mut bench = tried(3);
    submit_by(&mut bench, "other", false);
    assert_eq!(
        said(&mut bench),
        [("caller".into(), 3), ("other".into(), 1)]
    );
    assert!(!give(&mut bench));
    assert_eq!(said(&mut bench), [("other".into(), 1)]);
    // Another task may have a use for it.
    bench.route.set(&["i1"], true);
    bench.submit();
    assert_eq!(said(&mut bench)[0], ("caller".into(), 4));
    // And so may the same ones, later.
    bench.route.set(&["i1", "i2"], true);
    for entry in bench.tasks.tasks.values_mut() {
        Arc::make_mut(&mut entry.kept).tried = vec![i1()];
    }
    assert!(!give(&mut bench));
    bench.route.set(&["i1"], true);
    assert_eq!(said(&mut bench), [("other".into(), 1)]);
    bench.tasks.lanes.moved = false;
    let wake = bench.tasks.next_wake().unwrap();
    assert!(wake <= bench.at.now + Duration::from_millis(250));
    bench.pass(Duration::from_millis(250));
    assert!(bench.tasks.lanes.moved);
    assert_eq!(said(&mut bench)[0], ("caller".into(), 4));
}

#[tokio::test(start_paused = true)]
async fn more_lanes_than_are_told_of_at_once_are_told_of_in_turn() {
    let mut bench = Bench::new(&["i1"], false);
    bench.tasks.limits.live = 1000;
    let first = bench.submit();
    bench.hear(first, refused(Reason::SlotsFull));
    let many = LANES_MAX + 50;
    for number in 0..many {
        let task = submit_by(&mut bench, &format!("n{number}"), true);
        let lane = bench.tasks.tasks[&task].lane.clone().unwrap();
        bench.tasks.lanes.found_full(&lane, [i1()].into());
    }
    let mut told = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let said = said(&mut bench);
        assert_eq!(said.len(), LANES_MAX);
        told.extend(said.into_iter().map(|(origin, _)| origin));
        assert!(bench.tasks.lanes.moved, "the others are told of next");
    }
    assert_eq!(told.len(), many + 1);
}

#[tokio::test(start_paused = true)]
async fn who_has_no_room_is_of_the_task_that_was_offered_and_of_no_other() {
    let mut bench = Bench::new(&["i1"], false);
    let patient = bench.submit();
    bench.hear(patient, refused(Reason::SlotsFull));
    let hasty = bench.submit_with(pb::TaskOptions {
        fail_fast: true,
        ..Default::default()
    });
    let at = bench.at;
    for task in [patient, hasty] {
        let by = own().to_string();
        bench
            .step(|tasks, _| tasks.cancel(task, &by, "", at))
            .unwrap();
    }
    bench.step(|tasks, _| tasks.hold());
    let held = bench.submit();
    assert!(bench.tasks.tasks[&held].lane.is_some());
    assert!(
        !bench.tasks.lanes.waits_for(&i1()),
        "it was offered nowhere"
    );
}
