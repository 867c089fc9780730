//! Choices in a simulated fleet, beside what others would have chosen: no process, virtual time, fixed
//! seeds. `cargo bench --bench traffic` runs the same at full size.

#[path = "../support/fleet/mod.rs"]
#[allow(
    dead_code,
    reason = "the bench that shares it also prints what is not asserted"
)]
mod simulated;

use std::time::Duration;

use simulated::field::{OTHERS, OURS};
use simulated::figures::Sum;
use simulated::scenario::Scenario;
use simulated::world::{Size, World};

const SIZE: Size = Size {
    callers: 10,
    instances: 20,
    each: 25.0,
    seconds: 12,
};
/// Share of calls that may fail beyond what another policy fails.
const FAILED: f64 = 0.001;
/// Times the other's p99.
const SLOWER: f64 = 1.1;
/// Whoever fails so many more calls has fewer left to take long: its p99 says nothing.
const FEWER: f64 = 0.005;

fn race(shared: bool) {
    let mut worse = Vec::new();
    for scenario in Scenario::ALL {
        let world = scenario.world(SIZE, 1, shared);
        let (own, ours) = (OURS.1(&world), scenario.name());
        for (name, run) in OTHERS {
            let other = run(&world);
            if own.failed > other.failed + FAILED {
                worse.push(format!(
                    "{ours}: fails {} and {name} {}",
                    own.failed, other.failed
                ));
            }
            if other.failed < own.failed + FEWER && own.p99 > other.p99 * SLOWER {
                worse.push(format!("{ours}: p99 {} and {name} {}", own.p99, other.p99));
            }
        }
    }
    assert!(worse.is_empty(), "{worse:#?}");
}

#[test]
fn where_each_caller_sees_only_its_own_calls_nobody_does_better() {
    race(false);
}

#[test]
fn where_callers_share_a_view_nobody_does_better() {
    race(true);
}

/// An outage of 30 s, as long as a cool-down can grow in it.
fn outage(scenario: Scenario, instances: usize, shared: bool) -> (World, Sum) {
    let size = Size {
        callers: 10,
        instances,
        each: 100.0 / instances as f64,
        seconds: 60,
    };
    let world = scenario.world(size, 1, shared);
    let sum = OURS.1(&world);
    (world, sum)
}

#[test]
fn an_outage_of_all_is_over_within_five_seconds_of_its_end() {
    for instances in [1, 2, 3, 10] {
        for scenario in [Scenario::AllDown, Scenario::Storm] {
            for shared in [false, true] {
                let (_, sum) = outage(scenario, instances, shared);
                let name = scenario.name();
                assert!(
                    sum.recovery <= Duration::from_secs(5),
                    "{name}, {instances} instances: {:?}",
                    sum.recovery
                );
            }
        }
    }
}

#[test]
fn a_storm_of_second_tries_stays_within_its_budget() {
    for shared in [false, true] {
        let (world, sum) = outage(Scenario::Storm, 10, shared);
        let views = if shared { 1 } else { world.callers };
        let seconds = (world.fault.to - world.fault.from).as_secs_f64();
        let floor = 3.0 * seconds * views as f64;
        // While everything fails only the floor is left, and what the window before had saved up.
        let saved = 0.2 * 10.0 * world.rate;
        let again = sum.again_in_fault as f64;
        assert!(again <= floor + saved, "{again} and {floor} + {saved}");
        assert!(again > 0.0, "nothing was tried again: the test is blind");
    }
}
