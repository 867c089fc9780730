//! The processes of a mesh in the test's own hands: killed, ended, and started again when the test
//! says so, where `attache up` would start them again by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use attache::{
    app::up::state::Endpoints,
    pb::{self, registry_client::RegistryClient, watch_response::Change},
    transport::Pool,
};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
};
use tonic::{Streaming, transport::Endpoint};

use super::{
    client::{self, Local},
    mesh::Site,
    passing,
    process::signal,
    tools::test_agent,
    wait::{eventually, within},
};

/// Name of the registry's process; the others are `home-1` and `home-1-agent`, as under `up`.
pub const REGISTRY: &str = "registry";

/// A mesh that `up` has made and left.
pub struct ByHand {
    // Fields are dropped in this order: processes end before their directory goes.
    running: BTreeMap<String, Child>,
    pub site: Site,
    pub endpoints: Endpoints,
}

impl ByHand {
    /// Makes the mesh of this mesh.toml and starts nothing.
    pub async fn made(mesh: &str) -> Self {
        let site = Site::new(mesh);
        let mut up = site.up(&[]).await;
        up.signal(Signal::INT);
        up.ended().await;
        Self {
            running: BTreeMap::new(),
            endpoints: up.endpoints,
            site,
        }
    }

    /// Makes the mesh and starts all of it.
    pub async fn started(mesh: &str) -> Self {
        let mut hand = Self::made(mesh).await;
        hand.start_all().await;
        hand
    }

    /// Starts all that does not run and waits until it is ready.
    pub async fn start_all(&mut self) {
        self.start(REGISTRY);
        self.ready(REGISTRY).await;
        for name in self.sidecars() {
            self.start(&format!("{name}-agent"));
            self.start(&name);
        }
        for name in self.sidecars() {
            self.ready(&name).await;
        }
        for name in self.sidecars() {
            self.knows_all(&name).await;
        }
    }

    /// Waits until a sidecar has heard of all of them: ready it is before.
    async fn knows_all(&self, name: &str) {
        let (admin, all) = (self.admin(name), self.sidecars().len());
        let wanted = format!("\"catalog\":{all},");
        eventually(&format!("{name} knows {all} instances"), || async {
            let shown = page(&admin, "/").await?;
            shown.contains(&wanted).then_some(()).ok_or(shown)
        })
        .await;
    }

    /// Names of the sidecars.
    pub fn sidecars(&self) -> Vec<String> {
        let mut count = BTreeMap::new();
        let all = self.endpoints.instances.iter().map(|one| {
            let agent = one.agent.trim_start_matches("default/");
            let place = count.entry(agent).or_insert(0);
            *place += 1;
            format!("{agent}-{place}")
        });
        all.collect()
    }

    /// Sets a key of a process's configuration, for its next start.
    pub fn set(&self, name: &str, key: &str, value: impl Into<toml::Value>) {
        let path = self.site.state().join(format!("config/{name}.toml"));
        let mut settings: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        let before = settings.insert(key.to_owned(), value.into());
        assert!(before.is_some(), "no key {key}");
        fs::write(&path, settings.to_string()).unwrap();
    }

    /// The log of a process, over all its starts.
    pub fn log(&self, name: &str) -> PathBuf {
        self.site.state().join(format!("logs/{name}.log"))
    }

    /// The copy of the catalog that a sidecar keeps.
    pub fn catalog(&self, name: &str) -> PathBuf {
        let config = self.site.state().join(format!("config/{name}.toml"));
        let settings: toml::Table = fs::read_to_string(config).unwrap().parse().unwrap();
        Path::new(settings["state"].as_str().unwrap()).join("catalog")
    }

    /// Starts a process that does not run.
    pub fn start(&mut self, name: &str) {
        self.start_with(name, |command| command);
    }

    /// The same by another command, made from its own. The process must be the one that it starts.
    pub fn start_with(&mut self, name: &str, change: impl FnOnce(Command) -> Command) {
        if self.running.contains_key(name) {
            return;
        }
        let mut command = change(self.command(name));
        command.stdin(Stdio::null());
        let log = self.log(name);
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.running
            .insert(name.to_owned(), command.spawn().unwrap());
    }

    fn command(&self, name: &str) -> Command {
        let config = |name: &str| self.site.state().join(format!("config/{name}.toml"));
        if let Some(sidecar) = name.strip_suffix("-agent") {
            let settings = fs::read_to_string(config(sidecar)).unwrap();
            let settings: toml::Table = settings.parse().unwrap();
            let (key, value) = self.site.mark.env();
            let listen = settings["agent"].as_str().unwrap();
            let mut command = match sidecar.starts_with("echo-") {
                true => passing::server(listen),
                false => Command::new(test_agent()),
            };
            command
                .env(key, value)
                .env("TEST_RUNS", self.site.path("runs"))
                .env("ATTACHE_LISTEN", listen)
                .env("ATTACHE_SIDECAR", settings["local"].as_str().unwrap())
                .kill_on_drop(true);
            return command;
        }
        let verb = if name == REGISTRY {
            "registry"
        } else {
            "sidecar"
        };
        let config = config(name).display().to_string();
        self.site.attache(&[verb, "--config", &config])
    }

    /// Ends a process at once, and waits until it is gone.
    pub async fn kill(&mut self, name: &str) {
        let mut child = self.running.remove(name).unwrap();
        child.start_kill().unwrap();
        within("a killed process ends", child.wait()).await.unwrap();
    }

