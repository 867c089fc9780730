//! Tasks in memory only beside plain tonic over the same hops, in turns.

use std::time::Duration;

use crate::{
    INPUT, Options, Outcome,
    load::{Call, Load, Measured},
    mesh::Mesh,
    plain::Plain,
    report,
};

/// Measures, and prints the table.
pub(crate) async fn measure(options: &Options) -> Outcome<()> {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mesh = Mesh::start(&options.attache, scratch.path(), "disk", 1).await?;
    let plain = Plain::start(scratch.path())?;
    let each = Duration::from_secs_f64(options.seconds);
    println!(
        "\n| callers | `EPHEMERAL` tasks/s | p50 / p99, ms | plain calls/s | p50 / p99, ms | ratio |"
    );
    println!("|--:|--:|--:|--:|--:|--:|");
    for &callers in &options.callers {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=options.rounds {
            for (call, address, into) in [
                (Call::Ephemeral, mesh.local(), &mut ours),
                (Call::Plain, plain.local(), &mut theirs),
            ] {
                let load = Load {
                    call,
                    callers,
                    input: "x".repeat(INPUT),
                };
                load.run(address, each / 8).await?;
                let measured = load.run(address, each).await?;
                eprintln!("round {round}, {callers:3} callers, {call:?}: {measured}");
                into.push(measured);
            }
        }
        let (ours, theirs) = (middle(ours), middle(theirs));
        println!(
            "| {callers} | {:.0} | {:.2} / {:.2} | {:.0} | {:.2} / {:.2} | {:.2} |",
            ours.per_second(),
            ours.within(0.5),
            ours.within(0.99),
            theirs.per_second(),
            theirs.within(0.5),
            theirs.within(0.99),
            ours.per_second() / theirs.per_second().max(1e-9),
        );
    }
    println!("\n{}", report::signature("-- --ephemeral"));
    Ok(())
}

/// The run whose rate is the median.
pub(crate) fn middle(mut runs: Vec<Measured>) -> Measured {
    runs.sort_by(|one, other| one.per_second().total_cmp(&other.per_second()));
    runs.swap_remove(runs.len() / 2)
}
