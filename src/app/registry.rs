//! The registry's process: catalog, certificate authority and enrolment behind three listeners.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    error::StartError,
    settings::{
        RegistrySettings,
        lifetimes::{CERTIFICATE_LIFE, CONNECTION_AGE, DRAIN, LEASE},
    },
};
use crate::{
    admin::{self, Inspect, health::Health, introspection},
    domain::{Member, SpiffeId},
    identity::{
        Authority, Counted, Credentials, EnrollmentService, IdentityService, Ledger, Names,
        OwnSigner, Shutting, authority, keep_renewed,
    },
    pb::{
        enrollment_server::EnrollmentServer, identity_server::IdentityServer,
        registry_server::RegistryServer,
    },
    registry::{
        Door, Engine, RegistryService,
        lease::Terms,
        storage::{RedbStore, Store},
    },
    runtime::{DataThreads, Nursery, Stop, clock},
    telemetry::{
        Telemetry,
        metrics::{Format, Metrics, Outcomes, Sheet, family, remaining},
        otlp::Identity,
    },
    transport::{Limits, Listener, Security, Server},
};

/// What of the drain is kept for the registry's own tasks, after the calls.
const TAIL: Duration = Duration::from_secs(2);

/// What members find on the mutual TLS listener.
const SERVICES: &[&str] = &["attache.v1.Registry", "attache.v1.Identity"];

/// Where a running registry listens.
#[derive(Clone, Debug)]
pub struct Listening {
    /// Who it is.
    pub id: SpiffeId,
    /// Mutual TLS.
    pub mtls: String,
    /// Enrolment.
    pub enrollment: String,
    /// HTTP admin.
    pub admin: SocketAddr,
}

/// Runs a registry until `stop`, then drains. `started` is told once all listeners are open.
///
/// # Errors
/// When anything it needs is missing or taken.
pub async fn run(
    settings: &RegistrySettings,
    telemetry: Telemetry,
    stop: Stop,
    started: impl FnOnce(&Listening),
) -> Result<(), StartError> {
    let nursery = Nursery::here();
    let (terms, life, limits) = lifetimes(settings)?;
    let drain = DRAIN.within(settings.drain)?;
    let authority = Arc::new(open_authority(settings)?.with_leaf_life(life));
    let id = own_id(settings, &authority, &telemetry)?;
    let credentials = Credentials::new(authority.svid(&id, None, life)?);
    let store = open_store(settings, terms)?;

    // Bind everything first: a taken port is told before anything runs.
    let mtls = Listener::tcp(&settings.listen)?;
    let enrollment = Listener::tcp(&settings.enrollment)?;
    let admin_address = admin_address(settings)?;
    let threads = data_threads(settings.threads)?;

    let engine = start_engine(&nursery, &authority, &store);
    let metrics = Metrics::new("registry");
    metrics.add(telemetry.clone());
    keep_own_certificate(&nursery, &authority, &credentials, &metrics);

    // Watches end once nobody can open another one here.
    let leave = Stop::new();
    let health = Health::new(SERVICES);
    let health_service = health.service(leave.clone());
    let catalog = RegistryService::new(engine.clone(), leave.clone());
    metrics.add(catalog.clone());
    let ledger = Arc::clone(&store) as Arc<dyn Ledger>;
    let shutting = shut_out(&nursery, &ledger, &credentials, &engine).await?;
    let signed = Arc::clone(&authority);
    let members = IdentityService::new(signed, Arc::clone(&ledger), shutting, leave.clone());
    let members = IdentityServer::new(members);
    let security = Security::MutualTls(credentials.clone());
    // Built once and shared by the threads: the contract with its comments is large.
    let routes = introspection::routes(SERVICES);
    let mtls = Server::start(mtls, security, &threads, limits.clone(), |_| {
        routes
            .clone()
            .add_service(RegistryServer::new(catalog.clone()))
            .add_service(members.clone())
            .add_service(health_service.clone())
    });
    let newcomers = newcomers(&metrics, Arc::clone(&authority), ledger);
    let security = Security::Enrollment(credentials);
    let enrollment = Server::start(enrollment, security, &threads, limits, |_| {
        tonic::service::Routes::new(newcomers.clone())
    });
    metrics.add(vec![mtls.served(), enrollment.served()]);
    let inspect = Arc::new(Inspected {
        metrics,
        id: id.clone(),
        telemetry,
        authority,
        engine,
        store,
        stop: stop.clone(),
    });
    let admin = admin::Server::start(admin_address, inspect, &nursery).await?;
    started(&listening(id, &mtls, &enrollment, &admin));

    stop.cancelled().await;
    health.stop();
    end(drain, [mtls, enrollment], &leave, &nursery).await;
    Ok(())
}