    /// Asks a process to end.
    pub fn term(&self, name: &str) {
        signal(self.pid(name), Signal::TERM);
    }

    /// Waits for the end of a process.
    pub async fn ended(&mut self, name: &str) -> ExitStatus {
        let mut child = self.running.remove(name).unwrap();
        within("a process ends", child.wait()).await.unwrap()
    }

    /// Whether a process has not ended by itself.
    pub fn runs(&mut self, name: &str) -> bool {
        let child = self.running.get_mut(name);
        child.is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    pub fn pid(&self, name: &str) -> u32 {
        self.running[name].id().unwrap()
    }

    /// Waits until a process says that it is ready.
    pub async fn ready(&mut self, name: &str) {
        let admin = self.admin(name);
        eventually(&format!("{name} is ready"), || {
            let runs = self.runs(name);
            let (admin, logs) = (admin.clone(), self.site.logs());
            assert!(runs, "{name} has ended:\n{logs}");
            async move {
                let answer = page(&admin, "/readyz").await?;
                if answer.starts_with("HTTP/1.1 200") {
                    Ok(())
                } else {
                    Err(format!("{answer}\n{logs}"))
                }
            }
        })
        .await;
    }

    /// The admin listener of a process, `host:port`.
    pub fn admin(&self, name: &str) -> String {
        if name == REGISTRY {
            return self.endpoints.registry.admin.clone();
        }
        let place = self.sidecars().iter().position(|one| one == name).unwrap();
        self.endpoints.instances[place].admin.clone()
    }

    /// The mutual TLS listener of a sidecar itself, `host:port`, whatever it advertises.
    pub fn mtls(&self, name: &str) -> String {
        let place = self.sidecars().iter().position(|one| one == name).unwrap();
        self.endpoints.instances[place].mtls.clone()
    }

    /// A connection to a sidecar's local listener.
    pub fn local(&self, name: &str) -> Local {
        client::local(&self.local_address(name))
    }

    /// The same for callers that wait for their connection.
    pub fn patient(&self, name: &str) -> Local {
        client::patient(&self.local_address(name))
    }

    /// Where a sidecar listens for its own agent.
    pub fn local_address(&self, name: &str) -> String {
        let place = self.sidecars().iter().position(|one| one == name).unwrap();
        self.endpoints.instances[place].local.clone()
    }

    /// Instances that a sidecar finds for a skill.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn discovered(&self, by: &str, skill: &str) -> Result<Vec<String>, String> {
        let channel = Endpoint::from_shared(self.local_address(by))
            .unwrap()
            .connect_lazy();
        let selector = Some(pb::Selector {
            skill: skill.to_owned(),
            ..Default::default()
        });
        let request = pb::DiscoverRequest { selector, limit: 0 };
        let answer = RegistryClient::new(channel).discover(request).await;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        let mut ids: Vec<_> = answer.instances.into_iter().map(|one| one.id).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Waits until a sidecar finds just these sidecars for a skill.
    pub async fn finds(&self, by: &str, skill: &str, wanted: &[&str]) {
        let mut wanted: Vec<_> = wanted.iter().map(|name| self.instance(name)).collect();
        wanted.sort_unstable();
        eventually(&format!("{by} finds {wanted:?}"), || async {
            match self.discovered(by, skill).await {
                Ok(found) if found == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Instance id of a sidecar.
    pub fn instance(&self, name: &str) -> String {
        let place = self.sidecars().iter().position(|one| one == name).unwrap();
        self.endpoints.instances[place].instance.clone()
    }
}

/// A watch of the registry's catalog, as an operator has it.
pub struct Watched {
    // Fields are dropped in this order: the stream lives on the pool's connection.
    stream: Streaming<pb::WatchResponse>,
    _pool: Pool,
    /// Instances that are there.
    pub there: BTreeSet<String>,
}

impl ByHand {
    /// Opens a watch and takes in what is there.
    pub async fn watch(&self) -> Watched {
        let pool = client::pool(&self.site.state().join("operator"));
        let mut registry = client::registry(&pool, &self.endpoints.registry.mtls);
        let opened = registry.watch(pb::WatchRequest::default());
        let stream = within("a watch opens", opened).await.unwrap().into_inner();
        let mut watched = Watched {
            stream,
            _pool: pool,
            there: BTreeSet::new(),
        };
        while !matches!(watched.next().await, Some(Change::SnapshotEnd(_))) {}
        watched
    }
}

impl Watched {
    /// The next change, taken in; `None` where the stream ended.
    pub async fn next(&mut self) -> Option<Change> {
        let message = within("a change comes", self.stream.message()).await;
        let change = message.ok()??.change?;
        match &change {
            Change::Instance(instance) => drop(self.there.insert(instance.id.clone())),
            Change::Gone(gone) => {
                self.there.remove(&gone.id);
            }
            Change::SnapshotBegin(_)
            | Change::SnapshotEnd(_)
            | Change::Card(_)
            | Change::Keepalive(_) => {}
        }
        Some(change)
    }
}

/// A page of an admin listener, with its head.
///
/// # Errors
/// When it does not answer.
pub async fn page(admin: &str, path: &str) -> Result<String, String> {
    let ask = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    ask.await.map_err(|error| error.to_string())
}
