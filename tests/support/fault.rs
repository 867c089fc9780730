//! The fault proxy between the processes of a test: started here, told what to do, and ended with
//! the test. See `tests/fault_proxy/`.

use std::{fs::File, process::Stdio};

use rustix::process::Signal;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use super::{
    hand::ByHand,
    mesh::Site,
    process::{signal, text},
    tools::fault_proxy,
    wait::within,
};
use protocol::{Answer, Ready, Request};

#[path = "../fault_proxy/protocol.rs"]
pub(crate) mod protocol;

pub(crate) use protocol::{Counters, Direction, Fault};

/// A running fault proxy. Dropped, it ends, and its connections with it.
pub struct FaultProxy {
    child: Child,
    control: String,
    /// Printed by a test that fails, to have the same again by `--seed`.
    pub seed: u64,
}

/// A fault with the direction and the share of connections that it is for.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    pub direction: Direction,
    /// Of 100 connections.
    pub share: u8,
    pub fault: Fault,
}

impl FaultProxy {
    /// Starts one with a drawn seed, which the log of the test's site has: `fault-proxy.log`.
    pub async fn start(site: &Site) -> Self {
        Self::seeded(site, rand::random()).await
    }

    /// Starts one whose chance comes from this seed.
    pub async fn seeded(site: &Site, seed: u64) -> Self {
        Self::started(Command::new(fault_proxy()), site, seed).await
    }

    /// Starts one by a command of the test's own, such as on a host in a network namespace. The
    /// command must be the process that it starts; arguments are added here.
    pub async fn started(mut command: Command, site: &Site, seed: u64) -> Self {
        let (key, value) = site.mark.env();
        let log = File::create(site.path("fault-proxy.log")).unwrap();
        command
            .args(["--seed", &seed.to_string()])
            .env(key, value)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command.spawn().unwrap();
        let mut ready = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        within("the fault proxy is ready", out.read_line(&mut ready))
            .await
            .unwrap();
        let ready: Ready = serde_json::from_str(&ready).unwrap_or_else(|error| {
            let said = text(&site.path("fault-proxy.log"));
            panic!("{error}: {ready}{said}")
        });
        Self {
            child,
            control: ready.control,
            seed: ready.seed,
        }
    }

    /// Makes a route to `host:port` and says where it listens, `host:port`.
    pub async fn route(&self, name: &str, target: &str) -> String {
        let add = Request::Add {
            route: name.to_owned(),
            target: target.to_owned(),
            listen: "127.0.0.1:0".to_owned(),
        };
        let answer = self.ask(&add).await;
        let Answer::Listening(at) = answer else {
            panic!("{add:?}: {answer:?}");
        };
        at
    }

    /// Sets a fault, in the place of one of its kind and direction. It holds when this returns.
    pub async fn set(&self, route: &str, fault: impl Into<Placed>) {
        let Placed {
            direction,
            share,
            fault,
        } = fault.into();
        let route = route.to_owned();
        self.done(Request::Set {
            route,
            direction,
            share,
            fault,
        })
        .await;
    }

    /// Takes all faults from a route.
    pub async fn clear(&self, route: &str) {
        let route = route.to_owned();
        self.done(Request::Clear { route }).await;
    }

    /// Ends a route and resets its connections.
    pub async fn remove(&self, route: &str) {
        let route = route.to_owned();
        self.done(Request::Remove { route }).await;
    }

    /// What a route has done so far.
    pub async fn counters(&self, route: &str) -> Counters {
        let route = route.to_owned();
        let answer = self.ask(&Request::Counters { route }).await;
        let Answer::Counters(counters) = answer else {
            panic!("{answer:?}");
        };
        counters
    }

    /// Asks anything, over a connection of its own.
    pub async fn ask(&self, request: &Request) -> Answer {
        let line = serde_json::to_string(request).unwrap();
        serde_json::from_str(&self.say(&line).await).unwrap()
    }

    /// Says a line and hears one.
    pub async fn say(&self, line: &str) -> String {
        let talk = async {
            let mut stream = TcpStream::connect(&self.control).await?;
            stream.write_all(format!("{line}\n").as_bytes()).await?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        within("the fault proxy answers", talk).await.unwrap()
    }

    /// Asks it to end, and waits until it has ended well.
    pub async fn end(mut self) {
        signal(self.child.id().unwrap(), Signal::TERM);
        let ended = within("the fault proxy ends", self.child.wait()).await;
        assert!(ended.as_ref().is_ok_and(|end| end.success()), "{ended:?}");
    }

    async fn done(&self, request: Request) {
        let answer = self.ask(&request).await;
        assert!(matches!(answer, Answer::Done {}), "{request:?}: {answer:?}");
    }
}

impl ByHand {
    /// Puts a route, of the sidecar's name, before a sidecar's listener, and has the sidecar tell
    /// its peers to come that way from its next start on.
    pub async fn advertise_through(&self, proxy: &FaultProxy, sidecar: &str) {
        let listener = self.mtls(sidecar);
        let route = proxy.route(sidecar, &listener).await;
        self.set(sidecar, "advertise", vec![route]);
    }

    /// Puts a route, `NAME-registry`, before the registry for one sidecar, from its next start on.
    pub async fn registry_through(&self, proxy: &FaultProxy, sidecar: &str) {
        let name = format!("{sidecar}-registry");
        let route = proxy.route(&name, &self.endpoints.registry.mtls).await;
        self.set(sidecar, "registry", vec![route]);
    }
}

impl Fault {
    /// Later by so many milliseconds.
    pub fn latency(ms: u64) -> Self {
        Self::Latency { ms, jitter_ms: 0 }
    }

    /// RST to what is there and to what comes.
    pub fn reset() -> Self {
        Self::Reset {
            existing: true,
            new: true,
        }
    }

    /// RST to what is there: who comes back is served.
    pub fn reset_once() -> Self {
        Self::Reset {
            existing: true,
            new: false,
        }
    }

    /// On the way to the target only.
    pub fn up(self) -> Placed {
        let direction = Direction::Up;
        Placed {
            direction,
            ..self.into()
        }
    }

    /// On the way back only.
    pub fn down(self) -> Placed {
        let direction = Direction::Down;
        Placed {
            direction,
            ..self.into()
        }
    }

    /// For so many of 100 connections.
    pub fn for_share(self, share: u8) -> Placed {
        Placed {
            share,
            ..self.into()
        }
    }
}

impl Placed {
    /// For so many of 100 connections.
    pub fn for_share(self, share: u8) -> Self {
        Self { share, ..self }
    }
}

impl From<Fault> for Placed {
    fn from(fault: Fault) -> Self {
        Self {
            direction: Direction::Both,
            share: 100,
            fault,
        }
    }
}
