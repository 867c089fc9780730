//! Executors with few slots beside one that has room for all, in turns: what it costs to wait.

use std::time::Duration;

use crate::{
    INPUT, Options, Outcome,
    fleeting::middle,
    load::{Call, Load},
    mesh::{Mesh, SLOTS},
    report,
};

/// Measures, and prints the table.
pub(crate) async fn measure(options: &Options) -> Outcome<()> {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let each = Duration::from_secs_f64(options.seconds);
    let mut meshes = Vec::new();
    for &slots in [SLOTS].iter().chain(&options.slots) {
        let mesh = Mesh::with_slots(&options.attache, scratch.path(), "disk", (1, slots)).await?;
        meshes.push((slots, mesh));
    }
    println!("\n| callers | slots | tasks/s | p50 / p99, ms | home + executor, us | ratio |");
    println!("|--:|--:|--:|--:|--:|--:|");
    for &callers in &options.callers {
        let mut runs = vec![Vec::new(); meshes.len()];
        let mut spent = vec![String::new(); meshes.len()];
        for round in 1..=options.rounds {
            for (place, (slots, mesh)) in meshes.iter().enumerate() {
                let load = Load {
                    call: Call::Durable,
                    callers,
                    input: "x".repeat(INPUT),
                };
                load.run(mesh.local(), each / 8).await?;
                let (before, log) = (mesh.spent(), mesh.journal()?);
                let measured = load.run(mesh.local(), each).await?;
                let used = mesh.spent().each(before, measured.count());
                let log = mesh.journal()?.since(&log);
                eprintln!(
                    "round {round}, {callers:3} callers, {slots:4} slots: {measured}, {used} us of \
                     processor, {log}, {:.2} records each",
                    log.records / measured.count().max(1) as f64
                );
                spent[place] = format!("{:.0} + {:.0}", used.home, used.executor);
                runs[place].push(measured);
            }
        }
        let runs: Vec<_> = runs.into_iter().map(middle).collect();
        let whole = runs[0].per_second().max(1e-9);
        for ((run, (slots, _)), spent) in runs.iter().zip(&meshes).zip(spent) {
            println!(
                "| {callers} | {slots} | {:.0} | {:.2} / {:.2} | {spent} | {:.2} |",
                run.per_second(),
                run.within(0.5),
                run.within(0.99),
                run.per_second() / whole,
            );
        }
    }
    println!("\n{}", report::signature("-- --slots 4,32"));
    Ok(())
}
