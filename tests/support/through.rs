//! Our own sidecars in the way of calls: a caller's, an agent's, and behind that whoever answers at an
//! address. One sidecar where the agent calls its own name, two where the caller calls it.

use std::net::SocketAddr;

use attache::pb::{self, registry_client::RegistryClient};
use tonic::transport::Endpoint;

use super::{
    client,
    mesh::{Site, Up},
    relay::{Behind, Relay},
    wait::eventually,
};

/// What the agent behind is called.
pub const NAME: &str = "echo";
/// Who is meant, as calls say it.
pub const KEY: &str = "attache-agent";
/// Who calls through two, as the agent is told.
pub const CALLER: &str = "spiffe://attache.local/ns/default/agent/caller";

/// Agents that the test plays: `up` runs their sidecars alone.
const MESH: &str = r#"
[[agents]]
name = "caller"
agent_health = "connect"
[[agents]]
name = "echo"
agent_health = "connect"
"#;

/// A mesh of two sidecars. Ends when dropped.
pub struct Through {
    pub up: Up,
    /// Through the agent's own sidecar alone.
    pub one: Relay,
    /// Through the caller's, and by mutual TLS through the agent's.
    pub two: Relay,
    behind: Vec<Behind>,
    pub site: Site,
}

impl Through {
    /// Starts it in front of `server`, `host:port`; `cut` as in [`Relay::start`], of what passes
    /// between the agent's sidecar and it.
    pub async fn start(server: SocketAddr, cut: Option<usize>) -> Self {
        let mut through = Self::empty().await;
        let behind = Behind::start(&through.listens(), &server.to_string(), cut);
        through.behind.push(behind);
        through.serves().await;
        through
    }

    /// The same with nobody behind: listen at [`Self::listens`], then wait for [`Self::serves`].
    pub async fn empty() -> Self {
        let site = Site::new(MESH);
        let up = site.up(&[]).await;
        let (caller, own) = (local(&up, "caller"), local(&up, NAME));
        Self {
            one: Relay::start(&own, None).await,
            two: Relay::start(&caller, None).await,
            behind: Vec::new(),
            up,
            site,
        }
    }

    /// Where programs call the caller's sidecar, `unix:/path`.
    pub fn local(&self) -> String {
        local(&self.up, "caller")
    }

    /// Where the agent has to listen, `unix:/path`.
    pub fn listens(&self) -> String {
        let own = local(&self.up, NAME);
        let stem = own.strip_suffix(".sock").expect("a socket of `up`");
        format!("{stem}-agent.sock")
    }

    /// Waits until both sidecars know that the agent serves.
    pub async fn serves(&self) {
        for at in [local(&self.up, "caller"), local(&self.up, NAME)] {
            serves(&at, NAME).await;
        }
    }

    /// No breaker opens, however often calls fail: to be put where failures are the test.
    pub async fn breaker_off(&self) {
        let breaker = pb::RuleBreaker {
            enabled: Some(false),
            ..Default::default()
        };
        let rule = pb::TrafficRule {
            name: "breaker-off".into(),
            breaker: Some(breaker),
            ..Default::default()
        };
        let locals = [local(&self.up, "caller"), local(&self.up, NAME)];
        let operator = self.site.state().join("operator");
        client::rule(&operator, &self.up.endpoints.registry.mtls, rule, &locals).await;
    }
}

/// Waits until the sidecar at `local` knows that an agent serves, in one instance.
pub async fn serves(local: &str, agent: &str) {
    let channel = Endpoint::from_shared(local.to_owned()).unwrap();
    let channel = channel.connect_lazy();
    eventually("the agent is known to serve", || {
        let mut catalog = RegistryClient::new(channel.clone());
        async move {
            let selector = Some(pb::Selector {
                agent: agent.to_owned(),
                ..Default::default()
            });
            let request = pb::DiscoverRequest { selector, limit: 0 };
            let answer = catalog.discover(request).await;
            let answer = answer.map_err(|status| status.to_string())?;
            let found = answer.get_ref().instances.len();
            (found == 1)
                .then_some(())
                .ok_or_else(|| format!("{found} instances"))
        }
    })
    .await;
}

fn local(up: &Up, agent: &str) -> String {
    up.instance(&format!("default/{agent}"), 0).local.clone()
}
