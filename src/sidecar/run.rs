//! The life of a sidecar: open the listeners, join, start the parts; `drain` ends it.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    around::Around,
    balancer::Balancer,
    carry::Reached,
    config::{Listening, SidecarConfig},
    drain::Running,
    endpoints::Endpoints,
    error::SidecarError,
    join::Joiner,
    metrics,
    passage::Passage,
    pools::Pools,
    promises::Promises,
    register::Place,
    route::CatalogRoute,
    standing::{Boards, Progress},
};
use crate::{
    admin::{self, introspection},
    domain::{InstanceId, SpiffeId},
    identity::{Credentials, Expect},
    pb::{
        self, agent_server::AgentServer, executor_server::ExecutorServer,
        registry_server::RegistryServer,
    },
    registry::client::{
        Described, Dialed, LocalRegistryService, Mirror, MirrorConfig, Source, counted,
    },
    runtime::{DataThreads, Nursery, Stop, clock},
    task::{
        Route,
        executor::{Executor, ExecutorConfig, ExecutorService, HandlerLink, Offers, SLOTS},
        home::Home,
        service::AgentService,
    },
    telemetry::{metrics::pool::Dials, otlp::Identity},
    transport::{Hubs, Limits, Listener, Pool, Security, Server, Target, Ways},
};

const SERVICES: &[&str] = &["attache.v1.Agent", "attache.v1.Executor"];
const LOCAL_SERVICES: &[&str] = &["attache.v1.Agent", "attache.v1.Registry"];

/// Runs a sidecar until `stop`, then drains. `started` is told once it serves.
///
/// # Errors
/// When it cannot start, or its journal fails.
pub async fn run(
    config: SidecarConfig,
    stop: Stop,
    started: impl FnOnce(&Listening),
) -> Result<(), SidecarError> {
    let nursery = Nursery::here();
    // Bind everything first: a taken port is told before anything runs.
    let mtls = Listener::tcp(&config.listen)?;
    let local = Listener::parse(&config.local)?.only_this_machine()?;
    let progress = Arc::new(Progress::new(
        config.agent.is_some(),
        config.telemetry.clone(),
    ));
    let admin = admin::Server::start(config.admin, progress.clone(), &nursery).await?;

    let joiner = Joiner {
        dir: config.state.clone(),
        registry: config.registry.clone(),
        enrollment: config.enrollment.clone(),
        invitation: config.invitation.clone(),
        nursery: nursery.clone(),
    };
    let Some(credentials) = joiner.credentials(&stop).await? else {
        return Ok(());
    };
    let id = credentials.id();
    let instance = credentials
        .instance()
        .ok_or_else(|| SidecarError::NoInstance(id.to_string()))?;
    progress.joined(id.to_string(), instance.to_string(), credentials.clone());
    let traced = Identity::of(&id, instance.as_str());
    config.telemetry.traces.known_as(traced);
    let threads = DataThreads::start(config.threads).map_err(|source| SidecarError::System {
        what: "cannot start the data threads".to_owned(),
        source,
    })?;
    let port = mtls.port().unwrap_or(0);
    let parts = Parts {
        config,
        id,
        instance,
        boot_id: uuid::Uuid::now_v7().to_string(),
        credentials,
        progress,
        nursery,
        control: Nursery::here(),
        stop,
    };
    let listening = Listening {
        id: parts.id.clone(),
        instance: parts.instance.clone(),
        mtls: mtls.address().to_owned(),
        local: local.address().to_owned(),
        admin: admin.address(),
    };
    let running = parts.start(&threads, joiner, port, mtls, local).await?;
    tracing::info!(id = %listening.id, instance = %listening.instance, mtls = listening.mtls, local = listening.local, "sidecar serves");
    started(&listening);
    running.until_stopped(&parts).await
}

/// What every part of a sidecar may need.
pub(super) struct Parts {
    pub(super) config: SidecarConfig,
    pub(super) id: SpiffeId,
    pub(super) instance: InstanceId,
    /// Names this run of the process.
    pub(super) boot_id: String,
    pub(super) credentials: Credentials,
    pub(super) progress: Arc<Progress>,
    pub(super) nursery: Nursery,
    /// Connections to the registry: they outlive what says goodbye over them.
    pub(super) control: Nursery,
    pub(super) stop: Stop,
}

