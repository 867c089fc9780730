//! One registry with many agents: what its members wait for. `cargo bench --bench tasks -- --agents
//! 1000,10000`.
//!
//! The catalog is filled in process, which measures the engine without a network; then a registry's
//! process opens it, and members with certificates of their own call it over mutual TLS.

use std::{
    fmt, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use attache::{
    domain::{InstanceId, SpiffeId},
    identity::{Authority, Credentials, Expect, Names},
    pb::{self, registry_client::RegistryClient, watch_response::Change},
    registry::{Door, Engine, Sight, Who, reads::Reads, storage::RedbStore},
    runtime::Nursery,
    transport::{Channel, Pool, Target},
};
use futures_util::{StreamExt, future::try_join_all};
use tokio::time::{Instant, sleep, timeout};

use crate::{Outcome, load::Measured, machine};

/// Members that call, each over a connection of its own.
const CALLERS: usize = 200;
/// Calls of each kind that change nothing.
const READS: usize = 2000;
/// Changes that a watcher waits for, each alone.
const DELTAS: usize = 50;
/// Agents that share a skill, and so the instances that a `Discover` finds.
const SHARING: usize = 10;
/// Registrations at once while the catalog is filled.
const TOGETHER: usize = 64;
/// Longest wait for a process, and for one message of a watch.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one registry of a size did.
#[derive(Default)]
pub(crate) struct Figures {
    agents: usize,
    register: Measured,
    together: Measured,
    heartbeat: Measured,
    discover: Measured,
    /// Processor's time of the registry per `Discover`, in us.
    discover_spent: f64,
    delta: Measured,
    snapshot: Duration,
    /// In process.
    engine_register: Measured,
    engine_discover: Measured,
    resident: f64,
    resident_alone: f64,
}

/// Measures a registry of so many agents, below `scratch`.
pub(crate) async fn measure(attache: &Path, scratch: &Path, agents: usize) -> Outcome<Figures> {
    let dir = scratch.join(format!("registry-{agents}"));
    fs::create_dir(&dir)?;
    let domain = "bench.local".parse()?;
    let authority = Authority::create(&dir.join("ca"), &domain, Names::Development)?;
    let mut figures = Figures {
        agents,
        ..Figures::default()
    };
    let alone = Registry::start(attache, &dir, "empty").await?;
    figures.resident_alone = alone.process()?.resident;
    drop(alone);
    fill(&dir.join("full"), &mut figures).await?;
    let registry = Registry::start(attache, &dir, "full").await?;
    let nursery = Nursery::here();
    let members: Vec<Member> = (0..CALLERS.min(agents))
        .map(|place| Member::new(place, &authority, &registry, &nursery))
        .collect::<Outcome<_>>()?;
    for member in &members {
        // Connects: a handshake is no part of the calls below.
        member.discover(1).await?;
    }
    registry.calls(&members, &mut figures).await?;
    watch(&members, &mut figures).await?;
    figures.resident = registry.process()?.resident;
    drop(members);
    nursery.abort().await;
    Ok(figures)
}

/// Fills the catalog at `dir` in process.
async fn fill(dir: &Path, figures: &mut Figures) -> Outcome<()> {
    fs::create_dir(dir)?;
    let store = Arc::new(RedbStore::open(&dir.join("catalog.redb"), Instant::now())?);
    let engine = Engine::new(store, Door { loopback: true });
    let register = async |place: usize, version: u32| -> Outcome<Duration> {
        let (id, instance) = (id(place)?, instance(place)?);
        let who = Who {
            id: &id,
            instance: Some(&instance),
        };
        let began = Instant::now();
        engine.register(who, request(place, version)).await?;
        Ok(began.elapsed())
    };
    for first in (0..figures.agents).step_by(TOGETHER) {
        let last = (first + TOGETHER).min(figures.agents);
        try_join_all((first..last).map(|place| register(place, 1))).await?;
    }
    let (began, mut took) = (Instant::now(), Vec::new());
    for place in 0..CALLERS.min(figures.agents) {
        took.push(register(place, 2).await?);
    }
    figures.engine_register = Measured::new(took, began.elapsed());
    let store = engine.store();
    let sight = Sight::of(id(0)?);
    let (all, mut took) = (Instant::now(), Vec::new());
    for turn in 0..READS {
        let ask = discover(turn % figures.agents);
        let began = Instant::now();
        let found = store.live().read(|catalog| {
            let key = store.page_key();
            let reads = Reads {
                catalog,
                sight: &sight,
                key,
            };
            reads.discover(&ask)
        })?;
        took.push(began.elapsed());
        assert_eq!(found.instances.len(), SHARING.min(figures.agents));
    }
    figures.engine_discover = Measured::new(took, all.elapsed());
    Ok(())
}

/// A registry's process; ended when dropped.
struct Registry {
    child: Child,
    listen: String,
}

impl Registry {
    async fn start(attache: &Path, dir: &Path, state: &str) -> Outcome<Self> {
        let config: PathBuf = dir.join(format!("{state}.toml"));
        let ports = [free()?, free()?, free()?];
        let [listen, enrollment, admin] = ports.map(|port| format!("127.0.0.1:{port}"));
        let text = format!(
            "ca = {:?}\nstate = {:?}\nlisten = {listen:?}\nenrollment = {enrollment:?}\n\
             admin = {admin:?}\n",
            dir.join("ca"),
            dir.join(state)
        );
        fs::write(&config, text)?;
        let mut command = Command::new(attache);
        command.args(["registry", "--until-stdin-closes", "--config"]);
        command.arg(config).env("ATTACHE_LOG", "error");
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let registry = Self { child, listen };
        let began = Instant::now();
        while tokio::net::TcpStream::connect(&admin).await.is_err() {
            if began.elapsed() > PATIENCE {
                return Err("the registry does not start".into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(registry)
    }

    fn process(&self) -> Outcome<machine::Process> {
        let process = machine::process(&self.child.id().to_string());
        process.ok_or_else(|| "the registry has ended".into())
    }

    /// Calls of members, one after the other and at once.
    async fn calls(&self, members: &[Member], figures: &mut Figures) -> Outcome<()> {
        let (began, mut took, mut leases) = (Instant::now(), Vec::new(), Vec::new());
        for member in members {
            let start = Instant::now();
            leases.push(member.register(3).await?.lease_id);
            took.push(start.elapsed());
        }
        figures.register = Measured::new(took, began.elapsed());
        let (began, mut took) = (Instant::now(), Vec::new());
        for (member, lease_id) in members.iter().zip(leases) {
            let start = Instant::now();
            let beat = pb::HeartbeatRequest {
                lease_id,
                health: pb::Health::Serving.into(),
                load: Some(pb::Load::default()),
            };
            member.client().heartbeat(beat).await?;
            took.push(start.elapsed());
        }
        figures.heartbeat = Measured::new(took, began.elapsed());
        let began = Instant::now();
        let all = members.iter().map(async |member| {
            let start = Instant::now();
            member.register(4).await?;
            Outcome::Ok(start.elapsed())
        });
        let took = try_join_all(all).await?;
        figures.together = Measured::new(took, began.elapsed());
        let spent = self.process()?.spent;
        let (began, mut took) = (Instant::now(), Vec::new());
        for turn in 0..READS {
            let start = Instant::now();
            members[0].discover(turn % figures.agents).await?;
            took.push(start.elapsed());
        }
        figures.discover = Measured::new(took, began.elapsed());
        figures.discover_spent = (self.process()?.spent - spent) * 1e6 / READS as f64;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Its input closes: it ends in order.
        drop(self.child.stdin.take());
        if self.child.wait().is_err() {
            eprintln!("the registry did not end");
        }
    }
}

/// A member with a certificate and a connection of its own.
struct Member {
    place: usize,
    channel: Channel,
}

impl Member {
    fn new(
        place: usize,
        authority: &Authority,
        registry: &Registry,
        nursery: &Nursery,
    ) -> Outcome<Self> {
        let svid = authority.svid(&id(place)?, Some(&instance(place)?), PATIENCE * 60)?;
        let pool = Pool::new(Credentials::new(svid), nursery.clone());
        let channel = pool.channel(Target {
            endpoints: vec![registry.listen.clone()],
            expect: Some(Expect::AnyRegistry),
        });
        Ok(Self { place, channel })
    }

    fn client(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel.clone())
    }

    async fn register(&self, version: u32) -> Outcome<pb::RegisterResponse> {
        let granted = self.client().register(request(self.place, version)).await?;
        Ok(granted.into_inner())
    }

    async fn discover(&self, of: usize) -> Outcome<()> {
        let found = self.client().discover(discover(of)).await?.into_inner();
        match found.instances.is_empty() {
            true => Err("nobody was found".into()),
            false => Ok(()),
        }
    }
}

/// How long a change takes from the call that makes it to a watcher of the whole catalog.
async fn watch(members: &[Member], figures: &mut Figures) -> Outcome<()> {
    let began = Instant::now();
    let asked = members[0]
        .client()
        .watch(pb::WatchRequest::default())
        .await?;
    let mut words = asked.into_inner();
    let mut next = async || -> Outcome<Option<Change>> {
        let word = timeout(PATIENCE, words.next()).await?;
        Ok(word.ok_or("the watch has ended")??.change)
    };
    while !matches!(next().await?, Some(Change::SnapshotEnd(_))) {}
    figures.snapshot = began.elapsed();
    let (began, mut took) = (Instant::now(), Vec::new());
    for member in members.iter().cycle().take(DELTAS) {
        let wanted = instance(member.place)?;
        // Long enough for the watcher to be at rest.
        sleep(Duration::from_millis(150)).await;
        let start = Instant::now();
        let version = 5 + u32::try_from(took.len())?;
        member.register(version).await?;
        loop {
            if let Some(Change::Instance(instance)) = next().await?
                && instance.id == wanted.as_str()
            {
                break;
            }
        }
        took.push(start.elapsed());
    }
    figures.delta = Measured::new(took, began.elapsed());
    Ok(())
}

fn id(place: usize) -> Outcome<SpiffeId> {
    Ok(format!("spiffe://bench.local/ns/default/agent/a{place}").parse()?)
}

fn instance(place: usize) -> Outcome<InstanceId> {
    Ok(format!("i{place}").parse()?)
}

fn skill(place: usize) -> String {
    format!("work.s{}", place / SHARING)
}

/// A card as agents have them: three skills, two of them with schemas.
fn request(place: usize, version: u32) -> pb::RegisterRequest {
    let schema = r#"{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}"#;
    let skills = [
        skill(place),
        "work.common".to_owned(),
        format!("own.s{place}"),
    ];
    let skills = skills
        .into_iter()
        .enumerate()
        .map(|(number, name)| pb::Skill {
            name,
            description: "Does what it is asked to, as well as it can.".into(),
            version: "1.0.0".into(),
            tags: vec!["work".into(), "bench".into()],
            input_schema: if number < 2 {
                schema.into()
            } else {
                String::new()
            },
            ..Default::default()
        });
    pb::RegisterRequest {
        card: Some(pb::AgentCard {
            version: format!("1.0.{version}"),
            description: "An agent of the benchmark.".into(),
            skills: skills.collect(),
            ..Default::default()
        }),
        instance: Some(pb::Instance {
            endpoints: vec!["127.0.0.1:7643".into()],
            health: pb::Health::Serving.into(),
            ..Default::default()
        }),
    }
}

/// Who has the skill of the agent at `place`.
fn discover(place: usize) -> pb::DiscoverRequest {
    pb::DiscoverRequest {
        selector: Some(pb::Selector {
            skill: skill(place),
            ..Default::default()
        }),
        limit: 0,
    }
}

fn free() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The head of the table whose rows [`Figures`] are.
pub(crate) const HEAD: &str = "\
| agents | Register | 200 at once | Heartbeat | Discover, 10 found | its processor, us | \
a change to a watcher | snapshot, ms | in process: Register | Discover | registry, MiB (empty) |
|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pair = |of: &Measured| format!("{:.2} / {:.2}", of.within(0.5), of.within(0.99));
        write!(
            f,
            "| {} | {} | {:.0}/s | {} | {} | {:.0} | {} | {:.0} | {} | {:.3} / {:.3} | {:.1} ({:.1}) |",
            self.agents,
            pair(&self.register),
            self.together.per_second(),
            pair(&self.heartbeat),
            pair(&self.discover),
            self.discover_spent,
            pair(&self.delta),
            self.snapshot.as_secs_f64() * 1e3,
            pair(&self.engine_register),
            self.engine_discover.within(0.5),
            self.engine_discover.within(0.99),
            self.resident,
            self.resident_alone,
        )
    }
}
