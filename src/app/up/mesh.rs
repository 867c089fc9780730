//! `mesh.toml`: the agents of a mesh on one machine, how to build and start them, and the tasks to
//! run at the start. Parsed and checked here; nothing is started.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::roles::{self, MeshRegistry, MeshSidecars};
use crate::{
    app::settings::{CardSettings, SkillSettings, TelemetrySettings, card},
    config::{self, ConfigError, Span},
    domain::{AgentName, SkillName, TrustDomain},
    sidecar::Probing,
};

/// Name of the file in the mesh's directory.
pub const MESH_FILE: &str = "mesh.toml";
/// Most instances of one agent under `up`: a laptop, not a cluster.
pub const INSTANCES_MAX: u32 = 64;

/// The whole file, checked.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// Directory of the file: what relative paths are relative to.
    pub dir: PathBuf,
    /// Trust domain of the development CA.
    pub trust_domain: TrustDomain,
    /// The agents.
    pub agents: Vec<MeshAgent>,
    /// Tasks to run once all agents are healthy.
    pub tasks: Vec<MeshTask>,
    /// What the file says of the registry.
    pub registry: MeshRegistry,
    /// What the file says of all sidecars.
    pub sidecars: MeshSidecars,
    /// Where the traces of all go.
    pub telemetry: TelemetrySettings,
}

/// One agent of the mesh.
#[derive(Clone, Debug)]
pub struct MeshAgent {
    /// `namespace/name`.
    pub name: AgentName,
    /// What it publishes.
    pub card: CardSettings,
    /// How its executable comes to be.
    pub program: Program,
    /// Arguments after the program's own.
    pub args: Vec<String>,
    /// Environment beside what `up` gives every agent.
    pub env: BTreeMap<String, String>,
    /// Running copies, each with a sidecar.
    pub instances: u32,
    /// Ports of the instances' mutual TLS listeners, where the file names them.
    pub ports: Vec<u16>,
    /// How its health is asked for, and of which service; as in a sidecar's own file.
    pub health: (Probing, String),
    /// It opens streams to its sidecar instead of listening.
    pub attach: bool,
}

/// How an agent's process is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// A binary of a cargo workspace, built by `up`.
    Cargo {
        /// Package name.
        package: String,
        /// Binary name.
        bin: String,
    },
    /// Any command, after the build commands ran in the mesh's directory.
    Command {
        /// Program and arguments.
        command: Vec<String>,
        /// Commands that build it, run in order.
        build: Vec<Vec<String>>,
    },
    /// Nothing: a sidecar alone, for an agent that somebody else starts.
    External,
}

