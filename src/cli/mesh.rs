//! Finding a mesh and speaking to it as an operator.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tonic::Status;

use crate::{
    app::{
        settings::registry::REGISTRY_PORT,
        up::state::{ENDPOINTS, Endpoints, STATE_DIR},
    },
    cli::{
        args::MeshArgs,
        exit::{Exit, Failed},
    },
    domain::{InstanceId, SpiffeId, TaskId, TrustDomain},
    identity::{Credentials, Expect, Svid},
    pb::{
        self, agent_client::AgentClient, identity_client::IdentityClient,
        registry_client::RegistryClient, watch_response::Change,
    },
    runtime::Nursery,
    transport::{Channel, Pool, Target},
};

/// A mesh, reached as whoever the certificate names.
#[derive(Clone, Debug)]
pub(super) struct Mesh {
    credentials: Credentials,
    pool: Pool,
    registry: Channel,
}

/// An instance and the card it follows.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The instance.
    pub(super) instance: pb::Instance,
    /// Its card, without schemas.
    pub(super) card: Arc<pb::AgentCard>,
}

impl Mesh {
    /// Finds the mesh that the arguments, the environment or the working directory name.
    ///
    /// # Errors
    /// When there is none, or no certificate to speak with; the text says how to get one.
    pub(super) fn find(args: &MeshArgs, nursery: &Nursery) -> Result<Self, Failed> {
        let (registry, identity) = match &args.identity {
            Some(identity) => {
                let registry = args.registry.clone().unwrap_or_else(default_registry);
                (registry, identity.clone())
            }
            None => {
                let dir = state_dir(args.mesh.as_deref())?;
                (vec![endpoints(&dir)?.registry.mtls], dir.join("operator"))
            }
        };
        let svid = Svid::load(&identity).map_err(|error| {
            let text = format!(
                "no certificate to speak with in {}: {error}",
                identity.display()
            );
            Failed::new(Exit::Refused, text)
        })?;
        if !svid.is_valid_at(crate::runtime::clock::wall()) {
            let text = format!(
                "the certificate in {} has expired: start `attache up` again, or issue a new one with `attache ca issue`",
                identity.display()
            );
            return Err(Failed::new(Exit::Refused, text));
        }
        let credentials = Credentials::new(svid);
        let pool = Pool::new(credentials.clone(), nursery.clone());
        let target = Target {
            endpoints: registry,
            expect: Some(Expect::AnyRegistry),
        };
        Ok(Self {
            registry: pool.channel(target),
            credentials,
            pool,
        })
    }

    /// Whose ids are trusted here.
    pub(super) fn trust_domain(&self) -> TrustDomain {
        self.credentials.id().trust_domain
    }

    /// The catalog's API.
    pub(super) fn registry(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.registry.clone())
    }

    /// The CA's API.
    pub(super) fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.registry.clone())
    }

    /// The task API of one instance's sidecar; nobody else at its address gets a byte.
    ///
    /// # Errors
    /// When the catalog's entry is broken.
    pub(super) fn agent(&self, instance: &pb::Instance) -> Result<AgentClient<Channel>, Failed> {
        let id: SpiffeId = instance.spiffe_id.parse().map_err(Failed::fault)?;
        let place: InstanceId = instance.id.parse().map_err(Failed::fault)?;
        let expect = Some(Expect::Instance(id, place));
        let target = Target {
            endpoints: instance.endpoints.clone(),
            expect,
        };
        Ok(AgentClient::new(self.pool.channel(target)))
    }

    /// Everybody in the catalog, whatever their health.
    ///
    /// # Errors
    /// What the registry answers.
    pub(super) async fn everybody(&self) -> Result<Vec<Found>, Status> {
        let mut cards = std::collections::HashMap::new();
        let mut found = Vec::new();
        let mut changes = self
            .registry()
            .watch(pb::WatchRequest::default())
            .await?
            .into_inner();
        while let Some(response) = changes.message().await? {
            match response.change {
                Some(Change::Card(card)) => {
                    cards.insert(card.digest.clone(), Arc::new(card));
                }
                Some(Change::Instance(instance)) => {
                    let card = cards
                        .get(&instance.card_digest)
                        .cloned()
                        .unwrap_or_default();
                    found.push(Found { instance, card });
                }
                Some(Change::SnapshotEnd(_)) => break,
                Some(Change::SnapshotBegin(_) | Change::Gone(_) | Change::Keepalive(_)) | None => {}
            }
        }
        found.sort_by(|a, b| {
            let key = |found: &Found| {
                let card = &found.card;
                (
                    card.namespace.clone(),
                    card.name.clone(),
                    found.instance.id.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        Ok(found)
    }

    /// The sidecar that owns a task.
    ///
    /// # Errors
    /// When the id is none, or its home is not in the catalog.
    pub(super) async fn home_of(&self, id: &str) -> Result<AgentClient<Channel>, Failed> {
        let task: TaskId = id.parse().map_err(Failed::usage)?;
        let everybody = self.everybody().await?;
        let home = everybody
            .iter()
            .find(|found| found.instance.id == task.home.as_str());
        let Some(home) = home else {
            let text = format!(
                "the home of this task, instance {}, is not in the mesh now; the task is safe on its disk: start it and ask again (HOME_UNAVAILABLE)",
                task.home
            );
            return Err(Failed::new(Exit::Unreachable, text));
        };
        self.agent(&home.instance)
    }
}

fn default_registry() -> Vec<String> {
    vec![format!("127.0.0.1:{REGISTRY_PORT}")]
}

/// The state directory of a mesh: the one named, or the nearest `.attache` above.
///
/// # Errors
/// When there is none.
pub(super) fn state_dir(named: Option<&Path>) -> Result<PathBuf, Failed> {
    let holds = |dir: &Path| dir.join(ENDPOINTS).is_file();
    if let Some(named) = named {
        let inner = named.join(STATE_DIR);
        let found = [named.to_path_buf(), inner]
            .into_iter()
            .find(|dir| holds(dir));
        return found.ok_or_else(|| {
            let text = format!(
                "no mesh in {}: is `attache up` running there?",
                named.display()
            );
            Failed::new(Exit::NotFound, text)
        });
    }
    let here = std::env::current_dir().map_err(Failed::fault)?;
    let found = here
        .ancestors()
        .map(|dir| dir.join(STATE_DIR))
        .find(|dir| holds(dir));
    found.ok_or_else(|| {
        let text = "no mesh here: run `attache up DIR` in another terminal, then name it with --mesh DIR, ATTACHE_MESH, or work in its directory; a mesh started by hand is named with --identity DIR";
        Failed::new(Exit::NotFound, text)
    })
}

/// What `attache up` published in a state directory.
///
/// # Errors
/// When it cannot be read.
pub(super) fn endpoints(dir: &Path) -> Result<Endpoints, Failed> {
    let path = dir.join(ENDPOINTS);
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Failed::new(Exit::NotFound, format!("{}: {error}", path.display())))?;
    serde_json::from_str(&text)
        .map_err(|error| Failed::fault(format!("{}: {error}", path.display())))
}
