//! The table, as the README shows it.

use std::fmt;

use attache::runtime::clock::wall;
use jiff::Timestamp;

use crate::{
    load::Measured,
    machine,
    mesh::{Journal, Resident, Spent},
};

/// What was measured how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) callers: usize,
    /// Where the log is.
    pub(crate) name: &'static str,
}

/// What came of it.
pub(crate) struct Run {
    pub(crate) measured: Measured,
    pub(crate) journal: Journal,
    /// Processor's time per task, in us.
    pub(crate) spent: Spent,
}

/// All that was measured.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<(Case, Run)>,
    pub(crate) disk: Vec<Measured>,
    pub(crate) idle: Resident,
    pub(crate) busy: Resident,
    /// Bytes of the executable.
    pub(crate) program: u64,
}

/// Medians over the rounds.
struct Row {
    rate: f64,
    p50: f64,
    p99: f64,
    syncs: f64,
    spent: Spent,
}

impl Report {
    pub(crate) fn add(&mut self, case: Case, run: Run) {
        self.rows.push((case, run));
    }

    fn row(&self, case: Case) -> Row {
        let of = |figure: fn(&Run) -> f64| {
            let rows = self.rows.iter().filter(|(other, _)| *other == case);
            median(rows.map(|(_, run)| figure(run)))
        };
        Row {
            rate: of(|run| run.measured.per_second()),
            p50: of(|run| run.measured.within(0.5)),
            p99: of(|run| run.measured.within(0.99)),
            syncs: of(|run| run.journal.syncs / run.measured.count().max(1) as f64),
            spent: Spent {
                home: of(|run| run.spent.home),
                executor: of(|run| run.spent.executor),
                agent: of(|run| run.spent.agent),
                client: of(|run| run.spent.client),
            },
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| callers | on disk, tasks/s | p50 / p99, ms | syncs per task | \
             processor per task, us: home + executor + agent + client | \
             log in memory, tasks/s | p50 / p99, ms | disk / memory |"
        )?;
        writeln!(f, "|--:|--:|--:|--:|--:|--:|--:|--:|")?;
        let mut callers: Vec<usize> = self.rows.iter().map(|(case, _)| case.callers).collect();
        callers.dedup();
        callers.sort_unstable();
        callers.dedup();
        for callers in callers {
            let name = "disk";
            let disk = self.row(Case { callers, name });
            let name = "memory";
            let memory = self.row(Case { callers, name });
            let Row {
                rate,
                p50,
                p99,
                syncs,
                spent,
            } = disk;
            write!(
                f,
                "| {callers} | {rate:.0} | {p50:.2} / {p99:.2} | {syncs:.2} | {spent} "
            )?;
            let Row { rate, p50, p99, .. } = memory;
            let ratio = disk.rate / rate.max(1e-9);
            writeln!(f, "| {rate:.0} | {p50:.2} / {p99:.2} | {ratio:.2} |")?;
        }
        let of = |figure: fn(&Measured) -> f64| median(self.disk.iter().map(figure));
        let rate = of(Measured::per_second);
        let (p50, p99) = (of(|disk| disk.within(0.5)), of(|disk| disk.within(0.99)));
        writeln!(
            f,
            "\nThe disk by itself, one record appended and synced at a time: {rate:.0}/s, \
             p50 {p50:.2} ms, p99 {p99:.2} ms."
        )?;
        let (idle, busy) = (self.idle, self.busy);
        writeln!(
            f,
            "Resident memory, MiB: sidecar {:.1} idle, {:.1} after the load; registry {:.1} idle. \
             The executable has {:.1} MiB.",
            idle.sidecar,
            busy.sidecar,
            idle.registry,
            self.program as f64 / f64::from(1 << 20)
        )?;
        let rounds = self.disk.len();
        writeln!(f, "{}; medians of {rounds} rounds in turns.", signature(""))
    }
}

/// When, where and by what command.
pub(crate) fn signature(arguments: &str) -> String {
    let date = Timestamp::try_from(wall()).map(|at| at.strftime("%Y-%m-%d").to_string());
    let command = format!("cargo bench --bench tasks {arguments}");
    format!(
        "{}; {}; `{}`",
        date.unwrap_or_default(),
        machine::description(),
        command.trim_end()
    )
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}