/// What the listeners answer with.
struct Desk {
    home: Home,
    around: Arc<Around>,
    executor: Executor,
    reads: LocalRegistryService,
}

impl Parts {
    async fn start(
        &self,
        threads: &DataThreads,
        joiner: Joiner,
        port: u16,
        mtls: Listener,
        local: Listener,
    ) -> Result<Running, SidecarError> {
        let age = self.config.connection_age;
        let [to_registry, to_members, to_agent, passed] =
            ["registry", "members", "agent", "passed"].map(Dials::new);
        let control = Pool::of(self.ways(&to_registry), self.control.clone());
        self.keep_renewed(joiner, control.clone());
        self.follow_bundle(control.clone());
        let source = counted(self.source(control), self.progress.calls());
        let described = watch::Sender::new(Arc::new(self.described(Vec::new())));
        let mirror = self.mirror(&source);
        // Neither tasks that wait in the journal nor callers who waited for this start should be told
        // that nobody is there.
        mirror.settled().await;

        let (agent, instance) = (self.config.agent.as_ref(), &self.instance);
        let reached = Reached::new(agent, instance, threads, &to_agent);
        let executor = self.executor(threads, reached.link())?;
        let pools = Pools::members(&self.credentials, threads, age, &to_members);
        let all = vec![to_members, to_registry, to_agent, passed.clone()];
        self.progress.metrics().add(all);
        let (balancer, promises) = self.known(&mirror, &source);
        let route = CatalogRoute::start(balancer.clone(), promises.clone(), &self.nursery);
        let route: Arc<dyn Route> = Arc::new(route);
        let passage = Passage::new(&self.id, &self.instance, reached.address(), route.clone());
        let passage = passage.ok_or_else(|| SidecarError::NoInstance(self.id.to_string()))?;
        self.progress.metrics().add(passage.calls.clone());
        let hubs = passage.start(threads, &self.ways(&passed), &balancer, &self.nursery);
        let home = self.home(threads, (balancer, route), &pools, &executor)?;
        let around = Arc::new(Around {
            described: described.subscribe(),
            has_agent: self.config.agent.is_some(),
            mirror: mirror.clone(),
            pools,
            promises,
            callbacks: self.config.callbacks.allowed.clone(),
            desk: reached.desk(),
        });
        self.call_back(&home)?;
        // The own agent may look for peers until the last of its work is done.
        let leave = home.drains();
        let reads = LocalRegistryService::new(self.id.clone(), &mirror, source.clone(), leave);
        let (metrics, parts) = (self.progress.metrics(), (&home, &executor));
        metrics::parts(metrics, parts, described.subscribe(), &self.nursery);
        let desk = Desk {
            home,
            around,
            executor: executor.clone(),
            reads,
        };
        let running = self.serve(threads, desk, hubs, mtls, local);
        self.watch_agent(reached, described.clone(), &executor);
        self.report_load(executor.clone());
        let place = Place {
            nursery: self.nursery.clone(),
            progress: self.progress.clone(),
            advertise: self.config.advertise.clone(),
            registry: self.config.registry.clone(),
            port,
        };
        self.nursery.start("registration", |stop| {
            place.register(source, described, stop)
        });
        Ok(running)
    }

    /// How members are reached, counted by `counts`.
    fn ways(&self, counts: &Arc<Dials>) -> Ways {
        Ways {
            credentials: Some(self.credentials.clone()),
            connection_age: self.config.connection_age,
            counts: Arc::clone(counts),
        }
    }

