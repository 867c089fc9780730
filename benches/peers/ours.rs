//! A pair of our sidecars: `attache up` with a caller and an agent that is `attache bench --serve`.

use std::{fs, path::Path, path::PathBuf, process::Command};

use serde_json::Value;

use crate::{Outcome, machine, under::ATTACHE};

/// The agent behind the far sidecar.
const AGENT: &str = "default/echo";

/// Times that it is asked, for 200 ms each, until the far agent is known.
const HEARD: usize = 40;

/// The pair; ended when dropped.
pub(crate) struct Ours {
    dir: PathBuf,
    local: String,
    pids: Vec<u32>,
}

impl Ours {
    /// Starts it; why it cannot be measured, when its sidecars do not pass on calls of strangers.
    pub(crate) fn start(dir: &Path) -> Outcome<Result<Self, String>> {
        let dir = dir.join("ours");
        fs::create_dir(&dir)?;
        let mesh = format!(
            "trust_domain = \"bench.local\"\n\
             [[agents]]\nname = \"caller\"\n\
             command = [\"sh\", \"-c\", \"exec {ATTACHE} bench --serve $ATTACHE_LISTEN\"]\n\
             [[agents]]\nname = \"echo\"\n\
             command = [\"sh\", \"-c\", \"exec {ATTACHE} bench --serve $ATTACHE_LISTEN\"]\n\
             [[agents.skills]]\nname = \"bench.echo\"\n"
        );
        fs::write(dir.join("mesh.toml"), mesh)?;
        let output = up(&["up", "--detach"], &dir)?;
        let mut ours = Self {
            dir,
            local: String::new(),
            pids: Vec::new(),
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let last = said.lines().last().unwrap_or_default().to_owned();
            return Ok(Err(format!("its mesh does not start: {last}")));
        }
        let endpoints = fs::read(ours.dir.join(".attache/endpoints.json"))?;
        let endpoints: Value = serde_json::from_slice(&endpoints)?;
        let all = endpoints["instances"].as_array().ok_or("no instances")?;
        let caller = all.iter().find(|one| one["agent"] == "default/caller");
        let local = caller
            .and_then(|one| one["local"].as_str())
            .ok_or("no caller")?;
        ours.local = match local.starts_with("unix:") {
            true => local.to_owned(),
            false => format!("http://{local}"),
        };
        let pid = u32::try_from(endpoints["pid"].as_u64().ok_or("no pid")?)?;
        let sidecars = machine::children(pid).into_iter();
        let sidecars = sidecars.filter(|one| one.verb == "sidecar");
        ours.pids = sidecars.map(|one| one.pid).collect();
        // The caller's sidecar hears of the agent a moment after its own start.
        for _ in 0..HEARD {
            if ours.refusal()?.is_none() {
                return Ok(Ok(ours));
            }
        }
        Ok(match ours.refusal()? {
            Some(why) => Err(why),
            None => Ok(ours),
        })
    }

    /// What `attache bench` is told.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let metadata = format!("attache-agent={AGENT}");
        vec![self.local.clone(), "--metadata".to_owned(), metadata]
    }

    /// Of both sidecars.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.pids.clone()
    }

    /// What a call through it is answered, if that is not OK.
    fn refusal(&self) -> Outcome<Option<String>> {
        let output = Command::new(ATTACHE)
            .arg("bench")
            .args(self.arguments())
            .args(["--time", "200ms", "--warmup", "0ms", "--output", "json"])
            .output()?;
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let first = &printed["failures"][0];
        if output.status.success() {
            return Ok(None);
        }
        Ok(Some(format!(
            "its sidecars do not pass on calls: {} {}{}",
            first["status"].as_str().unwrap_or_default(),
            first["first"].as_str().unwrap_or_default(),
            String::from_utf8_lossy(&output.stderr),
        )))
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        if !up(&["down"], &self.dir).is_ok_and(|output| output.status.success()) {
            eprintln!("the mesh in {} did not end", self.dir.display());
        }
    }
}

fn up(verb: &[&str], dir: &Path) -> Outcome<std::process::Output> {
    let mut command = Command::new(ATTACHE);
    command.args(verb).arg(dir).env_remove("ATTACHE_MESH");
    // Neither side logs calls, as with all others.
    Ok(command.env("ATTACHE_LOG", "warn").output()?)
}
