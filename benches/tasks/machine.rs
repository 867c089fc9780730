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

/// The verb and the resident MiB of every child of `pid`.
pub(crate) fn children(pid: u32) -> Vec<(String, f64)> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let list = list.unwrap_or_default();
    let child = |child: &str| {
        let line = fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
        let verb = line.split('\0').nth(1)?.to_owned();
        let status = fs::read_to_string(format!("/proc/{child}/status")).ok()?;
        let kibibytes = status.lines().find_map(|line| {
            let rest = line.strip_prefix("VmRSS:")?;
            rest.split_whitespace().next()?.parse::<f64>().ok()
        })?;
        Some((verb, kibibytes / 1024.0))
    };
    list.split_whitespace().filter_map(child).collect()
}
