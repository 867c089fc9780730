//! An agent whose service is not of the mesh, and calls that pass two sidecars to it.
//!
//! The agent is the answering end of `attache bench`, which serves `grpc.testing.BenchmarkService`.

use std::{
    future::poll_fn,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use attache::{
    domain::Reason,
    pb::codec::Protobuf,
    runtime::Nursery,
    transport::{Channel, Pool, Target},
    wire::status::reason_of,
};
use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::{net::UnixStream, process::Command, task::JoinSet, time::sleep};
use tonic::{Code, Status, client::Grpc};

use super::{
    tools::attache,
    wait::{eventually, within},
};

/// The agent, as calls name it in their metadata.
pub const ECHO: &str = "default/echo";
/// The same by their authority.
pub const AUTHORITY: &str = "echo.default.agent.attache";
/// One answer to one message.
pub const UNARY: &str = "/grpc.testing.BenchmarkService/UnaryCall";
/// An answer to each message.
pub const TALK: &str = "/grpc.testing.BenchmarkService/StreamingCall";
/// Answers without end to one message.
pub const POUR: &str = "/grpc.testing.BenchmarkService/StreamingFromServer";
/// A message that asks for answers of 1000 bytes.
pub const ASK: &[u8] = &[0, 0, 0, 0, 3, 0x10, 0xe8, 0x07];

/// The agent's entry in mesh.toml.
pub fn echo(instances: usize) -> String {
    serving("echo", instances)
}

/// The same by another name.
pub fn serving(name: &str, instances: usize) -> String {
    let serve = format!("exec {} bench --serve $ATTACHE_LISTEN", attache().display());
    format!(
        "[[agents]]\nname = {name:?}\ninstances = {instances}\n\
         command = [\"sh\", \"-c\", {serve:?}]\n\
         [[agents.skills]]\nname = \"test.none\"\nidempotent = false\n"
    )
}

/// The agent's own process, for those that `ByHand` starts.
pub fn server(listen: &str) -> Command {
    let mut command = Command::new(attache());
    command.args(["bench", "--serve", listen]);
    // Its socket stays behind where it was killed, and it takes no path that is there.
    if let Some(path) = listen.strip_prefix("unix:")
        && let Err(error) = std::fs::remove_file(Path::new(path))
    {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{listen}");
    }
    command
}

/// Waits until a call passes: a sidecar is ready before it has heard of all others.
pub async fn reached(local: &str, agent: &str) {
    eventually("a call passes", || async {
        let called = pass(local, agent).await;
        called.map_err(|status| status.to_string())
    })
    .await;
}

/// Callers that call one after the other, over connections of theirs. Calls that were not sent are
/// sent again: their own sidecar may be away, and has said so.
pub struct Passing {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    callers: JoinSet<Vec<String>>,
}

impl Passing {
    /// So many callers at a local listener.
    pub fn start(local: &str, callers: usize) -> Self {
        let (stop, done) = (Arc::default(), Arc::default());
        let mut set = JoinSet::new();
        for _ in 0..callers {
            let pool = Pool::plaintext(Nursery::here());
            let channel = pool.channel(Target {
                endpoints: vec![local.to_owned()],
                expect: None,
            });
            set.spawn(call(pool, channel, Arc::clone(&stop), Arc::clone(&done)));
        }
        Self {
            stop,
            done,
            callers: set,
        }
    }

    /// Calls that were answered.
    pub fn done(&self) -> usize {
        self.done.load(Relaxed)
    }

    /// Waits until so many more calls are answered.
    pub async fn goes_on(&self, calls: usize) {
        let before = self.done();
        eventually("more passing calls are answered", || async {
            match self.done() - before {
                done if done >= calls => Ok(()),
                few => Err(format!("{few} of {calls}")),
            }
        })
        .await;
    }

    /// Ends the callers: how many calls were answered, and what those said that were not.
    pub async fn stop(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Relaxed);
        let mut failed = Vec::new();
        while let Some(told) = within("a caller ends", self.callers.join_next()).await {
            failed.extend(told.unwrap());
        }
        (self.done(), failed)
    }
}

