//! A mesh on one machine: CA, registry, one sidecar per instance and the agents' processes, in the
//! order in which each can become ready.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{
    build::Executables,
    child::{ChildEvent, Supervised, last_lines},
    error::UpError,
    leftovers::Roster,
    mesh::{Mesh, Program},
    operator::Operator,
    places::{self, Instance, REGISTRY},
    probe,
    state::{Endpoints, InstanceEndpoints, Ports, RegistryEndpoints, State},
};
use crate::{
    app::settings::{RegistrySettings, SidecarSettings},
    domain::{Member, SpiffeId},
    runtime::Nursery,
};

/// How long everything may take to become ready.
const READY: Duration = Duration::from_secs(60);
/// How often readiness is asked for.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Events of children that wait to be shown.
const EVENTS: usize = 64;
/// What a process of ours gets beyond its drain before it is killed.
pub(super) const BEYOND_DRAIN: Duration = Duration::from_secs(5);
/// How long an agent may take to end: its sidecar has drained, so it has nothing to do.
pub(super) const AGENT_ENDS: Duration = Duration::from_secs(10);
/// A running mesh.
#[derive(Debug)]
pub struct LocalMesh {
    endpoints: Endpoints,
    registry: Supervised,
    sidecars: Vec<Supervised>,
    agents: Vec<Supervised>,
    events: mpsc::Receiver<ChildEvent>,
    roster: Roster,
    operator: Operator,
}

/// What instances are started with.
struct Around<'a> {
    registry: &'a RegistryEndpoints,
    operator: &'a Operator,
    built: &'a Executables,
}

pub(super) struct Starting<'a> {
    pub(super) state: &'a State,
    pub(super) mesh: &'a Mesh,
    pub(super) nursery: &'a Nursery,
    pub(super) tell: mpsc::Sender<ChildEvent>,
    events: mpsc::Receiver<ChildEvent>,
    roster: Roster,
}

/// How long a whole mesh may take to end: the sidecars, their agents, the registry, one after the
/// other, and what is killed then.
pub fn ends_within(mesh: &Mesh) -> Duration {
    mesh.sidecars.drain.0 + mesh.registry.drain.0 + 2 * BEYOND_DRAIN + 2 * AGENT_ENDS
}

impl LocalMesh {
    /// Starts everything and waits until all is healthy. `say` is told what goes on.
    ///
    /// # Errors
    /// When something cannot be started, dies before it is ready, or is not ready in a minute; the
    /// error shows the last lines of its log. What was started is ended before it returns.
    pub async fn start(
        mesh: &Mesh,
        built: &Executables,
        state: &State,
        nursery: &Nursery,
        say: &mut dyn FnMut(String),
    ) -> Result<Self, UpError> {
        let (tell, events) = mpsc::channel(EVENTS);
        let mut starting = Starting {
            state,
            mesh,
            nursery,
            tell,
            events,
            roster: Roster::default(),
        };
        let operator = Operator::prepare(state, &mesh.trust_domain)?;
        let mut ports = Ports::remembered(state);
        let registry_at = places::registry(mesh, &mut ports)?;
        let instances = places::instances(mesh, state, &mut ports)?;
        ports.keep(state)?;

        let registry = starting.start_registry(&registry_at)?;
        let mut started = vec![];
        let around = Around {
            registry: &registry_at,
            operator: &operator,
            built,
        };
        let outcome = starting
            .start_rest(&around, &instances, &mut started, say)
            .await;
        let endpoints = match outcome {
            Ok(endpoints) => endpoints,
            Err(error) => {
                end_all(
                    started
                        .into_iter()
                        .flat_map(|(a, b)| a.into_iter().chain([b])),
                )
                .await;
                registry.end().await;
                return Err(error);
            }
        };
        let (mut agents, mut sidecars) = (Vec::new(), Vec::new());
        for (agent, sidecar) in started {
            agents.extend(agent);
            sidecars.push(sidecar);
        }
        state.publish(&endpoints)?;
        let Starting { events, roster, .. } = starting;
        Ok(Self {
            endpoints,
            registry,
            sidecars,
            agents,
            events,
            roster,
            operator,
        })
    }

