//! Processes of one test: told from all others by a mark in their environment, which everything
//! that they start inherits.

use std::{fs, path::Path};

use rustix::process::{Pid, Signal, kill_process};

use super::wait::eventually;

/// Name of the mark.
const MARK: &str = "ATTACHE_TEST_MARK";

/// A mark that nobody else has. Dropped, it ends every process that carries it.
pub struct Mark(String);

/// A running process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// Program and arguments, joined by blanks.
    pub command: String,
}

impl Mark {
    pub fn new() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }

    /// What to put into a child's environment.
    pub fn env(&self) -> (&'static str, &str) {
        (MARK, &self.0)
    }

    /// Everything that lives with this mark.
    pub fn processes(&self) -> Vec<Process> {
        let mark = format!("{MARK}={}", self.0);
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter_map(|pid| {
            // A process that has ended meanwhile, or is nobody's but a zombie, has no environment.
            let env = fs::read(format!("/proc/{pid}/environ")).ok()?;
            env.split(|byte| *byte == 0)
                .any(|entry| entry == mark.as_bytes())
                .then(|| {
                    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    let command = String::from_utf8_lossy(&command).replace('\0', " ");
                    Process { pid, command }
                })
        })
        .collect()
    }

    /// The one process whose command line holds all of these words.
    ///
    /// # Panics
    /// When there is none or more than one.
    pub fn process(&self, words: &[&str]) -> Process {
        let all = self.processes();
        let fitting: Vec<_> = all
            .iter()
            .filter(|one| words.iter().all(|word| one.command.contains(word)))
            .collect();
        assert_eq!(fitting.len(), 1, "{words:?} in {all:#?}");
        fitting[0].clone()
    }

    /// Kills the sidecar of this instance, and waits until it has been started again.
    ///
    /// # Panics
    /// When there is none or more than one, or no other comes.
    pub async fn kill_and_wait(&self, instance: &str) {
        let before = self.process(&["sidecar", instance]).pid;
        signal(before, Signal::KILL);
        eventually("the sidecar is started again", || async {
            let all = self.processes();
            let is_it =
                |one: &&Process| one.command.contains("sidecar") && one.command.contains(instance);
            match all.iter().find(is_it) {
                Some(again) if again.pid != before => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Ends every process that carries the mark, at once; again, until no new one has come.
    pub fn kill_all(&self) {
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for process in left {
                signal(process.pid, Signal::KILL);
            }
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Sends a signal; a process that is gone is no error.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .expect("a pid is positive");
    if let Err(error) = kill_process(pid, signal) {
        assert_eq!(error, rustix::io::Errno::SRCH, "{pid:?}");
    }
}

/// A file's text; empty when it is not there.
pub fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