async fn call(
    _pool: Pool,
    channel: Channel,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
) -> Vec<String> {
    let mut failed = Vec::new();
    while !stop.load(Relaxed) {
        match unary(channel.clone(), ECHO).await {
            Ok(()) => drop(done.fetch_add(1, Relaxed)),
            Err(status)
                if reason_of(&status).as_deref() == Some(Reason::PeerUnreachable.label()) =>
            {
                sleep(Duration::from_millis(10)).await;
            }
            Err(status) => {
                failed.push(format!("{status:?}"));
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
    failed
}

/// A call that passes, over a connection of its own.
pub async fn pass(local: &str, agent: &str) -> Result<(), Status> {
    let channel = Pool::plaintext(Nursery::here()).channel(Target {
        endpoints: vec![local.to_owned()],
        expect: None,
    });
    unary(channel, agent).await
}

async fn unary(channel: Channel, agent: &str) -> Result<(), Status> {
    let mut client = Grpc::new(channel);
    let ready = client.ready().await;
    ready.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = tonic::Request::new(());
    let agent = agent.parse().unwrap();
    request.metadata_mut().insert("attache-agent", agent);
    let codec = Protobuf::<(), ()>::default();
    let answer = client.unary(request, UNARY.parse().unwrap(), codec).await?;
    let () = answer.into_inner();
    Ok(())
}

/// A stream that passes: what is asked on it is answered, or it is answered without end.
pub struct Talk {
    send: SendStream<Bytes>,
    body: RecvStream,
    here: BytesMut,
    _nursery: Nursery,
}

impl Talk {
    /// Opens a stream of `path` on a connection of its own, with a first message; `window` is what
    /// is taken before it is asked for.
    pub async fn open(local: &str, path: &str, window: u32) -> Self {
        Self::open_to(AUTHORITY, local, path, window).await
    }

    /// The same to another agent.
    pub async fn open_to(authority: &str, local: &str, path: &str, window: u32) -> Self {
        let socket = local.strip_prefix("unix:").unwrap();
        let io = UnixStream::connect(socket).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window);
        builder.initial_connection_window_size(window.max(65_535));
        let (mut sender, connection) = builder.handshake(io).await.unwrap();
        let nursery = Nursery::here();
        nursery.adopt("passing connection", async move {
            // The stream tells how it ended.
            drop(connection.await);
        });
        poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
        let request = Request::post(format!("http://{authority}{path}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(());
        let (answer, mut send) = sender.send_request(request.unwrap(), false).unwrap();
        send.send_data(Bytes::from_static(ASK), path == POUR)
            .unwrap();
        let answer = within("a passing stream opens", answer).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers().get("grpc-status"), None);
        Self {
            send,
            body: answer.into_body(),
            here: BytesMut::new(),
            _nursery: nursery,
        }
    }

    /// Asks once more.
    pub fn ask(&mut self) {
        let message = Bytes::from_static(ASK);
        self.send.send_data(message, false).unwrap();
    }

    /// Takes the next answer.
    pub async fn answered(&mut self) {
        loop {
            // A message's prefix ends with its length.
            let length = self.here.get(1..5).map(|length| length.try_into().unwrap());
            let whole = length.map(|length| 5 + u32::from_be_bytes(length) as usize);
            if let Some(whole) = whole.filter(|whole| self.here.len() >= *whole) {
                drop(self.here.split_to(whole));
                return;
            }
            let more = within("an answer comes", self.more()).await;
            assert!(more.unwrap(), "the stream ended");
        }
    }

    /// Says that nothing more is asked, and takes the status.
    pub async fn close(mut self) -> Option<String> {
        self.send.send_data(Bytes::new(), true).unwrap();
        let rest = within("the stream ends", async {
            while self.more().await.map_err(|error| error.to_string())? {}
            let trailers = self.body.trailers().await;
            trailers.map_err(|error| error.to_string())
        });
        let trailers = match rest.await {
            Ok(trailers) => trailers?,
            Err(error) => return Some(error),
        };
        Some(trailers.get("grpc-status")?.to_str().unwrap().to_owned())
    }

    /// Reads to the end of the stream: bytes, and the code of its status, if it has one.
    pub async fn rest(mut self) -> (u32, Option<Code>) {
        let mut bytes = 0;
        loop {
            match self.more().await {
                Ok(true) => bytes += self.taken(),
                Ok(false) => break,
                Err(_) => return (bytes, None),
            }
        }
        let trailers = self.body.trailers().await.ok().flatten();
        let status = trailers.and_then(|trailers| {
            let status = trailers.get("grpc-status")?.as_bytes().to_vec();
            Some(Code::from_bytes(&status))
        });
        (bytes, status)
    }

    /// Reads a piece, and gives its window back; `false` at the end.
    pub async fn more(&mut self) -> Result<bool, h2::Error> {
        let Some(piece) = self.body.data().await else {
            return Ok(false);
        };
        let piece = piece?;
        self.body.flow_control().release_capacity(piece.len())?;
        self.here.extend_from_slice(&piece);
        Ok(true)
    }

    /// Takes what has been read.
    pub fn taken(&mut self) -> u32 {
        let taken = std::mem::take(&mut self.here).len();
        u32::try_from(taken).unwrap()
    }
}