    /// Where everything is.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The operator, whose certificate has to be kept fresh.
    pub fn operator(&self) -> &Operator {
        &self.operator
    }

    /// What happens to the children, as it happens.
    pub async fn next_event(&mut self, state: &State) -> Option<ChildEvent> {
        let event = self.events.recv().await?;
        if let ChildEvent::Started { pid, .. } = &event
            && let Err(error) = self.roster.add(state, *pid)
        {
            tracing::warn!(%error, "a child is not written down: it may outlive a killed `up`");
        }
        Some(event)
    }

    /// Drains the sidecars, then ends agents and registry: agents after their sidecars, which let
    /// their work finish, and the registry last, which tells everybody who drains. See
    /// [`ends_within`].
    pub async fn stop(self) {
        end_all(self.sidecars).await;
        end_all(self.agents).await;
        self.registry.end().await;
    }
}

async fn end_all(children: impl IntoIterator<Item = Supervised>) {
    futures_util::future::join_all(children.into_iter().map(|child| child.end())).await;
}

impl Starting<'_> {
    fn start_registry(&mut self, at: &RegistryEndpoints) -> Result<Supervised, UpError> {
        let settings = RegistrySettings {
            name: REGISTRY.to_owned(),
            ca: self.state.path("ca"),
            state: self.state.private("registry")?,
            listen: at.mtls.clone(),
            enrollment: at.enrollment.clone(),
            admin: at.admin.clone(),
            threads: 0,
            certificate_life: self.mesh.registry.certificate_life,
            connection_age: self.mesh.registry.connection_age,
            lease: self.mesh.registry.lease,
            drain: self.mesh.registry.drain,
            telemetry: self.mesh.telemetry.clone(),
        };
        let text = toml::to_string(&settings).expect("plain settings are TOML");
        let config = self.state.write("config/registry.toml", &text)?;
        self.attache("registry", "registry", &config)
    }

    async fn start_rest(
        &mut self,
        around: &Around<'_>,
        instances: &[Instance<'_>],
        started: &mut Vec<(Option<Supervised>, Supervised)>,
        say: &mut dyn FnMut(String),
    ) -> Result<Endpoints, UpError> {
        let Around {
            registry: registry_at,
            operator,
            built,
        } = around;
        self.wait_ready(&[("registry".to_owned(), registry_at.admin.clone())], say)
            .await?;
        for instance in instances {
            let config = self.sidecar_config(instance, registry_at, operator).await?;
            let agent = self.start_agent(instance, built)?;
            let sidecar = self.attache(&instance.label, "sidecar", &config)?;
            started.push((agent, sidecar));
        }
        let until = Instant::now() + READY;
        for one in instances
            .iter()
            .filter(|one| one.agent.program == Program::External)
        {
            let dir = self.sidecar_dir(one);
            while operator.instance_in(&dir).is_none() && Instant::now() < until {
                sleep(ASK_EVERY).await;
            }
            say(format!(
                "{} waits for its agent, which you start: ATTACHE_LISTEN={} ATTACHE_SIDECAR={}",
                one.label, one.handler, one.local
            ));
        }
        let all: Vec<(String, String)> = instances
            .iter()
            // An agent that somebody else starts may come when it likes.
            .filter(|one| one.agent.program != Program::External)
            .map(|one| (one.label.clone(), format!("127.0.0.1:{}", one.admin)))
            .collect();
        self.wait_ready(&all, say).await?;
        let mut endpoints = Endpoints {
            trust_domain: self.mesh.trust_domain.to_string(),
            pid: std::process::id(),
            registry: (*registry_at).clone(),
            instances: Vec::new(),
        };
        for one in instances {
            let member = Member::Agent(one.agent.name.clone());
            endpoints.instances.push(InstanceEndpoints {
                agent: one.agent.name.to_string(),
                instance: operator
                    .instance_in(&self.sidecar_dir(one))
                    .unwrap_or_default(),
                local: one.local.clone(),
                mtls: format!("127.0.0.1:{}", one.mtls),
                admin: format!("127.0.0.1:{}", one.admin),
                server_name: member.dns_name(),
            });
        }
        Ok(endpoints)
    }

    fn sidecar_dir(&self, instance: &Instance<'_>) -> std::path::PathBuf {
        self.state.path(&format!("sidecars/{}", instance.label))
    }

    /// Writes a sidecar's configuration, with an invitation where it has no certificate to go on
    /// with.
    async fn sidecar_config(
        &self,
        instance: &Instance<'_>,
        registry: &RegistryEndpoints,
        operator: &Operator,
    ) -> Result<std::path::PathBuf, UpError> {
        let dir = self
            .state
            .private(&format!("sidecars/{}", instance.label))?;
        let id = SpiffeId {
            trust_domain: self.mesh.trust_domain.clone(),
            member: Member::Agent(instance.agent.name.clone()),
        };
        let join = dir.join("join");
        operator
            .invite(&registry.mtls, &id, &dir, &join, self.nursery)
            .await?;
        let settings = SidecarSettings {
            state: dir,
            registry: vec![registry.mtls.clone()],
            enrollment: vec![registry.enrollment.clone()],
            join_file: Some(join),
            listen: format!("127.0.0.1:{}", instance.mtls),
            local: instance.local.clone(),
            admin: format!("127.0.0.1:{}", instance.admin),
            advertise: vec![format!("127.0.0.1:{}", instance.mtls)],
            zone: String::new(),
            threads: 0,
            connection_age: self.mesh.sidecars.connection_age,
            drain: self.mesh.sidecars.drain,
            agent_lost_after: self.mesh.sidecars.agent_lost_after,
            retention: self.mesh.sidecars.retention,
            finished_in_memory: self.mesh.sidecars.finished_in_memory,
            callbacks: self.mesh.sidecars.callbacks.in_dir(&self.mesh.dir),
            agent: Some(instance.handler.clone()),
            agent_health: instance.agent.health.0,
            agent_health_service: instance.agent.health.1.clone(),
            telemetry: self.mesh.telemetry.clone(),
            card: instance.agent.card.clone(),
            ..SidecarSettings::default()
        };
        let text = toml::to_string(&settings).expect("plain settings are TOML");
        Ok(self
            .state
            .write(&format!("config/{}.toml", instance.label), &text)?)
    }

    /// Waits until every process is ready; a death on the way is fatal and shown.
    async fn wait_ready(
        &mut self,
        wanted: &[(String, String)],
        say: &mut dyn FnMut(String),
    ) -> Result<(), UpError> {
        let until = Instant::now() + READY;
        let mut missing: BTreeSet<usize> = (0..wanted.len()).collect();
        let mut why = BTreeMap::new();
        let mut deaths = 0;
        while !missing.is_empty() {
            while let Ok(event) = self.events.try_recv() {
                match event {
                    ChildEvent::Started { pid, .. } => self.roster.add(self.state, pid)?,
                    ChildEvent::Died {
                        name,
                        how,
                        last_lines,
                        ..
                    } => {
                        deaths += 1;
                        let error = UpError::Died {
                            name,
                            how,
                            last_lines,
                        };
                        // Once may be an accident; twice before anything is ready is not.
                        if deaths > 1 {
                            return Err(error);
                        }
                        say(format!("{error}\n  trying once more"));
                    }
                }
            }
            for place in missing.clone() {
                let (name, admin) = &wanted[place];
                match probe::ready(admin).await {
                    Ok(()) => {
                        missing.remove(&place);
                        say(format!("{name} is ready"));
                    }
                    Err(reason) => drop(why.insert(place, reason)),
                }
            }
            if Instant::now() > until
                && let Some(place) = missing.first()
            {
                let name = wanted[*place].0.clone();
                let log = self.state.path(&format!("logs/{name}.log"));
                let why = why.remove(place).unwrap_or_default();
                return Err(UpError::NotReady {
                    why,
                    last_lines: last_lines(&log, 0),
                    name,
                });
            }
            if !missing.is_empty() {
                sleep(ASK_EVERY).await;
            }
        }
        Ok(())
    }
}
