//! The control socket: what is asked line by line, and the routes that it is asked of.

use std::{collections::BTreeMap, io, sync::Arc};

use attache::runtime::{Nursery, Stop};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, UnixListener},
    sync::oneshot,
};

use super::{
    protocol::{Answer, LINE_MAX, Request, RouteState},
    route::{Message, Route},
};

/// Most routes: a mesh of tests has a few dozen sidecars.
const ROUTES_MAX: usize = 256;
/// Most control connections at a time; the next ones wait to be accepted.
const CLIENTS_MAX: usize = 32;

/// All routes of the process.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    shared: Arc<Mutex<Shared>>,
    nursery: Nursery,
}

#[derive(Debug)]
struct Shared {
    routes: BTreeMap<String, Route>,
    chance: StdRng,
}

/// The control socket, bound.
#[derive(Debug)]
pub(crate) enum Control {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Routes {
    pub(crate) fn new(seed: u64, nursery: Nursery) -> Self {
        let shared = Shared {
            routes: BTreeMap::new(),
            chance: StdRng::seed_from_u64(seed),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
            nursery,
        }
    }

    /// Does what is asked.
    pub(crate) async fn answer(&self, request: Request) -> Answer {
        let done = match request {
            Request::Add {
                route,
                target,
                listen,
            } => self.add(route, target, &listen).await,
            Request::Remove { route } => {
                let closed = self.tell(&route, Message::Close).await;
                self.shared.lock().routes.remove(&route);
                closed
            }
            Request::Set {
                route,
                direction,
                share,
                fault,
            } => {
                let set = |answer| Message::Set(direction, share, fault, answer);
                self.tell(&route, set).await
            }
            Request::Clear { route } => self.tell(&route, Message::Clear).await,
            Request::Counters { route } => {
                let shared = self.shared.lock();
                let found = shared.routes.get(&route);
                let shown = found.map(|found| Answer::Counters(found.counts.shown()));
                shown.ok_or_else(|| unknown(&route))
            }
            Request::Routes {} => Ok(Answer::Routes(self.all())),
        };
        done.unwrap_or_else(Answer::Error)
    }

    async fn add(&self, name: String, target: String, listen: &str) -> Result<Answer, String> {
        let chance = {
            let mut shared = self.shared.lock();
            if shared.routes.contains_key(&name) {
                return Err(format!("there is a route {name}: remove it first"));
            }
            if shared.routes.len() >= ROUTES_MAX {
                return Err(format!("{ROUTES_MAX} routes at most: remove one first"));
            }
            StdRng::seed_from_u64(shared.chance.random())
        };
        let opened = Route::open(listen, target, chance, &self.nursery).await;
        let route = opened.map_err(|error| format!("cannot listen at {listen}: {error}"))?;
        let at = route.listen.to_string();
        self.shared.lock().routes.insert(name, route);
        Ok(Answer::Listening(at))
    }

    async fn tell(
        &self,
        name: &str,
        message: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Message,
    ) -> Result<Answer, String> {
        let messages = {
            let shared = self.shared.lock();
            let route = shared.routes.get(name).ok_or_else(|| unknown(name))?;
            route.messages()
        };
        let (answer, told) = oneshot::channel();
        let gone = || format!("the route {name} has just been removed");
        messages.send(message(answer)).await.map_err(|_| gone())?;
        told.await.unwrap_or_else(|_| Err(gone()))?;
        Ok(Answer::Done {})
    }

    fn all(&self) -> BTreeMap<String, RouteState> {
        let shared = self.shared.lock();
        let all = shared.routes.iter().map(|(name, route)| {
            let state = RouteState {
                listen: route.listen.to_string(),
                target: route.target.clone(),
                counters: route.counts.shown(),
            };
            (name.clone(), state)
        });
        all.collect()
    }
}

impl Control {
    /// Listens at `unix:/path` or a loopback `host:port`: whoever reaches it commands the proxy.
    ///
    /// # Errors
    /// When the address is not to be had, or is not this machine's own.
    pub(crate) async fn bind(at: &str) -> io::Result<Self> {
        if let Some(path) = at.strip_prefix("unix:") {
            return UnixListener::bind(path).map(Self::Unix);
        }
        let listener = TcpListener::bind(at).await?;
        if !listener.local_addr()?.ip().is_loopback() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the control socket is for this machine: a loopback address, or unix:/path",
            ));
        }
        Ok(Self::Tcp(listener))
    }

    /// Where it is, as it is printed.
    pub(crate) fn address(&self, asked: &str) -> io::Result<String> {
        match self {
            Self::Tcp(listener) => Ok(listener.local_addr()?.to_string()),
            Self::Unix(_) => Ok(asked.to_owned()),
        }
    }

    /// Serves until the stop.
    pub(crate) async fn serve(self, routes: Routes, nursery: Nursery, stop: Stop) {
        let clients = Arc::new(tokio::sync::Semaphore::new(CLIENTS_MAX));
        loop {
            let permit = Arc::clone(&clients).acquire_owned().await;
            let permit = permit.expect("nobody closes the semaphore");
            let routes = routes.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                served = self.accept(routes, permit, &nursery) => match served {
                    Ok(()) => {}
                    Err(error) => {
                        tracing::warn!(%error, "the control socket");
                        return;
                    }
                },
            }
        }
    }

    async fn accept(
        &self,
        routes: Routes,
        permit: tokio::sync::OwnedSemaphorePermit,
        nursery: &Nursery,
    ) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                let (from, to) = stream.into_split();
                serve(nursery, permit, routes, from, to);
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let (from, to) = stream.into_split();
                serve(nursery, permit, routes, from, to);
            }
        }
        Ok(())
    }
}

fn serve(
    nursery: &Nursery,
    permit: tokio::sync::OwnedSemaphorePermit,
    routes: Routes,
    from: impl AsyncRead + Send + Unpin + 'static,
    to: impl AsyncWrite + Send + Unpin + 'static,
) {
    nursery.adopt("control", async move {
        // An error means that the other side is gone.
        drop(talk(&routes, from, to).await);
        drop(permit);
    });
}

async fn talk(
    routes: &Routes,
    from: impl AsyncRead + Send + Unpin,
    mut to: impl AsyncWrite + Send + Unpin,
) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        let bound = LINE_MAX as u64 + 1;
        let mut bounded = (&mut from).take(bound);
        if bounded.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let long = line.len() > LINE_MAX;
        let answer = if long {
            Answer::Error(format!("a line has {LINE_MAX} bytes at most"))
        } else {
            match serde_json::from_slice(&line) {
                Ok(request) => routes.answer(request).await,
                Err(error) => Answer::Error(format!("{error}; see fault-proxy --help")),
            }
        };
        let mut said = serde_json::to_vec(&answer)?;
        said.push(b'\n');
        to.write_all(&said).await?;
        if long {
            // What follows is the rest of it.
            return Ok(());
        }
    }
}

fn unknown(route: &str) -> String {
    format!("there is no route {route}")
}