/// Sends everybody away (GOAWAY), ends the watches, lets calls finish, and ends the rest, all within
/// `drain`. What comes until a peer has heard of it is served: a client that waits for its connection
/// sees no failure.
async fn end(drain: Duration, listeners: [Server; 2], watches: &Stop, nursery: &Nursery) {
    let calls = Instant::now() + drain.saturating_sub(TAIL);
    join_all(listeners.iter().map(Server::leave)).await;
    watches.cancel();
    let left = calls.saturating_duration_since(Instant::now());
    join_all(listeners.iter().map(|server| server.drain(left))).await;
    nursery.close(TAIL).await;
    tracing::info!("registry ended");
}

fn listening(id: SpiffeId, mtls: &Server, enrollment: &Server, admin: &admin::Server) -> Listening {
    let listening = Listening {
        id,
        mtls: mtls.address().to_owned(),
        enrollment: enrollment.address().to_owned(),
        admin: admin.address(),
    };
    tracing::info!(mtls = listening.mtls, enrollment = listening.enrollment, admin = %listening.admin, "registry serves");
    listening
}

/// What the settings say of leases, certificates and connections.
fn lifetimes(settings: &RegistrySettings) -> Result<(Terms, Duration, Limits), StartError> {
    let limits = Limits {
        connection_age: CONNECTION_AGE.within(settings.connection_age)?,
        ..Limits::default()
    };
    let terms = Terms::of_lease(LEASE.within(settings.lease)?);
    let life = CERTIFICATE_LIFE.within(settings.certificate_life)?;
    Ok((terms, life, limits))
}

/// The catalog, with the sweeper that takes out who no longer beats.
fn start_engine(nursery: &Nursery, authority: &Authority, store: &Arc<RedbStore>) -> Engine {
    // Endpoints on loopback make sense only where everything runs on one machine.
    let door = Door {
        loopback: authority.names() == Names::Development,
    };
    let engine = Engine::new(Arc::clone(store) as Arc<dyn Store>, door);
    let sweeper = engine.clone();
    nursery.start("sweeper", move |stop| sweeper.sweep(stop));
    engine
}

/// Puts in force whom the ledger has shut out, and carries out what operators ask for.
async fn shut_out(
    nursery: &Nursery,
    ledger: &Arc<dyn Ledger>,
    credentials: &Credentials,
    engine: &Engine,
) -> Result<Shutting, StartError> {
    let opened = Shutting::open(Arc::clone(ledger), credentials.clone()).await;
    let (shutting, keeper) = opened.map_err(StartError::Ledger)?;
    nursery.start("revocations", |stop| keeper.run(stop));
    let (engine, told) = (engine.clone(), shutting.watch());
    nursery.start("shut out", |stop| engine.shut_out(told, stop));
    Ok(shutting)
}

fn admin_address(settings: &RegistrySettings) -> Result<SocketAddr, StartError> {
    let parsed = settings.admin.parse();
    parsed.map_err(|error| StartError::value("admin", error))
}

/// Who this registry is, also in its traces.
fn own_id(
    settings: &RegistrySettings,
    authority: &Authority,
    telemetry: &Telemetry,
) -> Result<SpiffeId, StartError> {
    let name = settings
        .name
        .parse()
        .map_err(|error| StartError::value("name", error))?;
    let id = SpiffeId {
        trust_domain: authority.trust_domain().clone(),
        member: Member::Registry(name),
    };
    telemetry.traces.known_as(Identity::of(&id, &settings.name));
    Ok(id)
}

fn open_authority(settings: &RegistrySettings) -> Result<Authority, StartError> {
    if !Authority::exists(&settings.ca) {
        return Err(StartError::NoAuthority {
            dir: settings.ca.display().to_string(),
        });
    }
    Ok(Authority::open(&settings.ca)?)
}

