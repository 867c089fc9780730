//! The same call without a mesh: plain tonic over as many hops of the same kinds, in processes of
//! their own. What it lacks is all that a mesh is for.
//!
//! ```text
//! caller --plaintext--> first --mutual TLS 1.3--> second --plaintext--> last
//! ```

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use attache::pb::{
    self,
    handle_response::Update,
    handler_client::HandlerClient,
    handler_server::{Handler, HandlerServer},
};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    runtime::Builder,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{ClientConfig, RootCertStore, ServerConfig, server::WebPkiClientVerifier},
};
use tokio_stream::{Stream, StreamExt, once, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server, server::Connected},
};

use crate::Outcome;

/// Which of the processes this is.
const ROLE: &str = "ATTACHE_BENCH_PLAIN";
/// Where the key is.
const KEYS: &str = "ATTACHE_BENCH_KEYS";
/// Address of the next one.
const NEXT: &str = "ATTACHE_BENCH_NEXT";
/// Connections to the next hop, as a sidecar has them: one per core.
const CONNECTIONS: usize = 2;

/// The processes; ended when dropped.
pub(crate) struct Plain {
    processes: Vec<Child>,
    local: String,
}

impl Plain {
    /// Starts them, with a key below `scratch`.
    pub(crate) fn start(scratch: &Path) -> Outcome<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        fs::write(scratch.join("plain.crt"), made.cert.der())?;
        fs::write(scratch.join("plain.key"), made.signing_key.serialize_der())?;
        let mut plain = Self {
            processes: Vec::new(),
            local: String::new(),
        };
        for role in ["last", "second", "first"] {
            let mut process = Command::new(env::current_exe()?)
                .env(ROLE, role)
                .env(KEYS, scratch)
                .env(NEXT, &plain.local)
                .stdout(Stdio::piped())
                .spawn()?;
            let said = process.stdout.take().ok_or("no output")?;
            plain.processes.push(process);
            plain.local.clear();
            BufReader::new(said).read_line(&mut plain.local)?;
            plain.local.truncate(plain.local.trim_end().len());
        }
        Ok(plain)
    }

    /// Where callers call.
    pub(crate) fn local(&self) -> &str {
        &self.local
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // What has ended already need not be ended.
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// Whether this process is one of them; then it serves until it is killed.
pub(crate) fn serves() -> Outcome<bool> {
    let Ok(role) = env::var(ROLE) else {
        return Ok(false);
    };
    let threads = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    threads.block_on(serve(&role))?;
    Ok(true)
}

async fn serve(role: &str) -> Outcome<()> {
    let tls = (role != "last").then(|| Tls::read(Path::new(&env::var_os(KEYS).unwrap())));
    let tls = tls.transpose()?;
    let next = env::var(NEXT)?;
    let mut nexts = Vec::new();
    for _ in 0..if next.is_empty() { 0 } else { CONNECTIONS } {
        let endpoint = Endpoint::from_shared(format!("http://{next}"))?;
        nexts.push(match (role, &tls) {
            ("first", Some(tls)) => tls.dial(endpoint, next.clone()).await?,
            _ => endpoint.connect().await?,
        });
    }
    let relay = Relay {
        nexts: nexts.into(),
        turn: Arc::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let accept = tls.filter(|_| role == "second").map(|tls| tls.accept);
    let hops = async_accept(listener, accept);
    Server::builder()
        .add_service(HandlerServer::new(relay))
        .serve_with_incoming(hops)
        .await?;
    Ok(())
}

/// Connections, after their handshakes.
fn async_accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
) -> impl Stream<Item = std::io::Result<Hop>> {
    let (ready, hops) = tokio::sync::mpsc::channel(16);
    #[allow(
        clippy::disallowed_methods,
        reason = "a process of its own, ended by a signal"
    )]
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let hop: Box<dyn Io> = match &tls {
                Some(tls) => Box::new(tls.accept(stream).await.unwrap()),
                None => Box::new(stream),
            };
            drop(ready.send(Ok(Hop(hop))).await);
        }
    });
    ReceiverStream::new(hops)
}

/// One key for both ends.
struct Tls {
    accept: TlsAcceptor,
    connect: TlsConnector,
}

impl Tls {
    fn read(scratch: &Path) -> Outcome<Self> {
        let certificate = CertificateDer::from(fs::read(scratch.join("plain.crt"))?);
        let key = fs::read(scratch.join("plain.key"))?;
        let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.clone()));
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        let roots = Arc::new(roots);
        let chain = vec![certificate];
        let clients = WebPkiClientVerifier::builder(Arc::clone(&roots)).build()?;
        let mut server = ServerConfig::builder()
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key())?;
        let mut client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key())?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            accept: Arc::new(server).into(),
            connect: Arc::new(client).into(),
        })
    }

    async fn dial(&self, endpoint: Endpoint, address: String) -> Outcome<Channel> {
        let connect = self.connect.clone();
        let dial = tower::service_fn(move |_: http::Uri| {
            let (connect, address) = (connect.clone(), address.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(connect.connect(name, stream).await?))
            }
        });
        Ok(endpoint.connect_with_connector(dial).await?)
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

struct Hop(Box<dyn Io>);

impl Connected for Hop {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Hop {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Hop {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Passes calls on; the last one answers them with their input.
struct Relay {
    nexts: Arc<[Channel]>,
    turn: Arc<AtomicUsize>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<pb::HandleResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Handler for Relay {
    type HandleStream = Answers;

    async fn handle(
        &self,
        request: Request<pb::HandleRequest>,
    ) -> Result<Response<Answers>, Status> {
        let request = request.into_inner();
        if self.nexts.is_empty() {
            let inputs = request.inputs.into_iter();
            let result = pb::TaskResult {
                parts: inputs.flat_map(|input| input.parts).collect(),
                ..Default::default()
            };
            let update = Some(Update::Result(result));
            let answer: Answers = Box::pin(once(Ok(pb::HandleResponse { update })));
            return Ok(Response::new(answer));
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut next = HandlerClient::new(self.nexts[turn % self.nexts.len()].clone());
        let answers: Streaming<_> = next.handle(request).await?.into_inner();
        Ok(Response::new(Box::pin(answers.map(|answer| answer))))
    }

    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeResponse>, Status> {
        Err(Status::unimplemented("only Handle is measured"))
    }

    async fn cancel(
        &self,
        _: Request<pb::CancelRequest>,
    ) -> Result<Response<pb::CancelResponse>, Status> {
        Err(Status::unimplemented("only Handle is measured"))
    }
}
