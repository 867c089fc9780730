//! A mesh of real processes: registry, home, executor and the agent, by `attache up`.

use std::{
    fmt, fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{Outcome, SKILL, machine};

/// A mesh that runs; ended when dropped.
pub(crate) struct Mesh {
    attache: PathBuf,
    dir: PathBuf,
    pid: u32,
    local: String,
    admin: String,
    /// Instances of the executor, in the order of their names.
    executors: Vec<String>,
}

/// What the home's log has done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Journal {
    pub(crate) records: f64,
    pub(crate) syncs: f64,
    bytes: f64,
    mean_sync_us: f64,
}

/// Processor's time by process, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) home: f64,
    pub(crate) executor: f64,
    pub(crate) agent: f64,
    /// This process.
    pub(crate) client: f64,
}

/// Resident memory in MiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resident {
    pub(crate) registry: f64,
    /// The larger of the two.
    pub(crate) sidecar: f64,
}

/// Slots of an executor that has one for every caller.
pub(crate) const SLOTS: u32 = 1024;

impl Mesh {
    /// Starts one in a directory below `scratch`; `journal` is `disk` or `memory`.
    pub(crate) async fn start(
        attache: &Path,
        scratch: &Path,
        journal: &str,
        executors: usize,
    ) -> Outcome<Self> {
        Self::with_slots(attache, scratch, journal, (executors, SLOTS)).await
    }

    /// The same, each of whose executors has so many slots.
    pub(crate) async fn with_slots(
        attache: &Path,
        scratch: &Path,
        journal: &str,
        (executors, slots): (usize, u32),
    ) -> Outcome<Self> {
        let dir = scratch.join(format!("{journal}-{executors}-{slots}"));
        fs::create_dir(&dir)?;
        let program = std::env::current_exe()?;
        let mesh = format!(
            "trust_domain = \"bench.local\"\n\
             [[agents]]\nname = \"home\"\ncommand = [{program:?}]\n\
             [[agents]]\nname = \"executor\"\ncommand = [{program:?}]\nmax_concurrent_tasks = {slots}\n\
             instances = {executors}\n\
             [[agents.skills]]\nname = \"{SKILL}\"\nidempotent = true\n"
        );
        fs::write(dir.join("mesh.toml"), mesh)?;
        let started = run(attache, &["up", "--detach"], &dir, journal)?;
        if !started {
            return Err(format!("the mesh in {} does not start", dir.display()).into());
        }
        let endpoints: Value =
            serde_json::from_slice(&fs::read(dir.join(".attache/endpoints.json"))?)?;
        let all = endpoints["instances"].as_array().ok_or("no instances")?;
        let of = |agent: &'static str| all.iter().filter(move |one| one["agent"] == agent);
        let home = of("default/home").next().ok_or("no home")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self {
            attache: attache.to_owned(),
            pid: endpoints["pid"].as_u64().unwrap_or(0).try_into()?,
            local: text(&home["local"]),
            admin: text(&home["admin"]),
            executors: of("default/executor")
                .map(|one| text(&one["instance"]))
                .collect(),
            dir,
        })
    }

    /// The home's local listener.
    pub(crate) fn local(&self) -> &str {
        &self.local
    }

    /// Kills the sidecar of an executor.
    pub(crate) fn kill_sidecar(&self, instance: &str) -> Outcome<()> {
        let place = self.executors.iter().position(|one| one == instance);
        let place = place.ok_or_else(|| format!("{instance} is none of {:?}", self.executors))?;
        let name = format!("executor-{}", place + 1);
        let all = machine::children(self.pid);
        let found = all
            .iter()
            .find(|one| one.verb == "sidecar" && one.rest.contains(&name));
        let pid = found.ok_or_else(|| format!("{name} does not run"))?.pid;
        let ended = Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .status()?;
        if ended.success() {
            Ok(())
        } else {
            Err(format!("{name} cannot be killed").into())
        }
    }

    /// What the home's log has done so far.
    pub(crate) fn journal(&self) -> Outcome<Journal> {
        let mut stream = TcpStream::connect(&self.admin)?;
        let host = &self.admin;
        write!(
            stream,
            "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let page: Value = serde_json::from_str(body.trim())?;
        let number = |key: &str| page["journal"][key].as_f64().unwrap_or(0.0);
        Ok(Journal {
            records: number("records"),
            syncs: number("syncs"),
            bytes: number("bytes"),
            mean_sync_us: number("mean_sync_us"),
        })
    }

    /// Processor's time that was used so far.
    pub(crate) fn spent(&self) -> Spent {
        let mut spent = Spent {
            client: machine::process("self").map_or(0.0, |own| own.spent),
            ..Spent::default()
        };
        for process in machine::children(self.pid) {
            match process.verb.as_str() {
                "registry" => {}
                "sidecar" if process.rest.contains("home-") => spent.home += process.spent,
                "sidecar" => spent.executor += process.spent,
                _ => spent.agent += process.spent,
            }
        }
        spent
    }

    /// Memory of its processes now.
    pub(crate) fn resident(&self) -> Resident {
        let mut resident = Resident::default();
        for process in machine::children(self.pid) {
            match process.verb.as_str() {
                "registry" => resident.registry = process.resident,
                "sidecar" => resident.sidecar = process.resident.max(resident.sidecar),
                _ => {}
            }
        }
        resident
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if !run(&self.attache, &["down"], &self.dir, "disk").is_ok_and(|ended| ended) {
            eprintln!("the mesh in {} did not end", self.dir.display());
        }
    }
}

impl Journal {
    /// What was done since `before`.
    pub(crate) fn since(self, before: &Self) -> Self {
        let syncs = self.syncs - before.syncs;
        let spent = self.mean_sync_us * self.syncs - before.mean_sync_us * before.syncs;
        Self {
            records: self.records - before.records,
            syncs,
            bytes: self.bytes - before.bytes,
            mean_sync_us: if syncs > 0.0 { spent / syncs } else { 0.0 },
        }
    }
}

impl Spent {
    /// What each of `count` tasks since `before` took of it, in us.
    pub(crate) fn each(self, before: Self, count: usize) -> Self {
        let each = |now: f64, before: f64| (now - before) * 1e6 / count.max(1) as f64;
        Self {
            home: each(self.home, before.home),
            executor: each(self.executor, before.executor),
            agent: each(self.agent, before.agent),
            client: each(self.client, before.client),
        }
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            home,
            executor,
            agent,
            client,
        } = self;
        write!(f, "{home:.0} + {executor:.0} + {agent:.0} + {client:.0}")
    }
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} records, {:.0} bytes each, {:.1} per sync of {:.0} us",
            self.records,
            self.bytes / self.records.max(1.0),
            self.records / self.syncs.max(1.0),
            self.mean_sync_us
        )
    }
}

/// Runs `attache VERB DIR`; whether it ended well.
fn run(attache: &Path, verb: &[&str], dir: &Path, journal: &str) -> Outcome<bool> {
    let mut command = Command::new(attache);
    command.args(verb).arg(dir).env("ATTACHE_JOURNAL", journal);
    command
        // With ATTACHE_LOG=info it shows what the access lines cost.
        .env(
            "ATTACHE_LOG",
            std::env::var("ATTACHE_LOG").unwrap_or_else(|_| "warn".to_owned()),
        )
        .env_remove("ATTACHE_MESH");
    let output = command.output()?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.status.success())
}
