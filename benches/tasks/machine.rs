//! What is known of the machine and its processes. Linux tells; elsewhere it stays unknown.

use std::fs;

/// Processor and cores.
pub(crate) fn description() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    let model = model.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    format!("{cores} cores of {model}, {}", std::env::consts::OS)
}

/// Ticks of a processor's time in a second, as `/proc` counts them.
const TICKS: f64 = 100.0;

/// A process.
pub(crate) struct Process {
    /// Its id.
    pub(crate) pid: u32,
    /// Its first argument; empty where it has none.
    pub(crate) verb: String,
    /// Its arguments after that.
    pub(crate) rest: String,
    /// Resident memory in MiB.
    pub(crate) resident: f64,
    /// Processor's time that it has used, in seconds.
    pub(crate) spent: f64,
}

/// The children of `pid`.
pub(crate) fn children(pid: u32) -> Vec<Process> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let list = list.unwrap_or_default();
    list.split_whitespace().filter_map(process).collect()
}

/// The process of this id; `self` is this one.
pub(crate) fn process(child: &str) -> Option<Process> {
    let line = fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
    let mut arguments = line.split('\0').skip(1);
    let verb = arguments.next().unwrap_or_default().to_owned();
    let rest = arguments.collect::<Vec<_>>().join(" ");
    let status = fs::read_to_string(format!("/proc/{child}/status")).ok()?;
    let kibibytes = status.lines().find_map(|line| {
        let rest = line.strip_prefix("VmRSS:")?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    })?;
    let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = fields.split_whitespace().skip(11).take(2);
    let spent: f64 = ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    Some(Process {
        pid: stat.split(' ').next()?.parse().ok()?,
        verb,
        rest,
        resident: kibibytes / 1024.0,
        spent: spent / TICKS,
    })
}