fn open_store(settings: &RegistrySettings, terms: Terms) -> Result<Arc<RedbStore>, StartError> {
    let failed = |text: String| StartError::Store {
        dir: settings.state.display().to_string(),
        text,
    };
    private_dir(&settings.state).map_err(|error| failed(error.to_string()))?;
    let path = settings.state.join("catalog.redb");
    let store = RedbStore::open_with(&path, terms, Instant::now());
    store
        .map(Arc::new)
        .map_err(|error| failed(error.to_string()))
}

/// Makes a directory of state, with those above it, that only its owner may enter: tasks and keys
/// are nobody else's. One that is there already stays as its owner made it.
pub(super) fn private_dir(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// The data threads that a configuration asks for.
pub(super) fn data_threads(count: usize) -> Result<DataThreads, StartError> {
    let count = if count == 0 {
        DataThreads::per_core()
    } else {
        count
    };
    DataThreads::start(count).map_err(StartError::system("cannot start the data threads"))
}

/// Signs a new certificate at half of the present one's life, and follows the CA's directory: a new
/// issuing CA when it is due, other roots when an operator rotates them.
fn keep_own_certificate(
    nursery: &Nursery,
    ca: &Arc<Authority>,
    credentials: &Credentials,
    metrics: &Metrics,
) {
    let signer = Counted::new(OwnSigner(Arc::clone(ca)));
    certificates(metrics, (ca, credentials), signer.outcomes());
    let credentials = credentials.clone();
    let (kept, follows) = (Arc::clone(ca), credentials.clone());
    nursery.start("authority", |stop| authority::keep(kept, follows, stop));
    nursery.start("own certificate", |stop| async move {
        keep_renewed(credentials, None, &signer, stop).await;
    });
}

/// The enrolment service, whose outcomes are read at every scrape.
fn newcomers(
    metrics: &Metrics,
    authority: Arc<Authority>,
    ledger: Arc<dyn Ledger>,
) -> EnrollmentServer<EnrollmentService> {
    let service = EnrollmentService::new(authority, ledger);
    let outcomes = service.outcomes();
    metrics.add(move |sheet: &mut Sheet<'_>| {
        sheet.counter(&family::ENROLMENTS, outcomes.rows());
    });
    EnrollmentServer::new(service)
}

/// Has the rest of both certificates' lives read, and the outcomes of the own one's renewals.
fn certificates(
    metrics: &Metrics,
    (authority, credentials): (&Arc<Authority>, &Credentials),
    renewals: Outcomes<1>,
) {
    let (authority, credentials) = (Arc::clone(authority), credentials.clone());
    metrics.add(move |sheet: &mut Sheet<'_>| {
        let now = clock::wall();
        let own = remaining(credentials.current().peer().not_after, now);
        let issuing = remaining(authority.issuing_life().not_after, now);
        let rows = [(["own"], own), (["issuing"], issuing)];
        sheet.gauge(&family::CERTIFICATE_LEFT, rows);
        sheet.counter(&family::RENEWALS, renewals.rows());
    });
}

struct Inspected {
    metrics: Metrics,
    id: SpiffeId,
    telemetry: Telemetry,
    authority: Arc<Authority>,
    engine: Engine,
    store: Arc<RedbStore>,
    stop: Stop,
}

impl Inspect for Inspected {
    fn ready(&self) -> Result<(), Vec<String>> {
        let mut missing = Vec::new();
        if self.stop.is_cancelled() {
            missing.push("draining".to_owned());
        }
        if self.store.is_failing() {
            let text = "the store failed: nobody can join or register; is its disk broken or full?";
            missing.push(text.to_owned());
        }
        missing.extend(self.authority.concern());
        if missing.is_empty() {
            Ok(())
        } else {
            Err(missing)
        }
    }

    fn metrics(&self, format: Format) -> String {
        self.metrics.page(format)
    }

    fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    fn info(&self) -> Value {
        json!({
            "role": "registry",
            "id": self.id.to_string(),
            "version": env!("CARGO_PKG_VERSION"),
            "instances": self.engine.store().live().read(|catalog| catalog.len()),
        })
    }
}
