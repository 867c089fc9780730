//! The table, as the README shows it.

use std::fmt;

use attache::runtime::clock::wall;
use jiff::Timestamp;

use crate::{
    load::Measured,
    machine,
    mesh::{Journal, Resident},
};

/// What was measured how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) callers: usize,
    /// Where the log is.
    pub(crate) name: &'static str,
}

/// All of a run.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<(Case, Measured, Journal)>,
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
}

impl Report {
    pub(crate) fn add(&mut self, case: Case, measured: Measured, journal: Journal) {
        self.rows.push((case, measured, journal));
    }

    fn row(&self, case: Case) -> Row {
        let of = |figure: fn(&(Case, Measured, Journal)) -> f64| {
            let rows = self.rows.iter().filter(|(other, ..)| *other == case);
            median(rows.map(figure))
        };
        Row {
            rate: of(|(_, measured, _)| measured.per_second()),
            p50: of(|(_, measured, _)| measured.within(0.5)),
            p99: of(|(_, measured, _)| measured.within(0.99)),
            syncs: of(|(_, measured, journal)| journal.syncs / measured.count().max(1) as f64),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| callers | on disk, tasks/s | p50 / p99, ms | syncs per task | \
             log in memory, tasks/s | p50 / p99, ms | disk / memory |"
        )?;
        writeln!(f, "|--:|--:|--:|--:|--:|--:|--:|")?;
        let mut callers: Vec<usize> = self.rows.iter().map(|(case, ..)| case.callers).collect();
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
            } = disk;
            write!(
                f,
                "| {callers} | {rate:.0} | {p50:.2} / {p99:.2} | {syncs:.2} "
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
        let date = Timestamp::try_from(wall()).map(|at| at.strftime("%Y-%m-%d").to_string());
        writeln!(
            f,
            "{}; {}; `cargo bench --bench tasks`; medians of {} rounds in turns.",
            date.unwrap_or_default(),
            machine::description(),
            self.disk.len()
        )
    }
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}
