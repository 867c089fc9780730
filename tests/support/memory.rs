//! Resident memory of a process, as the kernel has it.

use std::fs;

/// What it has now, in KiB.
pub fn now(pid: u32) -> u64 {
    read(pid, "VmRSS:")
}

/// The most that it ever had, or since [`forget_most`], in KiB.
pub fn most(pid: u32) -> u64 {
    read(pid, "VmHWM:")
}

/// The most begins at what it has now.
pub fn forget_most(pid: u32) {
    // 5 is "reset the peak" (proc(5)).
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

fn read(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(key));
    let words = line.unwrap().split_whitespace();
    words.filter_map(|word| word.parse().ok()).next().unwrap()
}
