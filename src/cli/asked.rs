//! The processes whose admin listeners are asked, by the names that people have for them.

use std::{net::SocketAddr, path::Path};

use serde_json::Value;

use super::{
    exit::{Exit, Failed},
    mesh::{endpoints, state_dir},
};
use crate::{admin::client, app::up::state::Endpoints};

/// A process and where it is asked.
pub(super) struct Process {
    pub(super) name: String,
    pub(super) admin: String,
}

impl Process {
    /// Its answer to `path`, with its HTTP status; with `put`, that is the body.
    pub(super) async fn ask(&self, path: &str, put: Option<&str>) -> Result<(u16, Value), Failed> {
        let Self { name, admin } = self;
        let answer = client::ask(admin, path, put).await.map_err(|error| {
            let text = format!("{name} does not answer at {admin}: {error}; does it run?");
            Failed::new(Exit::Unreachable, text)
        })?;
        Ok((answer.status, answer.body))
    }

    /// That it answered with a status that no process of ours answers with.
    pub(super) fn stranger(&self, status: u16) -> Failed {
        let admin = &self.admin;
        Failed::fault(format!(
            "{admin} answers {status}: is that the admin listener of an attache process?"
        ))
    }
}

/// Those that go by a name, or the one behind an address.
///
/// # Errors
/// When there is none.
pub(super) fn processes(wanted: &str, mesh: Option<&Path>) -> Result<Vec<Process>, Failed> {
    if wanted.parse::<SocketAddr>().is_ok() || wanted.starts_with("localhost:") {
        return Ok(vec![Process {
            name: wanted.to_owned(),
            admin: wanted.to_owned(),
        }]);
    }
    let found = named(wanted, &endpoints(&state_dir(mesh)?)?);
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
