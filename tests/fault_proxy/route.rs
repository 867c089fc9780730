//! One route: who connects here reaches the target, as well as the faults allow. Owns the listener,
//! the faults and the connections; told what to do by messages.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use attache::runtime::{Nursery, Stop};
use rand::{Rng, rngs::StdRng};
use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream, lookup_host},
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    counts::Counts,
    faults::{Faults, InForce, Kind},
    protocol::{Direction, Fault},
    pump::{Connection, reset},
};

/// Most connections of one route: far more than a mesh of tests has, far fewer than descriptors.
const CONNECTIONS_MAX: usize = 1024;
/// How many connects may wait to be accepted.
const BACKLOG: i32 = 1024;
/// How many messages may wait: each control connection sends one at a time.
const MESSAGES: usize = 16;
/// How long connections may take to end by RST: they are told at once.
const GRACE: Duration = Duration::from_secs(1);
/// How long an accept that failed, for want of descriptors, is not tried again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What a route is told; answered once it holds.
#[derive(Debug)]
pub(crate) enum Message {
    Set(Direction, u8, Fault, oneshot::Sender<Result<(), String>>),
    Clear(oneshot::Sender<Result<(), String>>),
    /// Ends the route, its connections by RST.
    Close(oneshot::Sender<Result<(), String>>),
}

/// A route's handle. The route ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) listen: SocketAddr,
    pub(crate) target: String,
    pub(crate) counts: Arc<Counts>,
    messages: mpsc::Sender<Message>,
}

impl Route {
    /// Listens at `host:port` and starts to carry what comes, in a nursery.
    ///
    /// # Errors
    /// When the address is not to be had.
    pub(crate) async fn open(
        listen: &str,
        target: String,
        chance: StdRng,
        nursery: &Nursery,
    ) -> io::Result<Self> {
        let place = Place::take(listen).await?;
        let listener = Some(place.listen()?);
        let (messages, inbox) = mpsc::channel(MESSAGES);
        let counts = Arc::new(Counts::default());
        let route = Self {
            listen: place.address,
            target: target.clone(),
            counts: Arc::clone(&counts),
            messages,
        };
        let (in_force, _) = watch::channel(Arc::new(InForce::default()));
        let running = Running {
            place,
            listener,
            target,
            faults: Faults::default(),
            in_force,
            counts,
            chance,
            nursery: Nursery::here(),
        };
        nursery.start("route", |stop| running.run(inbox, stop));
        Ok(route)
    }

    /// Where messages to it go.
    pub(crate) fn messages(&self) -> mpsc::Sender<Message> {
        self.messages.clone()
    }
}

/// An address that stays this route's own while nobody listens there: bound, so that no other
/// process is given its port, and not listening, so that connects are refused.
#[derive(Debug)]
struct Place {
    address: SocketAddr,
    _bound: Socket,
}

impl Place {
    async fn take(listen: &str) -> io::Result<Self> {
        let address = lookup_host(listen).await?.next();
        let address = address.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let bound = bound(address)?;
        let address = bound.local_addr()?.as_socket();
        Ok(Self {
            address: address.expect("bound to an address of TCP"),
            _bound: bound,
        })
    }

    fn listen(&self) -> io::Result<TcpListener> {
        let socket = bound(self.address)?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    }
}

fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Both sockets of a place have its address, and connections that have ended linger there.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

struct Running {
    place: Place,
    listener: Option<TcpListener>,
    target: String,
    faults: Faults,
    in_force: watch::Sender<Arc<InForce>>,
    counts: Arc<Counts>,
    chance: StdRng,
    nursery: Nursery,
}

impl Running {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>, stop: Stop) {
        let closed = loop {
            let turns = self.faults.turn(Instant::now()).2;
            let next = turns.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                () = stop.cancelled() => break None,
                message = inbox.recv() => match message {
                    Some(Message::Set(direction, share, fault, answer)) => {
                        let set = self.faults.set(direction, share, fault, Instant::now());
                        self.told(set, answer);
                    }
                    Some(Message::Clear(answer)) => {
                        self.faults.clear();
                        self.told(Ok(()), answer);
                    }
                    Some(Message::Close(answer)) => break Some(answer),
                    None => break None,
                },
                () = sleep_until(next), if turns.is_some() => self.turns(),
                accepted = accept(self.listener.as_ref()) => match accepted {
                    Ok(client) => self.take(client),
                    Err(_) => sleep(ACCEPT_AGAIN).await,
                },
            }
        };
        self.listener = None;
        self.nursery.close(GRACE).await;
        drop(self);
        if let Some(answer) = closed {
            drop(answer.send(Ok(())));
        }
    }

    /// Lets what was set hold, and says so.
    fn told(&mut self, set: Result<(), String>, answer: oneshot::Sender<Result<(), String>>) {
        let done = set.and_then(|()| self.enforce().map_err(|error| error.to_string()));
        // Who asked may have gone.
        drop(answer.send(done));
    }

    /// Another turn of the flapping begins.
    fn turns(&mut self) {
        if self.faults.turn(Instant::now()).0 {
            self.counts.applied(Kind::Flap, 1);
        }
        // The address is this route's own: the listener can come back.
        drop(self.enforce());
    }

    /// Makes what holds now known to all connections, and listens or does not.
    fn enforce(&mut self) -> io::Result<()> {
        let in_force = self.faults.in_force(Instant::now());
        let refuses = in_force.refuses();
        self.in_force.send_replace(Arc::new(in_force));
        match (refuses, &self.listener) {
            (true, Some(_)) => {
                self.counts.applied(Kind::Refuse, 1);
                self.listener = None;
            }
            (false, None) => self.listener = Some(self.place.listen()?),
            (true, None) | (false, Some(_)) => {}
        }
        Ok(())
    }

    fn take(&mut self, client: TcpStream) {
        self.counts.connections.fetch_add(1, Relaxed);
        let lot = self.chance.random();
        if self.in_force.borrow().resets_new(lot) {
            self.counts.applied(Kind::Reset, 1);
            return reset(&client);
        }
        if self.nursery.len() >= CONNECTIONS_MAX {
            self.counts.over.fetch_add(1, Relaxed);
            return reset(&client);
        }
        let born = self.in_force.borrow().resets_existing(lot);
        let connection = |stop| Connection {
            born,
            target: self.target.clone(),
            faults: self.in_force.subscribe(),
            counts: Arc::clone(&self.counts),
            lot,
            stop,
        };
        self.nursery
            .start("connection", |stop| connection(stop).carry(client));
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(client, _)| client),
        None => std::future::pending().await,
    }
}
