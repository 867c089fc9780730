//! `attache log`: what running processes log, shown and changed through their admin listeners.

use std::net::SocketAddr;

use serde_json::json;

use super::{
    args::LogLevelArgs,
    exit::{Exit, Failed},
    mesh::{endpoints, state_dir},
    output::Output,
};
use crate::{admin::client, app::up::state::Endpoints};

/// A process and where it is asked.
struct Process {
    name: String,
    admin: String,
}

/// Shows or changes what processes log.
///
/// # Errors
/// When none is meant, one does not answer, or refuses the filter.
pub(super) async fn run(args: &LogLevelArgs, output: &Output) -> Result<Exit, Failed> {
    let mut rows = Vec::new();
    for process in processes(args)? {
        let filter = ask(&process, args.filter.as_deref()).await?;
        if output.is_json() {
            let admin = &process.admin;
            output.json(&json!({"process": process.name, "admin": admin, "filter": filter}));
        } else {
            rows.push(vec![process.name, process.admin, filter]);
        }
    }
    if !output.is_json() {
        output.table(&["process", "admin", "logs"], rows);
    }
    Ok(Exit::Done)
}

/// The filter in force after this.
async fn ask(process: &Process, filter: Option<&str>) -> Result<String, Failed> {
    let Process { name, admin } = process;
    let answer = client::ask(admin, "/log", filter).await.map_err(|error| {
        let text = format!("{name} does not answer at {admin}: {error}; does it run?");
        Failed::new(Exit::Unreachable, text)
    })?;
    match (answer.status, answer.body["filter"].as_str()) {
        (200, Some(filter)) => Ok(filter.to_owned()),
        (400, _) => {
            let why = answer.body["error"].as_str().unwrap_or("no reason given");
            Err(Failed::usage(format!("{name}: {why}")))
        }
        (status, _) => Err(Failed::fault(format!(
            "{admin} answers {status}: is that the admin listener of an attache process?"
        ))),
    }
}

fn processes(args: &LogLevelArgs) -> Result<Vec<Process>, Failed> {
    let wanted = args.process.as_str();
    if wanted.parse::<SocketAddr>().is_ok() || wanted.starts_with("localhost:") {
        return Ok(vec![Process {
            name: wanted.to_owned(),
            admin: wanted.to_owned(),
        }]);
    }
    let found = named(wanted, &endpoints(&state_dir(args.mesh.as_deref())?)?);
    if found.is_empty() {
        let text = format!(
            "no process {wanted:?} here: write registry, an agent, an instance, all, or HOST:PORT of an admin listener; `attache log` lists them"
        );
        return Err(Failed::new(Exit::NotFound, text));
    }
    Ok(found)
}

/// The processes of a mesh that go by this name.
fn named(wanted: &str, mesh: &Endpoints) -> Vec<Process> {
    let registry = ("registry", mesh.registry.admin.as_str(), ["registry"; 3]);
    let sidecars = mesh.instances.iter().map(|one| {
        let bare = one
            .agent
            .split_once('/')
            .map_or(one.agent.as_str(), |(_, name)| name);
        let names = [one.agent.as_str(), bare, one.instance.as_str()];
        (one.instance.as_str(), one.admin.as_str(), names)
    });
    let all = std::iter::once(registry).chain(sidecars);
    all.filter(|(_, _, names)| wanted == "all" || names.contains(&wanted))
        .map(|(name, admin, names)| Process {
            name: if name == names[0] {
                name.to_owned()
            } else {
                format!("{} {name}", names[0])
            },
            admin: admin.to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::up::state::{InstanceEndpoints, RegistryEndpoints};

    #[test]
    fn processes_are_found_by_every_name_that_they_have() {
        let instance = |agent: &str, instance: &str| InstanceEndpoints {
            agent: agent.into(),
            instance: instance.into(),
            ..Default::default()
        };
        let mesh = Endpoints {
            registry: RegistryEndpoints::default(),
            instances: vec![
                instance("default/a", "i1"),
                instance("default/a", "i2"),
                instance("other/a", "i3"),
            ],
            ..Default::default()
        };
        for (wanted, found) in [
            ("all", "registry, default/a i1, default/a i2, other/a i3"),
            ("registry", "registry"),
            ("default/a", "default/a i1, default/a i2"),
            ("a", "default/a i1, default/a i2, other/a i3"),
            ("i3", "other/a i3"),
            ("nobody", ""),
            ("", ""),
        ] {
            let names: Vec<String> = named(wanted, &mesh).into_iter().map(|p| p.name).collect();
            assert_eq!(names.join(", "), found, "{wanted}");
        }
    }
}