/// A task that `up` runs.
#[derive(Clone, Debug)]
pub struct MeshTask {
    /// What to do.
    pub skill: SkillName,
    /// Agent asked for, where one is.
    pub agent: Option<String>,
    /// Input as text.
    pub text: Option<String>,
    /// Input as JSON.
    pub data: Option<serde_json::Value>,
    /// Bound of the whole task.
    pub timeout: Option<Span>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MeshToml {
    #[serde(default = "default_trust_domain")]
    trust_domain: String,
    #[serde(default)]
    set: BTreeMap<String, String>,
    #[serde(default)]
    registry: MeshRegistry,
    #[serde(default)]
    sidecars: MeshSidecars,
    #[serde(default)]
    telemetry: TelemetrySettings,
    #[serde(default)]
    agents: Vec<AgentToml>,
    #[serde(default)]
    tasks: Vec<TaskToml>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentToml {
    name: String,
    #[serde(default = "card::first_version")]
    version: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    max_concurrent_tasks: u32,
    #[serde(default)]
    skills: Vec<SkillSettings>,
    cargo: Option<CargoToml>,
    command: Option<Vec<String>>,
    #[serde(default)]
    build: Vec<Vec<String>>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default = "one")]
    instances: u32,
    #[serde(default)]
    ports: Vec<u16>,
    #[serde(default)]
    agent_health: Probing,
    #[serde(default)]
    agent_health_service: String,
    #[serde(default)]
    attach: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CargoToml {
    package: String,
    bin: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskToml {
    skill: String,
    agent: Option<String>,
    text: Option<String>,
    data: Option<String>,
    timeout: Option<Span>,
}

impl Mesh {
    /// Reads `dir/mesh.toml`; `set` replaces values of its `[set]` table.
    ///
    /// # Errors
    /// When the file is broken; the error names the key and what would be right.
    pub fn read(dir: &Path, set: &[(String, String)]) -> Result<Self, ConfigError> {
        let path = dir.join(MESH_FILE);
        if !path.exists() {
            return Err(ConfigError::Missing { path });
        }
        check(&path, dir, config::load(&path)?, set)
    }

    /// Instances over all agents.
    pub fn instances(&self) -> u32 {
        self.agents.iter().map(|agent| agent.instances).sum()
    }
}

fn check(
    path: &Path,
    dir: &Path,
    toml: MeshToml,
    set: &[(String, String)],
) -> Result<Mesh, ConfigError> {
    let at = |key: String, text: String| ConfigError::Value {
        path: path.to_path_buf(),
        key,
        text,
    };
    let mut values = toml.set;
    for (key, value) in set {
        let Some(known) = values.get_mut(key) else {
            let known: Vec<&str> = values.keys().map(String::as_str).collect();
            let known = match &known[..] {
                [] => "the file has no [set]".to_owned(),
                known => format!("known: {}", known.join(", ")),
            };
            let text = format!("--set {key}=...: no such value; {known}");
            return Err(at("set".into(), text));
        };
        known.clone_from(value);
    }
    let trust_domain = toml
        .trust_domain
        .parse()
        .map_err(|e| at("trust_domain".into(), format!("{e}")))?;
    roles::check(&toml.registry, &toml.sidecars).map_err(|(key, text)| at(key, text))?;
    let mut names = BTreeSet::new();
    let mut agents = Vec::new();
    for (place, agent) in toml.agents.into_iter().enumerate() {
        let agent = check_agent(agent, &values)
            .map_err(|(key, text)| at(format!("agents[{place}].{key}"), text))?;
        if !names.insert(agent.name.clone()) {
            let text = format!("{} stands twice; use `instances`", agent.name);
            return Err(at(format!("agents[{place}].name"), text));
        }
        agents.push(agent);
    }
    let offered: BTreeSet<&str> = agents
        .iter()
        .flat_map(|agent| agent.card.skills.iter().map(|skill| skill.name.as_str()))
        .collect();
    let mut tasks = Vec::new();
    for (place, task) in toml.tasks.into_iter().enumerate() {
        let task = check_task(task, &values, &offered)
            .map_err(|(key, text)| at(format!("tasks[{place}].{key}"), text))?;
        tasks.push(task);
    }
    Ok(Mesh {
        dir: dir.to_path_buf(),
        trust_domain,
        agents,
        tasks,
        registry: toml.registry,
        sidecars: toml.sidecars,
        telemetry: toml.telemetry,
    })
}

type Wrong = (&'static str, String);

fn check_agent(agent: AgentToml, values: &BTreeMap<String, String>) -> Result<MeshAgent, Wrong> {
    let name: AgentName = agent.name.parse().map_err(|e| ("name", format!("{e}")))?;
    for skill in &agent.skills {
        skill
            .name
            .parse::<SkillName>()
            .map_err(|e| ("skills", format!("{e}")))?;
        skill
            .check()
            .map_err(|(key, text)| ("skills", format!("{}: {key}: {text}", skill.name)))?;
    }
    if !(1..=INSTANCES_MAX).contains(&agent.instances) {
        return Err(("instances", format!("from 1 to {INSTANCES_MAX}")));
    }
    if agent.ports.len() > agent.instances as usize {
        return Err(("ports", "more ports than instances".into()));
    }
    let program = check_program(agent.cargo, agent.command, agent.build, values)?;
    let env = agent
        .env
        .iter()
        .map(|(key, value)| {
            Ok((
                key.clone(),
                substitute(value, values).map_err(|e| ("env", e))?,
            ))
        })
        .collect::<Result<_, Wrong>>()?;
    Ok(MeshAgent {
        name,
        card: CardSettings {
            version: agent.version,
            description: agent.description,
            labels: agent.labels,
            max_concurrent_tasks: agent.max_concurrent_tasks,
            skills: agent.skills,
        },
        program,
        args: fill("args", &agent.args, values)?,
        env,
        instances: agent.instances,
        ports: agent.ports,
        health: (agent.agent_health, agent.agent_health_service),
        attach: agent.attach,
    })
}

fn check_program(
    cargo: Option<CargoToml>,
    command: Option<Vec<String>>,
    build: Vec<Vec<String>>,
    values: &BTreeMap<String, String>,
) -> Result<Program, Wrong> {
    match (cargo, command) {
        (Some(_), Some(_)) => Err((
            "command",
            "beside `cargo`: keep the one that makes the program".into(),
        )),
        (Some(cargo), None) => {
            let bin = cargo.bin.unwrap_or_else(|| cargo.package.clone());
            Ok(Program::Cargo {
                package: cargo.package,
                bin,
            })
        }
        (None, Some(command)) if command.is_empty() => Err((
            "command",
            "is empty: write the program and its arguments".into(),
        )),
        (None, Some(command)) => Ok(Program::Command {
            command: fill("command", &command, values)?,
            build: build
                .iter()
                .map(|one| fill("build", one, values))
                .collect::<Result<_, _>>()?,
        }),
        (None, None) => Ok(Program::External),
    }
}

fn fill(
    key: &'static str,
    texts: &[String],
    values: &BTreeMap<String, String>,
) -> Result<Vec<String>, Wrong> {
    texts
        .iter()
        .map(|text| substitute(text, values).map_err(|e| (key, e)))
        .collect()
}

/// Puts values into the strings of a JSON value, so that a quote in a value breaks nothing.
fn fill_json(
    json: serde_json::Value,
    values: &BTreeMap<String, String>,
) -> Result<serde_json::Value, String> {
    use serde_json::Value;
    Ok(match json {
        Value::String(text) => Value::String(substitute(&text, values)?),
        Value::Array(items) => items
            .into_iter()
            .map(|item| fill_json(item, values))
            .collect::<Result<_, _>>()?,
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| Ok((key, fill_json(value, values)?)))
            .collect::<Result<_, String>>()?,
        other @ (Value::Null | Value::Bool(_) | Value::Number(_)) => other,
    })
}

fn check_task(
    task: TaskToml,
    values: &BTreeMap<String, String>,
    offered: &BTreeSet<&str>,
) -> Result<MeshTask, Wrong> {
    let skill: SkillName = task.skill.parse().map_err(|e| ("skill", format!("{e}")))?;
    if !offered.contains(skill.as_str()) {
        let known: Vec<&str> = offered.iter().copied().collect();
        let text = format!(
            "no agent here offers {skill}; offered: {}",
            known.join(", ")
        );
        return Err(("skill", text));
    }
    let data = match task.data {
        Some(text) => {
            let json =
                serde_json::from_str(&text).map_err(|e| ("data", format!("is no JSON: {e}")))?;
            Some(fill_json(json, values).map_err(|e| ("data", e))?)
        }
        None => None,
    };
    let text = task.text.map(|text| substitute(&text, values)).transpose();
    let text = text.map_err(|e| ("text", e))?;
    Ok(MeshTask {
        skill,
        agent: task.agent,
        text,
        data,
        timeout: task.timeout,
    })
}

/// Puts values in the place of `{key}`. A brace that opens no word stays as it is.
fn substitute(text: &str, values: &BTreeMap<String, String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        let close = rest.find('}');
        let key = close.map(|close| &rest[1..close]).filter(|key| {
            !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        });
        match key {
            Some(key) => {
                let value = values.get(key).ok_or_else(|| {
                    let known: Vec<&str> = values.keys().map(String::as_str).collect();
                    format!("{{{key}}} is not in [set]; known: {}", known.join(", "))
                })?;
                out.push_str(value);
                rest = &rest[key.len() + 2..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn default_trust_domain() -> String {
    "attache.local".to_owned()
}

fn one() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, set: &[(&str, &str)]) -> Result<Mesh, String> {
        let path = Path::new("mesh.toml");
        let set: Vec<_> = set
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let toml = config::parse(path, text).map_err(|e| e.to_string())?;
        check(path, Path::new("."), toml, &set).map_err(|e| e.to_string())
    }

    const DESK: &str = r#"
[set]
docs = "../.."
question = "why?"
[[agents]]
name = "search"
cargo = { package = "desk" }
args = ["{docs}"]
[[agents.skills]]
name = "search.passages"
[[tasks]]
skill = "search.passages"
data = '{"query": "{question}"}'
"#;

    #[test]
    fn values_are_put_in_and_replaced() {
        let mesh = read(DESK, &[("docs", "/tmp"), ("question", "say \"why\"?")]).unwrap();
        assert_eq!(mesh.agents[0].args, ["/tmp"]);
        assert_eq!(
            mesh.tasks[0].data,
            Some(serde_json::json!({"query": "say \"why\"?"}))
        );
        assert_eq!(
            mesh.agents[0].program,
            Program::Cargo {
                package: "desk".into(),
                bin: "desk".into()
            }
        );
        let error = read(DESK, &[("doc", "x")]).unwrap_err();
        assert!(
            error.ends_with("no such value; known: docs, question"),
            "{error}"
        );
    }

    #[test]
    fn an_agents_health_is_asked_for_as_the_file_says() {
        let desk = DESK.replace(
            "args =",
            "agent_health = \"check\"\nagent_health_service = \"x\"\nargs =",
        );
        let values = [("docs", "/tmp"), ("question", "why")];
        for (text, health) in [(DESK, (Probing::Auto, "")), (&*desk, (Probing::Check, "x"))] {
            let found = &read(text, &values).unwrap().agents[0].health;
            assert_eq!((found.0, found.1.as_str()), health);
        }
    }

    #[test]
    fn mistakes_name_their_key() {
        for (change, with, told) in [
            (
                "args =",
                "agent_health = \"often\"\nargs =",
                "unknown variant `often`",
            ),
            (
                "skill = \"search.passages\"",
                "skill = \"x.y\"",
                "tasks[0].skill: no agent here",
            ),
            (
                "\"{docs}\"",
                "\"{doc}\"",
                "agents[0].args: {doc} is not in [set]",
            ),
            (
                "name = \"search\"",
                "name = \"Search\"",
                "agents[0].name: \"Search\" is not",
            ),
            (
                "args =",
                "instances = 0\nargs =",
                "agents[0].instances: from 1 to",
            ),
            (
                "args =",
                "command = [\"x\"]\nargs =",
                "agents[0].command: beside `cargo`",
            ),
            ("'{\"query\"", "'{query\"", "tasks[0].data: "),
            (
                "[set]",
                "[registry]\ncertificate_life = \"1s\"\n[set]",
                "registry.certificate_life: 1s is not from 10s to 7d",
            ),
            (
                "[set]",
                "[sidecars]\nconnection_age = \"30\"\n[set]",
                "sidecars.connection_age: ",
            ),
        ] {
            let error = read(&DESK.replace(change, with), &[]).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }
}
