//! Every policy in every scenario.

use crate::Options;
use crate::fleet::baselines::{LeastRequests, Linkerd, RoundRobin};
use crate::fleet::envoy::{OverLeastRequests, OverRoundRobin};
use crate::fleet::figures::Sum;
use crate::fleet::ours::Ours;
use crate::fleet::scenario::Scenario;
use crate::fleet::simulation::run;
use crate::fleet::world::{Size, World};

type Run = fn(&World) -> Sum;

const POLICIES: [(&str, Run); 7] = [
    ("attache", |world| run::<Ours>(world).sum()),
    ("round robin", |world| run::<RoundRobin>(world).sum()),
    ("least requests", |world| run::<LeastRequests>(world).sum()),
    ("Envoy, round robin", |world| {
        run::<OverRoundRobin>(world).sum()
    }),
    ("Envoy, least requests", |world| {
        run::<OverLeastRequests>(world).sum()
    }),
    ("Linkerd", |world| run::<Linkerd<false>>(world).sum()),
    ("Linkerd, penalizing", |world| {
        run::<Linkerd<true>>(world).sum()
    }),
];

pub(crate) fn race(options: &Options) {
    let size = Size {
        callers: options.callers,
        instances: options.instances,
        each: options.each,
        seconds: options.seconds,
    };
    for shared in [false, true] {
        if options.shared.is_some_and(|only| only != shared) {
            continue;
        }
        println!("\n{}", if shared { "shared" } else { "own" });
        for scenario in Scenario::ALL {
            if !scenario.name().contains(&options.only) {
                continue;
            }
            let world = scenario.world(size, options.seed, shared);
            let sums = std::thread::scope(|scope| {
                let runs = POLICIES.map(|(_, run)| {
                    let world = &world;
                    scope.spawn(move || run(world))
                });
                runs.map(|run| run.join().unwrap())
            });
            println!("{}", scenario.name());
            for ((name, _), sum) in POLICIES.iter().zip(sums) {
                println!(
                    "  {name:22} p50 {:6.1} p99 {:7.1} p99.9 {:7.1}  first failed {:8.4}%  failed {:8.4}%  again {:6.2}%  in fault {:5.2}% rec {:?}",
                    sum.p50,
                    sum.p99,
                    sum.p999,
                    sum.first_failed * 100.0,
                    sum.failed * 100.0,
                    sum.again * 100.0,
                    sum.again_in_fault as f64 / sum.first_in_fault.max(1) as f64 * 100.0,
                    if scenario.recovers() {
                        Some(sum.recovery)
                    } else {
                        None
                    }
                );
            }
        }
    }
}
