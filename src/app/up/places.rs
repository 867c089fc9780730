//! Where the processes of a local mesh listen: ports that are remembered, sockets with short names.

use super::{
    error::UpError,
    mesh::{Mesh, MeshAgent},
    state::{Ports, RegistryEndpoints, State},
};
use crate::domain::Member;
use crate::sidecar::AgentAt;

/// Name of the registry under `up`.
pub(super) const REGISTRY: &str = "main";

/// One instance, as it is going to be started.
pub(super) struct Instance<'a> {
    pub(super) agent: &'a MeshAgent,
    /// `billing-1`; in other namespaces `prod.billing-1`.
    pub(super) label: String,
    pub(super) mtls: u16,
    pub(super) admin: u16,
    pub(super) local: String,
    /// Where its agent listens, or [`AgentAt::ATTACH`].
    pub(super) handler: String,
}

/// Listeners of the registry.
///
/// # Errors
/// When no port is free.
pub(super) fn registry(mesh: &Mesh, ports: &mut Ports) -> Result<RegistryEndpoints, UpError> {
    let mut at = |what: &str, fixed: u16| -> Result<String, UpError> {
        Ok(format!(
            "127.0.0.1:{}",
            ports.choose(what, fixed).map_err(UpError::NoPort)?
        ))
    };
    let fixed = mesh.registry;
    let name = REGISTRY.parse().expect("the registry's name is a label");
    Ok(RegistryEndpoints {
        mtls: at("registry.mtls", fixed.mtls)?,
        enrollment: at("registry.enrollment", fixed.enrollment)?,
        admin: at("registry.admin", fixed.admin)?,
        server_name: Member::Registry(name).dns_name(),
    })
}

/// Every instance with its listeners.
///
/// # Errors
/// When no port is free.
pub(super) fn instances<'a>(
    mesh: &'a Mesh,
    state: &State,
    ports: &mut Ports,
) -> Result<Vec<Instance<'a>>, UpError> {
    let mut all = Vec::new();
    for agent in &mesh.agents {
        for place in 0..agent.instances {
            let label = label(agent, place);
            let fixed = agent.ports.get(place as usize).copied().unwrap_or(0);
            let mut port = |kind: &str, fixed: u16| {
                ports
                    .choose(&format!("{label}.{kind}"), fixed)
                    .map_err(UpError::NoPort)
            };
            let (mtls, admin) = (port("mtls", fixed)?, port("admin", 0)?);
            let local = state.socket(&label);
            let handler = if agent.attach {
                AgentAt::ATTACH.to_owned()
            } else {
                state.socket(&format!("{label}-agent"))
            };
            all.push(Instance {
                agent,
                label,
                mtls,
                admin,
                local,
                handler,
            });
        }
    }
    Ok(all)
}

fn label(agent: &MeshAgent, place: u32) -> String {
    let name = &agent.name;
    if name.namespace.as_str() == crate::domain::ids::DEFAULT_NAMESPACE {
        format!("{}-{}", name.name, place + 1)
    } else {
        format!("{}.{}-{}", name.namespace, name.name, place + 1)
    }
}
