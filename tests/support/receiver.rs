//! Whoever is called back at an https URL, in the test's own process: it keeps what it was told and
//! answers as it is told to.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// An authority of the test's own.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Believes nobody else.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }

    fn server(&self, names: &[&str]) -> ServerConfig {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }
}

/// One call.
#[derive(Clone, Debug)]
pub struct Got {
    pub path: String,
    pub headers: http::HeaderMap,
    pub text: String,
}

impl Got {
    /// What was told.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

/// An answer: status and one header.
pub type Answer = (u16, Option<(&'static str, String)>);

#[derive(Default)]
struct Book {
    got: Vec<Got>,
    answers: VecDeque<Answer>,
    otherwise: Option<Answer>,
    away: bool,
}

/// A server of the test's own; dropped, it is gone.
pub struct Receiver {
    pub at: SocketAddr,
    book: Arc<Mutex<Book>>,
    _serves: JoinSet<()>,
}

impl Receiver {
    /// Answers 200 to everything, with a certificate for these names.
    pub async fn start(authority: &Authority, names: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(authority.server(names)));
        let book = Arc::new(Mutex::new(Book::default()));
        let mut serves = JoinSet::new();
        let kept = book.clone();
        serves.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                if kept.lock().unwrap().away {
                    continue;
                }
                let (acceptor, book) = (acceptor.clone(), kept.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(|request| answer(&book, request));
                    // A caller that goes away is no concern of the test.
                    let _ended = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            at,
            book,
            _serves: serves,
        }
    }

    /// Answers with `first`, and then with `then` again and again, until its caller goes away.
    pub async fn endless(authority: &Authority, names: &[&str], first: &str, then: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(authority.server(names)));
        let (first, then) = (first.to_owned(), then.to_owned());
        let mut serves = JoinSet::new();
        serves.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut asked = [0; 1024];
                let mut said = stream.read(&mut asked).await.map(drop);
                if said.is_ok() {
                    said = stream.write_all(first.as_bytes()).await;
                }
                while said.is_ok() {
                    if then.is_empty() {
                        std::future::pending::<()>().await;
                    }
                    said = stream.write_all(then.as_bytes()).await;
                }
            }
        });
        Self {
            at,
            book: Arc::default(),
            _serves: serves,
        }
    }

    /// Answers the next calls so, each once.
    pub fn answers(&self, answers: impl IntoIterator<Item = Answer>) {
        self.book.lock().unwrap().answers.extend(answers);
    }

    /// Answers so whenever nothing else was said.
    pub fn otherwise(&self, status: u16) {
        self.book.lock().unwrap().otherwise = Some((status, None));
    }

    /// Hangs up on everybody from now on, or not any more.
    pub fn away(&self, away: bool) {
        self.book.lock().unwrap().away = away;
    }

    /// What it was told so far.
    pub fn got(&self) -> Vec<Got> {
        self.book.lock().unwrap().got.clone()
    }
}

async fn answer(
    book: &Mutex<Book>,
    request: http::Request<Incoming>,
) -> Result<http::Response<Empty<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut book = book.lock().unwrap();
    book.got.push(Got {
        path: head.uri.to_string(),
        headers: head.headers,
        text: String::from_utf8(body.to_vec()).unwrap(),
    });
    let otherwise = book.otherwise.clone();
    let next = book.answers.pop_front().or(otherwise);
    let (status, header) = next.unwrap_or((200, None));
    let mut answer = http::Response::builder().status(status);
    if let Some((name, value)) = header {
        answer = answer.header(name, value);
    }
    Ok(answer.body(Empty::new()).unwrap())
}
