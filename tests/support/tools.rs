//! Programs that a test runs: ours, the test agent, and those that `tests/run` fetches.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use tokio::process::Command;

use super::{skip::skip, wait::within};

/// Root of the project.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program under test.
pub fn attache() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_attache"))
}

/// The agent of the tests, `tests/e2e/agent.rs`, which cargo builds beside the program under test.
pub fn test_agent() -> PathBuf {
    example("test-agent")
}

/// The fault proxy, `tests/fault_proxy/`, which cargo builds there too.
pub fn fault_proxy() -> PathBuf {
    example("fault-proxy")
}

fn example(name: &str) -> PathBuf {
    let path = attache().with_file_name("examples").join(name);
    assert!(
        path.exists(),
        "build it first: cargo build --example {name}"
    );
    path
}

/// A file that `tests/run` fetches or makes; a test that finds none is skipped.
pub fn fetched(inside: &str, test: &str) -> Option<PathBuf> {
    let path = root().join(".tools").join(inside);
    if path.exists() {
        return Some(path);
    }
    skip(test, &format!("no .tools/{inside}: tests/run fetches it"));
    None
}

/// How a program ended and what it printed.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// What it printed as a result, if it ended well.
    ///
    /// # Panics
    /// When it did not, with all that it said.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    /// Each line of the output as JSON.
    pub fn json_lines(self) -> Vec<serde_json::Value> {
        json_lines(&self.ok())
    }
}

pub fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Runs a command to its end, with a bound.
pub async fn run(command: &mut Command) -> Ran {
    let shown = format!("{:?}", command.as_std());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output: Output = within(&shown, command.output())
        .await
        .unwrap_or_else(|error| {
            panic!("{shown}: {error}");
        });
    Ran {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `attache` to its end.
pub async fn run_attache<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Ran {
    run(Command::new(attache()).args(arguments)).await
}
