//! What the system says of this process: Linux's `/proc`. Elsewhere these families have no rows.

use std::fs;

use super::{Sheet, Source, family};

/// Clock ticks of a second in `/proc`, part of Linux's ABI.
const TICKS: f64 = 100.0;

/// Writes what can be found out.
pub(super) fn source() -> impl Source {
    // Once: the system corrects its own idea of when it was started as its clock is set.
    let start = read("stat").as_deref().and_then(started);
    move |sheet: &mut Sheet<'_>| {
        let stat = read("stat").unwrap_or_default();
        let memory = read("status").as_deref().and_then(resident);
        let most = read("limits").as_deref().and_then(most_open);
        // Without the one that the listing itself holds open.
        let open = fs::read_dir("/proc/self/fd").map(|all| all.count().saturating_sub(1) as f64);
        let one = |value: Option<f64>| value.map(|value| ([], value));
        sheet.gauge(&family::PROCESS_START, one(start));
        sheet.counter(&family::PROCESS_CPU, one(spent(&stat)));
        sheet.gauge(&family::PROCESS_MEMORY, one(memory));
        sheet.gauge(&family::PROCESS_FDS, one(open.ok()));
        sheet.gauge(&family::PROCESS_MAX_FDS, one(most));
    }
}

fn read(page: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/self/{page}")).ok()
}

/// A field of `/proc/PID/stat` by its number in proc(5), from 3: behind the program's name, which
/// may hold blanks and brackets.
fn field(stat: &str, number: usize) -> Option<f64> {
    let (_, behind) = stat.rsplit_once(')')?;
    let word = behind
        .split_ascii_whitespace()
        .nth(number.checked_sub(3)?)?;
    word.parse().ok()
}

fn spent(stat: &str) -> Option<f64> {
    Some((field(stat, 14)? + field(stat, 15)?) / TICKS)
}

fn started(stat: &str) -> Option<f64> {
    let system = fs::read_to_string("/proc/stat").ok()?;
    let boot = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    Some(boot.trim().parse::<f64>().ok()? + field(stat, 22)? / TICKS)
}

fn resident(status: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

fn most_open(limits: &str) -> Option<f64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 0 0 0 0 250 50 0 0 20 0 3 0 4200 1 2 3";
        assert_eq!(spent(stat), Some(3.0));
        assert_eq!(field(stat, 22), Some(4200.0));
        assert_eq!(field("", 14), None);
        assert_eq!(
            resident("VmPeak:\t 9 kB\nVmRSS:\t    12 kB\n"),
            Some(12288.0)
        );
        let limits = "Limit   Soft Limit   Hard Limit\nMax open files            1024                 4096  files\n";
        assert_eq!(most_open(limits), Some(1024.0));
    }
}
