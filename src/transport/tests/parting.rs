//! The end of a connection, frame by frame, as a client sees it that is late to hear of it.

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::mutual::{HOUR, Mesh};
use super::*;
use crate::identity::{Credentials, Expect, joining_config};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;

#[derive(Debug)]
struct Heard {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Heard {
    /// Error code and last stream of a GOAWAY.
    fn going(&self) -> (u32, u32) {
        let number = |at: usize| u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap());
        (number(4), number(0))
    }
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<I: AsyncRead + AsyncWrite + Unpin + Send> Io for I {}

/// A client of HTTP/2 that does nothing by itself.
struct Raw {
    io: Box<dyn Io>,
}

impl Raw {
    async fn over(io: impl Io + 'static) -> Self {
        let mut raw = Self { io: Box::new(io) };
        raw.say(&[PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])])
            .await;
        raw.until(|heard| heard.kind == SETTINGS && heard.flags == ACK)
            .await;
        raw
    }

    async fn say(&mut self, frames: &[Vec<u8>]) {
        let said = self.io.write_all(&frames.concat()).await;
        said.expect("the server still listens");
        self.io.flush().await.expect("the server still listens");
    }

    /// The next frame; `None` once the server has closed its side.
    async fn next(&mut self) -> Option<Heard> {
        let mut head = [0; 9];
        let first = self.io.read(&mut head[..1]).await.expect("no reset");
        if first == 0 {
            return None;
        }
        self.io.read_exact(&mut head[1..]).await.unwrap();
        let size = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; size as usize];
        self.io.read_exact(&mut payload).await.unwrap();
        Some(Heard {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    async fn until(&mut self, wanted: impl Fn(&Heard) -> bool) -> Heard {
        let listening = async {
            loop {
                let heard = self.next().await.expect("it is not the end yet");
                if wanted(&heard) {
                    return heard;
                }
                assert!(heard.kind != GOAWAY || heard.going().0 == 0, "{heard:?}");
            }
        };
        timeout(GRACE, listening).await.expect("it is said in time")
    }

    /// Hears that it has to go, and answers so, with more behind the answer.
    async fn answer_with(&mut self, behind: &[Vec<u8>]) {
        let first = self.until(|heard| heard.kind == GOAWAY).await;
        assert_eq!(first.going(), (0, i32::MAX.cast_unsigned()));
        let ping = self.until(|heard| heard.kind == PING).await;
        let mut words = vec![frame(PING, ACK, 0, &ping.payload)];
        words.extend_from_slice(behind);
        self.say(&words).await;
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = size[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The beginning of a call.
fn headers(stream: u32, path: &str) -> Vec<u8> {
    // By the static table: POST, http; the path and the authority as literals.
    let mut block = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.as_bytes());
    block.extend([0x01, 1, b'x']);
    // The content type's name by the static table.
    block.extend([0x0f, 0x10, 16]);
    block.extend(b"application/grpc");
    frame(HEADERS, 4, stream, &block)
}

/// A call as gRPC's C core writes it.
fn call_of_c_core(stream: u32, body: &[u8]) -> [Vec<u8>; 3] {
    [
        headers(stream, "/echo"),
        frame(WINDOW_UPDATE, 0, stream, &5_u32.to_be_bytes()),
        frame(DATA, END_STREAM, stream, body),
    ]
}

#[tokio::test]
async fn calls_behind_the_answer_to_the_last_ping_are_served_and_harm_no_other() {
    let seen = Seen::new();
    let threads = DataThreads::start(1).unwrap();
    let (server, _) = serve("127.0.0.1:0", &threads, Limits::default(), &seen);
    let mut raw = Raw::over(TcpStream::connect(server.address()).await.unwrap()).await;
    raw.say(&[headers(1, "/flow")]).await;
    raw.until(|heard| heard.kind == HEADERS && heard.stream == 1)
        .await;
    server.leave().await;
    raw.answer_with(&call_of_c_core(3, b"late")).await;
    raw.until(|heard| heard.stream == 3 && heard.payload == b"late")
        .await;
    let last = raw.until(|heard| heard.kind == GOAWAY).await;
    assert_eq!(last.going(), (0, 3));
    raw.say(&[frame(DATA, END_STREAM, 1, b"on")]).await;
    raw.until(|heard| heard.stream == 1 && heard.payload == b"on")
        .await;
    drop(raw);
    server.drain(GRACE).await;
    assert_eq!(seen.calls.load(SeqCst), 2);
}

/// Of every kind of listener: whoever writes before it reads is not reset, and reads the last GOAWAY.
#[tokio::test]
async fn who_still_writes_to_a_server_that_went_can_read_its_last_word() {
    let (mesh, dir) = (Mesh::new(), tempfile::tempdir().unwrap());
    let socket = format!("unix:{}", dir.path().join("s").display());
    let own = mesh.agent("server", HOUR);
    let registry = "spiffe://attache.local/registry/main".parse().unwrap();
    let issuer = Credentials::new(mesh.authority.svid(&registry, None, HOUR).unwrap());
    let pin = mesh.authority.root_key_pin().unwrap();
    let member = mesh.agent("client", HOUR);
    let listeners = [
        (Security::Plaintext, socket.as_str(), None),
        (Security::Plaintext, "127.0.0.1:0", None),
        (
            Security::MutualTls(own.clone()),
            "127.0.0.1:0",
            Some(member.client_config(Expect::Member(own.id()))),
        ),
        (
            Security::Enrollment(issuer),
            "127.0.0.1:0",
            Some(joining_config(pin)),
        ),
    ];
    let (seen, threads) = (Seen::new(), DataThreads::start(1).unwrap());
    for (security, address, tls) in listeners {
        let name = format!("{security:?} on {address}");
        let listener = Listener::parse(address).unwrap();
        let limits = Limits::default();
        let server = Server::start(listener, security, &threads, limits, |_| seen.routes());
        let mut raw = match (server.address().strip_prefix("unix:"), tls) {
            (Some(path), _) => Raw::over(UnixStream::connect(path).await.unwrap()).await,
            (None, None) => Raw::over(TcpStream::connect(server.address()).await.unwrap()).await,
            (None, Some(config)) => {
                let stream = TcpStream::connect(server.address()).await.unwrap();
                let server_name = ServerName::try_from("mesh.internal").unwrap();
                let tls = TlsConnector::from(config)
                    .connect(server_name, stream)
                    .await;
                Raw::over(tls.unwrap()).await
            }
        };
        server.leave().await;
        raw.answer_with(&[]).await;
        let last = raw.until(|heard| heard.kind == GOAWAY).await;
        assert_eq!(last.going(), (0, 0), "{name}");
        assert!(raw.next().await.is_none(), "{name}");
        // Twice: the first word to a closed socket brings the reset, the second one meets it.
        for _ in 0..2 {
            raw.say(&call_of_c_core(1, b"too late")).await;
        }
        assert_eq!(server.connections(), 1, "{name}: it waits for its peer");
        drop(raw);
        until(&name, || server.connections() == 0).await;
        server.drain(GRACE).await;
    }
    assert_eq!(seen.calls.load(SeqCst), 0);
}
