//! `attache up` in a directory of the test's own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use attache::app::up::state::{Endpoints, InstanceEndpoints};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{
    process::{Mark, signal, text},
    tools::{attache, test_agent},
    wait::{eventually, within},
};

/// Trust domain of the meshes that tests make.
pub const DOMAIN: &str = "attache.local";

/// A directory with mesh.toml and state, and the mark of everything that is started in it.
pub struct Site {
    // Fields are dropped in this order: processes end before their directory goes.
    pub mark: Mark,
    pub temp: TempDir,
    /// Directory of mesh.toml.
    pub dir: PathBuf,
    /// Environment of all that is started here, beside the usual.
    pub env: Vec<(&'static str, String)>,
}

/// A running `attache up`.
pub struct Up {
    pub child: Child,
    pub pid: u32,
    pub endpoints: Endpoints,
}

impl Site {
    /// A site with this mesh.toml.
    pub fn new(mesh: &str) -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("mesh.toml"), mesh).unwrap();
        Self {
            mark: Mark::new(),
            dir: temp.path().to_path_buf(),
            temp,
            env: Vec::new(),
        }
    }

    /// A site for a mesh.toml that stands elsewhere.
    pub fn of(dir: &Path) -> Self {
        Self {
            mark: Mark::new(),
            temp: tempfile::tempdir().unwrap(),
            dir: dir.to_path_buf(),
            env: Vec::new(),
        }
    }

    pub fn state(&self) -> PathBuf {
        self.temp.path().join("state")
    }

    /// A path for the test's own use.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.temp.path().join(inside)
    }

    /// `attache`, marked, told of nothing but its arguments.
    pub fn attache(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(attache());
        let (key, value) = self.mark.env();
        command
            .args(arguments)
            .env(key, value)
            .env_remove("ATTACHE_MESH")
            .kill_on_drop(true);
        command.env("TEST_RUNS", self.path("runs"));
        command.envs(self.env.iter().cloned());
        // Sockets go where the test's other files go, and with them.
        command.env("XDG_RUNTIME_DIR", self.temp.path());
        command.current_dir(self.temp.path()).stdin(Stdio::null());
        command
    }

    /// `attache up` on this site, not yet started.
    pub fn up_command(&self, more: &[&str]) -> Command {
        let mut command = self.attache(&["up"]);
        command
            .arg(&self.dir)
            .arg("--state")
            .arg(self.state())
            .args(more);
        command
    }

    /// Starts `attache up` and waits until everything is healthy.
    pub async fn up(&self, more: &[&str]) -> Up {
        let log = self.path("up.log");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = self.up_command(more);
        let mut child = command
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let pid = child.id().unwrap();
        let endpoints = eventually("the mesh is healthy", || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "up ended, {ended:?}:\n{}", text(&log));
            let endpoints = self.endpoints().filter(|endpoints| endpoints.pid == pid);
            async { endpoints.ok_or_else(|| self.logs()) }
        })
        .await;
        Up {
            child,
            pid,
            endpoints,
        }
    }

    /// Where everything is, if a mesh has come up here.
    pub fn endpoints(&self) -> Option<Endpoints> {
        serde_json::from_str(&text(&self.state().join("endpoints.json"))).ok()
    }

    /// A file with the operator's certificate, key or roots.
    pub fn operator(&self, file: &str) -> PathBuf {
        self.state().join("operator").join(file)
    }

    /// What the agents of the tests have run: skill, task and attempt of each run.
    pub fn runs(&self) -> Vec<(String, String, u32)> {
        let runs = text(&self.path("runs"));
        let runs = runs.lines().map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (
                words[0].to_owned(),
                words[1].to_owned(),
                words[2].parse().unwrap(),
            )
        });
        runs.collect()
    }

    /// The whole log of one process.
    pub fn log(&self, name: &str) -> String {
        text(&self.state().join("logs").join(format!("{name}.log")))
    }

    /// Everything that was printed and logged here, for a test that fails.
    pub fn logs(&self) -> String {
        let mut all = text(&self.path("up.log"));
        let logs = fs::read_dir(self.state().join("logs"))
            .into_iter()
            .flatten()
            .flatten();
        for log in logs {
            let lines = text(&log.path());
            let lines: Vec<&str> = lines.lines().collect();
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            all.push_str(&format!("\n== {}\n{last}", log.path().display()));
        }
        all
    }
}

impl Up {
    /// The endpoints of one instance of an agent, counted from 0.
    pub fn instance(&self, agent: &str, place: usize) -> &InstanceEndpoints {
        let mut instances = self
            .endpoints
            .instances
            .iter()
            .filter(|one| one.agent == agent);
        instances
            .nth(place)
            .unwrap_or_else(|| panic!("no {agent} in {:?}", self.endpoints))
    }

    pub fn signal(&self, which: Signal) {
        signal(self.pid, which);
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        within("up ends", self.child.wait()).await.unwrap()
    }
}

/// An entry of mesh.toml for the test agent with these skills; `more` is TOML for the agent.
pub fn agent(name: &str, skills: &[&str], more: &str) -> String {
    let mut toml = format!(
        "[[agents]]\nname = {name:?}\ncommand = [{:?}]\n{more}\n",
        test_agent().display().to_string()
    );
    for skill in skills {
        toml.push_str(&format!(
            "[[agents.skills]]\nname = {skill:?}\nidempotent = {}\n",
            skill.starts_with("test.echo")
        ));
    }
    toml
}