    /// Opens both listeners to what the desk answers.
    fn serve(
        &self,
        threads: &DataThreads,
        desk: Desk,
        hubs: Hubs,
        mtls: Listener,
        local: Listener,
    ) -> Running {
        let Desk {
            home,
            around,
            executor,
            reads,
        } = desk;
        let boards = Boards::new(self.config.agent.is_some());
        let [mesh_health, local_health] = boards.services(&home.drains());
        self.progress.shows(boards);
        let tasks =
            |thread| AgentServer::new(AgentService::new(home.clone(), around.clone(), thread));
        // Built once and shared by the threads: the contract with its comments is large.
        let (mesh_routes, local_routes) = (
            introspection::routes(SERVICES),
            introspection::routes(LOCAL_SERVICES),
        );
        let outer = Limits {
            connection_age: self.config.connection_age,
            ..Limits::default()
        };
        // The own agent has nowhere to move to and shows no certificate; its client, of whatever
        // make, may not send again what a GOAWAY crosses.
        let inner = Limits {
            connection_age: Limits::AGELESS,
            ..Limits::default()
        };
        let security = Security::MutualTls(self.credentials.clone());
        let mtls = Server::start_at(
            mtls,
            security,
            threads,
            outer,
            (&hubs, |thread| {
                mesh_routes
                    .clone()
                    .add_service(tasks(thread))
                    .add_service(ExecutorServer::new(ExecutorService::new(executor.clone())))
                    .add_service(mesh_health.clone())
            }),
        );
        let plain = Security::Plaintext;
        let local = Server::start_at(
            local,
            plain,
            threads,
            inner,
            (&hubs, |thread| {
                local_routes
                    .clone()
                    .add_service(tasks(thread))
                    .add_service(RegistryServer::new(reads.clone()))
                    .add_service(local_health.clone())
            }),
        );
        let metrics = self.progress.metrics();
        metrics.add(vec![mtls.served(), local.served()]);
        Running {
            home,
            executor,
            mtls,
            local,
            hubs,
        }
    }

    fn source(&self, control: Pool) -> Arc<dyn Source> {
        let endpoints = self.config.registry.clone();
        Arc::new(Dialed(move || {
            let expect = Some(Expect::AnyRegistry);
            control.channel(Target {
                endpoints: endpoints.clone(),
                expect,
            })
        }))
    }

    fn described(&self, endpoints: Vec<String>) -> Described {
        let now = clock::wall();
        let instance = pb::Instance {
            id: self.instance.to_string(),
            endpoints,
            zone: self.config.zone.clone(),
            sidecar_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Some(now.into()),
            boot_id: self.boot_id.clone(),
            wants_descendants: true,
            ..Default::default()
        };
        Described {
            card: self.config.card.clone(),
            instance,
        }
    }

    fn executor(
        &self,
        threads: &DataThreads,
        link: Arc<dyn HandlerLink>,
    ) -> Result<Executor, SidecarError> {
        let card = &self.config.card;
        let skills = Offers::of(card).map_err(|fault| SidecarError::Card {
            path: fault.field.unwrap_or_default(),
            text: fault.text,
        })?;
        let slots = if card.max_concurrent_tasks == 0 {
            SLOTS
        } else {
            card.max_concurrent_tasks
        };
        let config = ExecutorConfig {
            own: self.id.clone(),
            slots,
            boot_id: self.boot_id.clone(),
            skills,
        };
        Ok(Executor::new(config, link, threads.nurseries()))
    }

    fn mirror(&self, source: &Arc<dyn Source>) -> Mirror {
        let config = MirrorConfig {
            copy: Some(self.config.state.join("catalog")),
            namespaces: Vec::new(),
        };
        let mirror = Mirror::start(&self.nursery, source.clone(), config);
        self.progress.mirrors(mirror.clone());
        mirror
    }

    /// What is known of others: who they are, and what they promise.
    fn known(&self, mirror: &Mirror, source: &Arc<dyn Source>) -> (Arc<Balancer>, Arc<Promises>) {
        let (endpoints, zone) = (Endpoints::default(), self.config.zone.clone());
        let balancer = Arc::new(Balancer::new(mirror.clone(), endpoints, zone));
        self.progress.balances(balancer.clone());
        let own = &self.config.card;
        let promises = Promises::start(own, source.clone(), balancer.clone(), &self.nursery);
        (balancer, promises)
    }
}
