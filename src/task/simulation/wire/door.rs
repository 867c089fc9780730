//! The executor's side: a sidecar's exchange, driven as the real one is, in front of its services.
//!
//! ```text
//!   cable --> driver --> exchange --> driver --> pipe --> End --> Executor
//! ```

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream;
use parking_lot::Mutex;
use prost::Message;
use tokio::io::duplex;
use tokio::time::{Instant, sleep};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use crate::h2::budget::Limits;
use crate::h2::connection::Config;
use crate::h2::exchange::{
    Destination, Dial, GivenBack, Outcome, Policy, Request, Target, Verdict,
};
use crate::h2::frame::{self, ErrorCode};
use crate::h2::grpc::Code;
use crate::runtime::Nursery;
use crate::task::executor::Executor;
use crate::task::simulation::World;
use crate::transport::drive::Core;

use super::cable::Socket;
use super::end::End;
use super::talk::{Read, Reading, Writing};
use super::words;

/// Bytes in the pipe to the services, each way.
const PIPE: usize = 4 << 10;
/// Windows of streams in it.
const PIPE_WINDOW: u32 = 2 << 10;

/// Where other sidecars call one life of a sidecar.
pub(in crate::task::simulation) struct Door {
    core: Arc<Core<Here>>,
    executor: Executor,
    nursery: Nursery,
    world: Weak<World>,
    index: usize,
    left: AtomicBool,
    /// The services' ends of the pipes.
    pipes: Mutex<Vec<Weak<End>>>,
}

/// Every call is for the services here. Who calls is known by its number.
#[derive(Debug)]
struct Here;

impl Policy for Here {
    type Peer = usize;
    type Call = ();

    fn on_request(&mut self, _: &usize, _: &mut Request<'_>) -> (Verdict, ()) {
        (Verdict::Local, ())
    }

    fn on_again(&mut self, (): &mut (), _: &mut Request<'_>, _: GivenBack) -> Verdict {
        Verdict::Reply(Code::UNAVAILABLE, "this sidecar is stopping".into())
    }

    fn on_end(&mut self, (): (), _: &Outcome) {}

    fn config(&self, _: Option<Target>) -> Config {
        Config {
            stream_window: PIPE_WINDOW,
            ..Config::pipe()
        }
    }
}

impl Door {
    pub(in crate::task::simulation) fn new(
        world: &World,
        index: usize,
        executor: Executor,
        nursery: Nursery,
    ) -> Arc<Self> {
        let door = Arc::new(Self {
            core: Core::new(Here),
            executor,
            nursery,
            world: world.this.clone(),
            index,
            left: AtomicBool::new(false),
            pipes: Mutex::default(),
        });
        let clock = Arc::clone(&door.core);
        door.nursery
            .adopt("deadlines", async move { clock.keep_time().await });
        // The life that this ends with has the door.
        let dials = Arc::clone(&door);
        door.nursery.adopt("dials", async move {
            loop {
                let dial = dials.core.next_dial().await;
                dials.dial(dial);
            }
        });
        door
    }

    /// Takes a connection; `false`: nobody listens here any more.
    pub(in crate::task::simulation) fn accept(&self, from: usize, socket: Socket) -> bool {
        let (Some(world), false) = (self.world.upgrade(), self.left.load(Ordering::Relaxed)) else {
            return false;
        };
        let config = super::peer(&world, Config::mesh());
        let mut driver = self.core.accept(socket, from, config);
        let world = self.world.clone();
        self.nursery.adopt("line", async move {
            let ended = driver.run().await;
            judge(&world, driver.failed());
            if ended.is_ok() {
                driver.part().await;
            }
        });
        true
    }

