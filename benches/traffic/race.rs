//! Every policy in every scenario, in the same worlds.

use std::thread;

use crate::Options;
use crate::fleet::field::{OTHERS, OURS};
use crate::fleet::figures::Sum;
use crate::fleet::scenario::Scenario;
use crate::fleet::world::{Size, World};

/// What is shown of a run.
type Column = fn(Scenario, &Sum) -> String;

/// Tables of one view, each with its heading.
const TABLES: [(&str, Column); 3] = [
    (
        "Calls that failed, %: in the end (first tries)",
        |_, sum| {
            let (end, first) = (percent(sum.failed), percent(sum.first_failed));
            format!("{end} ({first})")
        },
    ),
    ("Calls that went well, ms: p50 / p99 / p99.9", |_, sum| {
        format!("{:.0} / {:.0} / {:.0}", sum.p50, sum.p99, sum.p999)
    }),
    (
        "Second tries for every first one while something was wrong, %; from its end until calls went \
         well, s",
        |scenario, sum| {
            let first = sum.first_in_fault.max(1) as f64;
            let again = percent(sum.again_in_fault as f64 / first);
            if scenario.recovers() {
                format!("{again}; {:.1}", sum.recovery.as_secs_f64())
            } else {
                again
            }
        },
    ),
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
        let view = if shared {
            "share one sidecar"
        } else {
            "see their own calls only"
        };
        println!("\n### {} callers that {view}", size.callers);
        let only = |scenario: &Scenario| scenario.name().contains(&options.only);
        let rows: Vec<_> = Scenario::ALL
            .into_iter()
            .filter(only)
            .map(|scenario| {
                eprintln!("{view}: {}", scenario.name());
                (scenario, runs(&scenario.world(size, options.seed, shared)))
            })
            .collect();
        for (heading, column) in TABLES {
            table(heading, &rows, column);
        }
    }
    println!("\n{}", signature(options));
}

/// All policies in one world, ours first.
fn runs(world: &World) -> Vec<Sum> {
    thread::scope(|scope| {
        let all = [OURS].into_iter().chain(OTHERS);
        let runs: Vec<_> = all
            .map(|(_, run)| scope.spawn(move || run(world)))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

fn table(heading: &str, rows: &[(Scenario, Vec<Sum>)], column: Column) {
    println!("\n{heading}:\n");
    print!("| |");
    for (name, _) in [OURS].into_iter().chain(OTHERS) {
        print!(" {name} |");
    }
    println!("\n|:--|{}", "--:|".repeat(1 + OTHERS.len()));
    for (scenario, sums) in rows {
        print!("| {} |", scenario.name());
        for sum in sums {
            print!(" {} |", column(*scenario, sum));
        }
        println!();
    }
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        0.0 => "0".to_owned(),
        percent if percent < 0.1 => format!("{percent:.4}"),
        percent => format!("{percent:.2}"),
    }
}

fn signature(options: &Options) -> String {
    let Options {
        callers,
        instances,
        each,
        seconds,
        seed,
        ..
    } = options;
    format!(
        "{instances} instances, {:.0} calls/s for {seconds} virtual seconds from {callers} callers; \
         something is wrong in the middle half of that. {}",
        each * *instances as f64,
        crate::signature(&format!("--fleet --seed {seed} --seconds {seconds}")),
    )
}
