//! The result: a line for each case and system, with ratios to the tunnel; memory below.

use std::fmt;

use crate::{
    figures::{Case, Figures, medians},
    under::Under,
};

/// What others are compared with.
const LIMIT: &str = "tunnel";
/// The case whose memory is told: many callers at once.
const LOAD: &str = "128 B, 256 callers";

/// Measurements by case and system.
pub(crate) struct Table {
    cases: Vec<&'static str>,
    systems: Vec<&'static str>,
    cells: Vec<Vec<Vec<Figures>>>,
    /// Of each system, in MiB.
    memory: Vec<Memory>,
    /// Measurements that failed, and why: a system, and what was wrong.
    failed: Vec<(&'static str, String)>,
}

/// What the larger of two proxies has resident, in MiB.
#[derive(Clone, Copy, Default)]
struct Memory {
    idle: Option<f64>,
    /// Right after it had [`LOAD`] for the first time.
    loaded: Option<f64>,
    /// After all cases.
    last: Option<f64>,
}

impl Table {
    pub(crate) fn new(cases: &[&Case], systems: &[&Under]) -> Self {
        Self {
            cases: cases.iter().map(|case| case.name).collect(),
            systems: systems.iter().map(|under| under.name).collect(),
            cells: vec![vec![Vec::new(); systems.len()]; cases.len()],
            memory: vec![Memory::default(); systems.len()],
            failed: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, case: usize, system: usize, figures: Figures) {
        self.cells[case][system].push(figures);
    }

    /// A measurement gave no figures: the others of its case count.
    pub(crate) fn failed(&mut self, system: usize, why: &str) {
        self.failed.push((self.systems[system], why.to_owned()));
    }

    /// How many measurements of a system failed.
    pub(crate) fn failures_of(&self, system: &str) -> usize {
        self.failed.iter().filter(|(of, _)| *of == system).count()
    }

    /// Notes the memory that a system has after a case.
    pub(crate) fn after(&mut self, case: usize, system: usize, under: &Under) {
        let memory = &mut self.memory[system];
        memory.idle = under.idle;
        memory.last = under.resident();
        if self.cases[case] == LOAD {
            memory.loaded = memory.loaded.or(memory.last);
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<20} {:<8} {:>11} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "case", "path", "calls/s", "/tunnel", "p50 us", "p99 us", "+p50 us", "CPU s", "/tunnel"
        )?;
        for (case, row) in self.cases.iter().zip(&self.cells) {
            let row: Vec<_> = row.iter().map(|cell| medians(cell)).collect();
            let of = |name: &str| {
                let place = self.systems.iter().position(|system| *system == name)?;
                row[place]
            };
            let (limit, direct) = (of(LIMIT), of("direct"));
            for (system, figures) in self.systems.iter().zip(&row) {
                let Some(one) = figures else { continue };
                let ratio = |own: Option<f64>, of: &dyn Fn(&Figures) -> Option<f64>| {
                    Some(own? / limit.as_ref().and_then(of)?)
                };
                let added = direct.and_then(|direct| Some(one.p50? - direct.p50?));
                writeln!(
                    f,
                    "{case:<20} {system:<8} {:>11.0} {} {} {} {} {} {}",
                    one.rate,
                    cell(ratio(Some(one.rate), &|limit| Some(limit.rate)), 2),
                    cell(one.p50, 0),
                    cell(one.p99, 0),
                    cell(added, 0),
                    cell(one.cpu, 3),
                    cell(ratio(one.cpu, &|limit| limit.cpu), 2),
                )?;
            }
        }
        writeln!(
            f,
            "CPU: seconds of both proxies per 10,000 calls; of streams, per 10,000,000 messages.\n"
        )?;
        for (system, memory) in self.systems.iter().zip(&self.memory) {
            let Some(idle) = memory.idle else { continue };
            let [loaded, last] = [memory.loaded, memory.last].map(|value| cell(value, 0));
            writeln!(
                f,
                "{system}: {idle:.0} MiB idle, {} after {LOAD}, {} after all (the larger of the two)",
                loaded.trim(),
                last.trim()
            )?;
        }
        for (_, why) in &self.failed {
            writeln!(f, "FAILED {why}")?;
        }
        Ok(())
    }
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(
        || format!("{:>9}", "-"),
        |value| format!("{value:>9.digits$}"),
    )
}