    /// Takes no more connections and tells all peers to go.
    pub(in crate::task::simulation) fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
        self.core
            .with(|exchange| exchange.drain_all(Instant::now()));
    }

    /// Calls of others: in the exchange, and at the services.
    pub(in crate::task::simulation) fn calls(&self) -> (usize, usize) {
        let pipes = self.pipes.lock();
        let pipes = pipes.iter().filter_map(Weak::upgrade);
        let inside = pipes.map(|end| end.calls()).sum();
        (self.core.with(|exchange| exchange.calls()), inside)
    }

    /// Makes the pipe from a caller's line to the services.
    fn dial(self: &Arc<Self>, Dial { line, to }: Dial) {
        let Destination::Local { caller } = to else {
            return self.core.gone(line);
        };
        let peer = self.core.with(|exchange| exchange.peer(caller).copied());
        let (Some(from), Some(world)) = (peer, self.world.upgrade()) else {
            return self.core.gone(line);
        };
        let (near, far) = duplex(PIPE);
        let mut driver = self.core.dialed(near, line);
        let judged = self.world.clone();
        self.nursery.adopt("pipe", async move {
            drop(driver.run().await);
            judge(&judged, driver.failed());
        });
        let config = Config {
            limits: &Limits::MESH,
            max_streams: 4096,
            stream_window: PIPE_WINDOW,
            ..Config::caller()
        };
        let end = End::new(config, &world);
        let mut pipes = self.pipes.lock();
        pipes.retain(|pipe| pipe.strong_count() > 0);
        pipes.push(Arc::downgrade(&end));
        drop(pipes);
        self.nursery.adopt("services", Arc::clone(&end).drive(far));
        let door = Arc::clone(self);
        self.nursery.adopt("calls", async move {
            while let Some((writing, reading)) = end.next().await {
                let call = door.clone().answer(from, writing, reading);
                door.nursery.adopt("call", call);
            }
        });
    }

    async fn answer(self: Arc<Self>, from: usize, mut writing: Writing, mut reading: Reading) {
        let (Some(world), Ok(head)) = (self.world.upgrade(), reading.head().await) else {
            return;
        };
        let (path, number) = words::asked(&head);
        let said = number.and_then(|number| world.network.said(number));
        said.iter().for_each(|said| said.takes());
        let slow = world.network.stalls(&world, (from, self.index));
        writing.noted(said.clone());
        reading.noted(said.clone());
        if let Some((message, long)) = slow {
            said.inspect(|said| said.slows());
            world.note(format_args!(
                "message {message} of stream {number:?} from {from} to {} is not read for {long:?}",
                self.index
            ));
        }
        let peer = world.nodes[from].peer();
        drop(world);
        if let Some((0, long)) = slow {
            sleep(long).await;
        }
        if path == words::EXECUTE {
            let steps = messages(reading, slow);
            let updates = self.executor.execute(peer, steps, None);
            return reply(writing, updates).await;
        }
        match self.executor.slots(&peer, messages(reading, slow)) {
            Ok(grants) => reply(writing, grants).await,
            Err(fault) => {
                let mut fields = words::answer();
                words::status(&mut fields, &fault.into());
                writing.fields(&fields, true);
            }
        }
    }
}

type Slow = Option<(u32, Duration)>;

/// What comes on a call until it ends; one of them is read late.
fn messages<M>(reading: Reading, slow: Slow) -> Pin<Box<dyn Stream<Item = M> + Send>>
where
    M: Message + Default + 'static,
{
    Box::pin(stream::unfold(
        (reading, 1),
        move |(mut reading, number)| async move {
            if let Some((_, long)) = slow.filter(|(message, _)| *message == number) {
                sleep(long).await;
            }
            match reading.next().await {
                Read::Message(message) => Some((message, (reading, number + 1))),
                Read::Whole(_) | Read::Over(_) => None,
            }
        },
    ))
}

/// Says everything that there is to say, and how it went.
async fn reply<M>(
    mut writing: Writing,
    mut answers: Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>,
) where
    M: Message,
{
    writing.fields(&words::answer(), false);
    let status = loop {
        let said = tokio::select! {
            biased;
            () = writing.unwanted() => return,
            said = answers.next() => said,
        };
        match said {
            Some(Ok(message)) => {
                if !writing.message(&message).await {
                    return;
                }
            }
            Some(Err(status)) => break status,
            None => break Status::ok(""),
        }
    };
    let mut trailers = crate::h2::hpack::Fields::new();
    words::status(&mut trailers, &status);
    writing.fields(&trailers, true);
}

/// Our own engine at the other end breaks no rule; it may be too slow for one.
fn judge(world: &Weak<World>, failed: Option<frame::Error>) {
    let Some((world, rule)) = world.upgrade().zip(failed) else {
        return;
    };
    if super::is_slow(rule.code, rule.what) {
        world.note(format_args!("a line ended: {rule}"));
    } else {
        let how = format!("E1: a peer broke a rule of the exchange's: {rule}");
        world.history.lock().breach(how);
    }
}

/// A code that is a fault of whoever is told it.
pub(super) fn is_blame(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Protocol
            | ErrorCode::Internal
            | ErrorCode::FlowControl
            | ErrorCode::StreamClosed
            | ErrorCode::FrameSize
            | ErrorCode::Compression
    )
}
