//! Children of a run that was killed: found by pid and start time, and ended before the next run.

use std::{fs, process::Command, time::Duration};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{
    child::{group_lives, signal_group},
    state::{State, StateError},
};

/// File in the state directory.
const FILE: &str = "children.json";
/// How long leftovers may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// A child, so that it can be told from a later process with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Known {
    pid: u32,
    born: String,
}

/// The children of this run, written down as they start.
#[derive(Debug, Default)]
pub struct Roster {
    known: Vec<Known>,
}

impl Roster {
    /// Writes one more child down, and forgets those that are gone.
    ///
    /// # Errors
    /// What the disk says.
    pub fn add(&mut self, state: &State, pid: u32) -> Result<(), StateError> {
        self.known.retain(|known| group_lives(known.pid));
        if let Some(born) = born(pid) {
            self.known.push(Known { pid, born });
        }
        let text = serde_json::to_string(&self.known).expect("plain data is JSON");
        state.write(FILE, &text).map(drop)
    }
}

/// Ends what an earlier run left behind; returns how many groups there were.
pub async fn end_leftovers(state: &State) -> usize {
    let left = left(state);
    for pid in &left {
        signal_group(*pid, Signal::TERM);
    }
    wait_gone(&left).await;
    kill(&left).await;
    left.len()
}

/// Ends every child at once.
pub async fn kill_now(state: &State) {
    kill(&left(state)).await;
}

fn left(state: &State) -> Vec<u32> {
    let known: Vec<Known> = fs::read_to_string(state.path(FILE))
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let same = |known: &Known| born(known.pid).is_some_and(|born| born == known.born);
    known
        .into_iter()
        .filter(same)
        .map(|known| known.pid)
        .collect()
}

async fn kill(groups: &[u32]) {
    for pid in groups {
        signal_group(*pid, Signal::KILL);
    }
    wait_gone(groups).await;
}

async fn wait_gone(groups: &[u32]) {
    let until = Instant::now() + GRACE;
    while groups.iter().any(|pid| group_lives(*pid)) && Instant::now() < until {
        sleep(Duration::from_millis(50)).await;
    }
}

/// When a process started, in the system's own words; `None`: no such process.
fn born(pid: u32) -> Option<String> {
    if let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) {
        // Field 22, counted behind the name, which may hold spaces and parentheses.
        let behind = stat.rsplit_once(')')?.1;
        return behind.split_whitespace().nth(19).map(str::to_owned);
    }
    let out = Command::new("ps")
        .args(["-o", "lstart=", "-p", &pid.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[tokio::test]
    async fn only_the_very_same_process_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::lock(dir.path()).unwrap();
        let mut child = Command::new("sleep")
            .arg("100")
            .process_group(0)
            .spawn()
            .unwrap();
        let mut roster = Roster::default();
        roster.add(&state, child.id()).unwrap();
        let stranger = Known {
            pid: std::process::id(),
            born: "another time".into(),
        };
        roster.known.push(stranger);
        state
            .write(FILE, &serde_json::to_string(&roster.known).unwrap())
            .unwrap();
        let waited = std::thread::spawn(move || child.wait().unwrap());
        assert_eq!(end_leftovers(&state).await, 1);
        assert!(!waited.join().unwrap().success());
    }
}
